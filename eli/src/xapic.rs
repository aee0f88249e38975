//! The xAPIC page at 0xFEE00000, translated to x2APIC registers, for guests that have not switched
//! or never do. Correct, not exitless (SDM "Local APIC Register Address Map").
//!
//! Reserved bits are ignored here where x2APIC mode raises #GP; identifiers and destinations are
//! 8 bits wide and stand in bits 31:24.

use arch::msr::{IA32_X2APIC_APICID, IA32_X2APIC_ICR, IA32_X2APIC_LDR, IA32_X2APIC_SELF_IPI};
use arch::{ApicId, Gpa};

use crate::apic::{ApicAction, ApicRead, VirtualApic, writable};
use crate::icr::{self, Destination, IcrRequest};

/// The page.
pub const XAPIC_PAGE: Gpa = Gpa::new(0xfee0_0000);

const DESTINATION_FORMAT: u32 = 0x80e;
const ICR_HIGH: u32 = 0x831;
const FIELD: u32 = 0xff00_0000;

/// The x2APIC number of the register at `offset` of the page; `None` between registers.
const fn register(offset: u16) -> Option<u32> {
    if offset & 0xf == 0 && offset < 0x400 { Some(0x800 + (offset as u32 >> 4)) } else { None }
}

impl VirtualApic {
    /// A 32-bit read at `offset` (0–4095) of the page. What does not exist reads as zero.
    #[must_use]
    pub fn read_page(&self, offset: u16) -> ApicRead {
        let value = match register(offset) {
            Some(IA32_X2APIC_APICID) => self.id().0 << 24,
            Some(IA32_X2APIC_LDR) => self.xapic_ldr,
            Some(DESTINATION_FORMAT) => self.xapic_dfr,
            Some(IA32_X2APIC_ICR) => self.icr as u32,
            Some(ICR_HIGH) => (self.icr >> 32) as u32,
            Some(msr) => return self.read_register(msr).unwrap_or(ApicRead::Value(0)),
            None => 0,
        };
        ApicRead::Value(u64::from(value))
    }

    /// A 32-bit write at `offset` (0–4095) of the page. What does not exist ignores it.
    pub fn write_page(&mut self, offset: u16, value: u32) -> ApicAction {
        let Some(msr) = register(offset) else { return ApicAction::None };
        match msr {
            IA32_X2APIC_LDR => self.xapic_ldr = value & FIELD,
            DESTINATION_FORMAT => self.xapic_dfr = value | !(0xf << 28),
            ICR_HIGH => self.icr = u64::from(value & FIELD) << 32 | self.icr & 0xffff_ffff,
            IA32_X2APIC_ICR => return self.send_page(value),
            // x2APIC mode only.
            IA32_X2APIC_SELF_IPI => {}
            _ => {
                let Some((bits, _)) = writable(msr) else { return ApicAction::None };
                return self.write_register(msr, value & bits).unwrap_or(ApicAction::None);
            }
        }
        ApicAction::None
    }

    /// A write of ICR's low half sends, to the destination that the high half was given before.
    fn send_page(&mut self, value: u32) -> ApicAction {
        let low = value & icr::DEFINED & !(1 << 12);
        self.icr = self.icr & !0xffff_ffff | u64::from(low);
        let field = (self.icr >> 56) as u8;
        let destination = match (low & 1 << 11 != 0, field) {
            (true, set) => Destination::LogicalXapic(set),
            (false, 0xff) => Destination::All,
            (false, id) => Destination::Physical(ApicId(u32::from(id))),
        };
        self.send(IcrRequest::with_destination(low, destination))
    }

