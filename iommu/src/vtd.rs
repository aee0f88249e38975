//! Intel VT-d: all remapping units of the machine behind [`arch::iommu::Iommu`].
//!
//! All units of a PCI segment share one root table and one interrupt-remapping table, as a function is
//! found by its own number in both. Each segment has its own: the same number is another function there.
//!
//! * [`mod@unit`]: one unit's bring-up order; [`registers`]: its window
//! * [`segment`]: the tables; [`context`], [`remapping`]: their entries
//! * [`invalidation`]: telling the unit about changed ones; [`fault`]: what the unit refused

mod context;
mod fault;
mod invalidation;
mod memory;
mod registers;
mod remapping;
mod segment;
mod unit;

use alloc::vec::Vec;

use arch::interrupt::{InterruptTarget, MsiMessage};
use arch::iommu::{DomainId, Fault, InterruptSource, Iommu, IommuError, RemapIndex};
use arch::{Bdf, Hpa, Iova, PageSize};
use arrayvec::ArrayVec;
use mem::{DmaFormat, MapError, MemoryType, Rights, Table, TableMemory};

use crate::dmar::{Bridges, Dmar};
use context::ContextEntry;
use invalidation::Descriptor;
use memory::WrittenThrough;
pub use registers::{Mmio, Registers};
use segment::{Segment, remap_entry};
use unit::Unit;
pub use unit::check;

/// Maximum number of segments: a [`RemapIndex`] has no room for more tables.
const MAX_SEGMENTS: usize = (1 << 16) / remapping::ENTRIES as usize;
/// More domains than this are refused; every guest has one.
const MAX_DOMAINS: usize = 64;

/// The machine's VT-d units.
pub struct VtD<'a, M: TableMemory, R = Mmio> {
    dmar: Dmar<'a>,
    bridges: Bridges<'a>,
    memory: WrittenThrough<M>,
    units: Vec<Unit<R, M::Pool>>,
    segments: Vec<Segment<M::Pool>>,
    /// Levels of every domain's table.
    levels: u8,
    /// First DMA address that is too wide.
    iova_limit: u64,
    /// First domain identifier that is too big for some unit.
    domain_limit: usize,
    /// Domain n is at n - 1: identifier 0 belongs to the units. `None` is free.
    domains: ArrayVec<Option<Table<DmaFormat, M::Pool>>, MAX_DOMAINS>,
}

impl<'a, M: TableMemory> VtD<'a, M> {
    /// Switches translation and interrupt remapping on in every unit that `dmar` names. No function
    /// is attached: none reaches memory or a CPU any more.
    ///
    /// # Errors
    /// When a unit lacks something or does not answer, or when frames run out. Units that were on are
    /// off then, as far as they answer.
    ///
    /// # Safety
    /// `dmar` is this machine's own table. Its units are mapped uncached at their physical addresses,
    /// and nobody else drives them. `memory` hands out identity-mapped RAM that nobody else uses and
    /// reads and writes it as it is. No function masters the bus.
    pub unsafe fn new(dmar: Dmar<'a>, bridges: Bridges<'a>, memory: M) -> Result<Self, IommuError> {
        Self::with_registers(dmar, bridges, memory, |base| {
            // SAFETY: the caller vouches for the units that the table names.
            unsafe { Mmio::new(base) }
        })
    }
}

