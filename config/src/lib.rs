//! The configuration file `nexit.toml`: text in, checked [`Config`] out.
//!
//! The hypervisor parses it at boot, and the host tool parses it before it starts anything, with
//! this same code. Invariant: a [`Config`] holds only what can be meant – every check that needs
//! no knowledge of the machine has been made; whether a CPU, a device or a file exists is for the
//! caller. What is wrong is one sentence with the line ([`ConfigError`]).
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod error;
mod reader;
#[cfg(test)]
mod tests;
mod value;

use alloc::string::String;
use alloc::vec::Vec;

use arch::Bdf;
use arch::msr::PortRange;
use arch::vcpu::InterruptMode;

pub use error::{ConfigError, Problem};
pub use reader::parse;

/// The name of the file, as messages say it.
pub const FILE_NAME: &str = "nexit.toml";
/// Guest memory is a multiple of this many bytes (2 MiB, a large page of the nested table).
pub const MEMORY_UNIT: u64 = 2 << 20;
/// The least memory that a guest may have, in bytes.
pub const LEAST_MEMORY: u64 = 16 << 20;

/// The whole file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// The guests, in the order of the file; at least one.
    pub guests: Vec<GuestConfig>,
    /// Devices may be assigned on a machine that has no IOMMU, to the only guest, whose memory is
    /// identity-mapped then. Accepted at the top level and, meaning the same, in `[[guest]]`.
    pub unsafe_no_iommu: bool,
}

/// One `[[guest]]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GuestConfig {
    /// `name`: unique, 1 to 64 printable characters.
    pub name: String,
    /// `cpus`: the numbers of the physical CPUs, no other guest's; at least one. The first is the
    /// guest's boot processor.
    pub cpus: Vec<u32>,
    /// `memory` in bytes: a multiple of [`MEMORY_UNIT`], not below [`LEAST_MEMORY`].
    pub memory: u64,
    /// `kernel`: file name of a bzImage or a multiboot kernel.
    pub kernel: String,
    /// `initrd`: file name.
    pub initrd: Option<String>,
    /// `cmdline`: the kernel's command line; empty where the key is missing.
    pub cmdline: String,
    /// `devices`: the PCI functions that the guest owns, no other guest's.
    pub devices: Vec<Bdf>,
    /// `interrupts`: `exitless` where the key is missing.
    pub interrupts: InterruptMode,
    /// `io_ports`: raw ports handed over, no other guest's.
    pub io_ports: Vec<PortRange>,
}
