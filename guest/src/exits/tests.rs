//! The exit policy on a scripted CPU and machine: the world that the tests share, and the dispatch.

mod breakpoints;
mod ends;
mod halt_detector;
mod hardware;
mod hostile;
mod interrupts;
mod legacy;
mod memory;
mod order;
mod physical;
mod ports;
mod processors;
mod registers;
mod steps;
mod tables;
mod tasks;
mod waits;

use std::cell::RefCell;
use std::sync::atomic::Ordering;

use arch::address::HpaRange;
use arch::exit::NestedPageFault;
use arch::machine::{CpuidResult, GuestMemory, Part};
use arch::msr::IA32_X2APIC_SIVR;
use arch::register::{Cr4, Gpr, Rflags};
use arch::segment::{AccessRights, DescriptorTable, Segment, SegmentRegister};
use arch::vcpu::InterruptMode;
use arch::{ApicId, Bdf, Gpa, Gva, Hpa, Vector};

use eli::VirtualApic;

use super::*;
use crate::cpuid::CpuidPolicy;
use crate::fake::{Done, FakeConfig, FakeMachine, FakeMemory, FakeVcpu};
use crate::lines::Line;
use crate::memory_map::GpaRange;
use crate::pci::VirtualBus;
use crate::vm::{CpuState, Guest, Vm};

/// The guest's memory map. RAM is mapped to itself, page by page; so is the last GiB below 4 GiB,
/// where the devices are.
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const OPERAND: u64 = 0x5000;
const CODE: u64 = 0x6000;
const IDT: u64 = 0x8000;
const RAM: u64 = 0x1_0000;
const ECAM: u64 = 0xe000_0000;
/// Physical CPU behind the guest's only one.
const CPU: ApicId = ApicId(6);
/// The function that the guest owns: 16 KiB BAR with an MSI-X table of 4 entries at 0x2000.
const NVME: Bdf = Bdf::new(0, 4, 0);
const BAR: u64 = 0xfebd_0000;
const REGISTERS: Part = Part::Bar { function: NVME, index: 0 };
/// Another one: 64-bit MSI, which can be masked.
const NIC: Bdf = Bdf::new(0, 7, 0);
/// Memory that the guest shares.
const REGION: HpaRange = HpaRange { start: Hpa::new(0x1_2340_0000), length: 0x1000 };
/// The physical lines that the guest owns.
const LINES: [Line; 2] =
    [Line { input: 14, gsi: 14, active_low: false }, Line { input: 17, gsi: 40, active_low: true }];
/// Flags of an interrupt gate of ring 0, and of the same closed by the shadow.
const OPEN: u8 = 0x8e;
const CLOSED: u8 = 0x0e;

pub(super) struct Edge;

impl Platform for Edge {
    type Vcpu = FakeVcpu;
    type Machine = FakeMachine;
    type Memory = FakeMemory;
    type Config = FakeConfig;
}

pub(super) struct World {
    guest: Guest,
    vm: Vm,
    cpu: CpuState,
    pub(super) vcpu: FakeVcpu,
    machine: FakeMachine,
    pub(super) memory: FakeMemory,
    config: FakeConfig,
}

/// A lock that panics where it is taken twice.
impl VmLock for RefCell<&mut Vm> {
    fn with<T>(&self, work: impl FnOnce(&mut Vm) -> T) -> T {
        work(&mut self.borrow_mut())
    }
}