impl<'a, M: TableMemory, R: Registers> VtD<'a, M, R> {
    /// Where each unit's registers are, and what its capability registers say (CAP, ECAP).
    pub fn capability_words(&self) -> impl Iterator<Item = (Hpa, u64, u64)> + '_ {
        self.units.iter().map(|unit| (unit.base, unit.capability.0, unit.extended.0))
    }

    fn with_registers(
        dmar: Dmar<'a>,
        bridges: Bridges<'a>,
        memory: M,
        window: impl Fn(Hpa) -> R,
    ) -> Result<Self, IommuError> {
        dmar.check_remapping()?;
        let mut units = Vec::new();
        for drhd in dmar.units() {
            match Unit::probe(window(drhd.registers), drhd.registers, drhd.segment) {
                Ok(unit) => units.push(unit),
                Err(error) => {
                    units.iter_mut().for_each(Unit::switch_off);
                    return Err(error);
                }
            }
        }
        Self::with_units(dmar, bridges, memory, units)
    }

    fn with_units(
        dmar: Dmar<'a>,
        bridges: Bridges<'a>,
        memory: M,
        mut units: Vec<Unit<R, M::Pool>>,
    ) -> Result<Self, IommuError> {
        let mut memory = WrittenThrough::new(memory, units.iter().any(|u| !u.extended.coherent()));
        let on = switch_on(&mut units, &mut memory);
        let (levels, segments) = match on {
            Ok(on) => on,
            Err(error) => {
                units.iter_mut().for_each(Unit::switch_off);
                return Err(error);
            }
        };
        let bits = units.iter().map(|unit| unit.capability.address_width()).min().unwrap_or(0);
        let domains = units.iter().map(|unit| unit.capability.domains() as usize).min();
        Ok(Self {
            segments,
            memory,
            dmar,
            bridges,
            units,
            levels,
            iova_limit: 1 << bits.min(12 + 9 * levels),
            domain_limit: domains.unwrap_or(0),
            domains: ArrayVec::new(),
        })
    }

    /// The unit that remaps `function`.
    fn unit_for(&self, function: Bdf) -> Result<usize, IommuError> {
        self.dmar
            .drhd_for(function, self.bridges)
            .and_then(|drhd| self.units.iter().position(|unit| unit.base == drhd.registers))
            .ok_or(IommuError::NoUnit(function))
    }

    /// Makes the unit at `index` in `units` forget what it knows of context entries and translations.
    fn flush(&mut self, index: usize) -> Result<(), IommuError> {
        self.units.get_mut(index).map_or(Ok(()), |unit| unit.flush_translations(&mut self.memory))
    }

    fn domain(&self, id: DomainId) -> Option<&Table<DmaFormat, M::Pool>> {
        self.domains.get(usize::from(id.0).checked_sub(1)?)?.as_ref()
    }

    /// Which of the segments a function is in.
    fn segment_of(&self, function: Bdf) -> Result<usize, IommuError> {
        let mut segments = self.segments.iter();
        segments
            .position(|segment| segment.number == function.segment())
            .ok_or(IommuError::NoUnit(function))
    }

    /// An entry as it is in memory, the low half first.
    fn words(&self, entry: &segment::Entry<'_, M::Pool>) -> [u64; 2] {
        [entry.low, entry.high].map(|half| self.memory.read(half))
    }

    /// Whether an entry is taken: its high half names a source from then on, and that is never 0.
    fn is_taken(&self, index: u16) -> bool {
        remap_entry(&self.segments, index)
            .is_some_and(|(_, entry)| self.memory.read(entry.high) != 0)
    }

    /// The first of `count` consecutive entries of a segment that are free.
    fn free_run(&self, segment: usize, count: u16) -> Option<u16> {
        let start = segment * usize::from(remapping::ENTRIES);
        let mut free = 0;
        for index in start..start + usize::from(remapping::ENTRIES) {
            free = if self.is_taken(index as u16) { 0 } else { free + 1 };
            if free == usize::from(count.max(1)) {
                return Some((index + 1 - free) as u16);
            }
        }
        None
    }
}

/// The entry's number in its segment's table, as units and messages know it.
const fn within_table(index: RemapIndex) -> RemapIndex {
    RemapIndex(index.0 % remapping::ENTRIES)
}

/// Brings all units up; the levels of their tables, and each segment's empty ones.
fn switch_on<R: Registers, P>(
    units: &mut [Unit<R, P>],
    memory: &mut impl TableMemory<Pool = P>,
) -> Result<(u8, Vec<Segment<P>>), IommuError> {
    let levels = common_levels(units)?;
    let mut segments: Vec<Segment<P>> = Vec::new();
    for unit in units {
        let number = unit.segment;
        if segments.iter().all(|segment| segment.number != number) {
            if segments.len() == MAX_SEGMENTS {
                return Err(IommuError::Missing(
                    "a count of PCI segments that Nexit can handle, at most 16",
                ));
            }
            segments.push(Segment::new(number, memory)?);
        }
        for segment in segments.iter().filter(|segment| segment.number == number) {
            let (root, interrupts) = (segment.root.start(), segment.remap_table.start());
            let table = remapping::table_address(interrupts, remapping::ENTRIES.into());
            unit.bring_up(memory, root, table)?;
        }
    }
    Ok((levels, segments))
}

