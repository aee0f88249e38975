//! Free memory that goes back when what it was taken for is dropped.

use core::ops::{Deref, DerefMut};

use arch::Hpa;
use arch::address::PAGE_SIZE;
use mem::reserve::Frames;
use mem::table::Format;
use mem::{Table, TableMemory};

use crate::memory::Memory;
use crate::refusal::Refusal;

/// Contiguous pages, zeroed when they are taken.
pub(crate) struct Pages {
    start: Hpa,
    bytes: u64,
}

impl Pages {
    /// Takes so many bytes, whole pages.
    pub(crate) fn take(memory: Memory, bytes: u64) -> Result<Self, Refusal> {
        Ok(Self { start: memory.frames(bytes)?, bytes })
    }

    /// Where they begin.
    pub(crate) const fn start(&self) -> Hpa {
        self.start
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        for page in 0..self.bytes.div_ceil(PAGE_SIZE) {
            Memory::handle().free_page(self.start.wrapping_add(page * PAGE_SIZE));
        }
    }
}

/// A page table with its pages.
pub(crate) struct OwnTable<F: Format>(Table<F>);

impl<F: Format> OwnTable<F> {
    /// A table that maps nothing.
    pub(crate) fn new(format: F, mut memory: Memory) -> Result<Self, Refusal> {
        Ok(Self(Table::new(format, &mut memory)?))
    }
}

impl<F: Format> Drop for OwnTable<F> {
    fn drop(&mut self) {
        self.0.free_tables(&mut Memory::handle());
    }
}

impl<F: Format> Deref for OwnTable<F> {
    type Target = Table<F>;

    fn deref(&self) -> &Table<F> {
        &self.0
    }
}

impl<F: Format> DerefMut for OwnTable<F> {
    fn deref_mut(&mut self) -> &mut Table<F> {
        &mut self.0
    }
}

/// Frames for what may change in a table.
#[derive(Default)]
pub(crate) struct OwnFrames(pub(crate) Frames);

impl Drop for OwnFrames {
    fn drop(&mut self) {
        let mut memory = Memory::handle();
        while let Some(frame) = self.0.take(&mut memory) {
            memory.free_page(frame);
        }
    }
}
