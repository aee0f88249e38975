//! Why a bus could not be built.

use core::fmt;

use arch::Bdf;

/// Why the bus could not be built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BusError {
    /// There is no such function.
    Absent(Bdf),
    /// The function is a bridge or an IOMMU.
    NotADevice(Bdf),
    /// All 31 device numbers are taken.
    NoSlot(Bdf),
    /// The same for memory that guests share.
    NoSlotForShared,
    /// The function is not on this bus, or has no interrupt pin.
    NoPin(Bdf),
}

impl fmt::Display for BusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent(bdf) => write!(f, "the machine has no PCI function {bdf}: see lspci"),
            Self::NotADevice(bdf) => {
                write!(f, "{bdf} is a bridge or an IOMMU: assign the functions behind it instead")
            }
            Self::NoSlot(bdf) => {
                write!(f, "no device number is left for {bdf}: a guest's bus has 31")
            }
            Self::NoSlotForShared => {
                f.write_str("no device number is left for shared memory: a guest's bus has 31")
            }
            Self::NoPin(bdf) => write!(
                f,
                "intx names {bdf}, which has no interrupt pin or is not among the guest's devices: \
                 remove it there"
            ),
        }
    }
}

impl core::error::Error for BusError {}
