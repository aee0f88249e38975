//! The physical machine for one guest's policy: implements [`arch::machine::Machine`].
//!
//! Invariant: policy names what it wants, and [`Owned`] knows what the guest has and where. So no address that
//! policy computes reaches the machine: a mistake in it is refused with a reason, and cannot reach another guest.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Deref;

use arch::interrupt::{InterruptTarget, MsiMessage};
use arch::machine::{
    CpuRequest, CpuidResult, InterruptLine, Machine, Part, PitRegister, RouteRefused, SharedPage,
    Width,
};
use arch::machine_check::MachineCheck;
use arch::{ApicId, Bdf, Gpa, Hpa, Vector};
use cpu::local_apic::LocalApic;
use cpu::{instructions, physical};
use guest::msr::{policy_may_read, policy_may_write};
use guest::requests::Request;
use mem::table::Format;
use mem::{Flush, MapError, MemoryType, Reserve, Rights, Table};
use pci::owned::{NotOwned, Owned};
use spin::Mutex;

use crate::console;
use crate::memory::{Memory, Own};
use crate::owned::{OwnFrames, OwnTable, Pages};
use crate::ram::GuestRam;
use crate::routes::Routes;
use crate::stand_in::{StandInFrames, StandIns};
use crate::vcpu_slot::VcpuSlot;

/// So many failures to change the nested table, or refusals, are logged.
const MAX_FAILURES_LOGGED: u8 = 8;

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
    /// Changes of it that failed, and what policy asked for and did not get, up to [`MAX_FAILURES_LOGGED`].
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

/// What a guest has of the machine, for all its CPUs.
pub(crate) struct GuestParts<F: Format> {
    pub(crate) memory: Memory,
    pub(crate) ram: GuestRam,
    /// Locked where they change, mostly with the guest's own lock held.
    pub(crate) tables: Arc<Mutex<Tables<F>>>,
    pub(crate) clock: MachineClock,
    pub(crate) slots: &'static [VcpuSlot],
    /// What the guest has of the machine's registers and shared memory.
    pub(crate) owned: Arc<Owned>,
    /// The CPUs of guests that it shares memory with.
    pub(crate) doorbell_targets: Vec<ApicId>,
    /// The guest's index in the configuration.
    pub(crate) guest: usize,
}

impl<F: Format> GuestParts<F> {
    /// The machine on the CPU that calls.
    pub(crate) fn on(&self, apic: LocalApic) -> GuestMachine<F> {
        let Self { memory, clock, slots, guest, .. } = *self;
        let (ram, tables) = (self.ram.clone(), self.tables.clone());
        let (owned, doorbell_targets) = (self.owned.clone(), self.doorbell_targets.clone());
        let parts = Self { memory, ram, tables, clock, slots, owned, doorbell_targets, guest };
        GuestMachine { parts, apic, nested_changed: false, stand_ins: StandIns::default() }
    }
}

/// The machine as one guest may use it, on one CPU, which it never leaves: it has that CPU's local APIC.
pub(crate) struct GuestMachine<F: Format> {
    parts: GuestParts<F>,
    apic: LocalApic,
    nested_changed: bool,
    stand_ins: StandIns,
}

impl<F: Format> Deref for GuestMachine<F> {
    type Target = GuestParts<F>;

    fn deref(&self) -> &GuestParts<F> {
        &self.parts
    }
}

impl<F: Format> GuestMachine<F> {
    /// The virtual CPU that this is the machine of.
    fn index(&self) -> usize {
        let own = |slot: &VcpuSlot| slot.processor == self.apic.id();
        self.slots.iter().position(own).unwrap_or(usize::MAX)
    }

    /// Root of the nested table with this CPU's stand-ins in it; `None` where there are none.
    pub(crate) fn step_root(&self) -> Option<Hpa> {
        let tables = self.tables.lock();
        self.stand_ins.root(&tables.stand_ins, self.index(), &tables.nested, self.memory)
    }

    /// Logs no more failures to change the nested table.
    pub(crate) fn be_quiet(&self) {
        self.tables.lock().failures = MAX_FAILURES_LOGGED;
    }

    /// Has every other CPU of the guest drop what it has cached of the nested table.
    fn ask_others_to_flush(&self) {
        for slot in self.slots.iter().filter(|slot| slot.processor != self.apic.id()) {
            slot.ask(self.apic, Request::Flush);
        }
    }

    /// Where that is which policy asked for. If it is not the guest's, it is a mistake of ours.
    fn found<T>(&self, place: Result<T, NotOwned>, name: &dyn fmt::Debug) -> Option<T> {
        place.map_err(|why| self.say(format_args!("not the guest's: {name:?}: {}", why.0))).ok()
    }

    /// Logs a failure, if there have not been too many.
    #[cold]
    fn say(&self, what: fmt::Arguments<'_>) {
        let failures = &mut self.tables.lock().failures;
        if *failures < MAX_FAILURES_LOGGED {
            *failures += 1;
            console::logln!("{what}");
        }
    }

    /// Changes the nested table. The run loop flushes before the guest runs again.
    fn change(
        &mut self,
        what: &str,
        work: impl FnOnce(&mut Table<F, Own>, &mut Reserve<'_, Memory>) -> Result<Flush, MapError>,
    ) {
        let mut tables = self.tables.lock();
        let Tables { nested, frames, .. } = &mut *tables;
        let changed = work(nested, &mut Reserve { memory: self.memory, frames });
        drop(tables);
        match changed {
            Ok(flush) => flush.is_due(&mut self.nested_changed),
            Err(error) => {
                // A part of it may have changed.
                self.nested_changed = true;
                self.say(format_args!("{what}: {error}"));
            }
        }
    }
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
        if !policy_may_read(msr) {
            return None;
        }
        // SAFETY: the exception handlers are installed, and the MSR is on the list.
        unsafe { instructions::read_msr_checked(msr) }
    }

