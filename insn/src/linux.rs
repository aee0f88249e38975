//! Where a 64-bit Linux has put itself (its "Memory Management", `Documentation/arch/x86/x86_64/mm.rst`).

use arch::Gva;
use arch::machine::GuestMemory;

use crate::PagingRegisters;

/// Where the symbols of a Linux say that its text begins, `_text`.
pub const LINUX_TEXT: u64 = 0xffff_ffff_8100_0000;
/// Where it may be, and at which multiples.
const RANGE: (u64, u64) = (0xffff_ffff_8000_0000, 0xffff_ffff_c000_0000);
const STEP: usize = 2 << 20;
/// Kernels that isolate page tables have a user's tables at the next page.
const OF_A_USER: u64 = 0x1000;

/// Where the text of the Linux begins whose tables and entry of system calls (LSTAR) these are. It maps nothing of that range
/// before its text.
#[must_use]
pub fn linux_text(
    paging: PagingRegisters,
    system_calls: u64,
    memory: &impl GuestMemory,
) -> Option<u64> {
    const LONG_MODE: u64 = 1 << 10;
    let own = PagingRegisters { cr3: paging.cr3 & !OF_A_USER, ..paging };
    let is_mapped =
        |paging: PagingRegisters, at: u64| paging.translate(memory, Gva::new(at)).is_ok();
    let text = |paging: PagingRegisters| {
        let mut places = (RANGE.0..RANGE.1).step_by(STEP);
        let found = places.find(|at| is_mapped(paging, *at))?;
        // What these tables are for is a Linux of that place.
        let fits = found <= system_calls && system_calls < RANGE.1;
        (fits && is_mapped(paging, system_calls)).then_some(found)
    };
    if paging.efer & LONG_MODE == 0 {
        return None;
    }
    [text(own), text(paging)].into_iter().flatten().min()
}

#[cfg(test)]
mod tests {
    use arch::Gpa;
    use arch::machine::NotGuestMemory;

    use super::*;

    struct Memory(Vec<u8>);

    impl GuestMemory for Memory {
        fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), NotGuestMemory> {
            let at = gpa.as_u64() as usize;
            let from = self.0.get(at..at + bytes.len()).ok_or(NotGuestMemory(gpa))?;
            bytes.copy_from_slice(from);
            Ok(())
        }

        fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), NotGuestMemory> {
            let at = gpa.as_u64() as usize;
            let to = self.0.get_mut(at..at + bytes.len()).ok_or(NotGuestMemory(gpa))?;
            to.copy_from_slice(bytes);
            Ok(())
        }
    }

    /// A kernel with its text at `text`, in two large pages; its tables at 0x2000, a user's at 0x3000 with the second only.
    fn linux(text: u64) -> Memory {
        let mut memory = Memory(vec![0; 0x10_0000]);
        let mut put =
            |at: u64, entry: u64| memory.write(Gpa::new(at), &entry.to_le_bytes()).unwrap();
        let index = (text - 0xffff_ffff_8000_0000) >> 21;
        for (root, table, first) in [(0x2000, 0x4000, 0), (0x3000, 0x6000, 1)] {
            put(root + 8 * 511, table | 3);
            put(table + 8 * 510, (table + 0x1000) | 3);
            for page in first..2 {
                put(table + 0x1000 + 8 * (index + page), page << 21 | 0x83);
            }
        }
        memory
    }

    fn long_mode(cr3: u64) -> PagingRegisters {
        PagingRegisters { cr0: 0x8000_0011, cr3, cr4: 0x20, efer: 0x500 }
    }

    #[test]
    fn the_first_page_that_is_mapped_is_the_texts_whoevers_tables_are_loaded() {
        let text = LINUX_TEXT + 0x1fe0_0000;
        let (memory, entry) = (linux(text), text + 0x20_0040);
        assert_eq!(linux_text(long_mode(0x2000), entry, &memory), Some(text));
        assert_eq!(linux_text(long_mode(0x3000), entry, &memory), Some(text), "a user's tables");
        assert_eq!(linux_text(long_mode(0x8000), entry, &memory), None, "no tables are there");
        assert_eq!(linux_text(long_mode(0x2000), 0, &memory), None, "it takes no system calls");
        let without = PagingRegisters { efer: 0, ..long_mode(0x2000) };
        assert_eq!(linux_text(without, entry, &memory), None);
    }
}
