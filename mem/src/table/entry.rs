//! What an entry of a table says, and what its format has to tell the walker.

use arch::{Hpa, PageSize};

/// What a mapped page allows besides reading.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rights {
    pub write: bool,
    /// Instruction fetches.
    pub execute: bool,
}

impl Rights {
    /// Reading only.
    pub const READ: Self = Self { write: false, execute: false };
    /// Reading and writing.
    pub const READ_WRITE: Self = Self { write: true, execute: false };
    /// Reading and fetching.
    pub const READ_EXECUTE: Self = Self { write: false, execute: true };
    /// Everything.
    pub const ALL: Self = Self { write: true, execute: true };
}

/// How a page is cached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemoryType {
    /// Write-back: RAM.
    WriteBack,
    /// Uncached: device registers.
    Uncached,
    /// Uncached, writes gathered: a framebuffer. The hypervisor's own table alone has it; in an EPT it is
    /// uncached.
    WriteCombining,
}

/// The content of an entry that maps a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// Where the page is.
    pub hpa: Hpa,
    /// What it allows.
    pub access: Rights,
    /// How it is cached.
    pub memory_type: MemoryType,
}

/// Keeps other crates from implementing [`Format`].
pub trait Sealed {}

/// A decoded entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Nothing is mapped.
    Absent,
    /// A table of the next lower level; never at level 0.
    Table(Hpa),
    /// A page of the entry's own level.
    Leaf(Leaf),
}

/// What entries look like. `decode` gives back what the encoders were given, as far as the format
/// has bits for it; the entry 0 is [`Entry::Absent`].
///
/// Only this crate has formats: what `decode` calls a table is read and written as one.
pub trait Format: Sealed {
    /// How many levels, 3 or 4.
    fn levels(&self) -> u8 {
        4
    }
    /// The largest page that the reader knows, for these rights.
    fn largest_page(&self, access: Rights) -> PageSize;
    /// The entry that links the table at `table`.
    fn table_entry(&self, table: Hpa) -> u64;
    /// The entry of `level` that maps `leaf`.
    fn leaf_entry(&self, leaf: Leaf, level: u8) -> u64;
    /// What an entry of `level` says.
    fn decode(&self, entry: u64, level: u8) -> Entry;
}
