//! The guest-physical address space: where RAM, the tables and the PCI windows lie.
//!
//! Invariant: RAM, the ECAM window and the PCI windows never overlap, and everything that the guest
//! may take for RAM is in the e820 list as such. RAM reaches from 0 to at most 2 GiB and goes on at
//! 4 GiB, so that the devices' BARs keep the addresses that the firmware gave them.

use alloc::vec::Vec;

use arch::Gpa;

/// RAM below 4 GiB ends here at the latest.
const LOW_RAM_LIMIT: u64 = 0x8000_0000;
/// RAM that does not fit below continues here.
const HIGH_RAM_START: u64 = 1 << 32;
/// What the loader puts into low memory for the guest's first instructions lies from here …
pub const BOOT_AREA: Gpa = Gpa::new(0x8_0000);
/// … to here: boot parameters, command line, first page tables.
pub const BOOT_AREA_END: Gpa = Gpa::new(0x9_0000);
/// Conventional memory ends here; the last KiB is where a PC keeps its extended BIOS data.
const CONVENTIONAL_END: u64 = 0x9_fc00;
/// The ACPI tables, at the place where a PC's firmware keeps them.
pub const ACPI_TABLES: Gpa = Gpa::new(0xe_0000);
/// Room for the ACPI tables, in bytes.
pub const ACPI_TABLES_SIZE: u64 = 0x2_0000;
const LEGACY_AREA_END: u64 = 0x10_0000;
/// The I/O APIC, the local APICs and the firmware's flash take the top of the 32-bit space.
const PCI_WINDOW_END: u64 = 0xfec0_0000;
/// Where the ECAM window lies on a machine that has none of its own.
pub const DEFAULT_ECAM: Ecam = Ecam { base: Gpa::new(0xe000_0000), buses: 256 };

/// A run of guest-physical addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GpaRange {
    /// First byte.
    pub start: Gpa,
    /// Length in bytes.
    pub length: u64,
}

impl GpaRange {
    /// The run from `start` up to, not including, `end`.
    #[must_use]
    pub const fn between(start: u64, end: u64) -> Self {
        Self { start: Gpa::new(start), length: end.saturating_sub(start) }
    }

    /// First byte behind the run; saturates at 2^64 - 1.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.start.as_u64().saturating_add(self.length)
    }

    /// Whether the two share a byte.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.length > 0
            && other.length > 0
            && self.start.as_u64() < other.end()
            && other.start.as_u64() < self.end()
    }

    /// Whether all of `other` lies in this run.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.start.as_u64() <= other.start.as_u64() && other.end() <= self.end()
    }
}

/// The PCI configuration space in memory (PCI Express Base Specification, "PCI Express Enhanced
/// Configuration Access Mechanism (ECAM)"), beginning with bus 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ecam {
    /// First byte, of bus 0.
    pub base: Gpa,
    /// Number of buses, 1 to 256; each takes 1 MiB.
    pub buses: u16,
}

impl Ecam {
    /// The window.
    #[must_use]
    pub const fn range(self) -> GpaRange {
        GpaRange { start: self.base, length: (self.buses as u64) << 20 }
    }
}

/// Type of an e820 entry (ACPI Specification, "Address Range Types").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum E820Type {
    /// RAM for the guest's use.
    Ram = 1,
    /// Not to be used.
    Reserved = 2,
}

/// One line of the memory map that the guest is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct E820Entry {
    /// Where.
    pub range: GpaRange,
    /// What.
    pub kind: E820Type,
}

/// Where a guest's memory lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemoryMap {
    ram: Vec<GpaRange>,
    ecam: Option<Ecam>,
}

impl MemoryMap {
    /// The usual map, of `memory` bytes: low RAM from 0 and the rest from 4 GiB on. The ECAM window
    /// is best where the machine itself has one: no device's BAR can be in its way there.
    #[must_use]
    pub fn new(memory: u64, ecam: Option<Ecam>) -> Self {
        let mut low_end = memory.min(LOW_RAM_LIMIT);
        if let Some(window) = ecam.filter(|e| e.base.as_u64() < HIGH_RAM_START) {
            low_end = low_end.min(window.base.as_u64());
        }
        let mut ram = Vec::from([GpaRange::between(0, low_end)]);
        if memory > low_end {
            ram.push(GpaRange { start: Gpa::new(HIGH_RAM_START), length: memory - low_end });
        }
        Self { ram, ecam }
    }

    /// The map of an identity-mapped guest (`unsafe_no_iommu`): RAM is where the machine has it.
    /// `ram` is sorted, its runs do not touch, and the first begins at 0 and covers 1 MiB at least;
    /// the legacy area in it (0xA0000–0xFFFFF) is to be backed by memory from elsewhere, as the
    /// machine's own holds its firmware.
    #[must_use]
    pub fn identity(ram: Vec<GpaRange>, ecam: Option<Ecam>) -> Self {
        Self { ram, ecam }
    }

    /// The runs that are backed by memory, in ascending order. The legacy area is among them: the
    /// ACPI tables lie there, and the rest of it harms nobody.
    #[must_use]
    pub fn ram(&self) -> &[GpaRange] {
        &self.ram
    }

    /// The ECAM window.
    #[must_use]
    pub fn ecam(&self) -> Option<Ecam> {
        self.ecam
    }

