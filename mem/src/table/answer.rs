//! What the walker answers: why it refused, what must be flushed, where an address leads, the pages in use.

use core::fmt;

use arch::{Hpa, PageSize};

use super::entry::{MemoryType, Rights};

/// Why a table could not be changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapError {
    /// An address or length is not a multiple of 4 KiB.
    NotAligned(u64),
    /// The input address is beyond what the table's levels reach.
    InputTooWide(u64),
    /// The output address has more than 52 bits.
    OutputTooWide(u64),
    /// This input address is mapped already.
    AlreadyMapped(u64),
    /// This input address is not mapped.
    NotMapped(u64),
    /// No memory is left for a table.
    OutOfFrames,
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAligned(at) => {
                write!(f, "address or length {at:#x} is not a multiple of 4 KiB")
            }
            Self::InputTooWide(at) => write!(f, "address {at:#x} is beyond the table's reach"),
            Self::OutputTooWide(at) => write!(f, "physical address {at:#x} has more than 52 bits"),
            Self::AlreadyMapped(at) => write!(f, "address {at:#x} is mapped already"),
            Self::NotMapped(at) => write!(f, "address {at:#x} is not mapped"),
            Self::OutOfFrames => f.write_str("no memory is left for page tables"),
        }
    }
}

impl core::error::Error for MapError {}

/// Pages were mapped where nothing was. Most readers cache nothing of what is absent; one that does has to be told.
#[must_use = "a reader that caches what is absent must be told"]
#[derive(PartialEq, Eq, Debug)]
pub struct Added {
    pub(super) input: u64,
    pub(super) length: u64,
}

impl Added {
    /// No reader caches what is absent, or all that do were told.
    pub const fn nothing_cached(self) {}
}

/// A promise to drop what readers have cached of a range that was mapped, before anybody relies on the change.
#[must_use = "readers may still use the old mapping until their caches are flushed"]
#[derive(PartialEq, Eq, Debug)]
pub struct Flush {
    pub(super) input: u64,
    pub(super) length: u64,
}

impl Flush {
    /// No reader has the table yet.
    pub const fn not_in_use(self) {}

    /// Something may be cached: `due` now says so to whoever empties the caches.
    pub const fn is_due(self, due: &mut bool) {
        *due = true;
    }

    /// `drop` drops the translations of all readers that may have some.
    pub fn done_by(self, drop: impl FnOnce()) {
        drop();
    }
}

impl From<Added> for Flush {
    /// For a reader of whom nobody knows whether it caches what is absent.
    fn from(Added { input, length }: Added) -> Self {
        Self { input, length }
    }
}

/// Where an input address leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// The address itself, offset in the page included.
    pub hpa: Hpa,
    /// Size of the page that maps it.
    pub size: PageSize,
    /// What the page allows.
    pub access: Rights,
    /// How it is cached.
    pub memory_type: MemoryType,
}

/// How many pages of each size a table holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PageCounts {
    /// 4 KiB pages.
    pub size_4k: u64,
    /// 2 MiB pages.
    pub size_2m: u64,
    /// 1 GiB pages.
    pub size_1g: u64,
}

impl fmt::Display for PageCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x 1G, {} x 2M, {} x 4K", self.size_1g, self.size_2m, self.size_4k)
    }
}
