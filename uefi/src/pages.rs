//! Page-aligned memory below 4 GiB and away from where the image goes.

use crate::error::LoadError;
use arrayvec::ArrayVec;
use core::ops::Range;
use core::ptr::NonNull;
use uefi::boot::{self, AllocateType, MemoryType};

const PAGE_SIZE: usize = 4096;

/// Pages from the firmware; given back when dropped.
pub(crate) struct Pages {
    start: NonNull<u8>,
    length: usize,
}

impl Pages {
    /// Allocates `length` bytes (and what is missing to a whole page), zeroed, of which none lies
    /// in `avoid`.
    pub(crate) fn allocate(
        length: usize,
        kind: MemoryType,
        avoid: &Range<u64>,
    ) -> Result<Self, LoadError> {
        // Firmware allocates from the top, as a rule; what lies in the way is kept until the end
        // of the search so that it is not offered again.
        let mut in_the_way = ArrayVec::<Self, 16>::new();
        loop {
            let pages =
                Self::below_4g(length, kind).ok_or(LoadError::NoMemory { bytes: length })?;
            let start = u64::from(pages.address());
            let end = start + (pages.count() * PAGE_SIZE) as u64;
            if end <= avoid.start || avoid.end <= start {
                return Ok(pages);
            }
            in_the_way.try_push(pages).map_err(|_| LoadError::NoMemory { bytes: length })?;
        }
    }

    fn below_4g(length: usize, kind: MemoryType) -> Option<Self> {
        let below = AllocateType::MaxAddress(u32::MAX.into());
        let count = length.div_ceil(PAGE_SIZE).max(1);
        let start = boot::allocate_pages(below, kind, count).ok()?;
        // SAFETY: the firmware has just given these pages to us.
        unsafe { start.write_bytes(0, count * PAGE_SIZE) };
        Some(Self { start, length })
    }

    fn count(&self) -> usize {
        self.length.div_ceil(PAGE_SIZE).max(1)
    }

    /// Physical address (the firmware maps memory onto itself).
    pub(crate) fn address(&self) -> u32 {
        self.start.as_ptr() as u32
    }

    /// Length that was asked for.
    pub(crate) const fn length(&self) -> usize {
        self.length
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `length` initialised bytes that only this value owns.
        unsafe { core::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and borrowed for writing.
        unsafe { core::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: allocated by `below_4g` with this count; no reference outlives the value. A
        // refusal leaves the pages allocated, which harms nobody.
        let _ = unsafe { boot::free_pages(self.start, self.count()) };
    }
}
