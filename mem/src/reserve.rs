//! Frames that one table has for what changes in it while it is in use.
//!
//! Invariants:
//!
//! - A change takes frames of the reserve only, and tables that it empties go back there. So whoever chooses what is
//!   mapped where (a guest, with its BARs) takes nothing that is anybody else's, and never runs out of what was counted for
//!   it ([`tables_for`]).
//! - A frame that was a table of one level never becomes one of another. A CPU that has not been told of a change may have
//!   the frame's address in its paging-structure caches (SDM "Caching Translation Information"), and reads what stands there
//!   now with the level of then: an entry that leads to a table would map that table, for a guest to write. At the same
//!   level it finds what is the guest's anyway.

use arch::Hpa;
use arch::address::PAGE_SIZE;

use crate::pages::{Pages, Word};
use crate::table::TableMemory;

/// Levels below the root of a table of five levels.
const LEVELS: usize = 4;

/// Frames that are set aside.
#[derive(Debug)]
pub struct Frames<P> {
    /// Those that have not been a table yet.
    unused: List<P>,
    /// Those that have, by level.
    of_level: [List<P>; LEVELS],
    count: usize,
}

/// Each has the address of the next in its first word, and is zero otherwise: as a table it has nothing mapped.
#[derive(Debug)]
struct List<P>(Option<Pages<P>>);

impl<P> List<P> {
    fn put(&mut self, memory: &mut impl TableMemory<Pool = P>, frame: Pages<P>) {
        memory.write(frame.word(0), self.0.as_ref().map_or(0, |next| next.start().as_u64()));
        self.0 = Some(frame);
    }

    fn take(&mut self, memory: &mut impl TableMemory<Pool = P>) -> Option<Pages<P>> {
        let frame = self.0.take()?;
        let next = memory.read(frame.word(0));
        // No frame is at 0.
        self.0 = (next != 0).then(|| Pages::linked(Hpa::new(next)));
        memory.write(frame.word(0), 0);
        Some(frame)
    }
}

impl<P> Default for Frames<P> {
    fn default() -> Self {
        Self { unused: List(None), of_level: [const { List(None) }; LEVELS], count: 0 }
    }
}

impl<P> Frames<P> {
    /// Sets a zeroed frame aside.
    pub fn put(&mut self, memory: &mut impl TableMemory<Pool = P>, frame: Pages<P>) {
        self.unused.put(memory, frame);
        self.count += 1;
    }

    /// Takes one, zeroed, when no table is in use any more.
    pub fn take(&mut self, memory: &mut impl TableMemory<Pool = P>) -> Option<Pages<P>> {
        let mut lists = core::iter::once(&mut self.unused).chain(&mut self.of_level);
        let frame = lists.find_map(|list| list.take(memory))?;
        self.count -= 1;
        Some(frame)
    }

    /// Takes one, zeroed, that is to be a table of `level`.
    fn take_for(&mut self, memory: &mut impl TableMemory<Pool = P>, level: u8) -> Option<Pages<P>> {
        let used = self.of_level.get_mut(usize::from(level)).and_then(|list| list.take(memory));
        let frame = used.or_else(|| self.unused.take(memory))?;
        self.count -= 1;
        Some(frame)
    }

    /// Puts back a zeroed one that was a table of `level`.
    fn put_back(&mut self, memory: &mut impl TableMemory<Pool = P>, level: u8, frame: Pages<P>) {
        // No table has more levels: a frame of one would be of no use any more.
        if let Some(list) = self.of_level.get_mut(usize::from(level)) {
            list.put(memory, frame);
            self.count += 1;
        }
    }

    /// How many there are.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }
}

/// Memory whose tables come from a reserve.
#[derive(Debug)]
pub struct Reserve<'a, M: TableMemory> {
    /// Reads and writes the tables.
    pub memory: M,
    /// What is left of it.
    pub frames: &'a mut Frames<M::Pool>,
}

