//! Whether the image may be put where it was linked.
//!
//! After ExitBootServices the memory of boot services and of this loader may be overwritten; what
//! the firmware keeps at run time may not (UEFI "Memory Type Usage after ExitBootServices()").

use core::fmt;
use core::ops::Range;

/// A descriptor of the EFI memory map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Descriptor {
    /// EFI memory type.
    pub kind: u32,
    /// First byte.
    pub start: u64,
    /// Length in 4 KiB pages.
    pub pages: u64,
}

impl Descriptor {
    /// How many bytes of `range` this one grants to an operating system's loader.
    fn grants(&self, range: &Range<u64>) -> u64 {
        // Loader code and data, boot-services code and data, conventional memory.
        let free = matches!(self.kind, 1..=4 | 7);
        let end = self.start.saturating_add(self.pages.saturating_mul(4096));
        let common = end.min(range.end).saturating_sub(self.start.max(range.start));
        if free { common } else { 0 }
    }
}

/// Not all of the image's range is free.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Taken {
    /// The range that the image wants.
    pub range: Range<u64>,
    /// How many of its bytes are free.
    pub free: u64,
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Range { start, end } = self.range;
        let kept = (end - start).saturating_sub(self.free);
        write!(
            f,
            "the image must lie at {start:#x} to {end:#x}, but the firmware keeps {kept} bytes of \
             that for itself: boot through BIOS, or relink the image elsewhere"
        )
    }
}

/// Checks that all of `range` may be overwritten once boot services are over.
///
/// # Errors
/// When the firmware keeps a part of it, or there is no memory.
pub fn check(range: Range<u64>, map: impl Iterator<Item = Descriptor>) -> Result<(), Taken> {
    let free = map.map(|descriptor| descriptor.grants(&range)).fold(0, u64::saturating_add);
    // Descriptors do not overlap (UEFI "EFI_BOOT_SERVICES.GetMemoryMap()").
    if free == range.end - range.start { Ok(()) } else { Err(Taken { range, free }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: Range<u64> = 0x20_0000..0x30_0000;

    fn map(parts: &[(u32, u64, u64)]) -> Vec<Descriptor> {
        let descriptor =
            |&(kind, start, end)| Descriptor { kind, start, pages: (end - start) / 4096 };
        parts.iter().map(descriptor).collect()
    }

    #[test]
    fn boot_services_and_loader_memory_may_be_overwritten() {
        let parts = [(7, 0, 0x21_0000), (3, 0x21_0000, 0x22_0000), (2, 0x22_0000, 0x80_0000)];
        assert_eq!(check(RANGE, map(&parts).into_iter()), Ok(()));
    }

    #[test]
    fn holes_and_run_time_memory_are_refused() {
        for kind in [0, 5, 6, 8, 9, 10, 11, 12, 13, 14] {
            let parts = [(7, 0, 0x2f_f000), (kind, 0x2f_f000, 0x80_0000)];
            let taken = Taken { range: RANGE, free: 0xf_f000 };
            assert_eq!(check(RANGE, map(&parts).into_iter()), Err(taken), "type {kind}");
        }
        assert!(check(RANGE, map(&[(7, 0x20_1000, 0x80_0000)]).into_iter()).is_err());
        assert!(check(RANGE, map(&[]).into_iter()).is_err());
    }

    #[test]
    fn a_lying_length_does_not_overflow() {
        let lie = Descriptor { kind: 7, start: 0x1000, pages: u64::MAX };
        assert_eq!(check(RANGE, [lie].into_iter()), Ok(()));
    }
}
