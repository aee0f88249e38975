//! Scripted stand-ins for the machine, the CPU and the guest's memory: for this crate's tests, and by the feature `fake`
//! for `fuzz/`. They panic where policy asks for what is not the guest's.

#![allow(missing_docs, clippy::unwrap_used)] // for tests: a panic is the failure

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::rc::Rc;
use std::string::{String, ToString};
use std::sync::atomic::{AtomicU8, Ordering};
use std::vec;
use std::vec::Vec;

use arch::exit::{ExitReason, Vectoring};
use arch::interrupt::{InterruptRegisters, InterruptTarget, MsiMessage};
use arch::machine::{
    ConfigSpace, CpuRequest, CpuidResult, GuestMemory, InterruptLine, MAX_STAND_INS, Machine,
    NotGuestMemory, Part, PitRegister, RouteRefused, SharedPage,
};
use arch::machine_check::MachineCheck;
use arch::msr::IA32_X2APIC_ISR0;
use arch::register::{Gpr, Rflags};
use arch::segment::{DescriptorTable, DescriptorTableRegister, Segment, SegmentRegister};
use arch::vcpu::{DebugRegisters, Event, StartState, SystemCallMsrs, Vcpu};
use arch::{ApicId, Bdf, Gpa, Hpa, Vector, Width};
use pci::Owned;
use pci::owned::NotOwned;

use crate::msr::{policy_may_read, policy_may_write};

/// What policy did to the machine that a device or another CPU can notice, in the order of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Done {
    /// A shadow page shows something else now: a gate was opened.
    Shadow,
    Route(InterruptLine, bool),
    Register(Part, u64, u64),
    Entry(Bdf, u16, Option<MsiMessage>),
    Config(Bdf, u16, u32),
    Ring(ApicId, Vector),
    Pit(PitRegister, u8),
    Ipi(usize, Vector),
}

/// One list, of the machine and its configuration space.
pub type Order = Rc<RefCell<Vec<Done>>>;

/// A machine whose answers a test sets, and which records what is done to it. It panics where policy asks for what is
/// not the guest's.
pub struct FakeMachine {
    pub tsc: u64,
    pub tsc_khz: u64,
    pub apic_timer_hz: Option<u64>,
    pub unix_time: u64,
    pub cpuid: BTreeMap<(u32, u32), CpuidResult>,
    pub msrs: BTreeMap<u32, u64>,
    pub xcr0: u64,
    /// Low halves of XMM0 to XMM15.
    pub xmm: [[u8; 16]; 16],
    /// Where the shadow pages are, and what they show.
    pub shadow_at: Vec<Option<Gpa>>,
    pub shadow: Vec<SharedPage>,
    /// Whether changes of them are in the order.
    pub watches_shadows: bool,
    /// Where pages stand in for others, and what they hold.
    pub stand_in_at: [Option<Gpa>; MAX_STAND_INS],
    pub stand_ins: [[u8; 4096]; MAX_STAND_INS],
    pub self_ipis: Vec<Vector>,
    pub eois: usize,
    pub written_back: usize,
    pub machine_check: MachineCheck,
    /// What went to other CPUs of the guest.
    pub ipis: Vec<(usize, Vector)>,
    /// What went to CPUs of other guests.
    pub rung: Vec<(ApicId, Vector)>,
    pub requests: Vec<(usize, CpuRequest)>,
    /// CPUs of the guest that were to exit.
    pub called: Vec<usize>,
    pub routes: Vec<(InterruptLine, Option<InterruptTarget>)>,
    pub typed: VecDeque<u8>,
    pub printed: Vec<u8>,
    pub log: Vec<String>,
    pub order: Order,
    pub owned: Owned,
    /// A device has lied: what is not the guest's is refused, as the kernel does, and is no mistake of policy.
    pub refuses: bool,
    /// What a device's registers read as.
    pub says: u64,
    /// Pages of parts that the guest reaches without an exit, by their addresses in the guest.
    pub mapped: BTreeMap<u64, Hpa>,
    /// Where the guest's registers were accessed on its behalf, with the widths.
    pub touched: Vec<(Hpa, Width)>,
    /// The MSRs that were read, and those that were written.
    pub read_msrs: BTreeSet<u32>,
    pub written_msrs: BTreeSet<u32>,
}

