//! What the firmware's ACPI tables say about the machine, as one [`PlatformTables`].
//!
//! * `tables`: from the RSDP to every table whose pointer and length hold; nothing else is read
//! * `madt`, `mcfg`, `fadt`, `aml`, `serial`: what they say; `structures` is where the `acpi` crate reads them
//! * `origin`: who made them
//!
//! Invariant: the tables are claims. The `acpi` crate believes lengths and pointers, so it is given
//! only tables that were checked here, and of the MADT and the MCFG only whole entries. What does not
//! hold is left out with a sentence in [`PlatformTables::notes`]; only a machine without CPUs is refused.
//! No bytes make this crate panic, loop for ever or read outside of what its caller's memory gives.
#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]

extern crate alloc;

mod aml;
mod fadt;
mod madt;
mod mcfg;
mod origin;
mod platform;
mod serial;
mod structures;
mod tables;

use arch::Hpa;

pub use fadt::{Block, Pm1Control, PmTimer, Register, Reset, SoftOff};
pub use madt::{InterruptOverride, IoApicEntry};
pub use mcfg::EcamWindow;
pub use origin::Origin;
pub use platform::{FirmwareError, PlatformTables};
pub use serial::SerialPort;
pub use tables::each_table;

/// Physical memory: the bytes of a range, or `None` where they cannot all be read.
pub type Memory<'a, 'm> = &'a dyn Fn(Hpa, usize) -> Option<&'m [u8]>;

#[cfg(test)]
mod tests;
