//! The machine's PCI configuration space: by ECAM where the firmware's MCFG table names it, else by
//! ports 0xCF8 and 0xCFC, which reach the first 256 bytes of each function of segment 0.

use arch::address::HpaRange;
use arch::machine::{ConfigSpace, Width};
use arch::{Bdf, Hpa};
use spin::Mutex;

use crate::instructions::{port_read, port_write};
use crate::physical::{mmio_read, mmio_write};

const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
const CONFIG_ENABLE: u32 = 1 << 31;

/// Held from the choice of a register by the one port to its access by the other: guests' CPUs meet here.
static PORTS: Mutex<()> = Mutex::new(());

/// An ECAM window (PCI Firmware Specification, "MCFG Table Description").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EcamWindow {
    /// PCI segment group.
    pub segment: u16,
    /// First bus in the window.
    pub first_bus: u8,
    /// Last bus in the window.
    pub last_bus: u8,
    /// Address of bus 0's configuration space, whether or not bus 0 is in the window.
    pub base: Hpa,
}

impl EcamWindow {
    /// Where the configuration space of its buses is.
    #[must_use]
    pub const fn range(&self) -> HpaRange {
        let start = self.base.wrapping_add((self.first_bus as u64) << 20);
        let buses = (self.last_bus as u64 + 1).saturating_sub(self.first_bus as u64);
        HpaRange { start, length: buses << 20 }
    }

    const fn contains(&self, function: Bdf) -> bool {
        function.segment() == self.segment
            && self.first_bus <= function.bus()
            && function.bus() <= self.last_bus
    }
}

/// The machine's configuration space.
#[derive(Clone, Copy, Debug)]
pub struct MachineConfigSpace {
    windows: &'static [EcamWindow],
}

impl MachineConfigSpace {
    /// Configuration space through `windows` and the ports.
    ///
    /// # Safety
    /// Ring 0; the windows are what the firmware says, and mapped uncached; nobody else uses the
    /// configuration ports.
    #[must_use]
    pub unsafe fn new(windows: &'static [EcamWindow]) -> Self {
        Self { windows }
    }

    /// The segments that can be reached, each once.
    pub fn segments(&self) -> impl Iterator<Item = u16> + use<> {
        let windows = self.windows;
        let named = windows.iter().enumerate().filter_map(move |(index, window)| {
            let before = windows.iter().take(index).any(|other| other.segment == window.segment);
            (window.segment != 0 && !before).then_some(window.segment)
        });
        core::iter::once(0).chain(named)
    }

    /// Whether a function of this bus can be reached, if there is one.
    #[must_use]
    pub fn reaches(&self, segment: u16, bus: u8) -> bool {
        let function = Bdf::new(bus, 0, 0).in_segment(segment);
        segment == 0 || self.in_ecam(function, 0).is_some()
    }

    /// Where the ECAM windows have this register.
    fn in_ecam(&self, function: Bdf, offset: u16) -> Option<Hpa> {
        let window = self.windows.iter().find(|window| window.contains(function))?;
        let within = u64::from(function.requester_id()) << 12 | u64::from(offset & 0xfff);
        Some(window.base.wrapping_add(within))
    }

    /// Has `access` use the port at which the ports show a register; `None` where they do not reach it.
    fn by_ports<T>(function: Bdf, offset: u16, access: impl FnOnce(u16) -> T) -> Option<T> {
        if offset > 0xff || function.segment() != 0 {
            return None;
        }
        let register = u32::from(offset & 0xfc);
        let address = CONFIG_ENABLE | u32::from(function.requester_id()) << 8 | register;
        let _held = PORTS.lock();
        // SAFETY: `new`'s caller vouched for the ports.
        unsafe { port_write(CONFIG_ADDRESS, Width::Dword, address) };
        Some(access(CONFIG_DATA + (offset & 3)))
    }
}

impl ConfigSpace for MachineConfigSpace {
    fn read(&self, function: Bdf, offset: u16, width: Width) -> u32 {
        if let Some(at) = self.in_ecam(function, offset) {
            // SAFETY: `new`'s caller vouched for the window.
            return unsafe { mmio_read(at, width) } as u32;
        }
        let read = Self::by_ports(function, offset, |port| {
            // SAFETY: `new`'s caller vouched for the ports.
            unsafe { port_read(port, width) }
        });
        read.unwrap_or(width.mask() as u32)
    }

    fn write(&mut self, function: Bdf, offset: u16, width: Width, value: u32) {
        if let Some(at) = self.in_ecam(function, offset) {
            // SAFETY: `new`'s caller vouched for the window.
            return unsafe { mmio_write(at, width, u64::from(value)) };
        }
        // Where neither reaches, there is nothing to write to.
        let _ = Self::by_ports(function, offset, |port| {
            // SAFETY: `new`'s caller vouched for the ports.
            unsafe { port_write(port, width, value) };
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOWS: &[EcamWindow] = &[
        EcamWindow { segment: 0, first_bus: 0, last_bus: 0x3f, base: Hpa::new(0xc000_0000) },
        EcamWindow { segment: 0, first_bus: 0x80, last_bus: 0xff, base: Hpa::new(0x20_0000_0000) },
        EcamWindow { segment: 1, first_bus: 0x40, last_bus: 0xff, base: Hpa::new(0x30_0000_0000) },
    ];

    #[test]
    fn each_bus_of_each_segment_is_in_its_own_window() {
        let space = MachineConfigSpace { windows: WINDOWS };
        let at = |text: &str| space.in_ecam(text.parse().unwrap(), 0x104).map(Hpa::as_u64);
        assert_eq!(at("00:1f.3"), Some(0xc00f_b104));
        assert_eq!(at("3f:00.0"), Some(0xc3f0_0104));
        assert_eq!(at("41:00.0"), None, "by the ports");
        assert_eq!(at("80:00.0"), Some(0x20_0800_0104));
        assert_eq!(at("0001:41:00.0"), Some(0x30_0410_0104));
        assert_eq!(at("0001:00:00.0"), None);
        assert_eq!(at("0002:41:00.0"), None);
        assert!(space.segments().eq([0, 1]));
        let reached = |segment| (0..=u8::MAX).filter(|bus| space.reaches(segment, *bus)).count();
        assert_eq!([0, 1, 2].map(reached), [256, 192, 0]);
    }

    #[test]
    fn a_window_takes_the_space_of_its_buses_only() {
        let range = |window: &EcamWindow| (window.range().start.as_u64(), window.range().length);
        assert_eq!(range(&WINDOWS[0]), (0xc000_0000, 0x400_0000));
        assert_eq!(range(&WINDOWS[1]), (0x20_0800_0000, 0x800_0000));
    }

    #[test]
    fn the_ports_reach_256_bytes_of_segment_0() {
        let function = Bdf::new(0x41, 0, 0);
        let unreached = |function, offset| {
            MachineConfigSpace::by_ports(function, offset, |_| panic!("touched")).is_none()
        };
        assert!(unreached(function, 0x100));
        assert!(unreached(function.in_segment(1), 0));
    }
}
