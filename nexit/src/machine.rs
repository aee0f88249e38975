//! The machine that a run gets, before it is an emulator's command line.

use std::path::PathBuf;

use crate::cli::Accel;
use crate::scenario::Scenario;

/// Room for the hypervisor, the images and their copies, in bytes.
const ROOM: u64 = 256 << 20;
/// The least memory of a machine, in bytes.
const LEAST: u64 = 1 << 30;

/// How the machine starts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Start {
    /// QEMU loads the image and these modules.
    Kernel {
        /// The hypervisor image.
        image: PathBuf,
        /// The modules; their base names are the names that the hypervisor sees.
        modules: Vec<PathBuf>,
    },
    /// From the CD-ROM by the BIOS.
    Bios {
        /// The ISO.
        iso: PathBuf,
    },
    /// From the CD-ROM by UEFI.
    Uefi {
        /// The ISO.
        iso: PathBuf,
        /// The firmware's code.
        code: PathBuf,
        /// A writable copy of the firmware's variables.
        variables: PathBuf,
    },
}

/// A machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Machine {
    /// CPUs.
    pub(crate) cpus: u32,
    /// Memory in bytes.
    pub(crate) memory: u64,
    /// QEMU's accelerator.
    pub(crate) accel: Accel,
    /// How it starts.
    pub(crate) start: Start,
    /// The user's own arguments for the emulator.
    pub(crate) extra: Vec<String>,
}

/// Memory for `scenario` where the user gives none: the guests' and room for the rest, rounded up to
/// 256 MiB.
pub(crate) fn default_memory(scenario: &Scenario) -> u64 {
    let needed = scenario.guest_memory().saturating_add(ROOM);
    needed.checked_next_multiple_of(ROOM).unwrap_or(needed).max(LEAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenario(memory: &str) -> Scenario {
        let text =
            format!("[[guest]]\nname = \"a\"\ncpus = [0]\nmemory = \"{memory}\"\nkernel = \"k\"\n");
        Scenario { config: config::parse(&text).unwrap(), files: Vec::new() }
    }

    #[test]
    fn memory_covers_the_guests_and_leaves_room() {
        assert_eq!(default_memory(&scenario("512M")), 1 << 30);
        assert_eq!(default_memory(&scenario("1G")), 1280 << 20);
        assert_eq!(default_memory(&scenario("1022M")), 1280 << 20);
    }
}