impl Default for FakeMachine {
    fn default() -> Self {
        Self {
            tsc: 5_000_000,
            tsc_khz: 2_000_000,
            apic_timer_hz: None,
            unix_time: 1_000_000_000,
            cpuid: BTreeMap::new(),
            msrs: BTreeMap::new(),
            xcr0: 1,
            xmm: [[0; 16]; 16],
            shadow_at: vec![None; 2],
            shadow: vec![blank(), blank()],
            watches_shadows: false,
            stand_in_at: [None; MAX_STAND_INS],
            stand_ins: [[0; 4096]; MAX_STAND_INS],
            self_ipis: Vec::new(),
            eois: 0,
            written_back: 0,
            machine_check: MachineCheck::NotHere,
            ipis: Vec::new(),
            rung: Vec::new(),
            requests: Vec::new(),
            called: Vec::new(),
            routes: Vec::new(),
            typed: VecDeque::new(),
            printed: Vec::new(),
            log: Vec::new(),
            order: Order::default(),
            owned: Owned::default(),
            refuses: false,
            says: u64::MAX,
            mapped: BTreeMap::new(),
            touched: Vec::new(),
            read_msrs: BTreeSet::new(),
            written_msrs: BTreeSet::new(),
        }
    }
}

const fn blank() -> SharedPage {
    [const { AtomicU8::new(0) }; 4096]
}

impl FakeMachine {
    /// With the shadow pages of this many CPUs.
    #[must_use]
    pub fn of_cpus(cpus: usize) -> Self {
        let shadow = (0..2 * cpus).map(|_| blank()).collect();
        let shadow_at = vec![None; 2 * cpus];
        Self { shadow_at, shadow, ..Self::default() }
    }

    /// What a shadow page shows.
    #[must_use]
    pub fn shown(&self, slot: usize) -> Vec<u8> {
        self.shadow[slot].iter().map(|byte| byte.load(Ordering::Relaxed)).collect()
    }

    /// What policy asked for, which is the guest's unless a device has lied.
    fn found<T>(&self, place: Result<T, NotOwned>) -> Option<T> {
        if self.refuses { place.ok() } else { Some(place.unwrap()) }
    }

    fn did(&self, what: Done) {
        self.order.borrow_mut().push(what);
    }
}

