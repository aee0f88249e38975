//! A function that is no device of the machine: memory that guests share, with doorbells, in the
//! form of QEMU's `ivshmem-doorbell` ("Device Specification for Inter-VM shared memory device",
//! revision 1).
//!
//! BAR 0: registers. BAR 1: MSI-X table and pending bits. BAR 2: the memory. The first two are never
//! mapped: each access exits. A doorbell's interrupt is an interprocessor interrupt of the guest's
//! own vector, which the guest takes with no exit.

use arch::address::PAGE_SIZE;
use arch::interrupt::InterruptTarget;
use arch::machine::{ConfigSpace, Machine, Part};
use arch::{Bdf, Gpa, Width};
use pci::bar::{Bar, BarKind};
use pci::msix::{ENTRY_SIZE, MsixEntry, MsixTable};
use pci::{Command, Effect, GuestInterrupt, VirtualFunction, message};

use super::doorbells::{Bell, DOORBELLS, SharedMemory};
use super::widen;
use super::windows::{WindowOwner, Windows};
use crate::memory_map::GpaRange;

const REGISTERS: u8 = 0;
const MESSAGES: u8 = 1;
const MEMORY: u8 = 2;
/// BAR 0: which peer this guest is.
const IV_POSITION: u64 = 8;
/// BAR 0: peer in bits 31:16, its doorbell in bits 15:0.
const DOORBELL: u64 = 12;
/// BAR 1: the pending-bit array.
const PENDING: u64 = 0x800;
const PENDING_END: u64 = PENDING + 8;
/// BAR 1: the table ends here.
const TABLE_END: u64 = DOORBELLS as u64 * ENTRY_SIZE;
/// Maximum number of refused messages logged.
const MAX_REFUSALS_LOGGED: u8 = 8;

/// The function's configuration space, as far as [`VirtualFunction`] does not make it up.
struct Identity;

impl ConfigSpace for Identity {
    fn read(&self, _: Bdf, offset: u16, width: Width) -> u32 {
        let dword = match offset & !3 {
            0x00 => 0x1110_1af4,
            // A list of capabilities; decoding memory.
            0x04 => 0x0010_0002,
            // RAM, revision 1.
            0x08 => 0x0500_0001,
            0x2c => 0x1100_1af4,
            0x34 => 0x40,
            // MSI-X, the only capability.
            0x40 => 0x11 | (DOORBELLS as u32 - 1) << 16,
            0x44 => MESSAGES as u32,
            0x48 => MESSAGES as u32 | PENDING as u32,
            _ => 0,
        };
        dword >> (8 * (offset & 3)) & width.mask() as u32
    }

    fn write(&mut self, _: Bdf, _: u16, _: Width, _: u32) {}
}

/// The function as one of the region's guests has it.
#[derive(Debug)]
pub(super) struct SharedFunction {
    /// Its address in the guest.
    pub(super) address: Bdf,
    view: VirtualFunction,
    memory: &'static SharedMemory,
    /// Its index in the guest's list of regions.
    region: usize,
    peer: u16,
    table: MsixTable<[MsixEntry; DOORBELLS as usize]>,
    attached: bool,
    refusals: u8,
    /// Doorbells that are to be made live where the guest has them so.
    due: core::ops::Range<u16>,
}

impl SharedFunction {
    /// The BARs lie where `windows` have room beside `taken`, or else nowhere: the guest may place
    /// them.
    pub(super) fn new(
        address: Bdf,
        memory: &'static SharedMemory,
        region: usize,
        peer: u16,
        windows: &Windows,
        mut taken: alloc::vec::Vec<GpaRange>,
    ) -> Self {
        let mut bar = |index, kind, size: u64| {
            let start = windows.vacant(size, &taken);
            taken.extend(start.map(|start| GpaRange { start, length: size.max(PAGE_SIZE) }));
            let base = start.map_or(0, Gpa::as_u64);
            Some(Bar { index, kind, prefetchable: index == MEMORY, base, size })
        };
        let registers = bar(REGISTERS, BarKind::Memory32, 256);
        let messages = bar(MESSAGES, BarKind::Memory32, PAGE_SIZE);
        let shared = bar(MEMORY, BarKind::Memory64, memory.size());
        let bars = [registers, messages, shared, None, None, None];
        Self {
            address,
            view: VirtualFunction::with_bars(&Identity, address, bars),
            memory,
            region,
            peer,
            table: MsixTable::new([MsixEntry::default(); DOORBELLS as usize]),
            attached: false,
            refusals: 0,
            due: 0..0,
        }
    }

    /// It appears, or it goes: then nobody is heard ringing any more.
    pub(super) fn attach(&mut self, attached: bool) {
        self.attached = attached;
        self.changed(0..DOORBELLS);
    }

    /// Its BARs, each with the addresses at which the guest wants it now.
    pub(super) fn bars(&self) -> impl Iterator<Item = (WindowOwner, Option<GpaRange>)> {
        let decoding = self.attached && self.view.command().contains(Command::MEMORY_SPACE);
        self.view.bars().map(move |bar| {
            let start = Gpa::new(self.view.bar_address(bar.index));
            let range = decoding.then_some(GpaRange { start, length: bar.size });
            ((self.address, bar.index), range)
        })
    }

    /// How long the memory is.
    pub(super) const fn mapped_memory(&self) -> u64 {
        self.memory.size()
    }

