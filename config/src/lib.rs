//! The configuration file `nexit.toml`: text in, checked [`Config`] out.
//!
//! The hypervisor parses it at boot, and the host tool parses it before it starts anything, with
//! this same code. Invariant: a [`Config`] holds only what can be meant – every check that needs
//! no knowledge of the machine has been made; whether a CPU, a device or a file exists is for the
//! caller. What is wrong is one sentence with the line ([`ConfigError`]).
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod devices;
mod document;
mod error;
mod lines;
mod places;
mod reader;
mod shared;
#[cfg(test)]
mod tests;
mod value;

use alloc::string::String;
use alloc::vec::Vec;

use arch::msr::PortRange;
use arch::vcpu::InterruptMode;

pub use devices::Devices;
pub use error::{ConfigError, Problem};
pub use lines::{Console, IntxConfig, Uart};
pub use places::Places;
pub use reader::parse;
pub use shared::{MAX_PEERS, MIN_SHARED, SharedConfig};

/// The name of the file, as messages say it.
pub const FILE_NAME: &str = "nexit.toml";
/// Guest memory is a multiple of this many bytes (2 MiB, a large page of the nested table).
pub const MEMORY_UNIT: u64 = 2 << 20;
/// The least memory that a guest may have, in bytes.
pub const MIN_MEMORY: u64 = 16 << 20;

/// The whole file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// The guests, in the order of the file; at least one, unless `probe` is set.
    pub guests: Vec<GuestConfig>,
    /// Devices may be assigned on a machine that has no IOMMU, to the only guest, whose memory is
    /// identity-mapped then. Accepted at the top level and, meaning the same, in `[[guest]]`.
    pub unsafe_no_iommu: bool,
    /// `console`: where the hypervisor's log goes; what is found where the key is missing.
    pub console: Option<Console>,
    /// `probe`: the hypervisor says what the machine is, and stops.
    pub probe: bool,
    /// The regions of memory that guests share, in the order of the file.
    pub shared: Vec<SharedConfig>,
    /// Where the keys outside of tables stand.
    pub places: Places,
}

/// One `[[guest]]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GuestConfig {
    /// `name`: unique, 1 to 64 printable characters.
    pub name: String,
    /// `cpus`: the numbers of the physical CPUs, no other guest's; at least one. The first is the
    /// guest's boot processor.
    pub cpus: Vec<u32>,
    /// `memory` in bytes: a multiple of [`MEMORY_UNIT`], not below [`MIN_MEMORY`].
    pub memory: u64,
    /// `kernel`: file name of a bzImage or a multiboot kernel.
    pub kernel: String,
    /// `initrd`: file name.
    pub initrd: Option<String>,
    /// `cmdline`: the kernel's command line; empty where the key is missing.
    pub cmdline: String,
    /// `modules`: further boot modules of a multiboot kernel, behind the initrd.
    pub modules: Vec<ModuleConfig>,
    /// `devices` and `except`: the PCI functions that the guest owns, no other guest's. What they
    /// come to on a machine is for [`Config::functions`].
    pub devices: Devices,
    /// `interrupts`: `exitless` where the key is missing.
    pub interrupts: InterruptMode,
    /// `io_ports`: raw ports handed over, no other guest's.
    pub io_ports: Vec<PortRange>,
    /// `intx`: the interrupt lines of the guest's functions; no line is another guest's.
    pub intx: Vec<IntxConfig>,
    /// `uart`: a UART of the machine, no other guest's.
    pub uart: Option<Uart>,
    /// `gdb`: the UART at which a gdb of the guest is, nobody else's.
    pub gdb: Option<Uart>,
    /// `pit`: the first guest has the line of the machine's PIT; `true` where the key is missing.
    pub pit: bool,
    /// `on_crash`: what follows when the guest ends by a fault of its own or is stopped for a
    /// forbidden act; [`Afterwards::Stop`] where the key is missing.
    pub on_crash: Afterwards,
    /// `on_reboot`: what follows when the guest resets its machine; [`Afterwards::Restart`] where
    /// the key is missing.
    pub on_reboot: Afterwards,
    /// Where its keys stand.
    pub places: Places,
}

/// One entry of `modules`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ModuleConfig {
    /// File name: the entry's first word.
    pub file: String,
    /// The words behind it, which the kernel finds as the module's string; may be empty.
    pub args: String,
}

/// What follows when a guest ends other than by switching its machine off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Afterwards {
    /// `"stop"`: it stays ended.
    Stop,
    /// `"restart"`: it restarts, from its files.
    Restart,
    /// `"debug"`, of `on_crash` alone: the CPU that crashed waits for a gdb; when that lets it go, the guest stays ended.
    Debug,
}