/// Tables that a range of `length` bytes takes at most, wherever a guest has it, if it begins at a
/// multiple of its length in both address spaces, `length` is a power of two, and `cut` says that a part
/// in its midst is left out. It is the sum of what it takes at most of each level, so that it is enough where the tables of
/// one level are not those of another.
#[must_use]
pub const fn tables_for(length: u64, cut: bool) -> usize {
    /// One of each level below the root of four.
    const LOWER: usize = 3;
    /// The part may begin in one large page and end in the next, on two levels.
    const CUT: usize = 4;
    /// A reader may have no pages as large as that.
    const GIB: u64 = 1 << 30;
    let below = (length / GIB + length / (GIB * 512)) as usize;
    match (length, cut) {
        (0..PAGE_SIZE, _) => 0,
        (_, true) => LOWER + CUT + below,
        (_, false) => LOWER + below,
    }
}

/// The same where the range begins at any page: it is mapped by the smallest pages.
#[must_use]
pub const fn tables_for_pages(length: u64) -> usize {
    const COVERED: u64 = PAGE_SIZE * 512;
    // It may begin and end in the midst of what each table covers.
    (length / COVERED + length / (COVERED * 512)) as usize + 2 + 2 + 2
}

impl<M: TableMemory> TableMemory for Reserve<'_, M> {
    type Pool = M::Pool;

    fn read(&self, at: Word<'_, M::Pool>) -> u64 {
        self.memory.read(at)
    }

    fn write(&mut self, at: Word<'_, M::Pool>, value: u64) {
        self.memory.write(at, value);
    }

    /// None but tables, whose level is known.
    fn allocate_contiguous(&mut self, _: u64) -> Option<Pages<M::Pool>> {
        None
    }

    fn free(&mut self, pages: Pages<M::Pool>) {
        self.memory.free(pages);
    }

    fn allocate_table_of(&mut self, level: u8) -> Option<Pages<M::Pool>> {
        self.frames.take_for(&mut self.memory, level)
    }

    fn free_table_of(&mut self, level: u8, table: Pages<M::Pool>) {
        for offset in (0..PAGE_SIZE).step_by(8) {
            self.memory.write(table.word(offset), 0);
        }
        self.frames.put_back(&mut self.memory, level, table);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestMemory;
    use crate::{EptFormat, MapError, MemoryType, Rights, Table};
    use arch::PageSize;
    use proptest::prelude::*;
    use std::vec::Vec;

    const BAR: Hpa = Hpa::new(0x40_0000_0000);

    fn table(
        memory: &mut TestMemory,
        largest: PageSize,
        count: usize,
    ) -> (Table<EptFormat, TestMemory>, Frames<TestMemory>) {
        let table = Table::new(EptFormat::up_to(largest), memory).unwrap();
        let mut frames = Frames::default();
        for _ in 0..count {
            let frame = memory.allocate_table().unwrap();
            frames.put(memory, frame);
        }
        (table, frames)
    }

    fn map<M: TableMemory>(
        table: &mut Table<EptFormat, M::Pool>,
        reserve: &mut Reserve<'_, M>,
        at: u64,
        part: core::ops::Range<u64>,
    ) -> Result<(), MapError> {
        let (hpa, length) = (BAR.wrapping_add(part.start), part.end - part.start);
        let (access, kind) = (Rights::READ_WRITE, MemoryType::Uncached);
        table
            .map(reserve, at + part.start, hpa, length, access, kind)
            .map(|flush| flush.nothing_cached())
    }

    #[test]
    fn a_page_that_wanders_through_the_address_space_for_ever_takes_no_more_than_its_reserve() {
        let mut memory = TestMemory::new();
        let count = tables_for(4096, false);
        let (mut table, mut frames) = table(&mut memory, PageSize::Size2M, count);
        for step in 0..1000_u64 {
            let mut reserve = Reserve { memory: &mut memory, frames: &mut frames };
            let at = (step * 0x4_4321_3000) & 0xffff_ffff_f000;
            map(&mut table, &mut reserve, at, 0..4096).unwrap();
            assert_eq!(table.translate(&reserve, at).unwrap().hpa, BAR);
            table.unmap(&mut reserve, at, 4096).unwrap().not_in_use();
            table.prune(&mut reserve, at, 4096);
            assert_eq!(table.translate(&reserve, at), None);
        }
        assert_eq!(frames.count(), count);
        assert!(memory.given_back.is_empty(), "nothing of the common pool moved");
    }

    #[test]
    fn an_empty_reserve_refuses_and_takes_nothing_from_elsewhere() {
        let mut memory = TestMemory::new();
        let (mut table, mut frames) = table(&mut memory, PageSize::Size2M, 2);
        memory.frames = 0;
        let mut reserve = Reserve { memory: &mut memory, frames: &mut frames };
        assert_eq!(map(&mut table, &mut reserve, 0, 0..4096), Err(MapError::OutOfFrames));
    }

    #[test]
    fn a_table_with_something_else_in_it_stays() {
        let mut memory = TestMemory::new();
        let (mut table, mut frames) = table(&mut memory, PageSize::Size2M, 3);
        let mut reserve = Reserve { memory: &mut memory, frames: &mut frames };
        map(&mut table, &mut reserve, 0, 0..4096).unwrap();
        map(&mut table, &mut reserve, 0x5000, 0..4096).unwrap();
        table.unmap(&mut reserve, 0, 4096).unwrap().not_in_use();
        table.prune(&mut reserve, 0, 4096);
        assert_eq!(table.translate(&reserve, 0x5000).unwrap().hpa, BAR);
        assert_eq!(frames.count(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 48 }))]
        #[test]
        fn what_is_counted_for_bars_is_enough_wherever_they_are_moved(
            bars in proptest::collection::vec((12u32..33, any::<bool>(), any::<u64>()), 1..5),
            moves in proptest::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 0..40),
            big: bool,
        ) {
            let mut memory = TestMemory::new();
            let count = bars.iter().map(|(bits, cut, _)| tables_for(1 << bits, *cut)).sum();
            let largest = if big { PageSize::Size1G } else { PageSize::Size2M };
            let (mut table, mut frames) = table(&mut memory, largest, count);
            let mut places: Vec<Option<u64>> = std::vec![None; bars.len()];
            let mut levels = std::collections::BTreeMap::new();
            for (index, to) in moves {
                let index = index.index(bars.len());
                let (bits, cut, hole) = bars[index];
                let (length, mut reserve) = (1 << bits, Reserve { memory: &mut memory, frames: &mut frames });
                let hole = if cut { (hole % length) & !0xfff } else { length };
                let parts = [0..hole, (hole + 4096).min(length)..length];
                let parts = || parts.iter().filter(|part| !part.is_empty()).cloned();
                if let Some(at) = places[index].take() {
                    for part in parts() {
                        let (input, length) = (at + part.start, part.end - part.start);
                        table.unmap(&mut reserve, input, length).unwrap().not_in_use();
                        table.prune(&mut reserve, input, length);
                    }
                }
                let to = to & 0xffff_ffff_ffff & !(length - 1);
                let others = places.iter().zip(&bars).filter_map(|(at, bar)| at.map(|at| at..at + (1 << bar.0)));
                if others.into_iter().any(|other| other.start < to + length && to < other.end) {
                    continue;
                }
                for part in parts() {
                    prop_assert_eq!(map(&mut table, &mut reserve, to, part), Ok(()));
                }
                places[index] = Some(to);
                // Whatever a CPU has in its caches of a table of before is one of that level for ever.
                for (frame, level) in table.levels(&reserve) {
                    prop_assert_eq!(*levels.entry(frame).or_insert(level), level, "{:#x}", frame);
                }
            }
        }
    }
}