    /// What its BARs take in the guest at first.
    pub(super) fn reserved(&self) -> impl Iterator<Item = GpaRange> {
        self.view.bars().map(|bar| GpaRange {
            start: Gpa::new(self.view.bar_address(bar.index)),
            length: bar.size.max(PAGE_SIZE),
        })
    }

    const fn part(&self) -> Part {
        Part::Shared(self.region)
    }

    /// Maps (or unmaps) the memory where BAR 2 is in the guest.
    pub(super) fn set_mapped(
        &self,
        machine: &mut impl Machine,
        (_, bar): WindowOwner,
        place: GpaRange,
        mapped: bool,
    ) {
        match (bar, mapped) {
            (MEMORY, true) => machine.map(place.start, self.part(), 0, place.length),
            (MEMORY, false) => machine.unmap(place.start, place.length),
            _ => {}
        }
    }

    pub(super) fn config_read(&self, offset: u16, width: Width) -> u32 {
        self.view.read(&Identity, offset, width)
    }

    /// The guest writes configuration space. Returns whether a BAR has moved or gone.
    pub(super) fn config_write(&mut self, offset: u16, width: Width, value: u32) -> bool {
        match self.view.write(&Identity, offset, width, value) {
            Effect::None | Effect::PhysicalWrite { .. } | Effect::MsiChanged => false,
            Effect::BarMoved => true,
            Effect::CommandChanged { old, new } => {
                self.changed(0..DOORBELLS);
                (old ^ new).contains(Command::MEMORY_SPACE)
            }
            Effect::MsixControlChanged { .. } => {
                self.changed(0..DOORBELLS);
                false
            }
        }
    }

    /// The guest reads a trapped part of a BAR, naturally aligned.
    pub(super) fn bar_read(
        &self,
        machine: &mut impl Machine,
        bar: u8,
        offset: u64,
        width: Width,
    ) -> u64 {
        let (word, from) = match (bar, offset) {
            (MESSAGES, ..TABLE_END) => return self.table.read(offset, width),
            // An instruction that the CPU could not carry out by itself.
            (MEMORY, _) => return machine.part_read(self.part(), offset, width),
            (REGISTERS, IV_POSITION..DOORBELL) => (self.peer.into(), IV_POSITION),
            (MESSAGES, PENDING..PENDING_END) => (self.memory.pending(self.peer), PENDING),
            _ => (0, offset),
        };
        word >> (8 * (offset - from)) & width.mask()
    }

    /// The guest writes a trapped part of a BAR, naturally aligned.
    pub(super) fn bar_write(
        &mut self,
        machine: &mut impl Machine,
        bar: u8,
        offset: u64,
        width: Width,
        value: u64,
    ) {
        match (bar, offset) {
            (REGISTERS, DOORBELL) if width >= Width::Dword => {
                if let Some((to, vector)) = self.memory.ring((value >> 16) as u16, value as u16) {
                    machine.ring(to, vector);
                }
            }
            (MESSAGES, ..TABLE_END) => {
                let touched = self.table.write(offset, width, value);
                self.changed(touched);
            }
            (MEMORY, _) => machine.part_write(self.part(), offset, width, value),
            _ => {}
        }
    }

    /// The guest changed what these doorbells do: they fall silent at once, and those that are to ring
    /// become due. Messages are writes on the bus: only a master of it sends any.
    fn changed(&mut self, bells: core::ops::Range<u16>) {
        let sends = self.attached && self.view.command().contains(Command::BUS_MASTER);
        let control = self.view.msix_control();
        for index in bells.clone() {
            if !(sends && control.enabled()) {
                self.memory.set(self.peer, index, Bell::Off);
            } else if !self.is_live(index) {
                self.memory.set(self.peer, index, Bell::Masked);
            }
        }
        widen(&mut self.due, bells);
    }

    fn is_live(&self, index: u16) -> bool {
        let sends = self.attached && self.view.command().contains(Command::BUS_MASTER);
        let unmasked = self.table.entry(index).is_some_and(|entry| !entry.masked());
        sends && self.view.msix_control().live() && unmasked
    }

    /// The next doorbell that is due and asks for an interrupt of the guest's.
    pub(super) fn next_wanted(
        &mut self,
        machine: &mut impl Machine,
    ) -> Option<(u16, GuestInterrupt)> {
        while let Some(index) = self.due.next() {
            if !self.is_live(index) {
                continue;
            }
            let Some(entry) = self.table.entry(index) else { continue };
            match message::decode(entry.message()) {
                Ok(interrupt) => return Some((index, interrupt)),
                Err(_) => self.program(machine, index, None),
            }
        }
        None
    }

    /// Logs no more refusals.
    pub(super) fn be_quiet(&mut self) {
        self.refusals = MAX_REFUSALS_LOGGED;
    }

    /// Lets a doorbell ring that was due. `None`: it is no interrupt of the guest's own, and stays
    /// masked.
    pub(super) fn program(
        &mut self,
        machine: &mut impl Machine,
        index: u16,
        target: Option<InterruptTarget>,
    ) {
        let rung = self.memory.set(self.peer, index, target.map_or(Bell::Masked, Bell::Live));
        if let (true, Some(target)) = (rung, target) {
            machine.ring(target.destination, target.vector);
        }
        if target.is_none()
            && self.refusals < MAX_REFUSALS_LOGGED
            && let Some(message) = self.table.entry(index).map(MsixEntry::message)
        {
            self.refusals += 1;
            machine.log(format_args!(
                "{}: doorbell {index} stays masked: address {:#x} and data {:#x} are no fixed \
                 interrupt for one CPU of the guest",
                self.address, message.address, message.data
            ));
        }
    }
}
