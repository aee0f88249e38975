//! The keys `intx`, `uart` and `console`: physical interrupt lines and UARTs, each one's alone.
//!
//! Invariant: a line is an input of an I/O APIC that nothing else of a PC drives: PCI's own, or that of
//! a UART which is not the console's.

use arch::Bdf;
use arch::msr::PortRange;

use alloc::borrow::ToOwned as _;

use crate::{Config, ConfigError, GuestConfig, Problem};

/// Where the hypervisor's log goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Console {
    /// To no UART.
    None,
    /// To the UART whose first port this is.
    Port(u16),
    /// To the serial card that is this PCI function.
    Card(Bdf),
}

impl Console {
    /// `COM1` to `COM4`, a port, a card such as `pci:05:00.0`, or `none`.
    pub(crate) fn named(text: &str) -> Option<Self> {
        const PCI_CONFIG_PORTS: u16 = 0xcf8;
        if let Some(function) = text.strip_prefix("pci:") {
            return function.parse().ok().map(Self::Card);
        }
        let base = match text {
            "none" => return Some(Self::None),
            "COM1" => 0x3f8,
            "COM2" => 0x2f8,
            "COM3" => 0x3e8,
            "COM4" => 0x2e8,
            port => u16::from_str_radix(port.strip_prefix("0x")?, 16).ok()?,
        };
        // What lies below are the chipset's own devices.
        let possible = base >= 0x100 && base % 8 == 0 && base != PCI_CONFIG_PORTS;
        possible.then_some(Self::Port(base))
    }
}

impl Config {
    /// Whether the UART at `base` can be the console: no guest has it, or its interrupt line.
    ///
    /// # Errors
    /// A guest has; the sentence names it.
    pub fn check_console(&self, base: u16) -> Result<(), ConfigError> {
        let ports = PortRange { first: base, last: base + 7 };
        let line = matches!(base, 0x2f8 | 0x2e8).then_some(3);
        let has = |guest: &&GuestConfig| {
            guest.has_ports(ports)
                || guest.lines().chain(guest.gdb_uart().map(Uart::gsi)).any(|own| Some(own) == line)
        };
        let Some(guest) = self.guests.iter().find(has) else { return Ok(()) };
        let problem = Problem::ConsoleTaken { base, guest: guest.name.to_owned() };
        Err(ConfigError { line: None, problem })
    }
}

impl Config {
    /// Whether the UARTs of gdb are nobody else's, and those at the console have one.
    ///
    /// # Errors
    /// A guest has one, or its interrupt line; the sentence names it. Or there is no console.
    pub(crate) fn check_gdb(&self) -> Result<(), ConfigError> {
        let at_console = |guest: &&GuestConfig| guest.gdb == Some(Gdb::Console);
        if self.console == Some(Console::None)
            && let Some(guest) = self.guests.iter().find(at_console)
        {
            let problem = Problem::GdbWithoutConsole { guest: guest.name.clone() };
            return Err(ConfigError { line: None, problem });
        }
        for uart in self.guests.iter().filter_map(GuestConfig::gdb_uart) {
            let has = |guest: &&GuestConfig| {
                guest.has_ports(uart.ports()) || guest.lines().any(|line| line == uart.gsi())
            };
            if let Some(owner) = self.guests.iter().find(has) {
                let (which, owner) = (uart.name().to_owned(), owner.name.clone());
                let problem = Problem::Twice { what: "gdb's", which, owner };
                return Err(ConfigError { line: None, problem });
            }
        }
        Ok(())
    }

    /// Whether the serial card that `console` names can be the console: no guest has it.
    ///
    /// # Errors
    /// A guest has; the sentence names it.
    pub(crate) fn check_card(&self) -> Result<(), ConfigError> {
        let Some(Console::Card(function)) = self.console else { return Ok(()) };
        let has = |guest: &&GuestConfig| guest.devices.has(function);
        let Some(guest) = self.guests.iter().find(has) else { return Ok(()) };
        let problem = Problem::ConsoleCardTaken { function, guest: guest.name.to_owned() };
        Err(ConfigError { line: None, problem })
    }
}

/// The line to a guest's gdb.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gdb {
    /// A UART of its own.
    Uart(Uart),
    /// Frames on the console's line.
    Console,
}

impl Gdb {
    /// `COM2`, `COM4` or `console`.
    pub(crate) fn named(name: &str) -> Option<Self> {
        if name == "console" { Some(Self::Console) } else { Uart::named(name).map(Self::Uart) }
    }

    /// The UART, if it has one of its own.
    #[must_use]
    pub const fn uart(self) -> Option<Uart> {
        match self {
            Self::Uart(uart) => Some(uart),
            Self::Console => None,
        }
    }
}

/// One entry of `intx`: to which line the interrupt pin of a function is wired.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IntxConfig {
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

    /// The UART of its gdb.
    fn gdb_uart(&self) -> Option<Uart> {
        self.gdb.and_then(Gdb::uart)
    }

    /// Whether one of `ports` is handed to this guest.
    pub(crate) fn has_ports(&self, ports: PortRange) -> bool {
        let uart = self.uart.map(Uart::ports);
        self.io_ports.iter().chain(uart.as_ref()).any(|own| own.overlaps(ports))
    }
}
