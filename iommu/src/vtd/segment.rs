//! The tables that the units of one PCI segment share.
//!
//! Invariant: what a root entry leads to is in `contexts`, so that no address is read back from memory.

use alloc::vec::Vec;

use arch::Bdf;
use arch::iommu::IommuError;
use mem::{Pages, TableMemory, Word};

use super::{context, remapping};

/// What the units of one PCI segment share. The entries of the n-th one have the [`RemapIndex`]es from
/// n × [`remapping::ENTRIES`] on.
#[derive(Debug)]
pub(super) struct Segment<P> {
    pub(super) number: u16,
    pub(super) root: Pages<P>,
    /// The context tables of buses on which a function was attached once.
    contexts: Vec<(u8, Pages<P>)>,
    pub(super) remap_table: Pages<P>,
}

impl<P> Segment<P> {
    /// Empty tables.
    pub(super) fn new(
        number: u16,
        memory: &mut impl TableMemory<Pool = P>,
    ) -> Result<Self, IommuError> {
        const TABLE_SIZE: u64 = remapping::ENTRIES as u64 * remapping::ENTRY_SIZE;
        let root = memory.allocate_table().ok_or(IommuError::OutOfFrames)?;
        let remap_table = memory.allocate_contiguous(TABLE_SIZE).ok_or(IommuError::OutOfFrames)?;
        Ok(Self { number, root, contexts: Vec::new(), remap_table })
    }

    /// The context entry of a function, if its bus has a table of them.
    pub(super) fn context(&self, function: Bdf) -> Option<Entry<'_, P>> {
        let of_bus = |(bus, _): &&(u8, Pages<P>)| *bus == function.bus();
        let (_, table) = self.contexts.iter().find(of_bus)?;
        Some(Entry::at(table, context::context_offset(function)))
    }

    /// Has the bus's table of context entries, which is empty at first.
    pub(super) fn add_bus(
        &mut self,
        bus: u8,
        memory: &mut impl TableMemory<Pool = P>,
    ) -> Result<(), IommuError> {
        if self.contexts.iter().all(|(known, _)| *known != bus) {
            let table = memory.allocate_table().ok_or(IommuError::OutOfFrames)?;
            let slot = self.root.word(context::root_offset(bus));
            memory.write(slot, context::root_entry(table.start()));
            self.contexts.push((bus, table));
        }
        Ok(())
    }
}

/// An entry of 128 bits.
pub(super) struct Entry<'a, P> {
    pub(super) low: Word<'a, P>,
    pub(super) high: Word<'a, P>,
}

impl<'a, P> Entry<'a, P> {
    fn at(table: &'a Pages<P>, offset: u64) -> Self {
        Self { low: table.word(offset), high: table.word(offset + 8) }
    }
}

/// An interrupt's entry, and the segment whose interrupts go through it.
pub(super) fn remap_entry<P>(segments: &[Segment<P>], index: u16) -> Option<(u16, Entry<'_, P>)> {
    let segment = segments.get(usize::from(index / remapping::ENTRIES))?;
    let offset = u64::from(index % remapping::ENTRIES) * remapping::ENTRY_SIZE;
    Some((segment.number, Entry::at(&segment.remap_table, offset)))
}