    /// The windows below 4 GiB in which the guest's BARs may lie: from 2 GiB, or the end of RAM, to
    /// the I/O APIC, without the ECAM window.
    #[must_use]
    pub fn pci_windows(&self) -> Vec<GpaRange> {
        let below = self.ram.iter().filter(|run| run.start.as_u64() < HIGH_RAM_START);
        let ram_end = below.map(|run| run.end()).max().unwrap_or(0);
        let all = GpaRange::between(ram_end.clamp(LOW_RAM_LIMIT, PCI_WINDOW_END), PCI_WINDOW_END);
        let windows = match self.ecam.map(Ecam::range).filter(|ecam| ecam.overlaps(all)) {
            None => Vec::from([all]),
            Some(ecam) => Vec::from([
                GpaRange::between(all.start.as_u64(), ecam.start.as_u64()),
                GpaRange::between(ecam.end(), PCI_WINDOW_END),
            ]),
        };
        windows.into_iter().filter(|window| window.length > 0).collect()
    }

    /// The window above 4 GiB for 64-bit BARs: from the end of RAM, rounded up to 1 GiB, to the end
    /// of what `physical_address_bits` (CPUID 0x80000008) reach.
    #[must_use]
    pub fn high_pci_window(&self, physical_address_bits: u8) -> GpaRange {
        let ram_end = self.ram.last().map_or(0, |run| run.end()).max(HIGH_RAM_START);
        let start = ram_end.next_multiple_of(1 << 30);
        GpaRange::between(start, 1 << physical_address_bits.clamp(32, 52))
    }

    /// The memory map that the guest is told, in ascending order.
    #[must_use]
    pub fn e820(&self) -> Vec<E820Entry> {
        let mut list = Vec::new();
        let mut add = |start: u64, end: u64, kind| {
            if start < end {
                list.push(E820Entry { range: GpaRange::between(start, end), kind });
            }
        };
        for run in &self.ram {
            let (start, end) = (run.start.as_u64(), run.end());
            add(start, end.min(CONVENTIONAL_END), E820Type::Ram);
            let legacy = (start.max(CONVENTIONAL_END), end.min(LEGACY_AREA_END));
            add(legacy.0, legacy.1, E820Type::Reserved);
            add(start.max(LEGACY_AREA_END), end, E820Type::Ram);
        }
        if let Some(ecam) = self.ecam {
            add(ecam.base.as_u64(), ecam.range().end(), E820Type::Reserved);
        }
        list.sort_unstable_by_key(|entry| entry.range.start);
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_small_guest_has_one_run_of_ram_and_the_legacy_area_reserved_in_it() {
        let map = MemoryMap::new(512 << 20, Some(DEFAULT_ECAM));
        let expected = [
            (0, 0x9_fc00, E820Type::Ram),
            (0x9_fc00, 0x10_0000, E820Type::Reserved),
            (0x10_0000, 512 << 20, E820Type::Ram),
            (0xe000_0000, 0xf000_0000, E820Type::Reserved),
        ];
        let found = map.e820();
        let found: Vec<_> =
            found.iter().map(|e| (e.range.start.as_u64(), e.range.end(), e.kind)).collect();
        assert_eq!(found, expected);
        let windows = [
            GpaRange::between(0x8000_0000, 0xe000_0000),
            GpaRange::between(0xf000_0000, 0xfec0_0000),
        ];
        assert_eq!(map.pci_windows(), windows);
    }

    #[test]
    fn what_does_not_fit_below_2_gib_continues_at_4_gib() {
        let map = MemoryMap::new(3 << 30, None);
        let expected = [GpaRange::between(0, 2 << 30), GpaRange::between(4 << 30, 5 << 30)];
        assert_eq!(map.ram(), expected);
        assert_eq!(map.high_pci_window(40), GpaRange::between(5 << 30, 1 << 40));
    }

    #[test]
    fn an_identity_map_keeps_the_machines_own_runs() {
        let ram = vec![GpaRange::between(0, 0x20_0000), GpaRange::between(0x80_0000, 0xa000_0000)];
        let map = MemoryMap::identity(ram, None);
        assert_eq!(map.e820().len(), 4);
        assert_eq!(map.pci_windows(), [GpaRange::between(0xa000_0000, 0xfec0_0000)]);
    }

    proptest! {
        #[test]
        fn ram_adds_up_and_nothing_overlaps(
            units in 8u64..8192,
            base in 0x40u64..0xfc,
            buses in 1u16..=256,
            bits in 36u8..=52,
        ) {
            let memory = units << 21;
            let ecam = Ecam { base: Gpa::new(base << 24), buses: buses.min((0xfc - base) as u16 * 16).max(1) };
            let map = MemoryMap::new(memory, Some(ecam));
            prop_assert_eq!(map.ram().iter().map(|run| run.length).sum::<u64>(), memory);
            let mut all = map.ram().to_vec();
            all.push(ecam.range());
            all.extend(map.pci_windows());
            all.push(map.high_pci_window(bits));
            for (index, one) in all.iter().enumerate() {
                for other in &all[index + 1..] {
                    prop_assert!(!one.overlaps(*other), "{:?} {:?}", one, other);
                }
            }
            let usable: u64 = map.e820().iter()
                .filter(|e| e.kind == E820Type::Ram)
                .map(|e| e.range.length)
                .sum();
            prop_assert_eq!(usable, memory - (0x10_0000 - 0x9_fc00));
            prop_assert!(map.e820().windows(2).all(|w| w[0].range.end() <= w[1].range.start.as_u64()));
        }
    }
}
