//! The emulated machines, and what differs between them.

use std::fmt;

use crate::folder::Folder;
use crate::guest::{Devices, Payload};
use crate::outcome::Outcome;

/// Which machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Emulator {
    /// QEMU: AMD-V and VT-d.
    Qemu,
    /// The installed Bochs: VT-x and no IOMMU.
    Bochs,
    /// Bochs 3 with the plugin of `tests/machines`: VT-x and VT-d.
    BochsVtd,
    /// KVM's nested VT-x, and VT-d: QEMU in a Linux in Bochs.
    Nested,
}

impl fmt::Display for Emulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Qemu => "qemu",
            Self::Bochs => "bochs",
            Self::BochsVtd => "bochs-vtd",
            Self::Nested => "nested",
        })
    }
}

impl Emulator {
    /// What the report must call the hypervisor's back end in it.
    #[must_use]
    pub const fn backend(self) -> &'static str {
        match self {
            Self::Qemu => "svm",
            Self::Bochs | Self::BochsVtd | Self::Nested => "vmx",
        }
    }

    /// The options of `nexit run` that name it.
    #[must_use]
    pub const fn options(self) -> &'static [&'static str] {
        match self {
            Self::Qemu => &["--emulator", "qemu"],
            Self::Bochs => &["--emulator", "bochs", "--iommu", "none"],
            Self::BochsVtd => &["--emulator", "bochs", "--iommu", "vt-d"],
            Self::Nested => &["--emulator", "nested"],
        }
    }

    /// The exits of the watchdog, and those of the other back end's.
    #[must_use]
    pub const fn watchdog(self) -> (&'static str, &'static str) {
        match self {
            Self::Qemu => ("nmi", "preemption_timer"),
            Self::Bochs | Self::BochsVtd | Self::Nested => ("preemption_timer", "nmi"),
        }
    }

    /// So many ticks of the TSC an NMI may take to its guest at most, far below the second that the watchdog's
    /// next call would be away. In Bochs the TSC counts instructions: 50 millions to a second, all of them the
    /// machine's own. Nested it has 200 millions, and KVM, the inner Linux and the other virtual CPU have their
    /// share of them: 5.6 millions were seen. QEMU's goes by the time of a host that may be busy.
    #[must_use]
    pub const fn longest_nmi(self) -> Option<u64> {
        match self {
            Self::Qemu => None,
            Self::Bochs | Self::BochsVtd => Some(1_000_000),
            Self::Nested => Some(50_000_000),
        }
    }

    /// Seconds that a payload's run may take: nested, Linux starts first.
    const fn timeout(self) -> &'static str {
        match self {
            Self::Qemu | Self::Bochs | Self::BochsVtd => "90",
            Self::Nested => "1800",
        }
    }

    /// Runs a payload in it, without devices, in a folder of this name.
    ///
    /// # Panics
    /// `nexit` cannot be started.
    #[must_use]
    pub fn run(self, name: &str, payload: &Payload<'_>) -> Outcome {
        let options = [self.options(), &["--timeout", self.timeout()]].concat();
        Folder::new(&format!("{name}-{self}")).run(&payload.toml(), &options, &Devices::none())
    }
}
