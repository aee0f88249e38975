//! Table memory on a map, which remembers every write.

use std::collections::BTreeMap;
use std::vec::Vec;

use arch::Hpa;
use arch::address::PAGE_SIZE;

use arch::address::HpaRange;

use crate::pages::{Pages, Word};
use crate::table::TableMemory;

/// Memory for the tests. Reading or writing what was not allocated fails the test.
#[derive(Clone, Debug)]
pub(crate) struct TestMemory {
    words: BTreeMap<u64, u64>,
    next: u64,
    /// Frames that are left.
    pub(crate) frames: u64,
    /// Pages that were given back.
    pub(crate) given_back: Vec<Hpa>,
    /// How often a word was read.
    pub(crate) reads: std::cell::Cell<u64>,
    /// Every write, oldest first.
    pub(crate) log: Vec<(Hpa, u64)>,
}

impl TestMemory {
    pub(crate) fn new() -> Self {
        let (words, log, given_back) = (BTreeMap::new(), Vec::new(), Vec::new());
        let reads = std::cell::Cell::new(0);
        Self { words, next: 0x10_0000, frames: u64::MAX, log, given_back, reads }
    }
}

impl TableMemory for TestMemory {
    type Pool = Self;

    fn read(&self, at: Word<'_, Self>) -> u64 {
        let at = at.address();
        assert!(at.is_aligned(8) && (0x10_0000..self.next).contains(&at.as_u64()), "{at}");
        self.reads.set(self.reads.get() + 1);
        self.words.get(&at.as_u64()).copied().unwrap_or(0)
    }

    fn write(&mut self, at: Word<'_, Self>, value: u64) {
        let at = at.address();
        assert!(at.is_aligned(8) && (0x10_0000..self.next).contains(&at.as_u64()), "{at}");
        self.words.insert(at.as_u64(), value);
        self.log.push((at, value));
    }

    fn allocate_contiguous(&mut self, bytes: u64) -> Option<Pages<Self>> {
        self.frames = self.frames.checked_sub(bytes.div_ceil(PAGE_SIZE))?;
        let range =
            HpaRange { start: Hpa::new(self.next), length: bytes.next_multiple_of(PAGE_SIZE) };
        self.next += range.length;
        Some(Pages::of(self, range))
    }

    fn free(&mut self, pages: Pages<Self>) {
        let page = pages.start();
        assert!((0x10_0000..self.next).contains(&page.as_u64()), "{page}");
        assert!(!self.given_back.contains(&page), "{page} is given back twice");
        self.given_back.push(page);
        self.frames += 1;
    }
}

impl<M: TableMemory + ?Sized> TableMemory for &mut M {
    type Pool = M::Pool;

    fn read(&self, at: Word<'_, M::Pool>) -> u64 {
        (**self).read(at)
    }
    fn write(&mut self, at: Word<'_, M::Pool>, value: u64) {
        (**self).write(at, value);
    }
    fn allocate_contiguous(&mut self, bytes: u64) -> Option<Pages<M::Pool>> {
        (**self).allocate_contiguous(bytes)
    }
    fn free(&mut self, pages: Pages<M::Pool>) {
        (**self).free(pages);
    }
    fn allocate_table_of(&mut self, level: u8) -> Option<Pages<M::Pool>> {
        (**self).allocate_table_of(level)
    }
    fn free_table_of(&mut self, level: u8, table: Pages<M::Pool>) {
        (**self).free_table_of(level, table);
    }
}
