//! From the loader's first instruction to one [`BootInfo`].
//!
//! All roads enter at the same 32-bit instruction (`entry`): GRUB and the UEFI loader of this
//! project as multiboot2, `qemu -kernel` as multiboot1. The entry switches to long mode and calls
//! `kernel_main(magic, info)`; [`parse`] turns what the loader left in memory into a `BootInfo`.
//!
//! Invariant: what the loader says is a claim. Every length and address is checked against the
//! bytes that it claims to describe, and a lie is a [`BootError`], never a panic.
#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]

pub mod bytes;
pub mod elf;
#[cfg(target_os = "none")]
pub mod entry;
mod error;
mod framebuffer;
mod info;
mod memory_map;
mod multiboot1;
pub mod multiboot2;

pub use error::BootError;
pub use framebuffer::{DIRECT_COLOUR, Framebuffer};
pub use info::{BootInfo, MAX_MODULES, Module};
pub use memory_map::{MemoryKind, MemoryMap, MemoryRegion};

use arch::Hpa;
use arch::address::HpaRange;

/// Access to the physical memory that a loader filled: the bytes of a range, or `None` where the
/// range cannot be reached.
pub type LoaderMemory<'a, 'm> = &'a dyn Fn(HpaRange) -> Option<&'m [u8]>;

/// Reads what the loader left at `info`; `magic` says which protocol it speaks.
///
/// # Errors
/// When no known loader was at work, or when its structures are truncated or contradict themselves.
pub fn parse<'m>(
    magic: u32,
    info: Hpa,
    memory: LoaderMemory<'_, 'm>,
) -> Result<BootInfo<'m>, BootError> {
    match magic {
        multiboot1::MAGIC => multiboot1::parse(info, memory),
        multiboot2::MAGIC => multiboot2::parse(info, memory),
        _ => Err(BootError::UnknownLoader { magic }),
    }
}
