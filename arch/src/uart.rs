//! Where a UART is.

use crate::Hpa;
use crate::address::HpaRange;
use crate::machine::Width;

/// Registers of a 16550.
const REGISTERS: u64 = 8;

/// A UART's first register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UartBase {
    /// At this I/O port.
    Port(u16),
    /// In memory.
    Memory(Hpa),
}

/// Where the registers of a UART are, and how they are reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UartPlace {
    /// The first.
    pub base: UartBase,
    /// Bytes from one to the next.
    pub stride: u8,
    /// How wide an access is.
    pub width: Width,
}

impl UartPlace {
    /// A PC's: eight ports of a byte.
    #[must_use]
    pub const fn port(first: u16) -> Self {
        Self { base: UartBase::Port(first), stride: 1, width: Width::Byte }
    }

    /// Its first port, where it has ports.
    #[must_use]
    pub const fn first_port(&self) -> Option<u16> {
        match self.base {
            UartBase::Port(first) => Some(first),
            UartBase::Memory(_) => None,
        }
    }

    /// The memory that its registers take, where they are in memory.
    #[must_use]
    pub fn range(&self) -> Option<HpaRange> {
        match self.base {
            UartBase::Port(_) => None,
            UartBase::Memory(start) => {
                Some(HpaRange { start, length: REGISTERS * u64::from(self.stride) })
            }
        }
    }
}

impl core::fmt::Display for UartPlace {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.base {
            UartBase::Port(first) => write!(f, "port {first:#x}"),
            UartBase::Memory(start) => write!(f, "memory {start}"),
        }
    }
}
