//! The configuration file `nexit.toml`: text in, checked [`Config`] out.
//!
//! The hypervisor parses it at boot, and the host tool parses it before it starts anything, with
//! this same code. Invariant: a [`Config`] has passed every check that needs
//! no knowledge of the machine; the caller checks whether a CPU, a device or a file exists.
//! An error is one sentence with the line ([`ConfigError`]).
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
pub use lines::{Console, Gdb, IntxConfig, Uart};
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
    /// On a machine without an IOMMU, devices may be assigned to the only guest, which is then
    /// identity-mapped. Accepted at the top level and, with the same meaning, in `[[guest]]`.
    pub unsafe_no_iommu: bool,
    /// `console`: where the hypervisor's log goes; if the key is missing, the first console that is found.
    pub console: Option<Console>,
    /// `probe`: the hypervisor describes the machine, and halts.
    pub probe: bool,
    /// `share_cores`: guests may have threads of one core each.
    pub share_cores: bool,
    /// The regions of memory that guests share, in the order of the file.
    pub shared: Vec<SharedConfig>,
    /// The lines of the top-level keys.
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
    /// `cmdline`: the kernel's command line; empty if the key is missing.
    pub cmdline: String,
    /// `modules`: further boot modules of a multiboot kernel, behind the initrd.
    pub modules: Vec<ModuleConfig>,
    /// `symbols`: file name of a System.map, for names in the monitor.
    pub symbols: Option<String>,
    /// `devices` and `except`: the PCI functions that the guest alone owns. [`Config::functions`]
    /// resolves them on a machine.
    pub devices: Devices,
    /// `interrupts`: `exitless` if the key is missing.
    pub interrupts: InterruptMode,
    /// `io_ports`: raw ports handed over, no other guest's.
    pub io_ports: Vec<PortRange>,
    /// `intx`: the interrupt lines of the guest's functions; no line is another guest's.
    pub intx: Vec<IntxConfig>,
    /// `uart`: a UART of the machine, no other guest's.
    pub uart: Option<Uart>,
    /// `gdb`: the line to the guest's gdb; no guest gets its UART.
    pub gdb: Option<Gdb>,
    /// `pit`: the first guest has the line of the machine's PIT; `true` if the key is missing.
    pub pit: bool,
    /// `on_crash`: what follows after the guest's own fault or a forbidden act;
    /// [`Afterwards::Stop`] if the key is missing.
    pub on_crash: Afterwards,
    /// `on_reboot`: what follows after the guest resets its machine; [`Afterwards::Restart`] if
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

/// What follows when a guest ends without switching its machine off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Afterwards {
    /// `"stop"`: it stays ended.
    Stop,
    /// `"restart"`: it restarts, from its files.
    Restart,
    /// `"debug"`, of `on_crash` alone: the CPU that crashed waits for a gdb; when that lets it go, the guest stays ended.
    Debug,
}
