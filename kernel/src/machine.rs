//! The physical machine for one guest's policy: implements [`arch::machine::Machine`].
//!
//! Invariant: everything here was granted to the guest when its partition was built; policy that asks
//! for more is refused with a reason, so a mistake in policy cannot reach another guest.

use alloc::vec::Vec;
use core::fmt;

use arch::interrupt::{InterruptTarget, MsiMessage};
use arch::machine::{CpuRequest, CpuidResult, InterruptLine, Machine, RouteRefused, Width};
use arch::{ApicId, Gpa, Hpa, Vector, msr};
use cpu::local_apic::LocalApic;
use cpu::{instructions, physical};
use mem::table::Format;
use mem::{Access, Allowance, Flush, MapError, MemoryType, Table, TableMemory};

use crate::console;
use crate::memory::Memory;
use crate::ram::GuestRam;
use crate::routes::Routes;
use crate::seat::Seat;

/// So many frames may a guest's nested table take once the guest runs, for the places to which it
/// moves its BARs and IDTs. A BAR beyond is reached by exits.
const MOST_FRAMES: u32 = 2048;
/// So many failures to change it are logged.
const MOST_FAILURES_LOGGED: u8 = 8;

/// When the hypervisor read the machine's clock, and what it said.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    pub(crate) tsc_khz: u64,
    pub(crate) unix_time: u64,
    pub(crate) read_at_tsc: u64,
}

/// A page that stands in for a page of guest RAM.
struct ShadowPage {
    frame: Hpa,
    at: Option<Gpa>,
}

/// The machine as one guest may use it, on the CPU that runs it.
pub(crate) struct GuestMachine<F> {
    memory: Memory,
    nested: Table<F>,
    nested_changed: bool,
    /// Frames that the nested table may still take.
    frames: u32,
    /// Changes of it that failed, up to [`MOST_FAILURES_LOGGED`].
    failures: u8,
    ram: GuestRam,
    shadow: Vec<ShadowPage>,
    apic: LocalApic,
    clock: Clock,
    routes: Routes,
    seats: &'static [Seat],
    /// The CPUs of guests that it shares memory with.
    ringable: Vec<ApicId>,
    /// The guest's index in the configuration.
    guest: usize,
}

impl<F: Format> GuestMachine<F> {
    /// The machine for a guest whose RAM is mapped in `nested` and whose shadow pages are `shadow`
    /// (zeroed frames, two for each of its CPUs).
    #[expect(clippy::too_many_arguments, reason = "called once, with what a guest is made of")]
    pub(crate) fn new(
        memory: Memory,
        nested: Table<F>,
        ram: GuestRam,
        shadow: Vec<Hpa>,
        apic: LocalApic,
        clock: Clock,
        routes: Routes,
        seats: &'static [Seat],
        guest: usize,
    ) -> Self {
        let shadow = shadow.into_iter().map(|frame| ShadowPage { frame, at: None }).collect();
        Self {
            memory,
            nested,
            nested_changed: false,
            frames: MOST_FRAMES,
            failures: 0,
            ram,
            shadow,
            apic,
            clock,
            routes,
            seats,
            ringable: Vec::new(),
            guest,
        }
    }

    /// The guest shares memory with those that run on these CPUs.
    pub(crate) fn allow_ringing(&mut self, cpus: impl Iterator<Item = ApicId>) {
        self.ringable.extend(cpus);
    }

    /// The guest's interrupt routes.
    pub(crate) fn routes(&mut self) -> &mut Routes {
        &mut self.routes
    }

    /// The nested table.
    pub(crate) fn nested(&self) -> &Table<F> {
        &self.nested
    }

    /// Gives back all that the guest had of the machine but its RAM. Its CPUs have left for good.
    pub(crate) fn give_back(&mut self) {
        self.routes.give_back();
        self.nested.give_back(&mut self.memory);
        for page in self.shadow.drain(..) {
            self.memory.give_back(page.frame);
        }
        self.ram = GuestRam::default();
    }

    /// Whether the nested table has changed since the last call.
    pub(crate) fn take_nested_changed(&mut self) -> bool {
        core::mem::take(&mut self.nested_changed)
    }

