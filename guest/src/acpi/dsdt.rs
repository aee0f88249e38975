//! The DSDT: the host bridge with its windows and interrupt pins, UARTs, the RTC, and what reserves the
//! ECAM window.

use alloc::vec::Vec;

use arch::msr::PortRange;
use config::Uart;

use super::{InterruptPin, Parameters, table};
use crate::aml::{self, Space};
use crate::devices::{power, rtc, uart};
use crate::memory_map::Ecam;

pub(super) fn dsdt(parameters: Parameters<'_>) -> Vec<u8> {
    let sleep = u32::from(power::SLEEP_TYPE_S5);
    let com1 = com(*b"COM1", 1, uart::PORTS, uart::GSI);
    let mut devices = Vec::from([host_bridge(parameters), com1, real_time_clock()]);
    if let Some(uart) = parameters.uart {
        let (name, uid) = match uart {
            Uart::Com2 => (*b"COM2", 2),
            Uart::Com4 => (*b"COM4", 4),
        };
        devices.push(com(name, uid, uart.ports(), uart.gsi()));
    }
    if let Some(ecam) = parameters.memory.ecam() {
        devices.push(motherboard(ecam));
    }
    let body = aml::terms(&[
        aml::name(b"_S5_", &aml::integers(&[sleep, sleep, 0, 0])),
        aml::scope(b"_SB_", &aml::terms(&devices)),
    ]);
    table(b"DSDT", 2, &body)
}

/// The PCI host bridge: all ports but those of the configuration mechanism, and the windows.
fn host_bridge(parameters: Parameters<'_>) -> Vec<u8> {
    let memory = parameters.memory;
    let mut ranges = Vec::from([
        aml::word_space(Space::Bus, 0, 0),
        aml::io(0xcf8, 8),
        aml::word_space(Space::Io, 0, 0xcf7),
        aml::word_space(Space::Io, 0xd00, 0xffff),
    ]);
    ranges.extend(memory.pci_windows().into_iter().map(|window| aml::memory(window, false)));
    let high = memory.high_pci_window(parameters.physical_address_bits);
    if high.length > 0 {
        ranges.push(aml::memory(high, false));
    }
    let body = aml::terms(&[
        aml::name(b"_HID", &aml::pnp_id(0x0a08)),
        aml::name(b"_CID", &aml::pnp_id(0x0a03)),
        aml::name(b"_UID", &aml::integer(0)),
        aml::name(b"_SEG", &aml::integer(0)),
        aml::name(b"_BBN", &aml::integer(0)),
        aml::name(b"_CRS", &aml::resources(&ranges)),
        aml::name(b"_PRT", &routing(parameters.pins)),
    ]);
    aml::device(b"PCI0", &body)
}

/// The package of `_PRT` (ACPI Specification, "_PRT (PCI Routing Table)"): pins count from 0 there,
/// and a source of 0 makes the last number a global system interrupt.
fn routing(pins: &[InterruptPin]) -> Vec<u8> {
    const ANY_FUNCTION: u32 = 0xffff;
    let entry = |pin: &InterruptPin| {
        let address = u32::from(pin.device) << 16 | ANY_FUNCTION;
        aml::integers(&[address, u32::from(pin.pin.saturating_sub(1)), 0, u32::from(pin.input)])
    };
    aml::package(&pins.iter().map(entry).collect::<Vec<_>>())
}

/// A 16550A UART.
fn com(name: [u8; 4], uid: u32, ports: PortRange, gsi: u32) -> Vec<u8> {
    let resources = [aml::io(ports.first, 8), aml::irq(gsi as u8)];
    let body = aml::terms(&[
        aml::name(b"_HID", &aml::pnp_id(0x0501)),
        aml::name(b"_UID", &aml::integer(uid)),
        aml::name(b"_CRS", &aml::resources(&resources)),
    ]);
    aml::device(&name, &body)
}

/// The RTC, which has no interrupt. Without 8259s Linux would not find it by itself.
fn real_time_clock() -> Vec<u8> {
    let body = aml::terms(&[
        aml::name(b"_HID", &aml::pnp_id(0x0b00)),
        aml::name(b"_CRS", &aml::resources(&[aml::io(rtc::PORTS.first, 2)])),
    ]);
    aml::device(b"RTC_", &body)
}

/// Reserves the ECAM window: Linux trusts MCFG only then.
fn motherboard(ecam: Ecam) -> Vec<u8> {
    let body = aml::terms(&[
        aml::name(b"_HID", &aml::pnp_id(0x0c02)),
        aml::name(b"_UID", &aml::integer(0)),
        aml::name(b"_CRS", &aml::resources(&[aml::memory(ecam.range(), true)])),
    ]);
    aml::device(b"MBRD", &body)
}
