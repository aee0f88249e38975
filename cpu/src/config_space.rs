//! The machine's PCI configuration space: by ECAM where the firmware's MCFG table names it, else by
//! ports 0xCF8 and 0xCFC, which reach the first 256 bytes of each function.

use arch::machine::{ConfigSpace, Width};
use arch::{Bdf, Hpa};

use crate::instructions::{port_read, port_write};
use crate::physical::{mmio_read, mmio_write};

const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
const CONFIG_ENABLE: u32 = 1 << 31;

/// An ECAM window (PCI Firmware Specification, "MCFG Table Description").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ecam {
    /// Address of bus 0's configuration space, whether or not bus 0 is in the window.
    pub base: Hpa,
    /// First bus in the window.
    pub first_bus: u8,
    /// Last bus in the window.
    pub last_bus: u8,
}

/// The machine's configuration space.
#[derive(Clone, Copy, Debug)]
pub struct MachineConfigSpace {
    ecam: Option<Ecam>,
}

impl MachineConfigSpace {
    /// Configuration space through `ecam` and the ports.
    ///
    /// # Safety
    /// Ring 0; the window is what the firmware says, and mapped uncached; nobody else uses the
    /// configuration ports.
    #[must_use]
    pub unsafe fn new(ecam: Option<Ecam>) -> Self {
        Self { ecam }
    }

    /// Where the ECAM window has this register.
    fn in_ecam(&self, function: Bdf, offset: u16) -> Option<Hpa> {
        let ecam = self.ecam?;
        let inside = (ecam.first_bus..=ecam.last_bus).contains(&function.bus());
        let within = u64::from(function.requester_id()) << 12 | u64::from(offset & 0xfff);
        inside.then(|| ecam.base.wrapping_add(within))
    }

    /// Selects a register through the ports; `None` where they do not reach it.
    fn select(function: Bdf, offset: u16) -> Option<u16> {
        if offset > 0xff {
            return None;
        }
        let register = u32::from(offset & 0xfc);
        let address = CONFIG_ENABLE | u32::from(function.requester_id()) << 8 | register;
        // SAFETY: `new`'s caller vouched for the ports.
        unsafe { port_write(CONFIG_ADDRESS, Width::Dword, address) };
        Some(CONFIG_DATA + (offset & 3))
    }
}

impl ConfigSpace for MachineConfigSpace {
    fn read(&self, function: Bdf, offset: u16, width: Width) -> u32 {
        if let Some(at) = self.in_ecam(function, offset) {
            // SAFETY: `new`'s caller vouched for the window.
            return unsafe { mmio_read(at, width) } as u32;
        }
        match Self::select(function, offset) {
            // SAFETY: `new`'s caller vouched for the ports.
            Some(port) => unsafe { port_read(port, width) },
            None => width.mask() as u32,
        }
    }

    fn write(&mut self, function: Bdf, offset: u16, width: Width, value: u32) {
        if let Some(at) = self.in_ecam(function, offset) {
            // SAFETY: `new`'s caller vouched for the window.
            unsafe { mmio_write(at, width, u64::from(value)) };
        } else if let Some(port) = Self::select(function, offset) {
            // SAFETY: `new`'s caller vouched for the ports.
            unsafe { port_write(port, width, value) };
        }
    }
}
