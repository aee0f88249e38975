//! One assigned function: carries the guest's accesses out on the machine.
//!
//! Invariant: the physical BARs stay where the firmware put them and keep decoding; only their
//! place in the guest moves. The pages of the MSI-X table are never mapped. A real message is
//! enabled only after its vector was granted and [`Machine::route`] returned it. A message that the guest disables is
//! masked at once; a message that it enables becomes *due* ([`Device::next_wanted`], [`Device::program`]).

use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Display;
use core::ops::Range;

use arch::address::PAGE_SIZE;
use arch::interrupt::{InterruptTarget, MsiMessage};
use arch::machine::{ConfigSpace, InterruptLine, Machine, Part, RouteRefused};
use arch::msr::PortRange;
use arch::{Bdf, Gpa, Width};
use pci::bar::Bar;
use pci::header::{INTERRUPT_LINE, LegacyIde};
use pci::message::{self, GuestInterrupt};
use pci::msix::{MsixEntry, MsixTable};
use pci::{Command, Effect, Function, VirtualFunction};

use super::windows::{WindowOwner, Windows};
use super::{Host, widen};
use crate::memory_map::GpaRange;

/// Maximum number of refused messages logged per device.
const MAX_REFUSALS_LOGGED: u8 = 8;
/// Offset of Message Control in the MSI and MSI-X capabilities.
const MESSAGE_CONTROL: u16 = 2;

/// An assigned function.
#[derive(Debug)]
pub(super) struct Device {
    /// Its address in the guest.
    pub(super) address: Bdf,
    pub(super) view: VirtualFunction,
    /// The MSI-X table that the guest sees; empty without MSI-X.
    table: MsixTable<Vec<MsixEntry>>,
    identity: Function,
    attached: bool,
    refusals: u8,
    /// Entries of the table that are to be programmed if they are live.
    due: Range<u16>,
    /// The MSI message is to be programmed if it is live.
    msi_due: bool,
    /// MSI-X is to be enabled, once no entry is due.
    control_due: bool,
}

/// Where one of a function's messages is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum MessageSlot {
    /// In the MSI capability.
    Msi,
    /// In the MSI-X table.
    Entry(u16),
}

impl MessageSlot {
    /// The number by which routes know it.
    const fn index(self) -> u16 {
        match self {
            Self::Msi => 0,
            Self::Entry(index) => index,
        }
    }
}

impl Device {
    /// Takes `identity` over; its BARs outside `windows` have no address in the guest at first.
    pub(super) fn new(
        config: &impl ConfigSpace,
        identity: Function,
        bars: [Option<Bar>; 6],
        address: Bdf,
        windows: &Windows,
    ) -> Self {
        let mut view = VirtualFunction::with_bars(config, identity.bdf, bars);
        for index in 0..6 {
            let outside = view.bar(index).is_some_and(|bar| {
                let range = GpaRange { start: Gpa::new(bar.base), length: bar.size };
                bar.is_memory() && !windows.contain(range)
            });
            if outside {
                view.unassign_bar(index);
            }
        }
        let entries = view.msix().map_or(0, |msix| msix.entries);
        let table = MsixTable::new(vec![MsixEntry::default(); entries.into()]);
        Self {
            address,
            view,
            table,
            identity,
            attached: false,
            refusals: 0,
            due: 0..0,
            msi_due: false,
            control_due: false,
        }
    }

    /// Logs no more refusals.
    pub(super) fn be_quiet(&mut self) {
        self.refusals = MAX_REFUSALS_LOGGED;
    }

    /// IDE channels in compatibility mode.
    pub(super) fn legacy_ide(&self) -> impl Iterator<Item = LegacyIde> + use<> {
        self.identity.legacy_ide().into_iter()
    }

    /// How many messages it can raise; MSI has one here, with index 0 as MSI-X's first.
    pub(super) fn messages(&mut self) -> u16 {
        let msix = self.view.msix().map_or(0, |msix| msix.entries);
        msix.max(u16::from(self.view.msi().is_some()))
    }