    /// Whether a logical destination of xAPIC mode names this CPU, by the model in DFR
    /// (SDM "Logical Destination Mode").
    pub(crate) const fn accepts_xapic_logical(&self, set: u8) -> bool {
        let own = (self.xapic_ldr >> 24) as u8;
        if self.xapic_dfr >> 28 == 0xf {
            return own & set != 0;
        }
        let cluster = set >> 4;
        (cluster == own >> 4 || cluster == 15) && own & set & 15 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::icr::IpiKind;
    use arch::Vector;
    use arch::msr::{IA32_X2APIC_EOI, IA32_X2APIC_INIT_COUNT, IA32_X2APIC_LVT_TIMER};
    use arch::vcpu::InterruptMode;
    use proptest::prelude::*;

    fn apic(id: u32) -> VirtualApic {
        let mut apic = VirtualApic::new(InterruptMode::Exitless, ApicId(id), false);
        apic.write_base(0xfee0_0000).unwrap();
        apic.write_base(0xfee0_0800).unwrap();
        assert!(apic.in_xapic_mode());
        apic
    }

    #[test]
    fn identifiers_and_destinations_stand_in_the_top_byte() {
        let mut apic = apic(3);
        assert_eq!(apic.read_page(0x20), ApicRead::Value(0x0300_0000));
        apic.write_page(0xd0, 0x0812_3456);
        assert_eq!(apic.read_page(0xd0), ApicRead::Value(0x0800_0000));
        assert_eq!(apic.read_page(0xe0), ApicRead::Value(0xffff_ffff));
        apic.write_page(0xe0, 0);
        assert_eq!(apic.read_page(0xe0), ApicRead::Value(0x0fff_ffff));
    }

    #[test]
    fn the_low_half_of_icr_sends_to_what_the_high_half_latched() {
        let mut apic = apic(0);
        let ipi = |kind, vector, destination| {
            ApicAction::Ipi(IcrRequest { kind, vector: Vector(vector), destination })
        };
        assert_eq!(apic.write_page(0x310, 0x0200_0000), ApicAction::None);
        let fixed = ipi(IpiKind::Fixed, 0x41, Destination::Physical(ApicId(2)));
        assert_eq!(apic.write_page(0x300, 0x1041), fixed);
        assert_eq!(apic.read_page(0x300), ApicRead::Value(0x41), "never busy");
        assert_eq!(apic.read_page(0x310), ApicRead::Value(0x0200_0000));
        let logical = ipi(IpiKind::LowestPriority, 0x42, Destination::LogicalXapic(2));
        assert_eq!(apic.write_page(0x300, 0x0942), logical);
        apic.write_page(0x310, 0xff00_0000);
        assert_eq!(apic.write_page(0x300, 0x0400), ipi(IpiKind::Nmi, 0, Destination::All));
    }

    #[test]
    fn flat_and_cluster_destinations_follow_ldr_and_dfr() {
        let mut apic = apic(0);
        apic.write_page(0xd0, 0x2400_0000);
        let at = |apic: &VirtualApic, set| apic.accepts(Destination::LogicalXapic(set), false);
        assert!(at(&apic, 0x04) && at(&apic, 0x20) && !at(&apic, 0x02));
        apic.write_page(0xe0, 0);
        assert!(at(&apic, 0x24) && at(&apic, 0xf4) && !at(&apic, 0x14) && !at(&apic, 0x22));
        assert!(apic.accepts_message(0x2c, true) && !apic.accepts_message(0x14, true));
    }

    #[test]
    fn eoi_and_timer_go_to_the_physical_apic_with_reserved_bits_dropped() {
        let mut apic = apic(0);
        let eoi = ApicAction::WritePhysical { msr: IA32_X2APIC_EOI, value: 0 };
        assert_eq!(apic.write_page(0xb0, 0xdead), eoi);
        let count = ApicAction::WritePhysical { msr: IA32_X2APIC_INIT_COUNT, value: 0xffff_ffff };
        assert_eq!(apic.write_page(0x380, 0xffff_ffff), count);
        assert!(matches!(apic.write_page(0xf0, 0xffff_f1ff), ApicAction::Grant { .. }));
        let timer = apic.write_page(0x320, 0xfffa_00ec);
        assert!(
            matches!(timer, ApicAction::Grant { msr: IA32_X2APIC_LVT_TIMER, value: 0x2_00ec, .. }),
            "{timer:?}"
        );
    }

    #[test]
    fn a_guest_that_left_xapic_mode_has_no_msrs_and_back() {
        let mut apic = apic(0);
        assert!(apic.read(0x802).is_err());
        apic.write_base(0xfee0_0c00).unwrap();
        assert_eq!(apic.read(0x802), Ok(ApicRead::Value(0)));
        assert!(apic.write_base(0xfee0_0800).is_err(), "x2APIC mode is left through disabled only");
    }

    proptest! {
        #[test]
        fn any_page_access_touches_only_the_registers_that_may_be_physical(
            accesses in proptest::collection::vec((0_u16..4096, any::<u32>()), 0..50),
        ) {
            let mut apic = apic(1);
            for (offset, value) in accesses {
                let _ = apic.read_page(offset);
                if let ApicAction::WritePhysical { msr, .. } | ApicAction::Grant { msr, .. } =
                    apic.write_page(offset & !0xf, value)
                {
                    let may = [0x808, 0x80b, 0x80f, 0x832, 0x838, 0x83e].contains(&msr);
                    prop_assert!(may, "{msr:#x}");
                }
            }
        }
    }
}
