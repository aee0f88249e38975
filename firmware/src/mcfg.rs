//! Where configuration space is in memory (PCI Firmware Specification, "MCFG Table Description").

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use acpi::sdt::mcfg::Mcfg;
use arch::Hpa;

use crate::structures::Structure;

/// Length of the table before its first entry.
const HEADER: usize = 44;
/// Configuration space of one bus.
const BUS: u64 = 1 << 20;

/// Configuration space of some buses of one segment.
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

/// All windows that can be.
pub(crate) fn read(table: &[u8], notes: &mut Vec<String>) -> Vec<EcamWindow> {
    if table.len() < HEADER {
        notes.push(format!("the MCFG is left out: its {} bytes have no entry", table.len()));
        return Vec::new();
    }
    let Some(mcfg) = Structure::<Mcfg>::new(table) else { return Vec::new() };
    let mut windows = Vec::new();
    for entry in mcfg.get().entries() {
        let (segment, base) = (entry.pci_segment_group, entry.base_address);
        let (first_bus, last_bus) = (entry.bus_number_start, entry.bus_number_end);
        let window = EcamWindow { segment, first_bus, last_bus, base: Hpa::new(base) };
        let end = base.checked_add((u64::from(last_bus) + 1) * BUS);
        let can_be =
            base != 0 && base.is_multiple_of(BUS) && first_bus <= last_bus && end.is_some();
        if can_be {
            windows.push(window);
        } else {
            notes.push(format!(
                "the MCFG's window at {base:#x} for buses {first_bus:#04x} to {last_bus:#04x} of \
                 segment {segment:#x} is left out: that cannot be"
            ));
        }
    }
    windows
}
