//! Why a boot cannot go on, in sentences for the console.
#![forbid(unsafe_code)]

use core::fmt;

/// What is wrong with what the loader handed over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BootError {
    /// EAX held neither multiboot's nor multiboot2's number.
    UnknownLoader {
        /// What it held.
        magic: u32,
    },
    /// A structure lies outside the memory that can be read, or ends before its contents do.
    Truncated {
        /// Its name.
        structure: &'static str,
    },
    /// A string has no end or is not UTF-8.
    NotText {
        /// Whose string.
        structure: &'static str,
    },
    /// A module ends before it starts.
    ModuleRange {
        /// First byte.
        start: u32,
        /// First byte behind it.
        end: u32,
    },
    /// The loader passed no memory map, or one with no usable memory.
    NoUsableMemory,
    /// More memory regions, modules or strings than there is room for.
    TooMany {
        what: &'static str,
        /// How many there is room for.
        limit: usize,
    },
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownLoader { magic } => write!(
                f,
                "the loader left {magic:#x} in EAX, which is neither multiboot (0x2badb002) nor \
                 multiboot2 (0x36d76289): start the image with GRUB's multiboot2 command, with \
                 qemu -kernel, or with BOOTX64.EFI"
            ),
            Self::Truncated { structure } => write!(
                f,
                "the loader's {structure} is truncated or lies outside the first 4 GiB: \
                 use another version of the loader"
            ),
            Self::NotText { structure } => {
                write!(f, "the loader's {structure} is not UTF-8 text: rename it")
            }
            Self::ModuleRange { start, end } => write!(
                f,
                "a boot module is said to start at {start:#x} and to end at {end:#x}: \
                 use another version of the loader"
            ),
            Self::NoUsableMemory => f.write_str(
                "the loader's memory map names no usable memory: use a loader that passes one",
            ),
            Self::TooMany { what, limit } => {
                write!(f, "the loader passed more than {limit} {what}: pass fewer")
            }
        }
    }
}

impl core::error::Error for BootError {}
