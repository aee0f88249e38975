//! How a guest's interrupts come, their lines, and the ports that it uses by itself.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use arch::Bdf;
use arch::machine::{ConfigSpace, Width};
use arch::msr::PortRange;
use arch::vcpu::InterruptMode;
use config::{GuestConfig, Uart};
use guest::pci::BusError;
use pci::header::INTERRUPT_LINE;

use crate::{Machine, Refusal, Vendor};

/// Whether the CPUs can run the guest in its mode.
pub(crate) fn check_mode(
    guest: &GuestConfig,
    vendor: Vendor,
    lacks: &dyn Fn(InterruptMode) -> Option<String>,
    refusals: &mut Vec<Refusal>,
) {
    let posted = guest.interrupts == InterruptMode::Posted;
    if posted && vendor == Vendor::AmdV {
        refusals.push(Refusal::guest(
            guest,
            "interrupts",
            "interrupts = \"posted\" is for VT-x: on this CPU, with AMD-V, choose \"exitless\" or \
             \"exiting\"",
        ));
    } else if let Some(why) = lacks(guest.interrupts) {
        // What one mode lacks alone is the guest's to change; else it is every guest's.
        let mode = posted && lacks(InterruptMode::Exitless).is_none();
        let refusal = if mode {
            let sentence =
                format!("interrupts = \"posted\": {why}, or choose \"exitless\" or \"exiting\"");
            Refusal::guest(guest, "interrupts", sentence)
        } else {
            Refusal::machine(why)
        };
        if !refusals.contains(&refusal) {
            refusals.push(refusal);
        }
    }
}

/// Raw ports must be nobody else's: not a device's that the guest gets anyway, nor what the
/// hypervisor keeps for itself, such as PCI's configuration ports.
pub(crate) fn check_ports(guest: &GuestConfig, refusals: &mut Vec<Refusal>) {
    const PCI_CONFIGURATION: PortRange = PortRange { first: 0xcf8, last: 0xcff };
    for (index, range) in guest.io_ports.iter().enumerate() {
        let claimed = (range.first..=range.last).find(|port| {
            guest::devices::Devices::claims(*port) || PCI_CONFIGURATION.contains(*port)
        });
        if let Some(port) = claimed {
            let sentence = format!(
                "io_ports names {port:#x}, which is a virtual device's or the hypervisor's own: remove it"
            );
            refusals.push(Refusal::entry(guest, ("io_ports", index), sentence));
        }
    }
}

pub(crate) fn check_line_count(guest: &GuestConfig, refusals: &mut Vec<Refusal>) {
    if let Err(error) = guest::lines::of(guest, core::iter::empty()) {
        refusals.push(Refusal::guest(guest, "intx", error));
    }
}

pub(crate) fn no_pin(guest: &GuestConfig, index: usize) -> Refusal {
    let function = guest.intx.get(index).map_or(Bdf::new(0, 0, 0), |entry| entry.function);
    Refusal::entry(guest, ("intx", index), BusError::NoPin(function))
}

/// Whether the lines that the guest names exist, and the pins that are wired to them.
pub(crate) fn check_lines<C: ConfigSpace>(
    guest: &GuestConfig,
    own: &[Bdf],
    machine: &Machine<'_, C>,
    refusals: &mut Vec<Refusal>,
) {
    check_line_count(guest, refusals);
    for (index, entry) in guest.intx.iter().enumerate() {
        let function = entry.function;
        let pin = || machine.space.read(function, INTERRUPT_LINE + 1, Width::Byte);
        if !own.contains(&function) || !matches!(pin(), 1..=4) {
            refusals.push(no_pin(guest, index));
        } else if !(machine.has_line)(entry.gsi) {
            let sentence =
                format!("no I/O APIC has interrupt line {}: name another one in intx", entry.gsi);
            refusals.push(Refusal::entry(guest, ("intx", index), sentence));
        }
    }
}

/// The machine has no such UART.
#[must_use]
pub fn no_uart(guest: &GuestConfig, uart: Uart) -> Refusal {
    let sentence = format!(
        "the machine has no UART at {} (port {:#x}): remove uart, or enable it in the firmware's setup",
        uart.name(),
        uart.ports().first
    );
    Refusal::guest(guest, "uart", sentence)
}
