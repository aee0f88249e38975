//! A limit to the frames that one table may take.

use arch::Hpa;

use crate::table::TableMemory;

/// Memory of which so many more frames may become tables. Tables are never given back, and whoever
/// chooses what is mapped where (a guest, with its BARs) would otherwise have all of it.
#[derive(Debug)]
pub struct Allowance<'a, M> {
    /// Where they come from.
    pub memory: M,
    /// How many are left.
    pub frames: &'a mut u32,
}

impl<M: TableMemory> TableMemory for Allowance<'_, M> {
    fn read(&self, at: Hpa) -> u64 {
        self.memory.read(at)
    }

    fn write(&mut self, at: Hpa, value: u64) {
        self.memory.write(at, value);
    }

    fn allocate_contiguous(&mut self, bytes: u64) -> Option<Hpa> {
        *self.frames = self.frames.checked_sub(1)?;
        self.memory.allocate_contiguous(bytes)
    }

    fn give_back(&mut self, page: Hpa) {
        *self.frames += 1;
        self.memory.give_back(page);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestMemory;
    use crate::{Access, EptFormat, MapError, MemoryType, Table};
    use arch::PageSize;

    #[test]
    fn a_page_that_wanders_through_the_address_space_takes_no_more_frames_than_allowed() {
        let mut memory = TestMemory::new();
        let mut table = Table::new(EptFormat { largest: PageSize::Size4K }, &mut memory).unwrap();
        let mut frames = 30;
        let mut refused = 0;
        for step in 0..1000_u64 {
            let mut allowed = Allowance { memory: &mut memory, frames: &mut frames };
            let (at, access) = (step << 30, Access::READ_WRITE);
            let bar = Hpa::new(0xfeb0_0000);
            match table.map(&mut allowed, at, bar, 4096, access, MemoryType::Uncached) {
                Ok(flush) => flush.nothing_cached(),
                Err(error) => {
                    assert_eq!(error, MapError::OutOfFrames);
                    refused += 1;
                }
            }
            table.unmap(&mut allowed, at, 4096).unwrap().nothing_cached();
        }
        assert_eq!(frames, 0);
        assert!(refused > 900, "{refused}");
        // What has its tables is mapped as before.
        let mut allowed = Allowance { memory: &mut memory, frames: &mut frames };
        let bar = Hpa::new(0xfeb0_0000);
        let mapped = table.map(&mut allowed, 0, bar, 4096, Access::READ, MemoryType::Uncached);
        mapped.unwrap().nothing_cached();
    }
}
