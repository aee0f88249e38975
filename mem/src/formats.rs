//! What an entry of a radix table looks like for each reader.
//!
//! Every format keeps full access in the entries that link tables: a leaf alone decides. Bits that
//! hardware sets (accessed, dirty) are ignored when an entry is read back.

use arch::{Hpa, PageSize};

use crate::table::entry::Sealed;
use crate::table::{Entry, Format, Leaf, MemoryType, Rights};

/// Address bits 51:12 of an entry, the same in all four formats.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// The entry is a page, not a table: bit 7 above level 0, in all four formats.
const PAGE: u64 = 1 << 7;

/// A leaf's address and page-size bits.
fn address(leaf: Leaf, level: u8) -> u64 {
    leaf.hpa.as_u64() & ADDRESS | if level > 0 { PAGE } else { 0 }
}

/// Sorts a present entry; `leaf` gives its rights.
fn present(entry: u64, level: u8, leaf: impl FnOnce(Hpa) -> Leaf) -> Entry {
    if level > 0 && entry & PAGE == 0 {
        Entry::Table(Hpa::new(entry & ADDRESS))
    } else {
        // A large page's low address bits hold other things (PAT at bit 12); keep whole pages only.
        Entry::Leaf(leaf(Hpa::new(entry & ADDRESS).align_down(1 << (12 + 9 * u32::from(level)))))
    }
}

const PRESENT: u64 = 1 << 0;
const USER: u64 = 1 << 2;
/// PCD and PWT: PAT entry 3, which is UC.
const UNCACHED: u64 = 1 << 4 | 1 << 3;
/// PWT alone: PAT entry 1, which is WC in the PAT that `cpu::host_state` writes.
const WRITE_COMBINING: u64 = 1 << 3;
const NO_EXECUTE: u64 = 1 << 63;

/// The hypervisor's own page table: four levels, supervisor, not global. Only the lower half of the address space
/// is used, as the hypervisor is identity-mapped. Needs EFER.NXE.
pub type HostFormat = Paging<0>;

/// AMD-V nested page table: x86 paging with U/S set everywhere, as the CPU takes every nested
/// access for a user access (APM "Nested Paging"). Needs EFER.NXE in the host.
pub type NptFormat = Paging<USER>;

/// x86 paging (SDM "4-Level Paging"; APM "Long-Mode Page Translation"), every entry with the bits `ALWAYS`.
#[derive(Clone, Copy, Debug)]
pub struct Paging<const ALWAYS: u64> {
    /// Largest page: 1 GiB where CPUID says so (leaf 0x80000001, EDX bit 26), else 2 MiB.
    pub largest: PageSize,
}

impl<const ALWAYS: u64> Sealed for Paging<ALWAYS> {}
impl Sealed for EptFormat {}
impl Sealed for DmaFormat {}

impl<const ALWAYS: u64> Format for Paging<ALWAYS> {
    fn largest_page(&self, _: Rights) -> PageSize {
        self.largest
    }
    fn table_entry(&self, table: Hpa) -> u64 {
        table.as_u64() & ADDRESS | PRESENT | WRITE | ALWAYS
    }
    fn leaf_entry(&self, leaf: Leaf, level: u8) -> u64 {
        address(leaf, level)
            | PRESENT
            | ALWAYS
            | if leaf.access.write { WRITE } else { 0 }
            | if leaf.access.execute { 0 } else { NO_EXECUTE }
            | match leaf.memory_type {
                MemoryType::WriteBack => 0,
                MemoryType::WriteCombining => WRITE_COMBINING,
                MemoryType::Uncached => UNCACHED,
            }
    }
    fn decode(&self, entry: u64, level: u8) -> Entry {
        if entry & PRESENT == 0 {
            return Entry::Absent;
        }
        let access = Rights { write: entry & WRITE != 0, execute: entry & NO_EXECUTE == 0 };
        let memory_type = match entry & UNCACHED {
            0 => MemoryType::WriteBack,
            WRITE_COMBINING => MemoryType::WriteCombining,
            _ => MemoryType::Uncached,
        };
        present(entry, level, |hpa| Leaf { hpa, access, memory_type })
    }
}

const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const EPT_EXECUTE: u64 = 1 << 2;
/// EPT memory type, bits 5:3 of a leaf: 0 is uncacheable, 6 is write-back. "Ignore PAT" stays
/// clear, so that the guest's PAT still has its say.
const EPT_WRITE_BACK: u64 = 6 << 3;
const EPT_MEMORY_TYPE: u64 = 7 << 3;

/// VT-x extended page table, four levels (SDM "The Extended Page Table Mechanism (EPT)").
#[derive(Clone, Copy, Debug)]
pub struct EptFormat {
    /// Largest page, from `IA32_VMX_EPT_VPID_CAP` bits 16 (2 MiB) and 17 (1 GiB).
    pub largest: PageSize,
    /// Largest page from which a guest may fetch instructions.
    pub largest_executable: PageSize,
}

impl EptFormat {
    /// Instructions may be fetched from pages of any size.
    #[must_use]
    pub const fn up_to(largest: PageSize) -> Self {
        Self { largest, largest_executable: largest }
    }
}

