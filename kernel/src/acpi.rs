//! The firmware's ACPI tables, read through the identity map; what they say is `firmware`'s to judge.

use alloc::format;
use alloc::vec::Vec;

use arch::Hpa;
use arch::address::HpaRange;
use arch::msr::PortRange;
use boot::BootInfo;
use config::Config;
use cpu::config_space::EcamWindow;
use firmware::{PlatformTables, Register};
use guest::devices::{Devices, power};

use crate::console::{self, logln};
use crate::memory::{self, Memory};
use crate::refusal::Refusal;

const FOUR_GIB: u64 = 1 << 32;

/// Reads the tables that the loader's RSDP leads to, or else the one in the BIOS area; what they name
/// above 4 GiB is mapped. The console goes on where they have it.
pub(crate) fn read(
    memory: Memory,
    info: &BootInfo<'_>,
    config: &Config,
) -> Result<PlatformTables, Refusal> {
    let bytes = |at: Hpa, length: usize| memory::firmware_bytes(memory, info, at, length);
    let mut platform = PlatformTables::read(info.rsdp, &bytes)?;
    let mut map = |what: &str, start: Hpa, length: u64| {
        let high = start.as_u64().saturating_add(length) > FOUR_GIB;
        let mapped =
            if high { memory::map_device(memory, HpaRange { start, length }) } else { Ok(()) };
        mapped.map_err(|why| platform.notes.push(format!("the {what} is left out: {why}"))).is_ok()
    };
    platform.hpet = platform.hpet.filter(|at| map("HPET", *at, 1024));
    platform.soft_off = platform.soft_off.filter(|off| {
        let mut registers = off.registers();
        registers.all(|register| match register {
            Register::Port(_) => true,
            Register::Memory(at) => map("register that switches off", at, 2),
        })
    });
    platform.reset = platform.reset.filter(|reset| match reset.register {
        Register::Port(_) => true,
        Register::Memory(at) => map("register that resets", at, 1),
    });
    for note in &platform.notes {
        logln!("firmware's tables: {note}");
    }
    let map = |range| memory::map_device(memory, range).is_ok();
    console::follow_firmware(&platform.serial, config, |range| memory::is_ram(info, range), map);
    Ok(platform)
}

/// The windows to configuration space, mapped where they are above 4 GiB.
pub(crate) fn ecam(memory: Memory, platform: &PlatformTables) -> &'static [EcamWindow] {
    let mut windows = Vec::new();
    for window in &platform.ecam {
        let firmware::EcamWindow { segment, first_bus, last_bus, base } = *window;
        let window = EcamWindow { segment, first_bus, last_bus, base };
        match memory::map_device(memory, window.range()) {
            Ok(()) => windows.push(window),
            Err(why) => {
                logln!("PCI: the window at {base} for segment {segment} is left out: {why}")
            }
        }
    }
    windows.leak()
}

/// The ports of the ACPI timer, which guests read without an exit; `None` where there is none, or where
/// a guest has a virtual device in its place (ACPI Specification, "PM Timer": it is read-only).
pub(crate) fn pm_timer(platform: &PlatformTables) -> Option<PortRange> {
    let first = platform.pm_timer?.port;
    let ports = PortRange { first, last: first.checked_add(3)? };
    let free = first == power::PM_TIMER || !(first..=ports.last).any(Devices::claims);
    free.then_some(ports)
}
