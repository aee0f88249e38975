//! Addresses, one type per space.
//!
//! Invariant: an address never changes its space by arithmetic; crossing from one to another takes
//! the table that does it (nested table, guest page tables, DMA table).

use core::fmt;

/// Size of the smallest page, in bytes.
pub const PAGE_SIZE: u64 = 4096;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The address with this value.
            #[must_use]
            pub const fn new(value: u64) -> Self {
                Self(value)
            }

            /// The plain number.
            #[must_use]
            pub const fn as_u64(self) -> u64 {
                self.0
            }

            /// This address plus `bytes`; `None` where that overflows.
            #[must_use]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }

            /// This address plus `bytes`, wrapping at 2^64 as the CPU's own arithmetic does.
            #[must_use]
            pub const fn wrapping_add(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }

            /// The largest multiple of `alignment` (a power of two) not above this address.
            #[must_use]
            pub const fn align_down(self, alignment: u64) -> Self {
                Self(self.0 & !(alignment - 1))
            }

            /// The smallest multiple of `alignment` (a power of two) not below this address;
            /// `None` where that overflows.
            #[must_use]
            pub const fn align_up(self, alignment: u64) -> Option<Self> {
                match self.0.checked_add(alignment - 1) {
                    Some(sum) => Some(Self(sum & !(alignment - 1))),
                    None => None,
                }
            }

            /// Whether this is a multiple of `alignment` (a power of two).
            #[must_use]
            pub const fn is_aligned(self, alignment: u64) -> bool {
                self.0 & (alignment - 1) == 0
            }

            /// The 4 KiB page that holds this address.
            #[must_use]
            pub const fn page(self) -> Self {
                self.align_down(PAGE_SIZE)
            }

            /// Offset in the 4 KiB page.
            #[must_use]
            pub const fn page_offset(self) -> u64 {
                self.0 & (PAGE_SIZE - 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }
    };
}

address!(
    /// Host-physical address.
    Hpa
);
address!(
    /// Guest-physical address.
    Gpa
);
address!(
    /// Guest-virtual (linear) address.
    Gva
);
address!(
    /// The address that a device puts on the bus, before DMA remapping.
    Iova
);

/// Size of a page in a radix table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum PageSize {
    /// 4 KiB
    Size4K,
    /// 2 MiB
    Size2M,
    /// 1 GiB
    Size1G,
}

impl PageSize {
    /// Size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Size4K => 1 << 12,
            Self::Size2M => 1 << 21,
            Self::Size1G => 1 << 30,
        }
    }
}

/// A range of host-physical memory, as the loader, the firmware or the configuration name it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HpaRange {
    /// First byte.
    pub start: Hpa,
    /// Length in bytes.
    pub length: u64,
}

impl HpaRange {
    /// First byte behind the range; saturates at 2^64 - 1.
    #[must_use]
    pub const fn end(self) -> Hpa {
        Hpa(self.start.0.saturating_add(self.length))
    }

    /// Whether the two share a byte.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.length > 0
            && other.length > 0
            && self.start.0 < other.end().0
            && other.start.0 < self.end().0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignment_never_leaves_the_space() {
        assert_eq!(Hpa::new(0x1fff).page(), Hpa::new(0x1000));
        assert_eq!(Hpa::new(0x1001).align_up(4096), Some(Hpa::new(0x2000)));
        assert_eq!(Hpa::new(u64::MAX).align_up(4096), None);
    }

    #[test]
    fn empty_ranges_overlap_nothing() {
        let empty = HpaRange { start: Hpa::new(16), length: 0 };
        let all = HpaRange { start: Hpa::new(0), length: u64::MAX };
        assert!(!empty.overlaps(all));
        assert!(all.overlaps(all));
    }
}
