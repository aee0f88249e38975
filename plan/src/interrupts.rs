//! How a guest's interrupts come, their lines, and the ports that it uses by itself.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use arch::Bdf;
use arch::machine::{ConfigSpace, Width};
use arch::msr::PortRange;
use arch::vcpu::InterruptMode;
use config::{Config, GuestConfig, Uart};
use firmware::InterruptOverride;
use guest::lines::{Line, Wired};
use guest::pci::BusError;
use pci::header::INTERRUPT_LINE;
use pci::{Claims, Function};

use crate::{Machine, Refusal, Vendor};

/// How an interrupt of the ISA bus is wired, by the firmware's word.
#[must_use]
pub const fn wired(line: InterruptOverride) -> Wired {
    let InterruptOverride { gsi, active_low, level, .. } = line;
    Wired { gsi, active_low, level }
}

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

/// Ports that the guest uses by itself must not be those of a function that is not its own.
pub(crate) fn check_ports_of_functions(
    guest: &GuestConfig,
    own: &[Bdf],
    claims: &Claims,
    refusals: &mut Vec<Refusal>,
) {
    let listed = guest.io_ports.iter().enumerate();
    let listed = listed.map(|(index, range)| (("io_ports", index), *range));
    let uart = guest.uart.map(|uart| (("uart", 0), uart.ports()));
    for (entry, range) in listed.chain(uart) {
        if let Some((function, bar)) = claims.port_bar(range, own) {
            let sentence = format!(
                "the ports {:#x} to {:#x} are BAR {} of {function}, which is not the guest's: assign that, or \
                 remove them",
                range.first, range.last, bar.index
            );
            refusals.push(Refusal::entry(guest, entry, sentence));
        }
    }
}

/// Refuses lines of two devices that are one interrupt of this machine, because its firmware has moved an
/// interrupt of the ISA bus.
pub(crate) fn check_moved_lines<C: ConfigSpace>(
    config: &Config,
    owned: &[Vec<Bdf>],
    machine: &Machine<'_, C>,
    refusals: &mut Vec<Refusal>,
) {
    const CONSOLE: &str = "the hypervisor's console";
    let mut lines = Vec::new();
    let isa = |gsi| Line { input: gsi, gsi, active_low: false };
    lines.extend(machine.console_irq.map(|irq| (CONSOLE, isa(irq.into()))));
    for (index, (guest, functions)) in config.guests.iter().zip(owned).enumerate() {
        let timer = (index == 0 && guest.pit).then_some(guest::devices::pit::GSI);
        let own = machine.functions.iter().filter(|function| functions.contains(&function.bdf));
        let channels = own.flat_map(Function::legacy_ide).map(|channel| channel.gsi);
        // Too many are refused where they are counted.
        let found = guest::lines::of(guest, channels.chain(timer)).unwrap_or_default();
        lines.extend(found.into_iter().map(|line| (guest.name.as_str(), line)));
    }
    if let Some(clash) = guest::lines::clash(&lines, machine.isa_line)
        && let Some(guest) = config.guests.iter().find(|guest| guest.name == clash.intx)
    {
        let index = guest.intx.iter().position(|entry| entry.gsi == clash.gsi).unwrap_or_default();
        refusals.push(Refusal::entry(guest, ("intx", index), clash));
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
