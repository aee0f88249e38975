//! One radix-table walker for every table that the hardware walks.
//!
//! Invariant: a CPU or device that walks the table during a change sees, for each page,
//! the old mapping or the new one. Every entry is written once, as a whole; a table that replaces
//! a large page is complete before it is linked.
//!
//! After an unmap, the empty tables are kept for the next mapping until they are freed
//! ([`Table::prune`], [`Table::free_tables`]).
//! Levels are numbered from the leaves: level 0 holds 4 KiB pages, level 1 2 MiB, level 2 1 GiB.

mod answer;
pub(crate) mod entry;
mod overlay;

use core::ops::Range;

use arch::address::PAGE_SIZE;
use arch::{Hpa, PageSize};

use crate::pages::{Pages, Word};

pub use answer::{Added, Flush, MapError, Mapping, PageCounts};
pub use entry::{Entry, Format, Leaf, MemoryType, Rights};

/// Entries of a table.
const ENTRIES: u64 = 512;
/// Physical addresses have at most 52 bits (SDM "Physical Address Extension").
const OUTPUT_LIMIT: u64 = 1 << 52;

/// The memory that tables live in. It gives back what was last written: the walker follows what it reads.
pub trait TableMemory {
    /// Where its pages come from.
    type Pool;
    /// Reads a word.
    fn read(&self, at: Word<'_, Self::Pool>) -> u64;
    /// Writes a word in one piece, after all earlier writes.
    fn write(&mut self, at: Word<'_, Self::Pool>, value: u64);
    /// Allocates `bytes` (rounded up to whole pages) of contiguous zeroed memory, aligned to the next
    /// power of two; `None` if none is left.
    fn allocate_contiguous(&mut self, bytes: u64) -> Option<Pages<Self::Pool>>;
    /// Frees pages.
    fn free(&mut self, pages: Pages<Self::Pool>);
    /// Takes one zeroed page.
    fn allocate_table(&mut self) -> Option<Pages<Self::Pool>> {
        self.allocate_contiguous(PAGE_SIZE)
    }
    /// The same for a table of `level`.
    fn allocate_table_of(&mut self, _level: u8) -> Option<Pages<Self::Pool>> {
        self.allocate_table()
    }
    /// Frees the page of a table of `level`.
    fn free_table_of(&mut self, _level: u8, table: Pages<Self::Pool>) {
        self.free(table);
    }
}

/// A radix table, whose pages are of the pool `P`.
#[derive(Debug)]
pub struct Table<F, P> {
    format: F,
    root: Pages<P>,
}

/// The new mapping of a range; the physical address of `input` is `input + offset` (wrapping).
#[derive(Clone, Copy)]
struct Change {
    offset: u64,
    access: Rights,
    memory_type: MemoryType,
}

impl<F: Format, P> Table<F, P> {
    /// An empty table.
    ///
    /// # Errors
    /// When no page is left for its root.
    pub fn new(format: F, memory: &mut impl TableMemory<Pool = P>) -> Result<Self, MapError> {
        let root = memory.allocate_table().ok_or(MapError::OutOfFrames)?;
        Ok(Self { format, root })
    }

    /// How its entries look.
    #[must_use]
    pub const fn format(&self) -> &F {
        &self.format
    }

    /// The address of the root table.
    #[must_use]
    pub const fn root(&self) -> Hpa {
        self.root.start()
    }

    /// Maps `length` bytes at `input` to `hpa`, with the largest pages that fit.
    ///
    /// # Errors
    /// When a page of the range is mapped already or an address is bad (nothing has changed then),
    /// or when memory for tables runs out (the range is mapped up to some page then).
    pub fn map(
        &mut self,
        memory: &mut impl TableMemory<Pool = P>,
        input: u64,
        hpa: Hpa,
        length: u64,
        access: Rights,
        memory_type: MemoryType,
    ) -> Result<Added, MapError> {
        let span = self.span(input, length)?;
        if let Some(at) = self.first(memory, span.clone(), true) {
            return Err(MapError::AlreadyMapped(at));
        }
        let Flush { input, length } = self.set(memory, span, hpa, access, memory_type)?;
        Ok(Added { input, length })
    }

    /// As [`Table::map`], but leaves existing mappings unchanged.
    ///
    /// # Errors
    /// As [`Table::map`], without the first.
    pub fn map_missing(
        &mut self,
        memory: &mut impl TableMemory<Pool = P>,
        input: u64,
        hpa: Hpa,
        length: u64,
        access: Rights,
        memory_type: MemoryType,
    ) -> Result<Added, MapError> {
        let span = self.span(input, length)?;
        let mut at = span.start;
        while let Some(start) = self.first(memory, at..span.end, false) {
            let end = self.first(memory, start..span.end, true).unwrap_or(span.end);
            let to = Hpa::new(hpa.as_u64().wrapping_add(start - input));
            let Flush { .. } = self.set(memory, start..end, to, access, memory_type)?;
            at = end;
        }
        Ok(Added { input, length })
    }

    /// As [`Table::map`], for a range that is mapped already. Large pages that the range cuts are
    /// split.
    ///
    /// # Errors
    /// As [`Table::map`], but when a page of the range is *not* mapped.
    pub fn replace(
        &mut self,
        memory: &mut impl TableMemory<Pool = P>,
        input: u64,
        hpa: Hpa,
        length: u64,
        access: Rights,
        memory_type: MemoryType,
    ) -> Result<Flush, MapError> {
        let span = self.span(input, length)?;
        if let Some(at) = self.first(memory, span.clone(), false) {
            return Err(MapError::NotMapped(at));
        }
        self.set(memory, span, hpa, access, memory_type)
    }

    /// Unmaps whatever is mapped in the range. Large pages that the range cuts are split.
    ///
    /// # Errors
    /// When an address is bad, or when memory for a split runs out (the range is unmapped up to
    /// some page then).
    pub fn unmap(
        &mut self,
        memory: &mut impl TableMemory<Pool = P>,
        input: u64,
        length: u64,
    ) -> Result<Flush, MapError> {
        let span = self.span(input, length)?;
        self.apply(memory, self.root(), self.format.levels() - 1, span, None)?;
        Ok(Flush { input, length })
    }

    /// Frees empty tables that cover a part of the range. A reader may still have their addresses in a cache (SDM
    /// "Caching Translation Information"), with the level that they had. So `memory` may only reuse them where that is
    /// harmless: by this table, for other ranges, and as tables of the same level ([`crate::reserve`]). At another level an
    /// entry that leads to a table would be read as one that maps it.
    pub fn prune(&mut self, memory: &mut impl TableMemory<Pool = P>, input: u64, length: u64) {
        if let Ok(span) = self.span(input, length) {
            self.prune_below(memory, self.root(), self.format.levels() - 1, span);
        }
    }

    /// As [`Table::prune`], below one `table`. Returns whether it is empty now.
    fn prune_below(
        &self,
        memory: &mut impl TableMemory<Pool = P>,
        table: Hpa,
        level: u8,
        span: Range<u64>,
    ) -> bool {
        let size = bytes(level);
        let mut at = span.start;
        while at < span.end {
            let next = span.end.min((at | (size - 1)) + 1);
            let slot = slot(table, level, at);
            if let Entry::Table(lower) = self.format.decode(memory.read(slot), level)
                && self.prune_below(memory, lower, level - 1, at..next)
            {
                memory.write(slot, 0);
                memory.free_table_of(level - 1, Pages::linked(lower));
            }
            at = next;
        }
        (0..ENTRIES).all(|index| memory.read(entry(table, index)) == 0)
    }

    /// Where `input` leads; `None` where nothing is mapped.
    #[must_use]
    pub fn translate(&self, memory: &impl TableMemory<Pool = P>, input: u64) -> Option<Mapping> {
        if input >= self.input_limit() {
            return None;
        }
        let (leaf, level) = self.find(memory, input);
        let leaf = leaf?;
        let size = match level {
            0 => PageSize::Size4K,
            1 => PageSize::Size2M,
            _ => PageSize::Size1G,
        };
        let hpa = leaf.hpa.wrapping_add(input & (size.bytes() - 1));
        Some(Mapping { hpa, size, access: leaf.access, memory_type: leaf.memory_type })
    }

    /// Counts the pages of each size.
    #[must_use]
    pub fn page_counts(&self, memory: &impl TableMemory<Pool = P>) -> PageCounts {
        let mut counts = PageCounts::default();
        self.count(memory, self.root(), self.format.levels() - 1, &mut counts);
        counts
    }

    fn count(
        &self,
        memory: &impl TableMemory<Pool = P>,
        table: Hpa,
        level: u8,
        counts: &mut PageCounts,
    ) {
        for index in 0..ENTRIES {
            match self.format.decode(memory.read(entry(table, index)), level) {
                Entry::Absent => {}
                Entry::Table(lower) => self.count(memory, lower, level - 1, counts),
                Entry::Leaf(_) if level == 0 => counts.size_4k += 1,
                Entry::Leaf(_) if level == 1 => counts.size_2m += 1,
                Entry::Leaf(_) => counts.size_1g += 1,
            }
        }
    }

    /// Frees all its pages. The table must not be in use, and no reader may have cached a part of it.
    pub fn free_tables(self, memory: &mut impl TableMemory<Pool = P>) {
        self.free_below(memory, self.root(), self.format.levels() - 1);
        memory.free(self.root);
    }

    fn free_below(&self, memory: &mut impl TableMemory<Pool = P>, table: Hpa, level: u8) {
        for index in 0..ENTRIES {
            let entry = memory.read(entry(table, index));
            if let Entry::Table(lower) = self.format.decode(entry, level) {
                self.free_below(memory, lower, level - 1);
                memory.free(Pages::linked(lower));
            }
        }
    }

    fn input_limit(&self) -> u64 {
        bytes(self.format.levels())
    }

    fn span(&self, input: u64, length: u64) -> Result<Range<u64>, MapError> {
        if let Some(odd) = [input, length].into_iter().find(|n| n % PAGE_SIZE != 0) {
            return Err(MapError::NotAligned(odd));
        }
        match input.checked_add(length) {
            Some(end) if end <= self.input_limit() => Ok(input..end),
            _ => Err(MapError::InputTooWide(input)),
        }
    }

    fn set(
        &mut self,
        memory: &mut impl TableMemory<Pool = P>,
        span: Range<u64>,
        hpa: Hpa,
        access: Rights,
        memory_type: MemoryType,
    ) -> Result<Flush, MapError> {
        let length = span.end - span.start;
        if !hpa.is_aligned(PAGE_SIZE) {
            return Err(MapError::NotAligned(hpa.as_u64()));
        }
        if hpa.checked_add(length).is_none_or(|end| end.as_u64() > OUTPUT_LIMIT) {
            return Err(MapError::OutputTooWide(hpa.as_u64()));
        }
        let offset = hpa.as_u64().wrapping_sub(span.start);
        let change = Change { offset, access, memory_type };
        let input = span.start;
        self.apply(memory, self.root(), self.format.levels() - 1, span, Some(change))?;
        Ok(Flush { input, length })
    }

    /// The leaf that maps `input`, or `None`; and the level of the entry that says so.
    fn find(&self, memory: &impl TableMemory<Pool = P>, input: u64) -> (Option<Leaf>, u8) {
        let (mut table, mut level) = (self.root(), self.format.levels() - 1);
        loop {
            match self.format.decode(memory.read(slot(table, level, input)), level) {
                Entry::Absent => return (None, level),
                Entry::Leaf(leaf) => return (Some(leaf), level),
                Entry::Table(lower) => (table, level) = (lower, level - 1),
            }
        }
    }

    /// The first address in `span` that is mapped, or is not.
    fn first(
        &self,
        memory: &impl TableMemory<Pool = P>,
        span: Range<u64>,
        mapped: bool,
    ) -> Option<u64> {
        let mut at = span.start;
        while at < span.end {
            let (leaf, level) = self.find(memory, at);
            if leaf.is_some() == mapped {
                return Some(at);
            }
            at = (at | (bytes(level) - 1)) + 1;
        }
        None
    }

    /// Makes `span`, which lies in the reach of one `table` of `level`, what `change` says.
    fn apply(
        &self,
        memory: &mut impl TableMemory<Pool = P>,
        table: Hpa,
        level: u8,
        span: Range<u64>,
        change: Option<Change>,
    ) -> Result<(), MapError> {
        let size = bytes(level);
        let mut at = span.start;
        while at < span.end {
            let next = span.end.min((at | (size - 1)) + 1);
            let slot = slot(table, level, at);
            let whole = next - at == size;
            let leaf = change.map(|change| Leaf {
                hpa: Hpa::new(at.wrapping_add(change.offset)),
                access: change.access,
                memory_type: change.memory_type,
            });
            let fits = |leaf: Leaf| {
                whole
                    && size <= self.format.largest_page(leaf.access).bytes()
                    && leaf.hpa.is_aligned(size)
            };
            let lower = match (self.format.decode(memory.read(slot), level), leaf) {
                (Entry::Table(lower), _) => Some(lower),
                (Entry::Absent, None) => None,
                (Entry::Leaf(_), None) if whole => {
                    memory.write(slot, 0);
                    None
                }
                (_, Some(leaf)) if fits(leaf) => {
                    memory.write(slot, self.format.leaf_entry(leaf, level));
                    None
                }
                (Entry::Absent, Some(_)) => Some(self.link(memory, slot, level - 1, |_| 0)?),
                (Entry::Leaf(old), _) => Some(self.link(memory, slot, level - 1, |index| {
                    let hpa = old.hpa.wrapping_add(index * bytes(level - 1));
                    self.format.leaf_entry(Leaf { hpa, ..old }, level - 1)
                })?),
            };
            if let Some(lower) = lower {
                self.apply(memory, lower, level - 1, at..next, change)?;
            }
            at = next;
        }
        Ok(())
    }

    /// Fills a new table of `level` and only then puts it into `slot`.
    fn link(
        &self,
        memory: &mut impl TableMemory<Pool = P>,
        slot: Word<'_, P>,
        level: u8,
        entry: impl Fn(u64) -> u64,
    ) -> Result<Hpa, MapError> {
        let table = memory.allocate_table_of(level).ok_or(MapError::OutOfFrames)?;
        for index in 0..ENTRIES {
            match entry(index) {
                0 => {}
                entry => memory.write(table.word(index * 8), entry),
            }
        }
        memory.write(slot, self.format.table_entry(table.start()));
        Ok(table.start())
    }
}

/// Bytes that one entry of `level` covers.
const fn bytes(level: u8) -> u64 {
    1 << (12 + 9 * level as u32)
}

/// The entry for `input` in a table of `level`.
const fn slot<'a, P>(table: Hpa, level: u8, input: u64) -> Word<'a, P> {
    entry(table, input / bytes(level))
}

/// An entry of a page of this table: its root, or a page that was linked below it.
const fn entry<'a, P>(table: Hpa, index: u64) -> Word<'a, P> {
    Word::linked(table.wrapping_add(index % ENTRIES * 8))
}

#[cfg(test)]
mod tests;