    /// Has every other CPU of the guest drop what it has cached of the nested table.
    pub(crate) fn ask_others_to_flush(&self) {
        let own = LocalApic::current();
        for seat in self.seats.iter().filter(|seat| seat.processor != own.id()) {
            seat.ask_to_flush(own);
        }
    }

    /// Maps a BAR.
    fn map(&mut self, gpa: Gpa, hpa: Hpa, length: u64, kind: MemoryType) {
        let mut memory = Allowance { memory: self.memory, frames: &mut self.frames };
        let access = Access::READ_WRITE;
        let result = self.nested.map(&mut memory, gpa.as_u64(), hpa, length, access, kind);
        self.changed(result, "mapping a BAR");
    }

    fn changed(&mut self, result: Result<Flush, MapError>, what: &str) {
        match result {
            // The run loop flushes before the guest runs again.
            Ok(flush) => flush.nothing_cached(),
            Err(error) if self.failures < MOST_FAILURES_LOGGED => {
                self.failures += 1;
                console::logln!("{what}: {error}");
            }
            Err(_) => {}
        }
        self.nested_changed = true;
    }
}

/// Whether LFENCE is serializing (APM "Processor Feature Identification").
const DE_CFG: u32 = 0xc001_1029;

/// The MSRs that policy may touch on a guest's behalf, first and last of each run. What the
/// hypervisor itself depends on (APIC_BASE, EFER, FEATURE_CONTROL, VM_CR …) is not among them.
const POLICY_MSRS: &[(u32, u32)] = &[
    (msr::IA32_TIME_STAMP_COUNTER, msr::IA32_TIME_STAMP_COUNTER),
    (msr::IA32_TSC_ADJUST, msr::IA32_TSC_ADJUST),
    (msr::IA32_BIOS_SIGN_ID, msr::IA32_BIOS_SIGN_ID),
    (msr::MPERF, msr::APERF),
    (msr::IA32_ARCH_CAPABILITIES, msr::IA32_ARCH_CAPABILITIES),
    (msr::IA32_TSC_DEADLINE, msr::IA32_TSC_DEADLINE),
    (msr::IA32_X2APIC_APICID, msr::IA32_X2APIC_SELF_IPI),
    (msr::IA32_TSC_AUX, msr::IA32_TSC_AUX),
    (DE_CFG, DE_CFG),
];

fn policy_may_touch(msr: u32) -> bool {
    POLICY_MSRS.iter().any(|(first, last)| (*first..=*last).contains(&msr))
}

impl<F: Format> Machine for GuestMachine<F> {
    fn tsc(&self) -> u64 {
        instructions::tsc()
    }

    fn tsc_khz(&self) -> u64 {
        self.clock.tsc_khz
    }

    fn unix_time(&self) -> u64 {
        let ticks = instructions::tsc().wrapping_sub(self.clock.read_at_tsc);
        self.clock.unix_time + ticks / (self.clock.tsc_khz.max(1) * 1000)
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        instructions::cpuid(leaf, subleaf)
    }

    fn read_msr(&mut self, msr: u32) -> Option<u64> {
        if !policy_may_touch(msr) {
            return None;
        }
        // SAFETY: the exception handlers are installed, and the MSR is on the list.
        unsafe { instructions::read_msr_checked(msr) }
    }

    fn write_msr(&mut self, msr: u32, value: u64) -> bool {
        // SAFETY: as for `read_msr`; nothing on the list is the hypervisor's own.
        policy_may_touch(msr) && unsafe { instructions::write_msr_checked(msr, value) }
    }

    fn write_xcr0(&mut self, value: u64) -> bool {
        // SAFETY: CR4.OSXSAVE was set when this CPU was brought up, where XSAVE exists; the
        // hypervisor uses no extended state.
        unsafe { instructions::write_xcr0_checked(value) }
    }

    fn vector_register(&self, register: u8) -> [u8; 16] {
        instructions::vector_register(register)
    }

