//! The firmware's ACPI tables, read through the identity map; what they say is `firmware`'s to judge.

use arch::Hpa;
use arch::address::HpaRange;
use arch::msr::PortRange;
use boot::BootInfo;
use cpu::config_space::Ecam;
use cpu::physical;
use firmware::Platform;
use guest::devices::{Devices, power};

use crate::console::logln;
use crate::memory::image;
use crate::refusal::Refusal;

const FOUR_GIB: u64 = 1 << 32;

/// Reads the tables that the loader's RSDP leads to, or else the one in the BIOS area.
pub(crate) fn read(info: &BootInfo<'_>) -> Result<Platform, Refusal> {
    let image = image::whole();
    let memory = |start: Hpa, length: usize| {
        let range = HpaRange { start, length: length as u64 };
        let end = start.checked_add(range.length)?;
        if start.as_u64() == 0 || range.overlaps(image) || end.as_u64() > FOUR_GIB {
            return None;
        }
        // SAFETY: not null and mapped. Firmware does not change its tables, and if it did: every byte is
        // a claim.
        Some(unsafe { physical::bytes(start, length) })
    };
    let platform = Platform::read(info.rsdp, &memory)?;
    for note in &platform.notes {
        logln!("firmware's tables: {note}");
    }
    Ok(platform)
}

/// The window to bus 0 of segment 0.
pub(crate) fn ecam(platform: &Platform) -> Option<Ecam> {
    let first = |window: &&firmware::EcamWindow| window.segment == 0 && window.first_bus == 0;
    let window = platform.ecam.iter().find(first)?;
    Some(Ecam { base: window.base, first_bus: window.first_bus, last_bus: window.last_bus })
}

/// The ports of the ACPI timer, which guests read without an exit; `None` where there is none, or where
/// a guest has a virtual device in its place (ACPI Specification, "PM Timer": it is read-only).
pub(crate) fn pm_timer(platform: &Platform) -> Option<PortRange> {
    let first = platform.pm_timer?.port;
    let ports = PortRange { first, last: first.checked_add(3)? };
    let free = first == power::PM_TIMER || !(first..=ports.last).any(Devices::claims);
    free.then_some(ports)
}