impl Machine for FakeMachine {
    fn tsc(&self) -> u64 {
        self.tsc
    }
    fn tsc_khz(&self) -> u64 {
        self.tsc_khz
    }
    fn apic_timer_hz(&self) -> Option<u64> {
        self.apic_timer_hz
    }
    fn unix_time(&self) -> u64 {
        self.unix_time
    }
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        self.cpuid.get(&(leaf, subleaf)).copied().unwrap_or_default()
    }
    fn read_msr(&mut self, msr: u32) -> Option<u64> {
        assert!(policy_may_read(msr), "policy read MSR {msr:#x}");
        self.read_msrs.insert(msr);
        self.msrs.get(&msr).copied()
    }
    fn write_msr(&mut self, msr: u32, value: u64) -> bool {
        assert!(policy_may_write(msr), "policy wrote MSR {msr:#x}");
        self.written_msrs.insert(msr);
        self.msrs.insert(msr, value).is_some()
    }
    fn write_xcr0(&mut self, value: u64) -> bool {
        let allowed = value & 1 != 0;
        if allowed {
            self.xcr0 = value;
        }
        allowed
    }
    fn pit_write(&mut self, register: PitRegister, value: u8) {
        if self.found(self.owned.pit_port(register, value)).is_some() {
            self.did(Done::Pit(register, value));
        }
    }
    fn part_read(&mut self, part: Part, offset: u64, width: Width) -> u64 {
        let Some(at) = self.found(self.owned.register(part, offset, width)) else {
            return width.mask();
        };
        self.touched.push((at, width));
        self.says & width.mask()
    }
    fn part_write(&mut self, part: Part, offset: u64, width: Width, value: u64) {
        let Some(at) = self.found(self.owned.register(part, offset, width)) else { return };
        self.touched.push((at, width));
        self.did(Done::Register(part, offset, value));
    }
    fn set_msix_entry(&mut self, function: Bdf, index: u16, message: Option<MsiMessage>) {
        if self.found(self.owned.msix_entry(function, index)).is_some() {
            self.did(Done::Entry(function, index, message));
        }
    }
    fn self_ipi(&mut self, vector: Vector) {
        self.self_ipis.push(vector);
    }
    /// Counts, and clears the highest bit of the ISR that a test has put among the MSRs.
    fn eoi(&mut self) {
        self.eois += 1;
        let mut isr = self.msrs.range_mut(IA32_X2APIC_ISR0..IA32_X2APIC_ISR0 + 8).rev();
        if let Some((_, word)) = isr.find(|(_, word)| **word != 0) {
            *word &= !(1 << word.ilog2());
        }
    }
    fn machine_check(&mut self) -> MachineCheck {
        self.machine_check
    }
    fn write_back_caches(&mut self) {
        self.written_back += 1;
    }
    fn send_ipi(&mut self, cpu: usize, vector: Vector) {
        self.did(Done::Ipi(cpu, vector));
        self.ipis.push((cpu, vector));
    }
    fn ring(&mut self, to: ApicId, vector: Vector) {
        self.did(Done::Ring(to, vector));
        self.rung.push((to, vector));
    }
    fn request(&mut self, cpu: usize, what: CpuRequest) {
        self.requests.push((cpu, what));
    }
    fn have_exit(&mut self, cpu: usize) {
        self.called.push(cpu);
    }
    fn route(
        &mut self,
        line: InterruptLine,
        target: Option<InterruptTarget>,
    ) -> Result<MsiMessage, RouteRefused> {
        self.did(Done::Route(line, target.is_some()));
        self.routes.push((line, target));
        Ok(MsiMessage { address: 0xfee0_0010, data: 0 })
    }
    fn map(&mut self, gpa: Gpa, part: Part, offset: u64, length: u64) {
        let Some(start) = self.found(self.owned.pages(part, offset, length)) else { return };
        for at in (0..length).step_by(4096) {
            let page = gpa.wrapping_add(at).as_u64();
            assert_eq!(
                self.mapped.insert(page, start.wrapping_add(at)),
                None,
                "{page:#x} is taken"
            );
        }
    }
    fn unmap(&mut self, gpa: Gpa, length: u64) {
        let gone = gpa.as_u64()..gpa.as_u64().saturating_add(length);
        let gone: Vec<u64> = self.mapped.range(gone).map(|(page, _)| *page).collect();
        gone.iter().for_each(|page| assert!(self.mapped.remove(page).is_some()));
    }
    fn set_shadow_page(&mut self, slot: usize, gpa: Option<Gpa>) {
        self.shadow_at[slot] = gpa;
    }
    fn with_shadow_page(&mut self, slot: usize, work: impl FnOnce(&SharedPage)) {
        let before = self.watches_shadows.then(|| self.shown(slot));
        work(&self.shadow[slot]);
        if before.is_some_and(|before| before != self.shown(slot)) {
            self.did(Done::Shadow);
        }
    }
    fn set_stand_in(&mut self, slot: usize, page: Option<Gpa>) -> bool {
        let reached = page.is_none_or(|page| page.as_u64() < 1 << 48);
        if reached && page.is_some() {
            self.stand_ins[slot] = [0xff; 4096];
        }
        self.stand_in_at[slot] = page.filter(|_| reached);
        reached
    }
    fn with_stand_in(&mut self, slot: usize, work: impl FnOnce(&mut [u8; 4096])) {
        work(&mut self.stand_ins[slot]);
    }
    fn vector_register(&self, register: u8) -> [u8; 16] {
        self.xmm[usize::from(register)]
    }
    fn console_write(&mut self, byte: u8) {
        self.printed.push(byte);
    }
    fn console_read(&mut self) -> Option<u8> {
        self.typed.pop_front()
    }
    fn log(&mut self, line: fmt::Arguments<'_>) {
        self.log.push(line.to_string());
    }
}

/// Guest RAM from address 0 on.
pub struct FakeMemory(pub Vec<u8>);

impl FakeMemory {
    fn range(&self, gpa: Gpa, length: usize) -> Result<std::ops::Range<usize>, NotGuestMemory> {
        let start = usize::try_from(gpa.as_u64()).map_err(|_| NotGuestMemory(gpa))?;
        let end = start.checked_add(length).filter(|end| *end <= self.0.len());
        Ok(start..end.ok_or(NotGuestMemory(gpa))?)
    }
}

impl GuestMemory for FakeMemory {
    fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), NotGuestMemory> {
        bytes.copy_from_slice(&self.0[self.range(gpa, bytes.len())?]);
        Ok(())
    }
    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), NotGuestMemory> {
        let range = self.range(gpa, bytes.len())?;
        self.0[range].copy_from_slice(bytes);
        Ok(())
    }
}

const PAT_RESET: u64 = 0x0007_0406_0007_0406;

