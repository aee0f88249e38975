//! BOOTX64.EFI: reads the image and its boot modules from `\nexit\` of its own volume, ends boot
//! services and enters the image as a multiboot2 loader would.
//!
//! Invariant: until boot services end, every failure is one sentence on the console, all memory is
//! given back, and the firmware goes on. What is loaded never lies where the image will be put, so
//! the copy at the very end (`trampoline`) may overwrite anything that the firmware no longer needs.
#![cfg_attr(target_os = "uefi", no_std, no_main)]

#[cfg(target_os = "uefi")]
mod error;
#[cfg(target_os = "uefi")]
mod files;
#[cfg(target_os = "uefi")]
mod load;
#[cfg(target_os = "uefi")]
mod pages;
#[cfg(target_os = "uefi")]
mod trampoline;

#[cfg(target_os = "uefi")]
#[uefi::entry]
fn main() -> uefi::Status {
    let Err(error) = load::load();
    uefi::println!("Nexit: {error}");
    error.status()
}

/// On the host only the library's tests are of use.
#[cfg(not(target_os = "uefi"))]
fn main() {}