impl World {
    /// A guest in 64-bit mode with interrupts on, before its first LIDT.
    pub(super) fn new(mode: InterruptMode) -> Self {
        let mut machine = FakeMachine::default();
        let address_sizes = CpuidResult { eax: 39, ..CpuidResult::default() };
        machine.cpuid.insert((0x8000_0008, 0), address_sizes);
        let amd = CpuidResult { ebx: u32::from_le_bytes(*b"Auth"), ..CpuidResult::default() };
        machine.cpuid.insert((0, 0), amd);
        let mut config = FakeConfig::default();
        let header = [(0, 0x1234_8086, 0), (4, 0x0010_0003, 0x7ff), (8, 0x0108_0200, 0)];
        let bar = [(0x10, BAR as u32, 0xffff_c000), (0x34, 0x40, 0)];
        let msix = [(0x40, 0x0003_0011, 0xc000_0000), (0x44, 0x2000, 0), (0x48, 0x3000, 0)];
        config.add(NVME, &[&header[..], &bar, &msix].concat());
        let header = [(0, 0x5678_8086, 0), (4, 0x0010_0003, 0x7ff), (8, 0x0200_0000, 0)];
        let msi =
            [(0x50, 0x0180_0005, 0x0071_0000), (0x54, 0, !3), (0x58, 0, !0), (0x5c, 0, 0xffff)];
        config.add(NIC, &[&header[..], &[(0x34, 0x50, 0)], &msi, &[(0x60, 0, !0)]].concat());
        config.1 = machine.order.clone();
        let windows = vec![GpaRange::between(0xf000_0000, 0xfec0_0000)];
        let ecam = GpaRange::between(ECAM, ECAM + (1 << 28));
        let sized = [NVME, NIC].map(|bdf| (bdf, pci::bar::size_bars(&mut config, bdf, 6)));
        for (function, bars) in sized {
            machine.owned.add_function(&config, function, bars);
        }
        machine.owned.add_shared(REGION);
        let bus = VirtualBus::new(&config, &sized, Some(ecam), windows).unwrap();
        let cpuid = CpuidPolicy::new(vec![ApicId(0)], &machine);
        let guest = Guest::new("test".into(), mode, vec![CPU], cpuid);
        let mut world = Self {
            vm: Vm::new(1, bus, LINES.to_vec()),
            cpu: CpuState::new(0, &guest, 0, &machine),
            guest,
            vcpu: FakeVcpu::default(),
            machine,
            memory: FakeMemory(vec![0; RAM as usize]),
            config,
        };
        world.vm.bus.attach(&mut crate::pci::Host {
            machine: &mut world.machine,
            config: &mut world.config,
        });
        world.enter_long_mode();
        world.switch_apics_on(1);
        world
    }

    /// The same with an aligned IDT of 256 open gates, loaded, and interrupted before.
    fn with_idt() -> Self {
        let mut world = Self::new(InterruptMode::Exitless);
        world.vm.interrupted = true;
        world.make_idt(IDT);
        world.lidt(IDT, 0xfff);
        world
    }

    /// Has the guest `count` CPUs (its own is the first) with software-enabled local APICs.
    fn switch_apics_on(&mut self, count: u32) {
        self.guest.cpus = (0..count).map(|cpu| ApicId(10 * cpu + CPU.0)).collect();
        let on = |id| {
            let mut apic = VirtualApic::new(self.guest.mode, ApicId(id), false);
            apic.write(IA32_X2APIC_SIVR, 0x1ff).unwrap();
            apic.addressing()
        };
        self.guest.addressing = (0..count).map(|id| on(id).bits().into()).collect();
    }

    fn enter_long_mode(&mut self) {
        let flat = |access| Segment { selector: 8, base: 0, limit: u32::MAX, access };
        let state = &mut self.vcpu.state;
        state.segments = [flat(AccessRights::DATA32); 8];
        state.segments[SegmentRegister::Cs as usize] = flat(AccessRights::CODE64);
        (state.cr0, state.cr3, state.cr4) = (0x8001_0011, PML4, (Cr4::PAE | Cr4::OSFXSR).bits());
        (state.efer, state.rflags, state.rip) = (0x500, 2 | Rflags::IF.bits(), CODE);
        self.put(PML4, &(PDPT | 7).to_le_bytes());
        self.put(PDPT, &(DIRECTORY | 7).to_le_bytes());
        self.put(PDPT + 8 * 3, &(0xc000_0000_u64 | 0x87).to_le_bytes());
        self.put(DIRECTORY, &(TABLE | 7).to_le_bytes());
        for page in (0..RAM).step_by(4096) {
            self.map(page, page | 7);
        }
    }

    fn map(&mut self, linear: u64, entry: u64) {
        self.put(TABLE + (linear >> 12) * 8, &entry.to_le_bytes());
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        self.memory.write(Gpa::new(at), bytes).unwrap();
    }

