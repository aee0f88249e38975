//! Which physical memory is free.
//!
//! Invariant: `free` is sorted, its ranges are page-aligned, not empty, and neither overlap nor touch.
//! Memory is handed out from the top down, so that low memory stays for those who need it (the
//! application processors' start page, devices with short addresses).

use arch::Hpa;
use arch::address::{HpaRange, PAGE_SIZE};
use arrayvec::ArrayVec;
use core::fmt;

/// Maximum number of separate free ranges. If there are more, the smallest are lost.
const CAPACITY: usize = 128;

/// The frame allocator.
///
/// Page 0 is never handed out: under the identity map its address is the null pointer.
#[derive(Clone, Debug)]
pub struct FrameAllocator {
    free: ArrayVec<HpaRange, CAPACITY>,
    taken: u64,
    /// How many of the bytes taken are not for the hypervisor itself.
    lent: u64,
}

/// A part of a freed range is already free, or the range is not page-aligned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotTaken(pub HpaRange);

impl fmt::Display for NotTaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (start, end) = (self.0.start, self.0.end());
        write!(f, "memory {start} to {end} is given back, but is not page-aligned or is free")
    }
}

impl core::error::Error for NotTaken {}

impl FrameAllocator {
    /// The whole pages of `usable` that share no byte with `reserved`. Both may be unsorted and
    /// overlap, as firmware's maps do.
    #[must_use]
    pub fn new(usable: &[HpaRange], reserved: &[HpaRange]) -> Self {
        let mut frames = Self { free: ArrayVec::new_const(), taken: 0, lent: 0 };
        for range in usable {
            if let Some(start) = range.start.align_up(PAGE_SIZE) {
                frames.insert(start.as_u64(), range.end().page().as_u64());
            }
        }
        for range in reserved.iter().filter(|range| range.length > 0) {
            let end = range.end().align_up(PAGE_SIZE).map_or(u64::MAX, Hpa::as_u64);
            frames.remove(range.start.page().as_u64(), end);
        }
        frames.remove(0, PAGE_SIZE);
        frames
    }

    /// Adds the whole pages of `usable` that share no byte with `reserved`, as [`FrameAllocator::new`]
    /// does: memory that was kept out of it. None of it is free or handed out.
    pub fn add(&mut self, usable: &[HpaRange], reserved: &[HpaRange]) {
        for range in Self::new(usable, reserved).free {
            self.insert(range.start.as_u64(), range.end().as_u64());
        }
    }

    /// Takes `bytes` (rounded up to whole pages) of contiguous memory at a multiple of `alignment`
    /// (a power of two; at least a page is used), wholly below `below`: the highest that there is.
    /// Its content is whatever was there.
    #[must_use]
    pub fn allocate(&mut self, bytes: u64, alignment: u64, below: Option<Hpa>) -> Option<Hpa> {
        if bytes == 0 || !alignment.is_power_of_two() {
            return None;
        }
        let bytes = bytes.checked_next_multiple_of(PAGE_SIZE)?;
        let alignment = alignment.max(PAGE_SIZE);
        let limit = below.map_or(u64::MAX, Hpa::as_u64);
        let start = self.free.iter().rev().find_map(|range| {
            let start = range.end().as_u64().min(limit).checked_sub(bytes)? & !(alignment - 1);
            (start >= range.start.as_u64()).then_some(start)
        })?;
        self.remove(start, start + bytes);
        self.taken += bytes;
        Some(Hpa::new(start))
    }

    /// Frees memory of `allocate`, or a part of it.
    ///
    /// # Errors
    /// If a byte of it is already free or the range is not page-aligned; then nothing changes.
    pub fn free(&mut self, range: HpaRange) -> Result<(), NotTaken> {
        let aligned = range.start.is_aligned(PAGE_SIZE) && range.length.is_multiple_of(PAGE_SIZE);
        let is_free = self.free.iter().any(|free| free.overlaps(range));
        if !aligned || is_free || range.length > self.taken {
            return Err(NotTaken(range));
        }
        self.taken -= range.length;
        self.insert(range.start.as_u64(), range.end().as_u64());
        Ok(())
    }

    /// Allocates memory that the hypervisor does not use itself: guests' RAM, shared memory, files.
    #[must_use]
    pub fn lend(&mut self, bytes: u64, alignment: u64) -> Option<Hpa> {
        let before = self.taken;
        let start = self.allocate(bytes, alignment, None)?;
        self.lent += self.taken - before;
        Some(start)
    }

    /// Frees memory of `lend`, or a part of it.
    ///
    /// # Errors
    /// As [`FrameAllocator::free`].
    pub fn take_back(&mut self, range: HpaRange) -> Result<(), NotTaken> {
        let left = self.lent.checked_sub(range.length).ok_or(NotTaken(range))?;
        self.free(range)?;
        self.lent = left;
        Ok(())
    }

