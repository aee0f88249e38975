//! The emulated machines.

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
}

impl fmt::Display for Emulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Qemu => "qemu",
            Self::Bochs => "bochs",
            Self::BochsVtd => "bochs-vtd",
        })
    }
}

impl Emulator {
    /// What the report must call the hypervisor's back end in it.
    #[must_use]
    pub const fn backend(self) -> &'static str {
        match self {
            Self::Qemu => "svm",
            Self::Bochs | Self::BochsVtd => "vmx",
        }
    }

    /// The options of `nexit run` that name it.
    #[must_use]
    pub const fn options(self) -> &'static [&'static str] {
        match self {
            Self::Qemu => &["--emulator", "qemu"],
            Self::Bochs => &["--emulator", "bochs", "--iommu", "none"],
            Self::BochsVtd => &["--emulator", "bochs", "--iommu", "vt-d"],
        }
    }

    /// Runs a payload in it, without devices, in a folder of this name.
    ///
    /// # Panics
    /// `nexit` cannot be started.
    #[must_use]
    pub fn run(self, name: &str, payload: &Payload<'_>) -> Outcome {
        let options = [self.options(), &["--timeout", "90"]].concat();
        Folder::new(&format!("{name}-{self}")).run(&payload.toml(), &options, &Devices::none())
    }
}