impl Format for EptFormat {
    fn largest_page(&self, access: Rights) -> PageSize {
        if access.execute { self.largest.min(self.largest_executable) } else { self.largest }
    }
    fn table_entry(&self, table: Hpa) -> u64 {
        table.as_u64() & ADDRESS | READ | WRITE | EPT_EXECUTE
    }
    fn leaf_entry(&self, leaf: Leaf, level: u8) -> u64 {
        address(leaf, level)
            | READ
            | if leaf.access.write { WRITE } else { 0 }
            | if leaf.access.execute { EPT_EXECUTE } else { 0 }
            | if leaf.memory_type == MemoryType::WriteBack { EPT_WRITE_BACK } else { 0 }
    }
    fn decode(&self, entry: u64, level: u8) -> Entry {
        if entry & (READ | WRITE | EPT_EXECUTE) == 0 {
            return Entry::Absent;
        }
        let access = Rights { write: entry & WRITE != 0, execute: entry & EPT_EXECUTE != 0 };
        let write_back = entry & EPT_MEMORY_TYPE == EPT_WRITE_BACK;
        let memory_type = if write_back { MemoryType::WriteBack } else { MemoryType::Uncached };
        present(entry, level, |hpa| Leaf { hpa, access, memory_type })
    }
}

/// VT-d second-stage table (VT-d specification "Second-Stage Paging Entries"). It knows neither
/// execution nor memory types: they read back as not executable and write-back.
#[derive(Clone, Copy, Debug)]
pub struct DmaFormat {
    /// 3 (39-bit addresses) or 4 (48-bit), from CAP.SAGAW.
    pub levels: u8,
    /// Largest page, from CAP.SSLPS.
    pub largest: PageSize,
}

impl Format for DmaFormat {
    fn levels(&self) -> u8 {
        self.levels
    }
    fn largest_page(&self, _: Rights) -> PageSize {
        self.largest
    }
    fn table_entry(&self, table: Hpa) -> u64 {
        table.as_u64() & ADDRESS | READ | WRITE
    }
    fn leaf_entry(&self, leaf: Leaf, level: u8) -> u64 {
        address(leaf, level) | READ | if leaf.access.write { WRITE } else { 0 }
    }
    fn decode(&self, entry: u64, level: u8) -> Entry {
        if entry & (READ | WRITE) == 0 {
            return Entry::Absent;
        }
        let access = Rights { write: entry & WRITE != 0, execute: false };
        present(entry, level, |hpa| Leaf { hpa, access, memory_type: MemoryType::WriteBack })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(hpa: u64, access: Rights, memory_type: MemoryType) -> Leaf {
        Leaf { hpa: Hpa::new(hpa), access, memory_type }
    }

    #[test]
    fn entries_have_the_manuals_bits() {
        let largest = PageSize::Size1G;
        let (host, npt) = (HostFormat { largest }, NptFormat { largest });
        let (ept, dma) = (EptFormat::up_to(largest), DmaFormat { levels: 4, largest });
        let code = leaf(0x1234_5000, Rights::READ_EXECUTE, MemoryType::WriteBack);
        let ram = leaf(0x4020_0000, Rights::ALL, MemoryType::WriteBack);
        let bar = leaf(0xfebf_0000, Rights::READ_WRITE, MemoryType::Uncached);
        assert_eq!(host.leaf_entry(code, 0), 0x1234_5001);
        assert_eq!(host.leaf_entry(bar, 0), 1 << 63 | 0xfebf_001b);
        let pixels = leaf(0xfd00_0000, Rights::READ_WRITE, MemoryType::WriteCombining);
        assert_eq!(host.leaf_entry(pixels, 0), 1 << 63 | 0xfd00_000b);
        assert_eq!(host.decode(1 << 63 | 0xfd00_000b, 0), Entry::Leaf(pixels));
        assert_eq!(host.leaf_entry(ram, 1), 0x4020_0083);
        assert_eq!(host.table_entry(Hpa::new(0x7000)), 0x7003);
        assert_eq!(npt.leaf_entry(ram, 1), 0x4020_0087);
        assert_eq!(npt.table_entry(Hpa::new(0x7000)), 0x7007);
        assert_eq!(ept.leaf_entry(ram, 1), 0x4020_00b7);
        assert_eq!(ept.leaf_entry(bar, 0), 0xfebf_0003);
        assert_eq!(ept.leaf_entry(code, 0), 0x1234_5035);
        assert_eq!(ept.table_entry(Hpa::new(0x7000)), 0x7007);
        assert_eq!(dma.leaf_entry(ram, 1), 0x4020_0083);
        assert_eq!(dma.table_entry(Hpa::new(0x7000)), 0x7003);
    }

    #[test]
    fn where_large_pages_are_not_to_be_executed_what_is_no_code_still_has_them() {
        let largest = PageSize::Size1G;
        let ept = EptFormat { largest, largest_executable: PageSize::Size4K };
        for access in [Rights::ALL, Rights::READ_EXECUTE] {
            assert_eq!(ept.largest_page(access), PageSize::Size4K);
            assert_eq!(EptFormat::up_to(largest).largest_page(access), largest);
        }
        assert_eq!(ept.largest_page(Rights::READ_WRITE), largest);
    }

    #[test]
    fn bits_that_hardware_sets_change_nothing() {
        let largest = PageSize::Size2M;
        let ram = leaf(0x4020_0000, Rights::READ_WRITE, MemoryType::WriteBack);
        let x86 = HostFormat { largest };
        assert_eq!(x86.decode(x86.leaf_entry(ram, 1) | 0x60, 1), Entry::Leaf(ram));
        let ept = EptFormat::up_to(largest);
        assert_eq!(ept.decode(ept.leaf_entry(ram, 1) | 0x300, 1), Entry::Leaf(ram));
    }
}