    /// Free bytes.
    #[must_use]
    pub fn available(&self) -> u64 {
        self.free.iter().map(|range| range.length).sum()
    }

    /// Bytes that the hypervisor itself has: allocated, not freed, and not lent.
    #[must_use]
    pub const fn own(&self) -> u64 {
        self.taken - self.lent
    }

    /// Adds `start..end`, merged with what it overlaps or touches.
    fn insert(&mut self, mut start: u64, mut end: u64) {
        if start >= end {
            return;
        }
        self.free.retain(|range| {
            let apart = range.end().as_u64() < start || end < range.start.as_u64();
            if !apart {
                start = start.min(range.start.as_u64());
                end = end.max(range.end().as_u64());
            }
            apart
        });
        let new = HpaRange { start: Hpa::new(start), length: end - start };
        if self.free.is_full() {
            let smallest = self.free.iter().enumerate().min_by_key(|(_, range)| range.length);
            match smallest.map(|(index, range)| (index, range.length)) {
                Some((index, length)) if length < new.length => drop(self.free.remove(index)),
                _ => return,
            }
        }
        let position = self.free.partition_point(|range| range.start < new.start);
        self.free.insert(position, new);
    }

    /// Takes `start..end` out, wherever it is free.
    fn remove(&mut self, start: u64, end: u64) {
        let cut = HpaRange { start: Hpa::new(start), length: end - start };
        while let Some(index) = self.free.iter().position(|range| range.overlaps(cut)) {
            let range = self.free.remove(index);
            self.insert(range.start.as_u64(), start);
            self.insert(end, range.end().as_u64());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn range(start: u64, end: u64) -> HpaRange {
        HpaRange { start: Hpa::new(start), length: end - start }
    }

    #[test]
    fn guest_memory_comes_from_the_top_and_aligned() {
        let usable = [range(0, 0x9_f000), range(0x10_0000, 0x1_2345_6000)];
        let mut frames = FrameAllocator::new(&usable, &[range(0x20_0000, 0x30_0000)]);
        assert_eq!(frames.allocate(1 << 30, 1 << 30, None), Some(Hpa::new(0xc000_0000)));
        assert_eq!(frames.allocate(PAGE_SIZE, PAGE_SIZE, None), Some(Hpa::new(0x1_2345_5000)));
        let low = frames.allocate(1, 1, Some(Hpa::new(0x10_0000)));
        assert_eq!(low, Some(Hpa::new(0x9_e000)));
        assert_eq!(frames.own(), (1 << 30) + 0x2000);
    }

    #[test]
    fn page_zero_is_never_handed_out() {
        let mut frames = FrameAllocator::new(&[range(0, 0x2000)], &[]);
        assert_eq!(frames.allocate(PAGE_SIZE, PAGE_SIZE, None), Some(Hpa::new(0x1000)));
        assert_eq!(frames.allocate(PAGE_SIZE, PAGE_SIZE, None), None);
    }

    #[test]
    fn memory_is_given_back_once() {
        let mut frames = FrameAllocator::new(&[range(0x1000, 0x9000)], &[]);
        let block = frames.allocate(0x4000, 0x1000, None).unwrap();
        let block = HpaRange { start: block, length: 0x4000 };
        assert_eq!(frames.free(block), Ok(()));
        assert_eq!(frames.free(block), Err(NotTaken(block)));
        assert_eq!((frames.available(), frames.own()), (0x8000, 0));
        assert_eq!(frames.allocate(0x8000, 0x1000, None), Some(Hpa::new(0x1000)));
    }

    #[test]
    fn what_is_lent_is_not_the_hypervisors_own() {
        let mut frames = FrameAllocator::new(&[range(0x1000, 0x9000)], &[]);
        let own = frames.allocate(PAGE_SIZE, PAGE_SIZE, None).unwrap();
        let lent = HpaRange { start: frames.lend(0x1001, 0x1000).unwrap(), length: 0x2000 };
        assert_eq!((frames.own(), frames.available()), (0x1000, 0x5000));
        let more = HpaRange { length: 0x3000, ..lent };
        assert_eq!(frames.take_back(more), Err(NotTaken(more)));
        assert_eq!(frames.take_back(lent), Ok(()));
        assert_eq!((frames.own(), frames.available()), (0x1000, 0x7000));
        let own = HpaRange { start: own, length: PAGE_SIZE };
        assert_eq!(frames.take_back(own), Err(NotTaken(own)), "it was not lent");
        assert_eq!((frames.free(own), frames.own()), (Ok(()), 0));
    }

    #[test]
    fn memory_that_was_kept_out_can_be_added() {
        let usable = [range(0x1000, 0x9000)];
        let mut frames = FrameAllocator::new(&usable, &[range(0, 0x6000)]);
        assert_eq!(frames.allocate(0x1000, 0x1000, None), Some(Hpa::new(0x8000)));
        frames.add(&[range(0x1000, 0x6000)], &[range(0x2000, 0x2800)]);
        assert_eq!((frames.available(), frames.own()), (0x6000, 0x1000));
        assert_eq!(frames.allocate(0x5000, 0x1000, None), Some(Hpa::new(0x3000)));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let mut frames = FrameAllocator::new(&[range(0x1000, 0x9000)], &[]);
        assert_eq!(frames.allocate(0, 0x1000, None), None);
        assert_eq!(frames.allocate(0x1000, 3, None), None);
        assert_eq!(frames.allocate(u64::MAX, 1 << 63, None), None);
        assert_eq!(frames.allocate(0x1000, 1, Some(Hpa::new(0x1fff))), None);
    }

    #[test]
    fn more_holes_than_fit_cost_the_smallest_ranges_only() {
        let mut usable: Vec<_> =
            (0..400).map(|n| range(0x10_0000 + n * 0x2000, 0x10_1000 + n * 0x2000)).collect();
        usable.push(range(0x4000_0000, 0x8000_0000));
        let mut frames = FrameAllocator::new(&usable, &[]);
        assert_eq!(frames.allocate(1 << 30, 1 << 30, None), Some(Hpa::new(0x4000_0000)));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Allocate { bytes: u64, alignment: u64, below: Option<u64> },
        Free(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (1..0x8000u64, 0..16u32, proptest::option::of(0..0x4_0000u64)).prop_map(
                |(bytes, order, below)| Step::Allocate { bytes, alignment: 1 << order, below }
            ),
            1 => any::<usize>().prop_map(Step::Free),
        ]
    }

    fn ranges(most: usize) -> impl Strategy<Value = Vec<HpaRange>> {
        let one = (0..0x4_0000u64, 0..0x1_0000u64)
            .prop_map(|(start, length)| HpaRange { start: Hpa::new(start), length });
        proptest::collection::vec(one, 0..most)
    }

    proptest! {
        /// The model is the set of pages: wholly usable and untouched by a reserved range.
        #[test]
        fn no_byte_is_handed_out_twice_or_from_outside(
            usable in ranges(6),
            reserved in ranges(6),
            steps in proptest::collection::vec(step(), 0..60),
        ) {
            let page = |n: u64| range(n * PAGE_SIZE, (n + 1) * PAGE_SIZE);
            let inside = |n: u64| (n * PAGE_SIZE..(n + 1) * PAGE_SIZE).step_by(512).all(|sector| {
                let covered = |at: u64| usable.iter().any(|r| r.overlaps(range(at, at + 1)));
                covered(sector) && covered(sector + 511)
            });
            let total: BTreeSet<u64> = (1..0x60)
                .filter(|n| inside(*n) && !reserved.iter().any(|r| r.overlaps(page(*n))))
                .collect();
            let mut frames = FrameAllocator::new(&usable, &reserved);
            let mut taken: Vec<HpaRange> = Vec::new();
            for step in steps {
                match step {
                    Step::Allocate { bytes, alignment, below } => {
                        let Some(start) = frames.allocate(bytes, alignment, below.map(Hpa::new))
                        else { continue };
                        let length = bytes.next_multiple_of(PAGE_SIZE);
                        let new = HpaRange { start, length };
                        prop_assert!(start.is_aligned(alignment.max(PAGE_SIZE)));
                        prop_assert!(below.is_none_or(|below| new.end().as_u64() <= below));
                        prop_assert!(!taken.iter().any(|old| old.overlaps(new)));
                        for n in start.as_u64() / PAGE_SIZE..new.end().as_u64() / PAGE_SIZE {
                            prop_assert!(total.contains(&n), "page {n:#x} is outside");
                        }
                        taken.push(new);
                    }
                    Step::Free(which) if !taken.is_empty() => {
                        let old = taken.swap_remove(which % taken.len());
                        prop_assert_eq!(frames.free(old), Ok(()));
                        prop_assert_eq!(frames.free(old), Err(NotTaken(old)));
                    }
                    Step::Free(_) => {}
                }
                let sum: u64 = taken.iter().map(|range| range.length).sum();
                prop_assert_eq!(frames.own(), sum);
                prop_assert!(frames.available() + sum <= total.len() as u64 * PAGE_SIZE);
            }
        }

        #[test]
        fn disjoint_usable_memory_is_all_available(pages in proptest::collection::btree_set(1..200u64, 0..60)) {
            let usable: Vec<_> =
                pages.iter().map(|n| range(n * PAGE_SIZE, (n + 1) * PAGE_SIZE)).collect();
            let mut frames = FrameAllocator::new(&usable, &[]);
            let mut seen = BTreeSet::new();
            while let Some(frame) = frames.allocate(PAGE_SIZE, PAGE_SIZE, None) {
                seen.insert(frame.as_u64() / PAGE_SIZE);
            }
            prop_assert_eq!(seen, pages);
        }
    }
}