    /// Whether it has an interrupt pin, and neither that nor a message reaches the guest.
    fn is_mute(&mut self, config: &impl ConfigSpace) -> bool {
        let pin = config.read(self.view.function(), INTERRUPT_LINE + 1, Width::Byte);
        let wired = self.view.interrupt_pin() != 0 || self.legacy_ide().next().is_some();
        matches!(pin, 1..=4) && !wired && self.messages() == 0
    }

    /// The ports of its I/O BARs.
    pub(super) fn port_ranges(&self) -> impl Iterator<Item = PortRange> {
        self.view.bars().filter(|bar| !bar.is_memory() && bar.base != 0).filter_map(|bar| {
            let first = u16::try_from(bar.base).ok()?;
            Some(PortRange { first, last: u16::try_from(bar.base + bar.size - 1).ok()? })
        })
    }

    /// Makes the real function quiet and decoding: no bus mastering, no message. The line of its INTx,
    /// if it is wired to one, is masked yet.
    pub(super) fn attach<M: Machine, C: ConfigSpace>(&mut self, host: &mut Host<'_, M, C>) {
        self.attached = true;
        let function = self.view.function();
        self.real_command(self.view.command()).write(host.config, function);
        if let Some(msi) = self.view.msi() {
            msi.program(host.config, function, None);
        }
        if let Some(msix) = self.view.msix().copied() {
            host.config.write(function, msix.offset + MESSAGE_CONTROL, Width::Word, 0);
            for index in 0..msix.entries {
                host.machine.set_msix_entry(function, index, None);
            }
        }
        if self.is_mute(host.config) {
            host.machine.log(format_args!(
                "{function}: it has no MSI, and intx in nexit.toml does not say which line its \
                 interrupt pin is wired to: it can raise no interrupt"
            ));
        }
        for bar in self.view.bars().filter(|bar| bar.is_memory() && bar.base == 0) {
            host.machine.log(format_args!(
                "{function}: BAR {} has no address from the firmware: it stays out of reach",
                bar.index
            ));
        }
    }

    /// Takes the function out of the guest: it masters no bus, and wants no address any more.
    pub(super) fn detach(&mut self, config: &mut impl ConfigSpace) {
        self.attached = false;
        Command::INTERRUPT_DISABLE.write(config, self.view.function());
    }

    /// Its memory BARs, each with the addresses at which the guest wants it now.
    pub(super) fn memory_bars(&self) -> impl Iterator<Item = (WindowOwner, Bar, Option<GpaRange>)> {
        let decoding = self.attached && self.view.command().contains(Command::MEMORY_SPACE);
        self.view.bars().filter(|bar| bar.is_memory()).map(move |bar| {
            let start = Gpa::new(self.view.bar_address(bar.index));
            let wanted = decoding && bar.base != 0;
            let range = wanted.then_some(GpaRange { start, length: bar.size });
            ((self.view.function(), bar.index), *bar, range)
        })
    }

    /// How long its memory BARs are, and whether the MSI-X table is cut out.
    pub(super) fn mapped_bars(&self) -> impl Iterator<Item = (u64, bool)> {
        let table = self.view.msix().map(|msix| msix.table.bar);
        let bars = self.view.bars().filter(|bar| bar.is_memory() && bar.base != 0);
        bars.map(move |bar| (bar.size, table == Some(bar.index)))
    }

    /// What its memory BARs take in the guest at first.
    pub(super) fn reserved(&self) -> impl Iterator<Item = GpaRange> {
        self.view.bars().filter(|bar| bar.is_memory()).map(|bar| GpaRange {
            start: Gpa::new(self.view.bar_address(bar.index)),
            length: bar.size,
        })
    }

    /// The real command register: decoding always on, bus mastering as the guest
    /// wants, INTx as it wants if a line is wired to it, and always on for IDE's ISA lines.
    fn real_command(&self, wanted: Command) -> Command {
        let isa = self.legacy_ide().next().is_some();
        let mut command = wanted & Command::BUS_MASTER;
        command.set(Command::MEMORY_SPACE, self.view.bars().any(Bar::is_memory));
        command.set(Command::IO_SPACE, isa || self.view.bars().any(|bar| !bar.is_memory()));
        let intx = self.view.interrupt_pin() != 0 && !wanted.contains(Command::INTERRUPT_DISABLE);
        command.set(Command::INTERRUPT_DISABLE, !(isa || intx));
        command
    }

