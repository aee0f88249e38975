//! Memory that goes back to the pool when what it was taken for is dropped.

use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};

use mem::TableMemory;
use mem::reserve::Frames;
use mem::table::Format;

use crate::memory::{Lent, Memory, Own};

/// A value that goes back when it is dropped.
pub(crate) struct Owned<T: GiveBack>(ManuallyDrop<T>);

/// Contiguous pages.
pub(crate) type Pages = Owned<mem::Pages<Own>>;
/// A page table with its pages.
pub(crate) type OwnTable<F> = Owned<mem::Table<F, Own>>;
/// Frames for what may change in a table.
pub(crate) type OwnFrames = Owned<Frames<Own>>;

/// How a value goes back.
pub(crate) trait GiveBack {
    fn give_back(self, memory: &mut Memory);
}

impl GiveBack for mem::Pages<Own> {
    fn give_back(self, memory: &mut Memory) {
        memory.free(self);
    }
}

impl GiveBack for mem::Pages<Lent> {
    fn give_back(self, memory: &mut Memory) {
        memory.take_back(self);
    }
}

impl<F: Format> GiveBack for mem::Table<F, Own> {
    fn give_back(self, memory: &mut Memory) {
        self.free_tables(memory);
    }
}

impl GiveBack for Frames<Own> {
    fn give_back(mut self, memory: &mut Memory) {
        while let Some(frame) = self.take(memory) {
            memory.free(frame);
        }
    }
}

impl<T: GiveBack> Owned<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(ManuallyDrop::new(value))
    }
}

impl<T: GiveBack> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: the value is not used again.
        let value = unsafe { ManuallyDrop::take(&mut self.0) };
        value.give_back(&mut Memory::handle());
    }
}

impl<T: GiveBack> Deref for Owned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: GiveBack> DerefMut for Owned<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}
