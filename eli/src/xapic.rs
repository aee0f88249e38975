//! The xAPIC page (0xFEE00000, unless the guest moves it), translated to x2APIC registers, for guests
//! that have not switched or never do. Correct, not exitless (SDM "Local APIC Register Address Map").
//!
//! Reserved bits are ignored here where x2APIC mode raises #GP; identifiers and destinations are
//! 8 bits wide and stand in bits 31:24. Of accesses that are not 32 bits wide the manual says that
//! they are undefined: here reads give the register's bytes, a wider write writes the register with
//! its low half, and a narrower one does nothing.

use arch::Width;
use arch::msr::{
    IA32_X2APIC_APICID, IA32_X2APIC_EOI, IA32_X2APIC_ICR, IA32_X2APIC_LDR, IA32_X2APIC_LVT_TIMER,
    IA32_X2APIC_SELF_IPI,
};

use crate::apic::{ApicAction, ApicRead, DEADLINE, VirtualApic, writable};
use crate::icr::{self, Destination, IcrRequest};

const ARBITRATION_PRIORITY: u32 = 0x809;
const REMOTE_READ: u32 = 0x80c;
const DESTINATION_FORMAT: u32 = 0x80e;
const ICR_HIGH: u32 = 0x831;
const FIELD: u32 = 0xff00_0000;

/// The x2APIC number of the register whose 32 bits the byte at `offset` of the page belongs to.
const fn register(offset: u16) -> Option<u32> {
    if offset & 0xc == 0 && offset < 0x400 { Some(0x800 + (offset as u32 >> 4)) } else { None }
}

/// The page has no such register: it reads as zero, and [`VirtualApic::note_illegal_register`] is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IllegalRegister;

impl VirtualApic {
    /// The register around `offset` (0–4095) of the page. Between registers are zeros.
    ///
    /// # Errors
    /// There is none.
    pub fn read_page(&self, offset: u16) -> Result<ApicRead, IllegalRegister> {
        let value = match register(offset) {
            Some(IA32_X2APIC_APICID) => self.id().0 << 24,
            Some(IA32_X2APIC_LDR) => self.xapic_ldr,
            Some(DESTINATION_FORMAT) => self.xapic_dfr,
            Some(IA32_X2APIC_ICR) => self.icr as u32,
            Some(ICR_HIGH) => (self.icr >> 32) as u32,
            // It can only be written; these are not in newer CPUs.
            Some(IA32_X2APIC_EOI | ARBITRATION_PRIORITY | REMOTE_READ) | None => 0,
            Some(msr) => return self.read_register(msr).map_err(|_| IllegalRegister),
        };
        Ok(ApicRead::Value(u64::from(value)))
    }

    /// A write at `offset` (0–4095) of the page. What can only be read ignores it; what does not exist is an error.
    pub fn write_page(&mut self, offset: u16, width: Width, value: u32) -> ApicAction {
        let whole = width >= Width::Dword && offset & 3 == 0;
        let Some(msr) = register(offset).filter(|_| whole) else { return ApicAction::None };
        match msr {
            IA32_X2APIC_LDR => self.xapic_ldr = value & FIELD,
            DESTINATION_FORMAT => self.xapic_dfr = value | !(0xf << 28),
            ICR_HIGH => self.icr = u64::from(value & FIELD) << 32 | self.icr & 0xffff_ffff,
            IA32_X2APIC_ICR => return self.send_page(value),
            // x2APIC mode only.
            IA32_X2APIC_SELF_IPI => return self.note_illegal_register(),
            _ => {
                let Some((bits, _)) = writable(msr) else {
                    let there = self.read_page(offset).is_ok();
                    return if there { ApicAction::None } else { self.note_illegal_register() };
                };
                let missing = if self.deadlines { 0 } else { DEADLINE };
                let missing = if msr == IA32_X2APIC_LVT_TIMER { missing } else { 0 };
                let value = value & bits & !missing;
                return self.write_register(msr, value).unwrap_or(ApicAction::None);
            }
        }
        ApicAction::None
    }