/// A CPU that holds what it is given.
pub struct FakeVcpu {
    pub state: StartState,
    pub pat: u64,
    pub calls: SystemCallMsrs,
    pub cr2: u64,
    /// What was loaded for the page-directory pointers.
    pub pointers: Option<[u64; 4]>,
    pub debug: DebugRegisters,
    /// Length of the instruction that exited, if a test sets it.
    pub length: u8,
    pub pkru: u32,
    pub injected: Option<Event>,
    /// What its last exit has cut short.
    pub vectoring: Option<Vectoring>,
    /// The instruction before RIP holds interrupts back.
    pub interrupt_shadow: bool,
    pub window: bool,
    pub halt_exits: bool,
    pub exception_intercepts: u32,
    pub halted: Option<bool>,
    /// What CR8 reads, and the class that waits for it to fall (exiting mode).
    pub cr8: u8,
    pub awaited: u8,
    /// In the posted mode the guest's interrupts, as the CPU keeps them.
    pub interrupts: Option<InterruptRegisters>,
    pub accepting: bool,
    /// What [`Vcpu::pass_x2apic`] was told last.
    pub x2apic_passes: bool,
    /// How often what it has cached of the nested table was dropped.
    pub flushed: usize,
}

impl Default for FakeVcpu {
    fn default() -> Self {
        Self {
            state: StartState::after_sipi(0),
            pat: PAT_RESET,
            calls: SystemCallMsrs::default(),
            cr2: 0,
            pointers: None,
            debug: DebugRegisters::default(),
            length: 0,
            pkru: 0,
            injected: None,
            vectoring: None,
            interrupt_shadow: false,
            window: false,
            halt_exits: false,
            exception_intercepts: 0,
            halted: None,
            cr8: 0,
            awaited: 0,
            interrupts: None,
            accepting: false,
            x2apic_passes: true,
            flushed: 0,
        }
    }
}

impl Vcpu for FakeVcpu {
    fn run(&mut self) -> ExitReason {
        panic!("the fake CPU does not run")
    }
    fn step(&mut self, _: Hpa, _: bool) -> ExitReason {
        panic!("the fake CPU does not run")
    }
    fn vectoring(&self) -> Option<Vectoring> {
        self.vectoring
    }
    fn instruction_length(&self, bare: u8) -> u8 {
        self.length.max(bare)
    }
    fn load(&mut self, state: &StartState) {
        (self.state, self.pat, self.calls) = (*state, PAT_RESET, SystemCallMsrs::default());
    }
    fn gpr(&self, register: Gpr) -> u64 {
        self.state.gpr[register as usize]
    }
    fn set_gpr(&mut self, register: Gpr, value: u64) {
        self.state.gpr[register as usize] = value;
    }
    fn rip(&self) -> u64 {
        self.state.rip
    }
    fn set_rip(&mut self, rip: u64) {
        self.state.rip = rip;
    }
    fn rflags(&self) -> u64 {
        self.state.rflags
    }
    fn set_rflags(&mut self, rflags: u64) {
        self.state.rflags = rflags;
    }
    fn cr0(&self) -> u64 {
        self.state.cr0
    }
    fn cr2(&self) -> u64 {
        self.cr2
    }
    fn set_cr2(&mut self, value: u64) {
        self.cr2 = value;
    }
    fn cr3(&self) -> u64 {
        self.state.cr3
    }
    fn cr4(&self) -> u64 {
        self.state.cr4
    }
    fn set_cr0(&mut self, value: u64) {
        self.state.cr0 = value;
    }
    fn set_cr3(&mut self, value: u64, pointers: Option<[u64; 4]>) {
        (self.state.cr3, self.pointers) = (value, pointers);
    }
    fn debug_registers(&self) -> DebugRegisters {
        self.debug
    }
    fn set_debug_registers(&mut self, registers: &DebugRegisters) {
        self.debug = *registers;
    }
    fn system_call_msrs(&self) -> SystemCallMsrs {
        self.calls
    }
    fn set_system_call_msrs(&mut self, msrs: &SystemCallMsrs) {
        self.calls = *msrs;
    }
    fn breakpoints(&self) -> Option<DebugRegisters> {
        (self.debug.control & 0xff != 0).then_some(self.debug)
    }
    fn meet_breakpoints(&mut self, met: u8) {
        self.debug.status = self.debug.status & !0xf | u64::from(met);
        self.injected = Some(Event::exception(arch::vcpu::exception::DB, None));
    }
    fn set_cr4(&mut self, value: u64) {
        self.state.cr4 = value;
    }
    fn efer(&self) -> u64 {
        self.state.efer
    }
    fn set_efer(&mut self, value: u64) {
        self.state.efer = value;
    }
    fn pat(&self) -> u64 {
        self.pat
    }
    fn set_pat(&mut self, value: u64) {
        self.pat = value;
    }
    fn segment(&self, register: SegmentRegister) -> Segment {
        self.state.segments[register as usize]
    }
    fn set_segment(&mut self, register: SegmentRegister, segment: Segment) {
        self.state.segments[register as usize] = segment;
    }
    fn descriptor_table(&self, register: DescriptorTableRegister) -> DescriptorTable {
        match register {
            DescriptorTableRegister::Gdtr => self.state.gdtr,
            DescriptorTableRegister::Idtr => self.state.idtr,
        }
    }
    fn set_descriptor_table(&mut self, register: DescriptorTableRegister, table: DescriptorTable) {
        match register {
            DescriptorTableRegister::Gdtr => self.state.gdtr = table,
            DescriptorTableRegister::Idtr => self.state.idtr = table,
        }
    }
    fn cpl(&self) -> u8 {
        self.state.segments[SegmentRegister::Ss as usize].access.dpl()
    }
    fn protection_keys(&self) -> u32 {
        self.pkru
    }
    fn skip_instruction(&mut self, length: u8) {
        self.state.rip += u64::from(length);
        self.state.rflags &= !Rflags::RF.bits();
        self.interrupt_shadow = false;
    }
    fn inject(&mut self, event: Event) {
        self.injected = Some(event);
    }
    fn injecting(&self) -> bool {
        self.injected.is_some()
    }
    fn interruptible(&self) -> bool {
        self.state.rflags & Rflags::IF.bits() != 0 && !self.interrupt_shadow
    }
    fn set_interrupt_window(&mut self, wanted: bool) {
        self.window = wanted;
        self.halt_exits = wanted;
    }
    fn move_to_control_register(&mut self) -> bool {
        false
    }
    fn let_halt(&mut self) {
        self.halt_exits = false;
    }
    fn set_exception_intercepts(&mut self, bitmap: u32) {
        self.exception_intercepts = bitmap;
    }
    fn show_interrupts(&mut self, shown: &InterruptRegisters, awaited: u8) {
        (self.cr8, self.awaited) = (shown.tpr >> 4, awaited);
        if let Some(interrupts) = &mut self.interrupts {
            *interrupts = *shown;
        }
    }
    fn take_interrupts(&mut self, known: &mut InterruptRegisters) {
        match self.interrupts {
            Some(kept) => *known = InterruptRegisters { tmr: known.tmr, ..kept },
            None if self.cr8 == known.tpr >> 4 => {}
            None => known.tpr = self.cr8 << 4,
        }
    }
    fn accept_interrupts(&mut self, accepting: bool) {
        self.accepting = accepting;
    }
    fn flush_nested(&mut self) {
        self.flushed += 1;
    }
    fn pass_x2apic(&mut self, pass: bool) {
        self.x2apic_passes = pass;
    }
    fn set_host_timer(&mut self, _: Option<u64>) -> bool {
        false
    }
    fn halted(&self) -> Option<bool> {
        self.halted
    }
    fn wake(&mut self) {
        self.halted = Some(false);
    }
    fn write_state(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "vmcs 681e={:x}", self.state.rip)
    }
}