    fn port_read(&mut self, port: u16, width: Width) -> u32 {
        // SAFETY: policy reads only ports that the configuration gave to the guest.
        unsafe { instructions::port_read(port, width) }
    }

    fn port_write(&mut self, port: u16, width: Width, value: u32) {
        // SAFETY: policy writes only ports that the configuration gave to the guest.
        unsafe { instructions::port_write(port, width, value) };
    }

    fn mmio_read(&mut self, at: Hpa, width: Width) -> u64 {
        // SAFETY: policy reads only registers of the guest's own functions, mapped at bring-up.
        unsafe { physical::mmio_read(at, width) }
    }

    fn mmio_write(&mut self, at: Hpa, width: Width, value: u64) {
        // SAFETY: policy writes only registers of the guest's own functions, mapped at bring-up.
        unsafe { physical::mmio_write(at, width, value) };
    }

    fn self_ipi(&mut self, vector: Vector) {
        self.apic.self_ipi(vector);
    }

    fn eoi(&mut self) {
        self.apic.eoi();
    }

    fn send_ipi(&mut self, cpu: usize, vector: Vector) {
        if let Some(seat) = self.seats.get(cpu) {
            seat.interrupt(self.apic, vector);
        }
    }

    fn ring(&mut self, to: ApicId, vector: Vector) {
        // Taking the guest's lock since its exit has ordered its stores before this.
        if self.ringable.contains(&to) {
            self.apic.send(to, vector);
        }
    }

    fn request(&mut self, cpu: usize, what: CpuRequest) {
        if let Some(seat) = self.seats.get(cpu) {
            seat.ask(LocalApic::current(), what);
        }
    }

    fn route(
        &mut self,
        line: InterruptLine,
        target: Option<InterruptTarget>,
    ) -> Result<MsiMessage, RouteRefused> {
        self.routes.set(line, target)
    }

    fn map_device(&mut self, gpa: Gpa, hpa: Hpa, length: u64) {
        self.map(gpa, hpa, length, MemoryType::Uncached);
    }

    fn map_shared(&mut self, gpa: Gpa, hpa: Hpa, length: u64) {
        self.map(gpa, hpa, length, MemoryType::WriteBack);
    }

    fn unmap(&mut self, gpa: Gpa, length: u64) {
        let mut memory = Allowance { memory: self.memory, frames: &mut self.frames };
        let result = self.nested.unmap(&mut memory, gpa.as_u64(), length);
        self.changed(result, "unmapping a BAR");
    }

    fn set_shadow_page(&mut self, slot: usize, gpa: Option<Gpa>) {
        let Some(page) = self.shadow.get_mut(slot) else { return };
        let (frame, before) = (page.frame, core::mem::replace(&mut page.at, gpa));
        if before == gpa {
            return;
        }
        for (at, shadowed) in [(before, false), (gpa, true)] {
            let Some(at) = at else { continue };
            let Ok(real) = self.ram.translate(at.page(), arch::address::PAGE_SIZE) else {
                continue;
            };
            let (hpa, access) =
                if shadowed { (frame, Access::READ_EXECUTE) } else { (real, Access::ALL) };
            let mut memory = Allowance { memory: self.memory, frames: &mut self.frames };
            let (gpa, length) = (at.page().as_u64(), arch::address::PAGE_SIZE);
            let kind = MemoryType::WriteBack;
            let result = self.nested.replace(&mut memory, gpa, hpa, length, access, kind);
            self.changed(result, "placing a shadow page");
        }
    }

    fn shadow_page(&mut self, slot: usize) -> &mut [u8; 4096] {
        let frame = self.shadow[slot % self.shadow.len()].frame;
        // SAFETY: the frame is this machine's own; the guest's view of it is read-only, and the
        // CPU that runs the guest is here.
        unsafe { &mut *physical::pointer::<[u8; 4096]>(frame) }
    }

    fn console_write(&mut self, byte: u8) {
        console::guest_byte(self.guest, byte);
    }

    fn console_read(&mut self) -> Option<u8> {
        console::typed_for(self.guest)
    }

    fn log(&mut self, line: fmt::Arguments<'_>) {
        console::log(line);
    }
}