    /// A write of ICR's low half sends, to the destination that the high half was given before.
    fn send_page(&mut self, value: u32) -> ApicAction {
        let low = value & icr::DEFINED & !(1 << 12);
        self.icr = self.icr & !0xffff_ffff | u64::from(low);
        let destination = Destination::of_byte((self.icr >> 56) as u8, low & icr::LOGICAL != 0);
        self.send(IcrRequest::decode(low, destination))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::icr::IpiKind;
    use arch::msr::IA32_X2APIC_INIT_COUNT;
    use arch::vcpu::InterruptMode;
    use arch::{ApicId, Gpa, Vector};
    use proptest::prelude::*;

    fn apic(id: u32) -> VirtualApic {
        let mut apic = VirtualApic::new(InterruptMode::Exitless, ApicId(id), false);
        apic.write_base(0xfee0_0000, 39).unwrap();
        apic.write_base(0xfee0_0800, 39).unwrap();
        apic
    }

    /// A write as the manual wants it.
    fn write(apic: &mut VirtualApic, offset: u16, value: u32) -> ApicAction {
        apic.write_page(offset, Width::Dword, value)
    }

    #[test]
    fn identifiers_and_destinations_stand_in_the_top_byte() {
        let mut apic = apic(3);
        assert_eq!(apic.read_page(0x20).unwrap(), ApicRead::Value(0x0300_0000));
        write(&mut apic, 0xd0, 0x0812_3456);
        assert_eq!(apic.read_page(0xd0).unwrap(), ApicRead::Value(0x0800_0000));
        assert_eq!(apic.read_page(0xe0).unwrap(), ApicRead::Value(0xffff_ffff));
        write(&mut apic, 0xe0, 0);
        assert_eq!(apic.read_page(0xe0).unwrap(), ApicRead::Value(0x0fff_ffff));
    }

    #[test]
    fn the_low_half_of_icr_sends_to_what_the_high_half_latched() {
        let mut apic = apic(0);
        let ipi = |kind, vector, destination| {
            ApicAction::Ipi(IcrRequest { kind, vector: Vector(vector), destination })
        };
        assert_eq!(write(&mut apic, 0x310, 0x0200_0000), ApicAction::None);
        let fixed = ipi(IpiKind::Fixed, 0x41, Destination::Physical(ApicId(2)));
        assert_eq!(write(&mut apic, 0x300, 0x1041), fixed);
        assert_eq!(apic.read_page(0x300).unwrap(), ApicRead::Value(0x41), "never busy");
        assert_eq!(apic.read_page(0x310).unwrap(), ApicRead::Value(0x0200_0000));
        let logical = ipi(IpiKind::LowestPriority, 0x42, Destination::Logical(2));
        assert_eq!(write(&mut apic, 0x300, 0x0942), logical);
        write(&mut apic, 0x310, 0xff00_0000);
        assert_eq!(write(&mut apic, 0x300, 0x0400), ipi(IpiKind::Nmi, 0, Destination::All));
    }

    #[test]
    fn flat_and_cluster_destinations_follow_ldr_and_dfr() {
        let mut apic = apic(0);
        write(&mut apic, 0xd0, 0x2400_0000);
        let at = |apic: &VirtualApic, set| {
            apic.addressing().accepts(Destination::of_byte(set, true), false)
        };
        assert!(at(&apic, 0x04) && at(&apic, 0x20) && !at(&apic, 0x02));
        write(&mut apic, 0xe0, 0);
        assert!(at(&apic, 0x24) && at(&apic, 0xf4) && !at(&apic, 0x14) && !at(&apic, 0x22));
        let wide = Destination::Logical(0x1_0024);
        assert!(!apic.addressing().accepts(wide, false), "no CPU in xAPIC mode has such a name");
        assert!(apic.addressing().accepts(Destination::Logical(u32::MAX), false));
    }

    #[test]
    fn eoi_and_timer_go_to_the_physical_apic_with_reserved_bits_dropped() {
        let mut apic = apic(0);
        let eoi = ApicAction::WritePhysical { msr: IA32_X2APIC_EOI, value: 0 };
        assert_eq!(write(&mut apic, 0xb0, 0xdead), eoi);
        let count = ApicAction::WritePhysical { msr: IA32_X2APIC_INIT_COUNT, value: 0xffff_ffff };
        assert_eq!(write(&mut apic, 0x380, 0xffff_ffff), count);
        assert!(matches!(write(&mut apic, 0xf0, 0xffff_f1ff), ApicAction::Grant { .. }));
        let timer = write(&mut apic, 0x320, 0xfffa_00ec);
        assert!(
            matches!(timer, ApicAction::Grant { msr: IA32_X2APIC_LVT_TIMER, value: 0x2_00ec, .. }),
            "{timer:?}"
        );
    }

    #[test]
    fn a_guest_that_left_xapic_mode_has_no_msrs_and_back() {
        let mut apic = apic(0);
        assert!(apic.read(0x802).is_err());
        apic.write_base(0xfee0_0c00, 39).unwrap();
        assert_eq!(apic.read(0x802), Ok(ApicRead::Value(0)));
        let back = apic.write_base(0xfee0_0800, 39);
        assert!(back.is_err(), "x2APIC mode is left through disabled only");
    }

    #[test]
    fn the_page_is_where_the_base_says_and_only_in_xapic_mode() {
        let mut apic = apic(0);
        assert_eq!(apic.page_offset(Gpa::new(0xfee0_00b0)), Some(0xb0));
        apic.write_base(0xfed4_0800, 39).unwrap();
        assert_eq!(apic.page_offset(Gpa::new(0xfee0_00b0)), None);
        assert_eq!(apic.page_offset(Gpa::new(0xfed4_0fff)), Some(0xfff));
        for mode in [0, 0x800, 0xc00] {
            apic.write_base(0xfed4_0000 | mode, 39).unwrap();
            assert_eq!(apic.page_offset(Gpa::new(0xfed4_0020)).is_some(), mode == 0x800);
        }
    }

    #[test]
    fn an_apic_that_is_switched_off_takes_no_vector_and_is_as_after_reset() {
        let mut apic = apic(0);
        write(&mut apic, 0xf0, 0x1ff);
        write(&mut apic, 0xd0, 0x0100_0000);
        assert!(apic.addressing().enabled());
        apic.write_base(0xfee0_0000, 39).unwrap();
        assert!(!apic.addressing().enabled() && !apic.globally_enabled());
        apic.write_base(0xfee0_0800, 39).unwrap();
        assert_eq!(apic.read_page(0xf0).unwrap(), ApicRead::Value(0xff));
        assert_eq!(apic.read_page(0xd0).unwrap(), ApicRead::Value(0));
        assert!(!apic.addressing().enabled(), "until SVR says so");
    }

    #[test]
    fn a_register_that_is_not_there_is_an_error_and_the_error_interrupts() {
        let mut apic = apic(0);
        write(&mut apic, 0xf0, 0x1ff);
        write(&mut apic, 0x370, 0x43);
        let own = Destination::Own;
        let (kind, vector) = (IpiKind::Fixed, Vector(0x43));
        let raised = ApicAction::Ipi(IcrRequest { kind, vector, destination: own });
        let missing = [0, 0x10, 0x40, 0x70, 0x290, 0x2f0, 0x3a0, 0x3d0, 0x3f0];
        for offset in (0..0x400).step_by(16) {
            let missing =
                matches!(offset, 0 | 0x10 | 0x40..=0x70 | 0x290..=0x2f0 | 0x3a0..=0x3d0 | 0x3f0);
            assert_eq!(apic.read_page(offset).is_err(), missing, "{offset:#x}");
        }
        for offset in missing {
            assert_eq!(write(&mut apic, offset, 0), raised, "{offset:#x}");
            assert_eq!(apic.note_illegal_register(), ApicAction::None, "once until ESR is written");
            write(&mut apic, 0x280, 0);
            assert_eq!(apic.read_page(0x280), Ok(ApicRead::Value(0x80)));
        }
        // What can only be read.
        for offset in [0x20, 0x30, 0x90, 0xa0, 0xc0, 0x100, 0x180, 0x270, 0x390] {
            assert_eq!(write(&mut apic, offset, 0), ApicAction::None, "{offset:#x}");
        }
        write(&mut apic, 0x280, 0);
        assert_eq!(apic.read_page(0x280), Ok(ApicRead::Value(0)));
    }

    #[test]
    fn a_timer_without_deadlines_has_no_bit_for_them() {
        let timer = |apic: &mut VirtualApic| {
            write(apic, 0xf0, 0x1ff);
            write(apic, 0x320, 0x4_0040);
            apic.read_page(0x320)
        };
        assert_eq!(timer(&mut apic(0)), Ok(ApicRead::Value(0x4_0040)));
        let mut without = apic(0).without_deadlines();
        assert_eq!(timer(&mut without), Ok(ApicRead::Value(0x40)), "ignored");
        without.init();
        without.write_base(0xfee0_0c00, 39).unwrap();
        assert!(without.write(IA32_X2APIC_LVT_TIMER, 0x4_0040).is_err(), "reserved");
        assert_eq!(without.read(IA32_X2APIC_LVT_TIMER), Ok(ApicRead::Value(0x1_0000)));
    }

    /// QEMU's local APIC delivers what no other does.
    #[test]
    fn a_timer_with_a_vector_below_16_stays_masked_in_the_physical_one() {
        for mode in [InterruptMode::Exitless, InterruptMode::Exiting, InterruptMode::Posted] {
            let mut apic = VirtualApic::new(mode, ApicId(0), false).in_xapic_mode();
            write(&mut apic, 0xf0, 0x1ff);
            let value = 0x3_000f;
            let masked = ApicAction::WritePhysical { msr: IA32_X2APIC_LVT_TIMER, value };
            assert_eq!(write(&mut apic, 0x320, 0x2_000f), masked, "{mode:?}");
            assert_eq!(apic.read_page(0x320), Ok(ApicRead::Value(0x2_000f)), "as it was written");
        }
    }

    #[test]
    fn of_writes_that_are_not_32_bits_wide_only_wider_ones_count() {
        let eoi = ApicAction::WritePhysical { msr: IA32_X2APIC_EOI, value: 0 };
        let mut apic = apic(0);
        assert_eq!(apic.write_page(0xb0, Width::Qword, 0), eoi);
        for (offset, width) in [
            (0xb0, Width::Byte),
            (0xb0, Width::Word),
            (0xb1, Width::Dword),
            (0xb4, Width::Dword),
            (0xb8, Width::Qword),
        ] {
            assert_eq!(apic.write_page(offset, width, 0), ApicAction::None, "{offset:#x}");
        }
        assert_eq!(apic.read_page(0x33), apic.read_page(0x30));
        assert_eq!(apic.read_page(0x34).unwrap(), ApicRead::Value(0));
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
                    apic.write_page(offset & !0xf, Width::Dword, value)
                {
                    let may = [0x808, 0x80b, 0x80f, 0x832, 0x838, 0x83e].contains(&msr);
                    prop_assert!(may, "{msr:#x}");
                }
            }
        }
    }
}
