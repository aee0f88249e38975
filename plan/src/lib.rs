//! Whether a configuration fits a machine: every refusal that can be made before anything is started.
//!
//! The hypervisor calls [`check`] at boot, once it knows the machine; `nexit check` calls it elsewhere, with a capture of
//! the machine. The sentences of both come from here. Problems that show only while the machine is set up (a unit that
//! does not answer, no memory for a table) are refused there.
//!
//! * [`devices`]: do they exist, can they be assigned, what goes together
//! * [`memory`]: where a guest's RAM comes from, and what guests share
//! * [`files`]: kernel, initrd and modules; [`processors`]; [`interrupts`]: mode, lines, ports
//! * [`platform`]: features that every CPU needs; [`owners`]: addresses that no BAR may claim
//!
//! Invariant: nothing here touches the machine, and no check stops at the first problem.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod devices;
pub mod files;
pub mod interrupts;
pub mod memory;
pub mod owners;
pub mod platform;
pub mod processors;
mod refusal;
#[cfg(test)]
mod tests;

use alloc::string::String;
use alloc::vec::Vec;

use arch::Bdf;
use arch::address::HpaRange;
use arch::machine::ConfigSpace;
use arch::vcpu::InterruptMode;
use config::{Config, GuestConfig};
use guest::lines::Wired;
use guest::memory_map::{Ecam, GpaRange};
use mem::FrameAllocator;
use pci::{Function, Groups};

pub use files::File;
pub use platform::Vendor;
pub use processors::Cpu;
pub use refusal::{About, Refusal};

/// The machine's facts.
pub struct Machine<'a, C> {
    /// The vendor of its virtualization.
    pub vendor: Vendor,
    /// The feature that the CPUs lack for a mode: a sentence.
    pub lacks: &'a dyn Fn(InterruptMode) -> Option<String>,
    /// In the order in which the configuration counts them.
    pub cpus: &'a [Cpu],
    /// The memory that is left for guests.
    pub free: FrameAllocator,
    /// The RAM of the one identity-mapped guest, if there is no IOMMU and the configuration accepts that
    /// ([`memory::identity`]).
    pub identity_ram: Option<&'a [GpaRange]>,
    /// The window to configuration space, if a guest can have it ([`memory::low_window`]).
    pub ecam: Option<Ecam>,
    /// Configuration space.
    pub space: &'a C,
    /// All PCI functions.
    pub functions: &'a [Function],
    /// Their isolation groups.
    pub groups: &'a Groups,
    /// Memory to which the firmware keeps using a function for DMA (RMRR).
    pub reserved: &'a dyn Fn(Bdf) -> Option<HpaRange>,
    /// Whether a unit of the IOMMU covers a function.
    pub covered: &'a dyn Fn(Bdf) -> bool,
    /// Why there is no usable IOMMU; `None` if there is one.
    pub no_iommu: Option<&'a str>,
    /// Whether an input of an I/O APIC has this global system interrupt.
    pub has_line: &'a dyn Fn(u32) -> bool,
    /// The BARs of all functions.
    pub claims: &'a pci::Claims,
    /// How an interrupt of the ISA bus is wired.
    pub isa_line: &'a dyn Fn(u8) -> Wired,
    /// The interrupt of the ISA bus that the hypervisor's console has.
    pub console_irq: Option<u8>,
    /// The files that the configuration names.
    pub files: files::Source<'a>,
}

/// The result of a configuration on a machine.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// The functions of each guest, in the order of the file; without those that are refused.
    pub functions: Vec<Vec<Bdf>>,
    /// All problems; empty if the guests can be built.
    pub refusals: Vec<Refusal>,
    /// Not problems, but worth knowing.
    pub remarks: Vec<Refusal>,
}

/// Makes every refusal that can be made of `config` on `machine`.
pub fn check<C: ConfigSpace>(config: &Config, machine: &Machine<'_, C>) -> Plan {
    let mut plan = Plan::default();
    plan.functions = devices::functions(config, machine, &mut plan);
    let mut free = machine.free.clone();
    for region in &config.shared {
        plan.refusals.extend(memory::share(region, &mut free).err());
    }
    for (index, guest) in config.guests.iter().enumerate() {
        let refusals = &mut plan.refusals;
        processors::check(guest, machine.cpus, refusals);
        interrupts::check_ports(guest, refusals);
        interrupts::check_mode(guest, machine.vendor, machine.lacks, refusals);
        let map = memory::map(guest, machine.ecam, machine.identity_ram);
        refusals.extend(memory::find(guest, &map, machine.identity_ram, &mut free).err());
        files::check(guest, &map, machine.files, refusals);
        let own = plan.functions.get(index).map_or(&[][..], Vec::as_slice);
        devices::check(guest, own, machine, refusals, &mut plan.remarks);
        let shares = config.shared.iter().filter(|region| region.guests.contains(&index)).count();
        let slots = guest::pci::check_places(own, shares);
        refusals.extend(slots.err().map(|error| Refusal::guest(guest, "devices", error)));
        interrupts::check_lines(guest, own, machine, refusals);
        interrupts::check_ports_of_functions(guest, own, machine.claims, refusals);
    }
    interrupts::check_moved_lines(config, &plan.functions, machine, &mut plan.refusals);
    devices::remark_left_out(config, machine.functions, &plan.functions, &mut plan.remarks);
    processors::check_divided_cores(config, machine.cpus, &mut plan);
    plan
}

/// The refusals that need no machine: those of the configuration and its files alone.
#[must_use]
pub fn check_alone(config: &Config, files: files::Source<'_>) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    for guest in &config.guests {
        processors::check_count(guest, &mut refusals);
        interrupts::check_ports(guest, &mut refusals);
        files::check(guest, &memory::map(guest, None, None), files, &mut refusals);
        interrupts::check_line_count(guest, &mut refusals);
        check_own_intx(guest, &mut refusals);
    }
    refusals
}

/// A line of a function that the guest does not list.
fn check_own_intx(guest: &GuestConfig, refusals: &mut Vec<Refusal>) {
    let config::Devices::Listed(own) = &guest.devices else { return };
    for (index, entry) in guest.intx.iter().enumerate() {
        if !own.contains(&entry.function) {
            refusals.push(interrupts::no_pin(guest, index));
        }
    }
}