    fn get<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory.read(Gpa::new(at), &mut bytes).unwrap();
        bytes
    }

    fn gpr(&mut self, register: Gpr) -> &mut u64 {
        &mut self.vcpu.state.gpr[register as usize]
    }

    fn make_idt(&mut self, base: u64) {
        for vector in 0..256 {
            self.put(base + 16 * vector + 5, &[OPEN]);
        }
    }

    /// Handles an exit with which the guest goes on.
    fn handle(&mut self, reason: ExitReason, vectoring: Option<Vectoring>) {
        let log = self.machine.log.len();
        let next = self.exit(reason, vectoring);
        assert_eq!(next, Next::Resume, "{:?}", &self.machine.log[log..]);
    }

    /// Handles an exit; the injection of the one before is over.
    fn exit(&mut self, reason: ExitReason, vectoring: Option<Vectoring>) -> Next {
        self.vcpu.injected = None;
        self.vcpu.vectoring = vectoring;
        if !self.guest.mode.is_exitless() {
            self.context(|_| ()).take_interrupts();
        }
        let next = self.unlocked(|context| context.handle(reason));
        if !self.guest.mode.is_exitless() {
            self.context(|_| ()).prepare_entry();
        }
        next
    }

    /// Does `work` as the run loop does, with the lock not held.
    fn unlocked<T>(
        &mut self,
        work: impl FnOnce(&mut Context<'_, Edge, &RefCell<&mut Vm>>) -> T,
    ) -> T {
        work(&mut Context {
            guest: &self.guest,
            vm: &RefCell::new(&mut self.vm),
            cpu: &mut self.cpu,
            vcpu: &mut self.vcpu,
            machine: &mut self.machine,
            memory: &mut self.memory,
            config: &mut self.config,
        })
    }

    pub(super) fn context<'a, V>(
        &'a mut self,
        lock: impl FnOnce(&'a mut Vm) -> V,
    ) -> Context<'a, Edge, V> {
        Context {
            guest: &self.guest,
            vm: lock(&mut self.vm),
            cpu: &mut self.cpu,
            vcpu: &mut self.vcpu,
            machine: &mut self.machine,
            memory: &mut self.memory,
            config: &mut self.config,
        }
    }

    /// Puts an instruction at RIP; its exit is the `reason`.
    fn execute(&mut self, code: &[u8], reason: ExitReason) {
        self.put(self.vcpu.state.rip, code);
        self.handle(reason, None);
    }

    /// An instruction that accesses `gpa`, its operand at RBX (and RDI).
    fn touch(&mut self, code: &[u8], gpa: u64, write: bool) {
        (*self.gpr(Gpr::Rbx), *self.gpr(Gpr::Rdi)) = (gpa, gpa);
        self.execute(code, fault(gpa, write));
    }

    fn lidt(&mut self, base: u64, limit: u16) {
        self.put(OPERAND, &limit.to_le_bytes());
        self.put(OPERAND + 2, &base.to_le_bytes());
        *self.gpr(Gpr::Rbx) = OPERAND;
        self.execute(&[0x0f, 0x01, 0x1b], ExitReason::DescriptorTable);
    }

    fn wrmsr(&mut self, msr: u32, value: u64) {
        *self.gpr(Gpr::Rcx) = msr.into();
        *self.gpr(Gpr::Rax) = value & 0xffff_ffff;
        *self.gpr(Gpr::Rdx) = value >> 32;
        self.handle(ExitReason::WriteMsr, None);
    }

    fn at_cpl(&mut self, cpl: u32) {
        let stack = &mut self.vcpu.state.segments[SegmentRegister::Ss as usize];
        stack.access.0 = stack.access.0 & !0x60 | cpl << 5;
    }

    /// What was done to the machine since the last call.
    fn order(&mut self) -> Vec<Done> {
        self.machine.order.take()
    }

    /// The byte that the guest's CPU sees at `gpa`.
    fn seen(&self, gpa: u64) -> u8 {
        let at = Gpa::new(gpa);
        match self.machine.shadow_at.iter().position(|page| *page == Some(at.page())) {
            Some(slot) => {
                self.machine.shadow[slot][at.page_offset() as usize].load(Ordering::Relaxed)
            }
            None => self.memory.0[gpa as usize],
        }
    }

    /// Flags of a vector's gate as the CPU sees them, in a table at `base`.
    fn gate_at(&self, base: u64, vector: u64) -> u8 {
        self.seen(base + 16 * vector + 5)
    }

    fn gate(&self, vector: u64) -> u8 {
        self.gate_at(IDT, vector)
    }

    fn grant(&mut self, vector: u8) {
        self.guest.grants.grant(Vector(vector), eli::Reason::Device);
    }

    fn count(&self, counter: Counter) -> u64 {
        self.cpu.counters.get(counter)
    }
}

const fn fault(gpa: u64, write: bool) -> ExitReason {
    let gpa = Gpa::new(gpa);
    let fault = NestedPageFault { gpa, write, fetch: false, table_walk: false };
    ExitReason::NestedPageFault(fault)
}

const fn cut_short(vector: u8, kind: EventKind) -> Option<Vectoring> {
    let vector = Vector(vector);
    Some(Vectoring { vector, kind, error_code: None })
}

const EXTERNAL: EventKind = EventKind::ExternalInterrupt;

const fn gp() -> Option<Event> {
    Some(Event::exception(exception::GP, Some(0)))
}

