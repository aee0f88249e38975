//! The two lists of capabilities (PCI Local Bus Specification, "Capabilities List"; PCI Express
//! Base Specification, "PCI Express Extended Capabilities").
//!
//! Invariant: a walk ends, and names no offset twice, whatever the list says.

use arch::machine::ConfigSpace;
use arch::{Bdf, Width};

use crate::header::{CAPABILITIES_POINTER, COMMAND};

/// PCI Power Management Interface.
pub const POWER_MANAGEMENT: u16 = 0x01;
pub const VITAL_PRODUCT_DATA: u16 = 0x03;
/// Message Signalled Interrupts.
pub const MSI: u16 = 0x05;
pub const PCI_X: u16 = 0x07;
pub const VENDOR_SPECIFIC: u16 = 0x09;
pub const PCI_EXPRESS: u16 = 0x10;
pub const MSI_X: u16 = 0x11;
/// Advanced Features (conventional PCI).
pub const ADVANCED_FEATURES: u16 = 0x13;

/// Extended capability: Advanced Error Reporting.
pub const ADVANCED_ERROR_REPORTING: u16 = 0x01;
/// Extended capability: Device Serial Number.
pub const DEVICE_SERIAL_NUMBER: u16 = 0x03;
/// Extended capability: Vendor-Specific.
pub const EXTENDED_VENDOR_SPECIFIC: u16 = 0x0b;

/// Extended capability: Access Control Services.
pub const ACCESS_CONTROL_SERVICES: u16 = 0x0d;
/// Extended capability: Resizable BAR.
pub const RESIZABLE_BAR: u16 = 0x15;
/// Extended capability: Latency Tolerance Reporting.
pub const LATENCY_TOLERANCE: u16 = 0x18;
/// Extended capability: Precision Time Measurement.
pub const PRECISION_TIME: u16 = 0x1f;

/// First offset of extended configuration space.
pub const EXTENDED: u16 = 0x100;

/// One capability.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capability {
    /// Capability ID, or PCI Express Extended Capability ID.
    pub id: u16,
    /// Offset in configuration space; a multiple of 4.
    pub offset: u16,
}

/// The capabilities of `function` in list order.
pub fn capabilities<C: ConfigSpace>(space: &C, function: Bdf) -> Walk<'_, C> {
    const STATUS_CAPABILITIES_LIST: u32 = 1 << 20;
    let listed = space.read(function, COMMAND, Width::Dword) & STATUS_CAPABILITIES_LIST != 0;
    let first = if listed { space.read(function, CAPABILITIES_POINTER, Width::Byte) } else { 0 };
    Walk { space, function, next: first as u16, extended: false, seen: [0; 16] }
}

/// The extended capabilities of `function` in list order; none where the machine reaches only 256
/// bytes (they read as all ones there).
pub fn extended_capabilities<C: ConfigSpace>(space: &C, function: Bdf) -> Walk<'_, C> {
    Walk { space, function, next: EXTENDED, extended: true, seen: [0; 16] }
}

/// The first capability with this ID.
pub fn find(space: &impl ConfigSpace, function: Bdf, id: u16) -> Option<Capability> {
    capabilities(space, function).find(|capability| capability.id == id)
}

/// The iterator behind [`capabilities`] and [`extended_capabilities`].
#[derive(Debug)]
pub struct Walk<'a, C> {
    space: &'a C,
    function: Bdf,
    next: u16,
    extended: bool,
    /// One bit for each dword of configuration space.
    seen: [u64; 16],
}

impl<C: ConfigSpace> Iterator for Walk<'_, C> {
    type Item = Capability;

    fn next(&mut self) -> Option<Capability> {
        let offset = self.next & 0xffc;
        let first = if self.extended { EXTENDED } else { 0x40 };
        let word = self.seen.get_mut(usize::from(offset >> 8))?;
        let bit = 1 << (offset >> 2 & 63);
        if offset < first || *word & bit != 0 {
            return None;
        }
        *word |= bit;
        let header = self.space.read(self.function, offset, Width::Dword);
        if header == 0 || header == u32::MAX {
            return None;
        }
        let (id, next) = if self.extended {
            (header as u16, (header >> 20) as u16)
        } else {
            (header as u16 & 0xff, (header >> 8) as u16 & 0xff)
        };
        self.next = next;
        Some(Capability { id, offset })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeSpace;
    use proptest::prelude::*;
    use std::vec::Vec;

    const AT: Bdf = Bdf::new(0, 4, 0);

    #[test]
    fn lists_are_walked_in_order() {
        let mut space = FakeSpace::default();
        let device = space.device(AT, 0x010802);
        device.capability(0x80, MSI_X, &[]);
        device.capability(0x40, PCI_EXPRESS, &[]);
        device.set(0x100, 0x1401_0001);
        device.set(0x140, 0x0001_0003);
        let list: Vec<_> = capabilities(&space, AT).map(|c| (c.id, c.offset)).collect();
        assert_eq!(list, [(MSI_X, 0x80), (PCI_EXPRESS, 0x40)]);
        let list: Vec<_> = extended_capabilities(&space, AT).map(|c| (c.id, c.offset)).collect();
        assert_eq!(list, [(1, 0x100), (3, 0x140)]);
    }

    #[test]
    fn without_the_status_bit_there_is_no_list() {
        let mut space = FakeSpace::default();
        let device = space.device(AT, 0x010802);
        device.capability(0x80, MSI_X, &[]);
        device.bytes[6] = 0;
        assert_eq!(capabilities(&space, AT).count(), 0);
    }

    proptest! {
        #[test]
        fn any_content_ends_and_names_no_offset_twice(content in proptest::collection::vec(any::<u32>(), 1024)) {
            let mut space = FakeSpace::default();
            let device = space.device(AT, 0);
            for (i, dword) in content.iter().enumerate() {
                device.set(i as u16 * 4, *dword);
            }
            device.bytes[6] |= 0x10;
            for list in [capabilities(&space, AT).collect::<Vec<_>>(), extended_capabilities(&space, AT).collect()] {
                let mut offsets: Vec<_> = list.iter().map(|c| c.offset).collect();
                offsets.sort_unstable();
                offsets.dedup();
                prop_assert_eq!(offsets.len(), list.len());
                prop_assert!(list.iter().all(|c| c.offset % 4 == 0 && (0x40..0x1000).contains(&c.offset)));
            }
        }
    }
}