    /// The guest writes configuration space. Returns whether a BAR has moved or gone.
    pub(super) fn config_write<M: Machine, C: ConfigSpace>(
        &mut self,
        host: &mut Host<'_, M, C>,
        offset: u16,
        width: Width,
        value: u32,
    ) -> bool {
        let function = self.view.function();
        match self.view.write(host.config, offset, width, value) {
            Effect::None => {}
            Effect::PhysicalWrite { offset, width, value } => {
                host.config.write(function, offset, width, value);
            }
            Effect::BarMoved => return true,
            Effect::CommandChanged { old, new } => {
                let changed = old ^ new;
                if changed.intersects(Command::BUS_MASTER | Command::INTERRUPT_DISABLE) {
                    self.real_command(new).write(host.config, function);
                }
                return changed.contains(Command::MEMORY_SPACE);
            }
            Effect::MsiChanged => self.msi_changed(host),
            Effect::MsixControlChanged { old, new } => {
                let Some(msix) = self.view.msix() else { return false };
                self.control_due = new.live() && !old.live();
                if self.control_due {
                    self.due = 0..msix.entries;
                } else {
                    self.write_msix_control(host.config);
                }
            }
        }
        false
    }

    /// Maps (or unmaps) a BAR at its address in the guest.
    pub(super) fn set_mapped(
        &self,
        machine: &mut impl Machine,
        bar: &Bar,
        place: GpaRange,
        mapped: bool,
    ) {
        for Range { start, end } in self.open_parts(bar).into_iter().filter(|p| !p.is_empty()) {
            let gpa = place.start.wrapping_add(start);
            if mapped {
                machine.map(gpa, self.part(bar.index), start, end - start);
            } else {
                machine.unmap(gpa, end - start);
            }
        }
    }

    /// The parts of a BAR that the guest reaches without an exit: whole pages (a smaller BAR shares
    /// its page with others' registers), without those of the MSI-X table.
    fn open_parts(&self, bar: &Bar) -> [Range<u64>; 2] {
        if bar.size < PAGE_SIZE {
            return [0..0, 0..0];
        }
        match self.view.msix().filter(|msix| msix.table.bar == bar.index) {
            Some(msix) => [0..msix.table_pages().start, msix.table_pages().end..bar.size],
            None => [0..bar.size, 0..0],
        }
    }

    const fn part(&self, bar: u8) -> Part {
        Part::Bar { function: self.view.function(), index: bar }
    }

    /// The offset in the table of MSI-X, where `offset` of `bar` is in it.
    fn table_at(&self, bar: u8, offset: u64) -> Option<u64> {
        let msix = self.view.msix().filter(|msix| msix.table.bar == bar)?;
        msix.table_range().contains(&offset).then(|| offset - msix.table.offset)
    }

    /// The guest reads a trapped part of a BAR, naturally aligned.
    pub(super) fn bar_read(
        &self,
        machine: &mut impl Machine,
        bar: u8,
        offset: u64,
        width: Width,
    ) -> u64 {
        match self.table_at(bar, offset) {
            Some(offset) => self.table.read(offset, width),
            None => machine.part_read(self.part(bar), offset, width),
        }
    }

    /// The guest writes a trapped part of a BAR, naturally aligned.
    pub(super) fn bar_write<M: Machine, C: ConfigSpace>(
        &mut self,
        host: &mut Host<'_, M, C>,
        bar: u8,
        offset: u64,
        width: Width,
        value: u64,
    ) {
        match self.table_at(bar, offset) {
            Some(offset) => {
                let touched = self.table.write(offset, width, value);
                for index in touched.clone() {
                    if self.table.entry(index).is_some_and(MsixEntry::masked) {
                        host.machine.set_msix_entry(self.view.function(), index, None);
                    }
                }
                widen(&mut self.due, touched);
            }
            None => host.machine.part_write(self.part(bar), offset, width, value),
        }
    }