#[test]
fn each_exit_counts_once_under_its_own_name() {
    let mut world = World::new(InterruptMode::Exiting);
    for (counter, reason) in [
        (Counter::Cpuid, ExitReason::Cpuid),
        (Counter::Nmi, ExitReason::Nmi),
        (Counter::PreemptionTimer, ExitReason::HostTimer),
        (Counter::ExternalInterrupt, ExitReason::ExternalInterrupt(Some(Vector(0x40)))),
        (Counter::InterruptWindow, ExitReason::InterruptWindow),
        (Counter::CacheInvalidate, ExitReason::CacheInvalidate),
        (Counter::Init, ExitReason::Init),
    ] {
        let total = world.cpu.counters.total();
        world.handle(reason, None);
        assert_eq!(world.cpu.counters.total(), total + 1);
        assert_eq!(world.count(counter), 1, "{counter:?}");
    }
}

#[test]
fn a_trapped_eoi_is_told_apart_from_other_msrs() {
    let mut world = World::new(InterruptMode::Exiting);
    world.wrmsr(0x80b, 0);
    world.wrmsr(0x808, 0x20);
    assert_eq!((world.count(Counter::Eoi), world.count(Counter::Msr)), (1, 1));
}

#[test]
fn an_interrupt_at_a_closed_gate_is_told_apart_from_other_exceptions() {
    let mut world = World::with_idt();
    let reason = ExitReason::Exception {
        vector: Vector(exception::NP),
        error_code: Some(0x40 << 3 | 2),
        qualification: 0,
    };
    world.handle(reason, cut_short(0x40, EXTERNAL));
    world.handle(reason, cut_short(0x40, EventKind::SoftwareInterrupt));
    assert_eq!((world.count(Counter::ShadowGate), world.count(Counter::Exception)), (1, 1));
}

#[test]
fn an_event_cut_short_by_another_exit_is_delivered_again() {
    let mut world = World::with_idt();
    for kind in [EXTERNAL, EventKind::Nmi] {
        world.handle(ExitReason::Nmi, cut_short(0x41, kind));
        let injected = world.vcpu.injected.unwrap();
        assert_eq!((injected.vector, injected.kind), (Vector(0x41), kind));
    }
    let page_fault =
        Vectoring { vector: Vector(14), kind: EventKind::HardwareException, error_code: Some(6) };
    world.handle(ExitReason::HostTimer, Some(page_fault));
    assert_eq!(world.vcpu.injected, Some(Event::exception(14, Some(6))));
}

#[test]
fn int_n_and_its_kin_are_executed_again_and_not_injected() {
    let mut world = World::with_idt();
    for kind in [EventKind::SoftwareInterrupt, EventKind::SoftwareException] {
        world.handle(ExitReason::Nmi, cut_short(3, kind));
        assert_eq!((world.vcpu.injected, world.vcpu.state.rip), (None, CODE + 3));
    }
}

#[test]
fn what_no_guest_may_do_ends_it_with_a_sentence_and_its_state() {
    let meaning = "CR0.PG without CR0.PE";
    let write = ControlRegisterWrite { register: 4, qualification: 0x2000 };
    for (reason, sentence) in [
        (
            ExitReason::EntryFailure(EntryFailure { code: 1, qualification: 2, meaning }),
            "guest test: stopped: the CPU refused to enter it: CR0.PG without CR0.PE",
        ),
        (
            ExitReason::Unexpected { code: 0x41, qualification: 0 },
            "guest test: stopped: it exited for reason 0x41",
        ),
        (ExitReason::ControlRegister(write), "guest test: stopped: it wrote to CR4"),
    ] {
        let mut world = World::with_idt();
        assert_eq!(world.exit(reason, None), Next::End(Outcome::Crash));
        let [first, ..] = &world.machine.log[..] else { panic!() };
        assert!(first.starts_with(sentence), "{first}");
        assert!(world.cpu.last_words, "its registers are logged");
        let refused = matches!(reason, ExitReason::EntryFailure(_));
        let state = world.machine.log.iter().any(|line| line == "guest test: vmcs 681e=6003");
        assert_eq!(state, refused, "what `nexit explain` reads");
    }
}

#[test]
fn a_triple_fault_ends_the_guest() {
    let mut world = World::with_idt();
    assert_eq!(world.exit(ExitReason::TripleFault, None), Next::End(Outcome::TripleFault));
}

#[test]
fn instructions_that_the_guest_does_not_have_are_undefined() {
    let mut world = World::with_idt();
    let rip = world.vcpu.state.rip;
    world.handle(ExitReason::VirtualizationInstruction, None);
    assert_eq!(world.vcpu.injected, Some(Event::exception(exception::UD, None)));
    assert_eq!(world.vcpu.state.rip, rip);
}

/// An IDTR.
fn table(base: u64, limit: u16) -> DescriptorTable {
    DescriptorTable { base: Gva::new(base), limit }
}