/// Configuration space of bytes, each with a mask of the bits that software can write.
#[derive(Default)]
pub struct FakeConfig(BTreeMap<Bdf, Vec<(u8, u8)>>, pub Order);

impl FakeConfig {
    /// A function with these dwords: offset, value, writable bits.
    pub fn add(&mut self, at: Bdf, registers: &[(usize, u32, u32)]) {
        let mut bytes = vec![(0, 0); 4096];
        for (offset, value, writable) in registers {
            let parts = value.to_le_bytes().into_iter().zip(writable.to_le_bytes());
            for (place, part) in bytes[*offset..].iter_mut().zip(parts) {
                *place = part;
            }
        }
        self.0.insert(at, bytes);
    }
}

impl ConfigSpace for FakeConfig {
    fn read(&self, function: Bdf, offset: u16, width: Width) -> u32 {
        let Some(bytes) = self.0.get(&function) else { return width.mask() as u32 };
        let part = &bytes[usize::from(offset)..][..usize::from(width.bytes())];
        part.iter().rev().fold(0, |value, (byte, _)| value << 8 | u32::from(*byte))
    }
    fn write(&mut self, function: Bdf, offset: u16, width: Width, value: u32) {
        let Some(bytes) = self.0.get_mut(&function) else { return };
        self.1.borrow_mut().push(Done::Config(function, offset, value));
        let part = &mut bytes[usize::from(offset)..][..usize::from(width.bytes())];
        for ((byte, writable), new) in part.iter_mut().zip(value.to_le_bytes()) {
            *byte = *byte & !*writable | new & *writable;
        }
    }
}