    fn write_msr(&mut self, msr: u32, value: u64) -> bool {
        // SAFETY: as for `read_msr`; nothing on the list is the hypervisor's own.
        policy_may_write(msr) && unsafe { instructions::write_msr_checked(msr, value) }
    }

    fn write_xcr0(&mut self, value: u64) -> bool {
        // SAFETY: CR4.OSXSAVE was set when this CPU was brought up, where XSAVE exists; the
        // hypervisor uses no extended state.
        unsafe { instructions::write_xcr0_checked(value) }
    }

    fn vector_register(&self, register: u8) -> [u8; 16] {
        instructions::vector_register(register)
    }

    fn pit_write(&mut self, register: PitRegister, value: u8) {
        if let Some(port) = self.found(self.owned.pit_port(register, value), &register) {
            // SAFETY: the port is of the machine's PIT, whose channel 0 is this guest's.
            unsafe { instructions::port_write(port, Width::Byte, value.into()) };
        }
    }

    fn part_read(&mut self, part: Part, offset: u64, width: Width) -> u64 {
        let at = self.found(self.owned.register(part, offset, width), &(part, offset));
        // SAFETY: what the guest owns is device memory or shared memory, mapped at bring-up or at its building; the
        // access is aligned and within it.
        at.map_or(width.mask(), |at| unsafe { physical::mmio_read(at, width) })
    }

    fn part_write(&mut self, part: Part, offset: u64, width: Width, value: u64) {
        if let Some(at) = self.found(self.owned.register(part, offset, width), &(part, offset)) {
            // SAFETY: as for `part_read`; a write there concerns this guest and those that it shares with.
            unsafe { physical::mmio_write(at, width, value) };
        }
    }

    fn set_msix_entry(&mut self, function: Bdf, index: u16, message: Option<MsiMessage>) {
        let entry = self.found(self.owned.msix_entry(function, index), &(function, index));
        let Some(entry) = entry else { return };
        for (offset, value) in pci::msix::entry_writes(message) {
            // SAFETY: an entry of the guest's own function, in a BAR that was mapped at its building.
            unsafe { physical::mmio_write(entry.wrapping_add(offset), Width::Dword, value.into()) };
        }
    }

    fn self_ipi(&mut self, vector: Vector) {
        self.apic.self_ipi(vector);
    }

    fn eoi(&mut self) {
        self.apic.eoi();
    }

    fn write_back_caches(&mut self) {
        instructions::write_back_caches();
    }

    fn machine_check(&mut self) -> MachineCheck {
        let verdict = cpu::machine_check::take();
        if let MachineCheck::Lost(recorded) = verdict {
            console::logln!("error: CPU {}: a machine check, {recorded}", self.apic.id());
            console::logln!("this CPU is stopped; its guest does not run any more");
            instructions::halt_forever();
        }
        verdict
    }

    fn send_ipi(&mut self, cpu: usize, vector: Vector) {
        if let Some(slot) = self.slots.get(cpu) {
            slot.interrupt(self.apic, vector);
        }
    }

    fn ring(&mut self, to: ApicId, vector: Vector) {
        // Taking the guest's lock since its exit has ordered its stores before this.
        if self.doorbell_targets.contains(&to) {
            self.apic.send(to, vector);
        }
    }

    fn request(&mut self, cpu: usize, what: CpuRequest) {
        if let Some(slot) = self.slots.get(cpu) {
            slot.ask(self.apic, Request::Signal(what));
        }
    }

    fn have_exit(&mut self, cpu: usize) {
        if let Some(slot) = self.slots.get(cpu) {
            slot.ask(self.apic, Request::Exit);
        }
    }

    fn route(
        &mut self,
        line: InterruptLine,
        target: Option<InterruptTarget>,
    ) -> Result<MsiMessage, RouteRefused> {
        self.tables.lock().routes.set(line, target)
    }

    fn map(&mut self, gpa: Gpa, part: Part, offset: u64, length: u64) {
        let shared = matches!(part, Part::Shared(_));
        let kind = if shared { MemoryType::WriteBack } else { MemoryType::Uncached };
        let found = self.found(self.owned.pages(part, offset, length), &(part, offset, length));
        let Some(hpa) = found else { return };
        self.change("mapping a BAR", |nested, memory| {
            nested.map(memory, gpa.as_u64(), hpa, length, Rights::READ_WRITE, kind).map(Flush::from)
        });
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
                if shadowed { (frame, Rights::READ_EXECUTE) } else { (real, Rights::ALL) };
            let (gpa, length) = (at.page().as_u64(), arch::address::PAGE_SIZE);
            self.change("placing a shadow page", |nested, memory| {
                nested.replace(memory, gpa, hpa, length, access, MemoryType::WriteBack)
            });
        }
    }

    fn with_shadow_page(&mut self, slot: usize, work: impl FnOnce(&SharedPage)) {
        let tables = self.tables.lock();
        let Some(page) = tables.shadow.get(slot) else { return };
        // SAFETY: the frame is this machine's own; who else holds its bytes shares them as atomics, and the guest's
        // view of it is read-only.
        work(unsafe { &*physical::pointer::<SharedPage>(page.frame.start()) });
    }

    fn set_stand_in(&mut self, slot: usize, page: Option<Gpa>) -> bool {
        let (index, tables) = (self.index(), self.parts.tables.lock());
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
        console::log_of(self.guest, line);
    }
}
