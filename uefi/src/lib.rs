//! The parts of BOOTX64.EFI that are pure: what an image is ([`elf`]), whether there is room for
//! it ([`placement`]), and the multiboot2 information that it is entered with ([`information`]).
//!
//! Place in the path: firmware → `main.rs` (files, memory, exit) → `trampoline` → the image's
//! `_start`, which cannot tell this loader from GRUB but by its name.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod elf;
pub mod information;
pub mod placement;
