//! The physical memory map: BIOS and EFI types in one set of words, in one sorted list.
//!
//! Invariant: regions are not empty, sorted, disjoint, and neighbours of one kind are merged. Where
//! the firmware names a byte twice the kind that allows less wins.
#![forbid(unsafe_code)]

use crate::error::BootError;
use arch::Hpa;
use arch::address::{HpaRange, PAGE_SIZE};
use arrayvec::ArrayVec;
use core::ops::Deref;

/// What a range of physical memory is; ordered by how little may be done with it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum MemoryKind {
    /// Free RAM (with the boot-services and loader memory of EFI).
    Usable,
    /// RAM that is free once the ACPI tables in it are no longer needed.
    AcpiReclaimable,
    /// RAM that the firmware needs over sleep.
    AcpiNvs,
    /// Memory that keeps its contents without power.
    Persistent,
    /// RAM or address space that the firmware keeps, EFI run-time services included.
    Reserved,
    /// Device registers.
    Mmio,
    /// Defective RAM.
    Defective,
}

impl MemoryKind {
    /// From an address-range type (ACPI "Address Range Types").
    pub(crate) const fn from_e820(kind: u32) -> Self {
        match kind {
            1 => Self::Usable,
            3 => Self::AcpiReclaimable,
            4 => Self::AcpiNvs,
            5 => Self::Defective,
            7 => Self::Persistent,
            _ => Self::Reserved,
        }
    }

    /// From a memory type (UEFI "Memory Type Usage after ExitBootServices()").
    pub(crate) const fn from_efi(kind: u32) -> Self {
        match kind {
            1..=4 | 7 => Self::Usable,
            8 => Self::Defective,
            9 => Self::AcpiReclaimable,
            10 => Self::AcpiNvs,
            11 | 12 => Self::Mmio,
            14 => Self::Persistent,
            _ => Self::Reserved,
        }
    }
}

/// A range of physical memory of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryRegion {
    /// Where.
    pub range: HpaRange,
    /// What.
    pub kind: MemoryKind,
}

impl MemoryRegion {
    /// The bytes from `start` to `end`.
    const fn between(start: Hpa, end: Hpa, kind: MemoryKind) -> Self {
        let length = end.as_u64() - start.as_u64();
        Self { range: HpaRange { start, length }, kind }
    }
}

/// Most regions that a map can hold.
const LIMIT: usize = 256;

/// The map; reads as a slice of [`MemoryRegion`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemoryMap(ArrayVec<MemoryRegion, LIMIT>);

impl Deref for MemoryMap {
    type Target = [MemoryRegion];

    fn deref(&self) -> &[MemoryRegion] {
        &self.0
    }
}

impl MemoryMap {
    pub(crate) const fn new() -> Self {
        Self(ArrayVec::new_const())
    }

    /// Adds `length` bytes at `start`. RAM that would reach past the end of the address space is a
    /// lie, and none of it is usable.
    pub(crate) fn add(
        &mut self,
        start: u64,
        length: u64,
        kind: MemoryKind,
    ) -> Result<(), BootError> {
        let honest = start.checked_add(length).is_some();
        let kind = if honest { kind } else { kind.max(MemoryKind::Reserved) };
        let start = Hpa::new(start);
        let mut new = MemoryRegion::between(start, HpaRange { start, length }.end(), kind);
        while let Some((index, old)) = self.first_overlap(new.range) {
            self.0.remove(index);
            // The two cover a part before, a common part and a part behind; only the last one may
            // meet further regions, and only if it is the new region's.
            let (old_end, new_end) = (old.range.end(), new.range.end());
            let common_start = old.range.start.max(new.range.start);
            let common_end = old_end.min(new_end);
            let (first_start, first_kind) = if old.range.start < new.range.start {
                (old.range.start, old.kind)
            } else {
                (new.range.start, new.kind)
            };
            let common_kind = old.kind.max(new.kind);
            self.insert(MemoryRegion::between(first_start, common_start, first_kind))?;
            self.insert(MemoryRegion::between(common_start, common_end, common_kind))?;
            self.insert(MemoryRegion::between(common_end, common_end.max(old_end), old.kind))?;
            new = MemoryRegion::between(common_end, common_end.max(new_end), new.kind);
        }
        self.insert(new)
    }

    /// Adds `pages` 4 KiB pages at `start`, as [`MemoryMap::add`].
    pub(crate) fn add_pages(
        &mut self,
        start: u64,
        pages: u64,
        kind: MemoryKind,
    ) -> Result<(), BootError> {
        let Some(length) = pages.checked_mul(PAGE_SIZE) else {
            return self.add(start, u64::MAX, kind.max(MemoryKind::Reserved));
        };
        self.add(start, length, kind)
    }