/// The levels of the tables that every unit can walk.
fn common_levels<R, P>(units: &[Unit<R, P>]) -> Result<u8, IommuError> {
    let levels = [4, 3].into_iter();
    let can = |levels: &u8| units.iter().all(|unit| unit.capability.levels(*levels));
    let what = "second-stage tables of 3 or 4 levels in all its units";
    levels.into_iter().find(can).ok_or(IommuError::Missing(what))
}

const fn map_error(error: MapError) -> IommuError {
    match error {
        MapError::OutOfFrames => IommuError::OutOfFrames,
        MapError::InputTooWide(at) | MapError::OutputTooWide(at) => IommuError::AddressTooWide(at),
        MapError::NotAligned(at) | MapError::AlreadyMapped(at) | MapError::NotMapped(at) => {
            IommuError::BadRange(at)
        }
    }
}

impl<M: TableMemory, R: Registers> Iommu for VtD<'_, M, R> {
    fn name(&self) -> &'static str {
        "vt-d"
    }

    fn create_domain(&mut self, functions: &[Bdf]) -> Result<DomainId, IommuError> {
        let mut largest = PageSize::Size1G;
        for function in functions {
            let unit = self.units.get(self.unit_for(*function)?);
            largest = unit.map_or(largest, |unit| largest.min(unit.capability.largest_page()));
        }
        let format = DmaFormat { levels: self.levels, largest };
        let free = self.domains.iter().position(Option::is_none).unwrap_or(self.domains.len());
        let id = free + 1;
        if id >= self.domain_limit || id > MAX_DOMAINS {
            return Err(IommuError::OutOfDomains);
        }
        let table = Some(Table::new(format, &mut self.memory).map_err(map_error)?);
        match self.domains.get_mut(free) {
            Some(slot) => *slot = table,
            None => self.domains.push(table),
        }
        Ok(DomainId(id as u16))
    }

    fn destroy_domain(&mut self, domain: DomainId) {
        let index = usize::from(domain.0).wrapping_sub(1);
        if let Some(table) = self.domains.get_mut(index).and_then(Option::take) {
            table.free_tables(&mut self.memory);
        }
    }

    fn map(
        &mut self,
        domain: DomainId,
        iova: Iova,
        hpa: Hpa,
        length: u64,
    ) -> Result<(), IommuError> {
        if iova.checked_add(length).is_none_or(|end| end.as_u64() > self.iova_limit) {
            return Err(IommuError::AddressTooWide(iova.as_u64()));
        }
        let index = usize::from(domain.0).wrapping_sub(1);
        let table = self.domains.get_mut(index).and_then(Option::as_mut);
        let table = table.ok_or(IommuError::UnknownDomain(domain))?;
        let (access, kind) = (Rights::READ_WRITE, MemoryType::WriteBack);
        let flush = table.map(&mut self.memory, iova.as_u64(), hpa, length, access, kind);
        let published = self.units.iter_mut().try_for_each(|unit| unit.publish(&mut self.memory));
        // Nothing was mapped there before; units that cache even that were told just now.
        flush.map_err(map_error)?.nothing_cached();
        published
    }

    fn attach(&mut self, function: Bdf, domain: DomainId) -> Result<(), IommuError> {
        let unit = self.unit_for(function)?;
        let table = self.domain(domain).ok_or(IommuError::UnknownDomain(domain))?;
        let (table, largest) = (table.root(), table.format().largest);
        if self.units.get(unit).is_none_or(|unit| unit.capability.largest_page() < largest) {
            return Err(IommuError::Missing("pages as large as those of the domain"));
        }
        self.detach(function)?;
        let segment = self.segment_of(function)?;
        let segment = self.segments.get_mut(segment).ok_or(IommuError::NoUnit(function))?;
        segment.add_bus(function.bus(), &mut self.memory)?;
        if let Some(slot) = segment.context(function) {
            let entry = ContextEntry::new(table, self.levels, domain.0);
            // The present bit is in the low half: it comes last.
            self.memory.write(slot.high, entry.high);
            self.memory.write(slot.low, entry.low);
        }
        self.flush(unit)
    }

    fn detach(&mut self, function: Bdf) -> Result<(), IommuError> {
        let unit = self.unit_for(function)?;
        let segment = self.segments.get(self.segment_of(function)?);
        let Some(slot) = segment.and_then(|segment| segment.context(function)) else {
            return Ok(());
        };
        self.memory.write(slot.low, 0);
        self.memory.write(slot.high, 0);
        self.flush(unit)
    }

    fn allocate_remap(
        &mut self,
        source: InterruptSource,
        count: u16,
    ) -> Result<RemapIndex, IommuError> {
        let requester = match source {
            InterruptSource::Device(function) => self.unit_for(function).map(|_| function)?,
            InterruptSource::IoApic(id) => {
                self.dmar.ioapic_requester(id, self.bridges).ok_or(IommuError::UnknownIoApic(id))?
            }
        };
        let segment = self.segment_of(requester)?;
        let first = self.free_run(segment, count).ok_or(IommuError::OutOfRemapEntries)?;
        for index in (first..).take(count.into()) {
            if let Some((_, entry)) = remap_entry(&self.segments, index) {
                self.memory.write(entry.high, remapping::entry_high(requester));
            }
        }
        Ok(RemapIndex(first))
    }

    fn free_remap(&mut self, first: RemapIndex, count: u16) -> Result<(), IommuError> {
        for index in (first.0..).take(count.into()) {
            self.set_remap(RemapIndex(index), None)?;
            if let Some((_, entry)) = remap_entry(&self.segments, index) {
                self.memory.write(entry.high, 0);
            }
        }
        Ok(())
    }

    fn remaps_in_use(&self) -> usize {
        (0..=u16::MAX).filter(|index| self.is_taken(*index)).count()
    }

    fn set_remap(
        &mut self,
        index: RemapIndex,
        target: Option<InterruptTarget>,
    ) -> Result<(), IommuError> {
        let entry = remap_entry(&self.segments, index.0).filter(|_| self.is_taken(index.0));
        let (segment, entry) = entry.ok_or(IommuError::OutOfRemapEntries)?;
        self.memory.write(entry.low, target.map_or(0, remapping::entry_low));
        let changed = [Descriptor::interrupt(within_table(index))];
        for unit in self.units.iter_mut().filter(|unit| unit.segment == segment) {
            unit.invalidate(&mut self.memory, &changed)?;
        }
        Ok(())
    }

    fn remap_message(&self, index: RemapIndex) -> MsiMessage {
        remapping::message(within_table(index))
    }

    fn remap_redirection(
        &self,
        index: RemapIndex,
        target: InterruptTarget,
        active_low: bool,
    ) -> u64 {
        remapping::redirection(within_table(index), target, active_low)
    }

    fn context_entry(&self, function: Bdf) -> Option<[u64; 2]> {
        let segment = self.segments.get(self.segment_of(function).ok()?)?;
        segment.context(function).map(|entry| self.words(&entry))
    }

    fn remap_entries(&self, function: Bdf, sink: &mut dyn FnMut(RemapIndex, [u64; 2])) {
        let source = remapping::entry_high(function);
        for index in 0..=u16::MAX {
            let Some((segment, entry)) = remap_entry(&self.segments, index) else { break };
            let [low, high] = self.words(&entry);
            if segment == function.segment() && high == source {
                sink(RemapIndex(index), [low, high]);
            }
        }
    }

    fn poll_faults(&mut self, sink: &mut dyn FnMut(Fault)) -> u32 {
        self.units.iter_mut().map(|unit| u32::from(unit.poll_faults(sink))).sum()
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
