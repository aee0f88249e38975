//! The physical machine for one guest's policy: implements [`arch::machine::Machine`].
//!
//! Invariant: everything here was granted to the guest when its partition was built; policy that asks
//! for more is refused with a reason, so a mistake in policy cannot reach another guest.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use arch::interrupt::{InterruptTarget, MsiMessage};
use arch::machine::{CpuRequest, CpuidResult, InterruptLine, Machine, RouteRefused, Width};
use arch::{ApicId, Gpa, Hpa, Vector, msr};
use cpu::local_apic::LocalApic;
use cpu::{instructions, physical};
use mem::table::Format;
use mem::{Access, Flush, MapError, MemoryType, Reserve, Table};
use spin::Mutex;

use crate::console;
use crate::memory::Memory;
use crate::owned::{OwnFrames, OwnTable, Pages};
use crate::ram::GuestRam;
use crate::routes::Routes;
use crate::seat::Seat;
use crate::stand_in::{StandInFrames, StandIns};

/// So many failures to change it are logged.
const MOST_FAILURES_LOGGED: u8 = 8;

/// When the hypervisor read the machine's clock, and what it said.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MachineClock {
    pub(crate) tsc_khz: u64,
    /// What the local APIC's timers count in a second, if it is known.
    pub(crate) apic_timer_hz: Option<u64>,
    pub(crate) unix_time: u64,
    pub(crate) read_at_tsc: u64,
}

/// A page that stands in for a page of guest RAM.
struct ShadowPage {
    frame: Pages,
    at: Option<Gpa>,
}

/// What the CPUs of a guest share of the machine.
pub(crate) struct Tables<F: Format> {
    // Dropped first: nothing of the machine reaches the guest then.
    pub(crate) routes: Routes,
    pub(crate) nested: OwnTable<F>,
    /// Frames for what changes in the nested table.
    frames: OwnFrames,
    /// Changes of it that failed, up to [`MOST_FAILURES_LOGGED`].
    failures: u8,
    shadow: Vec<ShadowPage>,
    stand_ins: StandInFrames,
}

impl<F: Format> Tables<F> {
    /// `frames`: zeroed, for what changes in the nested table; `shadow`: zeroed, two for each of the guest's
    /// CPUs.
    pub(crate) fn new(
        nested: OwnTable<F>,
        frames: OwnFrames,
        shadow: Vec<Pages>,
        stand_ins: StandInFrames,
        routes: Routes,
    ) -> Arc<Mutex<Self>> {
        let shadow = shadow.into_iter().map(|frame| ShadowPage { frame, at: None }).collect();
        Arc::new(Mutex::new(Self { routes, nested, frames, failures: 0, shadow, stand_ins }))
    }
}

/// The machine as one guest may use it, on one CPU.
pub(crate) struct GuestMachine<F: Format> {
    pub(crate) memory: Memory,
    pub(crate) ram: GuestRam,
    /// Locked where they change, mostly with the guest's own lock held.
    pub(crate) tables: Arc<Mutex<Tables<F>>>,
    pub(crate) nested_changed: bool,
    pub(crate) stand_ins: StandIns,
    pub(crate) apic: LocalApic,
    pub(crate) clock: MachineClock,
    pub(crate) seats: &'static [Seat],
    /// The CPUs of guests that it shares memory with.
    pub(crate) ringable: Vec<ApicId>,
    /// The guest's index in the configuration.
    pub(crate) guest: usize,
}

impl<F: Format> GuestMachine<F> {
    /// The same on the CPU with this local APIC.
    pub(crate) fn on(&self, apic: LocalApic) -> Self {
        let Self { memory, clock, seats, guest, .. } = *self;
        let (ram, tables) = (self.ram.clone(), self.tables.clone());
        let ringable = self.ringable.clone();
        let (nested_changed, stand_ins) = (false, StandIns::default());
        Self { memory, ram, tables, nested_changed, stand_ins, apic, clock, seats, ringable, guest }
    }

    /// The virtual CPU that this is the machine of.
    fn index(&self) -> usize {
        let own = |seat: &Seat| seat.processor == self.apic.id();
        self.seats.iter().position(own).unwrap_or(usize::MAX)
    }

    /// Root of the nested table with this CPU's stand-ins in it; `None` where there are none.
    pub(crate) fn step_root(&self) -> Option<Hpa> {
        let tables = self.tables.lock();
        self.stand_ins.root(&tables.stand_ins, self.index(), &tables.nested, self.memory)
    }