    fn write_msix_control(&self, config: &mut impl ConfigSpace) {
        if let Some(msix) = self.view.msix() {
            let (control, value) = (msix.offset + MESSAGE_CONTROL, self.view.msix_control());
            config.write(self.view.function(), control, Width::Word, value.bits().into());
        }
    }

    /// The guest wrote to its MSI capability: a message that it disabled or masked is masked at once.
    fn msi_changed<M: Machine, C: ConfigSpace>(&mut self, host: &mut Host<'_, M, C>) {
        let function = self.view.function();
        let Some(msi) = self.view.msi() else { return };
        self.msi_due = msi.live().is_some();
        if self.msi_due {
            return;
        }
        // Enabled and masked, the function keeps its message pending: any message will do.
        let message = msi.message().and_then(|_| {
            let line = InterruptLine::Message { function, index: MessageSlot::Msi.index() };
            msi.programmed().or_else(|| host.machine.route(line, None).ok())
        });
        msi.program(host.config, function, message);
    }

    /// The next message that is due and asks for an interrupt of the guest's.
    pub(super) fn next_wanted<M: Machine, C: ConfigSpace>(
        &mut self,
        host: &mut Host<'_, M, C>,
    ) -> Option<(MessageSlot, GuestInterrupt)> {
        while let Some((slot, message)) = self.next_due() {
            match message::decode(message) {
                Ok(interrupt) => return Some((slot, interrupt)),
                Err(reason) => self.refuse(host, slot, &reason),
            }
        }
        if core::mem::take(&mut self.control_due) {
            self.write_msix_control(host.config);
        }
        None
    }

    /// The next message that is due and can be raised. An entry that can raise nothing yet is left alone until it
    /// can: guests park vectors in masked entries.
    fn next_due(&mut self) -> Option<(MessageSlot, MsiMessage)> {
        if core::mem::take(&mut self.msi_due)
            && let Some(message) = self.view.msi().and_then(|msi| msi.live())
        {
            return Some((MessageSlot::Msi, message));
        }
        let (table, live) = (&self.table, self.view.msix_control().live());
        self.due.find_map(|index| {
            let entry = table.entry(index).filter(|entry| live && !entry.masked())?;
            Some((MessageSlot::Entry(index), entry.message()))
        })
    }

    /// Lets the function send a message that was due.
    pub(super) fn program<M: Machine, C: ConfigSpace>(
        &mut self,
        host: &mut Host<'_, M, C>,
        slot: MessageSlot,
        target: Option<InterruptTarget>,
    ) {
        if target.is_none() {
            return self.refuse(host, slot, &"no CPU of the guest is its destination");
        }
        let (function, index) = (self.view.function(), slot.index());
        match host.machine.route(InterruptLine::Message { function, index }, target) {
            Ok(message) => self.set_message(host, slot, Some(message)),
            Err(RouteRefused(reason)) => self.refuse(host, slot, &reason),
        }
    }

    /// Programs the real function to send `message`; `None`: nothing.
    fn set_message<M: Machine, C: ConfigSpace>(
        &mut self,
        host: &mut Host<'_, M, C>,
        slot: MessageSlot,
        message: Option<MsiMessage>,
    ) {
        let function = self.view.function();
        match (slot, self.view.msi()) {
            (MessageSlot::Entry(index), _) => host.machine.set_msix_entry(function, index, message),
            (MessageSlot::Msi, Some(msi)) => msi.program(host.config, function, message),
            (MessageSlot::Msi, None) => {}
        }
    }

    /// The guest has enabled and unmasked a message that it cannot have: the real one stays masked.
    fn refuse<M: Machine, C: ConfigSpace>(
        &mut self,
        host: &mut Host<'_, M, C>,
        slot: MessageSlot,
        reason: &dyn Display,
    ) {
        self.set_message(host, slot, None);
        if self.refusals < MAX_REFUSALS_LOGGED {
            self.refusals += 1;
            let (function, index) = (self.view.function(), slot.index());
            host.machine.log(format_args!("{function}: message {index} stays masked: {reason}"));
        }
    }
}