    /// Whether there is any usable memory.
    pub(crate) fn has_usable(&self) -> bool {
        self.iter().any(|region| region.kind == MemoryKind::Usable)
    }

    fn first_overlap(&self, range: HpaRange) -> Option<(usize, MemoryRegion)> {
        let index = self.partition_point(|region| region.range.end() <= range.start);
        let region = *self.get(index)?;
        region.range.overlaps(range).then_some((index, region))
    }

    /// Inserts a region that overlaps no other, merging it with its neighbours.
    fn insert(&mut self, mut new: MemoryRegion) -> Result<(), BootError> {
        if new.range.length == 0 {
            return Ok(());
        }
        let mut index = self.partition_point(|region| region.range.start < new.range.start);
        let joins = |left: MemoryRegion, right: MemoryRegion| {
            left.kind == right.kind && left.range.end() == right.range.start
        };
        if let Some(next) = self.get(index).copied().filter(|next| joins(new, *next)) {
            self.0.remove(index);
            new.range.length += next.range.length;
        }
        let before = index.checked_sub(1).and_then(|i| self.get(i).copied());
        if let Some(before) = before.filter(|before| joins(*before, new)) {
            index -= 1;
            self.0.remove(index);
            new = MemoryRegion::between(before.range.start, new.range.end(), new.kind);
        }
        self.0
            .try_insert(index, new)
            .map_err(|_| BootError::TooMany { what: "memory regions", limit: LIMIT })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kinds() -> impl Strategy<Value = MemoryKind> {
        (0u32..9).prop_map(MemoryKind::from_e820)
    }

    proptest! {
        #[test]
        fn every_byte_has_the_strictest_kind_that_was_named_for_it(
            raw in proptest::collection::vec((0u64..64, 0u64..32, kinds()), 0..24),
        ) {
            let mut map = MemoryMap::new();
            for (start, length, kind) in &raw {
                map.add(*start, *length, *kind).unwrap();
            }
            for byte in 0..100 {
                let covers = |start: u64, length: u64| (start..start + length).contains(&byte);
                let expected =
                    raw.iter().filter(|(s, l, _)| covers(*s, *l)).map(|(_, _, kind)| *kind).max();
                let found: Vec<_> = map
                    .iter()
                    .filter(|r| covers(r.range.start.as_u64(), r.range.length))
                    .map(|r| r.kind)
                    .collect();
                prop_assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
            }
            for pair in map.windows(2) {
                let gap = pair[0].range.end() < pair[1].range.start;
                prop_assert!(gap || pair[0].range.end() == pair[1].range.start && pair[0].kind != pair[1].kind);
            }
        }

        #[test]
        fn any_claim_is_taken_without_overflow(
            raw in proptest::collection::vec((any::<u64>(), any::<u64>(), kinds()), 0..24),
        ) {
            let mut map = MemoryMap::new();
            for (start, length, kind) in raw {
                map.add(start, length, kind).unwrap();
                map.add_pages(start, length, kind).unwrap();
            }
            prop_assert!(map.windows(2).all(|pair| pair[0].range.end() <= pair[1].range.start));
        }
    }

    #[test]
    fn ram_past_the_end_of_the_address_space_is_not_usable() {
        let mut map = MemoryMap::new();
        map.add(0x1000, u64::MAX, MemoryKind::Usable).unwrap();
        map.add_pages(0, u64::MAX, MemoryKind::Usable).unwrap();
        assert!(!map.has_usable());
    }

    #[test]
    fn a_map_of_250_pieces_is_taken_whole() {
        let descriptors = nexit_cases::memory_map("fragmented-250.map");
        let mut map = MemoryMap::new();
        for (first, last, kind) in &descriptors {
            let pages = (last + 1 - first) / PAGE_SIZE;
            map.add_pages(*first, pages, MemoryKind::from_efi(*kind)).unwrap();
        }
        assert_eq!((descriptors.len(), map.len()), (250, 250));
        let usable = map.iter().filter(|region| region.kind == MemoryKind::Usable);
        assert_eq!(usable.map(|region| region.range.length).sum::<u64>(), 125 * (4 << 20));
    }

    #[test]
    fn a_map_with_too_many_holes_is_refused() {
        let mut map = MemoryMap::new();
        for i in 0..256 {
            map.add(i * 2, 1, MemoryKind::Usable).unwrap();
        }
        assert_eq!(
            map.add(1000, 1, MemoryKind::Usable),
            Err(BootError::TooMany { what: "memory regions", limit: 256 })
        );
        map.add(1, 1, MemoryKind::Usable).unwrap();
        assert_eq!(map.len(), 255);
    }
}