    /// Logs no more failures to change the nested table.
    pub(crate) fn be_terse(&self) {
        self.tables.lock().failures = MOST_FAILURES_LOGGED;
    }

    /// Has every other CPU of the guest drop what it has cached of the nested table.
    fn ask_others_to_flush(&self) {
        for seat in self.seats.iter().filter(|seat| seat.processor != self.apic.id()) {
            seat.ask_to_flush(self.apic);
        }
    }

    /// Maps a BAR.
    fn map(&mut self, gpa: Gpa, hpa: Hpa, length: u64, kind: MemoryType) {
        let access = Access::READ_WRITE;
        self.change("mapping a BAR", |nested, memory| {
            nested.map(memory, gpa.as_u64(), hpa, length, access, kind)
        });
    }

    /// Changes the nested table. The run loop flushes before the guest runs again.
    fn change(
        &mut self,
        what: &str,
        work: impl FnOnce(&mut Table<F>, &mut Reserve<'_, Memory>) -> Result<Flush, MapError>,
    ) {
        let mut tables = self.tables.lock();
        let Tables { nested, frames, failures, .. } = &mut *tables;
        match work(nested, &mut Reserve { memory: self.memory, frames: &mut frames.0 }) {
            Ok(flush) => flush.nothing_cached(),
            Err(error) if *failures < MOST_FAILURES_LOGGED => {
                *failures += 1;
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
    (msr::IA32_MISC_ENABLE, msr::IA32_MISC_ENABLE),
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

    fn apic_timer_hz(&self) -> Option<u64> {
        self.clock.apic_timer_hz
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
            seat.ask(self.apic, what);
        }
    }

    fn route(
        &mut self,
        line: InterruptLine,
        target: Option<InterruptTarget>,
    ) -> Result<MsiMessage, RouteRefused> {
        self.tables.lock().routes.set(line, target)
    }

    fn map_device(&mut self, gpa: Gpa, hpa: Hpa, length: u64) {
        self.map(gpa, hpa, length, MemoryType::Uncached);
    }

    fn map_shared(&mut self, gpa: Gpa, hpa: Hpa, length: u64) {
        self.map(gpa, hpa, length, MemoryType::WriteBack);
    }

    fn unmap(&mut self, gpa: Gpa, length: u64) {
        self.change("unmapping a BAR", |nested, memory| {
            let flush = nested.unmap(memory, gpa.as_u64(), length)?;
            nested.prune(memory, gpa.as_u64(), length);
            Ok(flush)
        });
    }

    fn nested_changed(&mut self) -> bool {
        let changed = core::mem::take(&mut self.nested_changed);
        if changed {
            self.ask_others_to_flush();
        }
        changed
    }

    fn set_shadow_page(&mut self, slot: usize, gpa: Option<Gpa>) {
        let mut tables = self.tables.lock();
        let Some(page) = tables.shadow.get_mut(slot) else { return };
        let (frame, before) = (page.frame.start(), core::mem::replace(&mut page.at, gpa));
        drop(tables);
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
            let (gpa, length) = (at.page().as_u64(), arch::address::PAGE_SIZE);
            self.change("placing a shadow page", |nested, memory| {
                nested.replace(memory, gpa, hpa, length, access, MemoryType::WriteBack)
            });
        }
    }

    fn with_shadow_page(&mut self, slot: usize, work: impl FnOnce(&mut [u8; 4096])) {
        let tables = self.tables.lock();
        let Some(page) = tables.shadow.get(slot) else { return };
        // SAFETY: the frame is this machine's own, nobody else holds its bytes while the tables are
        // locked, and the guest's view of it is read-only.
        work(unsafe { &mut *physical::pointer::<[u8; 4096]>(page.frame.start()) });
    }

    fn set_stand_in(&mut self, slot: usize, page: Option<Gpa>) -> bool {
        let (index, tables) = (self.index(), self.tables.lock());
        let reached = page.is_none_or(|page| tables.nested.reaches(page.as_u64()));
        self.stand_ins.set(&tables.stand_ins, index, slot, page.filter(|_| reached));
        reached
    }

    fn with_stand_in(&mut self, slot: usize, work: impl FnOnce(&mut [u8; 4096])) {
        let (index, tables) = (self.index(), self.tables.lock());
        StandIns::with(&tables.stand_ins, index, slot, work);
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
