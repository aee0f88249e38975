//! The keys `intx` and `uart`: physical interrupt lines, each one guest's.
//!
//! Invariant: a line is an input of an I/O APIC that nothing else of a PC drives: PCI's own, or that of
//! a UART which is not the console's.

use arch::Bdf;
use arch::msr::PortRange;

use crate::GuestConfig;

/// One entry of `intx`: to which line the interrupt pin of a function is wired.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IntxConfig {
    /// The function.
    pub function: Bdf,
    /// Global system interrupt: 5, 9 to 11 or from 16 up, where PCI's lines are.
    pub gsi: u32,
}

/// A UART of the machine (16550A) at its place on the ISA bus.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Uart {
    /// The second.
    Com2,
    /// The fourth.
    Com4,
}

impl Uart {
    /// The UART of this name. COM1 is the hypervisor's, and COM3 shares its interrupt line.
    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Com2, Self::Com4].into_iter().find(|uart| uart.name() == name)
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Com2 => "COM2",
            Self::Com4 => "COM4",
        }
    }

    /// Its eight ports.
    #[must_use]
    pub const fn ports(self) -> PortRange {
        match self {
            Self::Com2 => PortRange { first: 0x2f8, last: 0x2ff },
            Self::Com4 => PortRange { first: 0x2e8, last: 0x2ef },
        }
    }

    /// Its interrupt line: both share it. Edge-triggered.
    #[must_use]
    pub const fn gsi(self) -> u32 {
        3
    }
}

impl GuestConfig {
    /// The global system interrupts that the file gives this guest.
    pub fn lines(&self) -> impl Iterator<Item = u32> + '_ {
        self.intx.iter().map(|entry| entry.gsi).chain(self.uart.map(Uart::gsi))
    }

    /// Whether one of `ports` is handed to this guest.
    pub(crate) fn has_ports(&self, ports: PortRange) -> bool {
        let uart = self.uart.map(Uart::ports);
        self.io_ports.iter().chain(uart.as_ref()).any(|own| own.overlaps(ports))
    }
}
