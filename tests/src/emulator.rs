//! The two emulators.

use std::fmt;

use crate::folder::Folder;
use crate::guest::{Devices, Payload};
use crate::outcome::Outcome;

/// Which emulator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Emulator {
    /// AMD-V and VT-d.
    Qemu,
    /// VT-x and no IOMMU.
    Bochs,
}

impl fmt::Display for Emulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Qemu => "qemu",
            Self::Bochs => "bochs",
        })
    }
}

impl Emulator {
    /// What the report must call the hypervisor's back end in it.
    #[must_use]
    pub const fn backend(self) -> &'static str {
        match self {
            Self::Qemu => "svm",
            Self::Bochs => "vmx",
        }
    }

    /// Runs a payload in it, without devices, in a folder of this name.
    ///
    /// # Panics
    /// `nexit` cannot be started.
    #[must_use]
    pub fn run(self, name: &str, payload: &Payload<'_>) -> Outcome {
        let emulator = self.to_string();
        let options = ["--emulator", &emulator, "--timeout", "90"];
        Folder::new(&format!("{name}-{self}")).run(&payload.toml(), &options, &Devices::none())
    }
}
