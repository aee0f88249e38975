//! Frames, and one radix-table walker for host, EPT, NPT and DMA tables.
//!
//! * [`frames`]: which physical memory is free
//! * [`table`]: map, replace, unmap and translate, for any [`table::Format`]
//! * [`reserve`]: the frames that one table has for changes
//! * [`pages`]: memory as values, which only the pool makes
//! * [`pieces`]: one work for several CPUs
//! * [`formats`]: what an entry looks like for each reader (CPU, EPT, NPT, VT-d)
//!
//! Nothing here touches memory: the walker reads and writes through [`table::TableMemory`], which
//! the kernel implements on the machine and the tests implement on a map.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod formats;
pub mod frames;
pub mod pages;
pub mod pieces;
pub mod reserve;
pub mod table;
#[cfg(test)]
mod testing;

pub use formats::{DmaFormat, EptFormat, HostFormat, NptFormat};
pub use frames::FrameAllocator;
pub use pages::{Pages, Word};
pub use pieces::Pieces;
pub use reserve::Reserve;
pub use table::{
    Added, Flush, Leaf, MapError, Mapping, MemoryType, PageCounts, Rights, Table, TableMemory,
};
