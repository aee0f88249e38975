//! Segment registers between the neutral form and the VMCB's
//! (APM volume 2, "Segment State in the VMCB").
//!
//! Pure. The neutral access rights have the VMCS layout: the four upper bits lie at 12–15 there and
//! at 8–11 here, and *unusable* is P = 0 here.

use arch::Gva;
use arch::segment::{AccessRights, DescriptorTable, Segment};

use crate::vmcb::VmcbSegment;

/// The present bit of the attributes.
const PRESENT: u16 = 1 << 7;
/// Descriptor bits 40–47 in the attributes; they lie at the same place in access rights.
const LOW: u16 = 0x0ff;
/// Descriptor bits 52–55 in the attributes; access rights have them four bits higher.
const HIGH: u16 = 0xf00;

impl From<Segment> for VmcbSegment {
    fn from(segment: Segment) -> Self {
        let rights = segment.access.0 as u16;
        let attributes = rights & LOW | rights >> 4 & HIGH;
        let attributes = if segment.access.unusable() { attributes & !PRESENT } else { attributes };
        Self { selector: segment.selector, attributes, limit: segment.limit, base: segment.base }
    }
}

impl From<VmcbSegment> for Segment {
    fn from(segment: VmcbSegment) -> Self {
        let rights = segment.attributes & LOW | (segment.attributes & HIGH) << 4;
        let unusable = if segment.attributes & PRESENT == 0 { AccessRights::UNUSABLE.0 } else { 0 };
        Self {
            selector: segment.selector,
            base: segment.base,
            limit: segment.limit,
            access: AccessRights(u32::from(rights) | unusable),
        }
    }
}

impl From<DescriptorTable> for VmcbSegment {
    fn from(table: DescriptorTable) -> Self {
        Self {
            selector: 0,
            attributes: 0,
            limit: u32::from(table.limit),
            base: table.base.as_u64(),
        }
    }
}

impl From<VmcbSegment> for DescriptorTable {
    fn from(table: VmcbSegment) -> Self {
        Self { base: Gva::new(table.base), limit: table.limit as u16 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn well_known_rights_have_the_manuals_attributes() {
        let attributes = |access| VmcbSegment::from(Segment { access, ..Segment::NULL }).attributes;
        assert_eq!(attributes(AccessRights::CODE64), 0xa9b);
        assert_eq!(attributes(AccessRights::CODE32), 0xc9b);
        assert_eq!(attributes(AccessRights::DATA32), 0xc93);
        assert_eq!(attributes(AccessRights::TSS_BUSY), 0x8b);
        assert_eq!(attributes(AccessRights::UNUSABLE), 0);
    }

    proptest! {
        #[test]
        fn a_present_segment_survives_the_round_trip(
            selector: u16, base: u64, limit: u32, low in 0u32..0x100, high in 0u32..16,
        ) {
            let access = AccessRights(low | 0x80 | high << 12);
            let segment = Segment { selector, base, limit, access };
            prop_assert_eq!(Segment::from(VmcbSegment::from(segment)), segment);
        }

        #[test]
        fn unusable_is_not_present_and_back(low in 0u32..0x100, high in 0u32..16) {
            let access = AccessRights(low | high << 12 | 1 << 16);
            let vmcb = VmcbSegment::from(Segment { access, ..Segment::NULL });
            prop_assert_eq!(vmcb.attributes & 0x80, 0);
            let back = Segment::from(vmcb);
            prop_assert!(back.access.unusable());
            prop_assert_eq!(back.access.dpl(), access.dpl());
        }

        #[test]
        fn descriptor_tables_survive_the_round_trip(base: u64, limit: u16) {
            let table = DescriptorTable { base: Gva::new(base), limit };
            prop_assert_eq!(DescriptorTable::from(VmcbSegment::from(table)), table);
        }
    }
}
