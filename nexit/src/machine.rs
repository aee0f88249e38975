//! The machine that a run gets, before it is an emulator's command line.

use std::path::PathBuf;

use crate::cli::{Accel, Iommu};
use crate::scenario::Scenario;

/// Room for the hypervisor, the images and their copies, in bytes.
const ROOM: u64 = 512 << 20;
/// The least memory of a machine, in bytes.
const MIN: u64 = 1 << 30;
/// The most CPUs that a machine of either emulator has.
pub const MAX_CPUS: u32 = 255;

/// How the machine starts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Start {
    /// QEMU loads the image and these modules.
    Kernel {
        /// The hypervisor image.
        image: PathBuf,
        /// The modules; their base names are the names that the hypervisor sees.
        modules: Vec<PathBuf>,
    },
    /// From the CD-ROM by the BIOS.
    Bios { iso: PathBuf },
    /// From the CD-ROM by UEFI.
    Uefi {
        iso: PathBuf,
        /// The firmware's code.
        code: PathBuf,
        /// A writable copy of the firmware's variables.
        variables: PathBuf,
    },
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Machine {
    pub cpus: u32,
    /// Memory in bytes.
    pub memory: u64,
    /// QEMU's accelerator.
    pub accel: Accel,
    pub iommu: Iommu,
    /// How it starts.
    pub start: Start,
    /// The user's own arguments for the emulator.
    pub extra: Vec<String>,
}

/// CPUs for `scenario` where the user gives none: all that it names, and at least `least`.
pub(crate) fn default_cpus(scenario: &Scenario, least: u32) -> u32 {
    scenario.cpus().max(least)
}

/// Memory for `scenario` where the user gives none: the guests' and room for the rest.
pub(crate) fn default_memory(scenario: &Scenario) -> u64 {
    scenario.guest_memory().saturating_add(ROOM).max(MIN)
}

/// This host's memory in bytes, where it says.
pub(crate) fn host_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    total.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guests with these CPUs and this memory.
    fn scenario(guests: &[(&str, &str)]) -> Scenario {
        let guest = |(index, (cpus, memory)): (usize, &(&str, &str))| {
            format!(
                "[[guest]]\nname = \"{index}\"\ncpus = {cpus}\nmemory = \"{memory}\"\nkernel = \"k\"\n"
            )
        };
        let text: String = guests.iter().enumerate().map(guest).collect();
        Scenario { config: config::parse(&text).unwrap(), files: Vec::new() }
    }

    #[test]
    fn memory_covers_all_guests_and_leaves_room() {
        assert_eq!(default_memory(&scenario(&[("[0]", "128M")])), 1 << 30);
        assert_eq!(default_memory(&scenario(&[("[0]", "512M")])), 1 << 30);
        assert_eq!(default_memory(&scenario(&[("[0]", "514M")])), 1026 << 20);
        let two = scenario(&[("[0]", "1G"), ("[1]", "512M")]);
        assert_eq!(default_memory(&two), 2 << 30);
    }

    #[test]
    fn cpus_cover_the_highest_that_any_guest_names() {
        assert_eq!(default_cpus(&scenario(&[("[0]", "512M")]), 2), 2);
        assert_eq!(default_cpus(&scenario(&[("[0, 1]", "512M"), ("[5, 2]", "512M")]), 2), 6);
    }
}
