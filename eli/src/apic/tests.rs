//! The local APIC's registers against the manual's rules.

use super::*;
use crate::icr::{Destination, IcrRequest, IpiKind};
use arch::msr::{
    IA32_X2APIC_APICID, IA32_X2APIC_DIV_CONF, IA32_X2APIC_EOI, IA32_X2APIC_ESR,
    IA32_X2APIC_INIT_COUNT, IA32_X2APIC_IRR0, IA32_X2APIC_ISR0, IA32_X2APIC_LDR,
    IA32_X2APIC_LVT_ERROR, IA32_X2APIC_LVT_LINT0, IA32_X2APIC_LVT_LINT1, IA32_X2APIC_LVT_PMI,
    IA32_X2APIC_LVT_THERMAL, IA32_X2APIC_LVT_TIMER, IA32_X2APIC_PPR, IA32_X2APIC_SELF_IPI,
    IA32_X2APIC_SIVR, IA32_X2APIC_TPR,
};
use proptest::prelude::*;

fn apic(mode: InterruptMode) -> VirtualApic {
    VirtualApic::new(mode, ApicId(0x21), true)
}

fn enabled(mode: InterruptMode) -> VirtualApic {
    let mut apic = apic(mode);
    apic.write(IA32_X2APIC_SIVR, 0x1ff).unwrap();
    apic
}

fn passed(mode: InterruptMode, msr: u32, write: bool) -> bool {
    passes(mode)
        .iter()
        .any(|run| run.first <= msr && msr <= run.last && if write { run.write } else { run.read })
}

const MODES: [InterruptMode; 2] = [InterruptMode::Exitless, InterruptMode::Exiting];

#[test]
fn an_application_processor_does_not_read_the_boot_bit() {
    let base = |bootstrap| VirtualApic::new(InterruptMode::Exitless, ApicId(1), bootstrap).base();
    assert_eq!((base(true), base(false)), (0xfee0_0d00, 0xfee0_0c00));
}

#[test]
fn eoi_is_trapped_only_while_injecting() {
    assert!(passed(InterruptMode::Exitless, IA32_X2APIC_EOI, true));
    assert!(!passed(InterruptMode::Exiting, IA32_X2APIC_EOI, true));
}

/// Each by its number: SDM "x2APIC Register Address Space".
#[test]
fn these_registers_pass_in_each_mode_and_no_others() {
    let writes = |mode| (0..0x900).filter(|msr| passed(mode, *msr, true)).collect::<Vec<u32>>();
    let reads = |mode| (0..0x900).filter(|msr| passed(mode, *msr, false)).collect::<Vec<u32>>();
    let interrupts = 0x810..0x828;
    let timer = [0x838, 0x839, 0x83e];
    let with_timer = |others: Vec<u32>| [&[0x6e0][..], &others, &timer].concat();
    let state = || [0x808, 0x80a].into_iter().chain(interrupts.clone()).collect::<Vec<u32>>();
    assert_eq!(reads(InterruptMode::Exitless), with_timer(state()));
    assert_eq!(writes(InterruptMode::Exitless), [0x6e0, 0x808, 0x80b, 0x838, 0x83e, 0x83f]);
    assert_eq!(reads(InterruptMode::Exiting), with_timer(Vec::new()));
    assert_eq!(writes(InterruptMode::Exiting), [0x6e0, 0x838, 0x83e]);
    assert_eq!(reads(InterruptMode::Posted), [&[0x6e0][..], &state()].concat());
    assert_eq!(writes(InterruptMode::Posted), [0x6e0, 0x808, 0x80b, 0x838, 0x83e, 0x83f]);
}

#[test]
fn what_could_reach_beyond_the_guest_never_passes() {
    for mode in [InterruptMode::Exitless, InterruptMode::Exiting, InterruptMode::Posted] {
        for msr in [0x1b, 0x802, 0x80d, IA32_X2APIC_SIVR, IA32_X2APIC_ICR, 0x831, 0x828, 0x82f] {
            assert!(!passed(mode, msr, true), "{mode:?} {msr:#x}");
        }
        for lvt in IA32_X2APIC_LVT_TIMER..=IA32_X2APIC_LVT_ERROR {
            assert!(!passed(mode, lvt, true), "{mode:?} {lvt:#x}");
        }
    }
}

#[test]
fn what_passes_exists_and_what_exists_but_does_not_pass_is_answered_here() {
    for mode in MODES {
        let mut apic = enabled(mode);
        for msr in 0x800..0x900 {
            let read = apic.read(msr);
            if passed(mode, msr, false) {
                assert_eq!(read, Ok(ApicRead::Physical(msr)), "{mode:?} {msr:#x}");
            } else {
                assert!(!matches!(read, Ok(ApicRead::Physical(_))), "{mode:?} {msr:#x}");
            }
            if passed(mode, msr, true) {
                let physical = ApicAction::WritePhysical { msr, value: 0 };
                assert_eq!(apic.write(msr, 0), Ok(physical), "{mode:?} {msr:#x}");
            }
        }
    }
}

#[test]
fn read_only_write_only_and_missing_registers_fault() {
    let mut apic = enabled(InterruptMode::Exitless);
    for msr in [0x802, 0x803, 0x80a, 0x80d, 0x810, 0x827, 0x839, 0x80e, 0x831, 0x82f, 0x840] {
        assert_eq!(apic.write(msr, 0), Err(GpFault), "{msr:#x}");
    }
    for msr in [IA32_X2APIC_EOI, IA32_X2APIC_SELF_IPI, 0x800, 0x80e, 0x831, 0x82f, 0x8ff] {
        assert_eq!(apic.read(msr), Err(GpFault), "{msr:#x}");
    }
}

#[test]
fn reserved_bits_fault_as_the_manual_says() {
    for mode in MODES {
        let mut apic = enabled(mode);
        for (msr, allowed) in [
            (IA32_X2APIC_TPR, 0xff_u64),
            (IA32_X2APIC_EOI, 0),
            (IA32_X2APIC_SIVR, 0x3ff),
            (IA32_X2APIC_ESR, 0),
            (IA32_X2APIC_LVT_TIMER, 0x7_10ff),
            (IA32_X2APIC_LVT_THERMAL, 0x1_17ff),
            (IA32_X2APIC_LVT_PMI, 0x1_17ff),
            (IA32_X2APIC_LVT_LINT0, 0x1_f7ff),
            (IA32_X2APIC_LVT_LINT1, 0x1_f7ff),
            (IA32_X2APIC_LVT_ERROR, 0x1_10ff),
            (IA32_X2APIC_INIT_COUNT, 0xffff_ffff),
            (IA32_X2APIC_DIV_CONF, 0xb),
            (IA32_X2APIC_SELF_IPI, 0xff),
        ] {
            for bit in 0..64 {
                let result = apic.write(msr, 1 << bit);
                assert_eq!(result.is_ok(), allowed >> bit & 1 == 1, "{msr:#x} bit {bit}");
            }
        }
        assert_eq!(apic.write(IA32_X2APIC_LVT_TIMER, 0x6_00ec), Err(GpFault), "timer mode 3");
    }
}

#[test]
fn the_timer_entry_is_granted_and_physical_and_the_others_are_neither() {
    let mut apic = enabled(InterruptMode::Exitless);
    let (msr, value) = (IA32_X2APIC_LVT_TIMER, 0x4_00ec);
    let grant = ApicAction::Grant { vector: Vector(0xec), why: Reason::Lvt, msr, value };
    assert_eq!(apic.write(msr, value), Ok(grant));
    let masked = ApicAction::WritePhysical { msr, value: 0x5_00ec };
    assert_eq!(apic.write(msr, 0x5_00ec), Ok(masked));
    for (msr, value) in [
        (IA32_X2APIC_LVT_LINT0, 0x700),
        (IA32_X2APIC_LVT_LINT1, 0x400),
        (IA32_X2APIC_LVT_PMI, 0x400),
        (IA32_X2APIC_LVT_THERMAL, 0x2fa),
        (IA32_X2APIC_LVT_ERROR, 0xfe),
    ] {
        assert_eq!(apic.write(msr, value), Ok(ApicAction::None), "{msr:#x}");
        assert_eq!(apic.read(msr), Ok(ApicRead::Value(value)), "{msr:#x}");
    }
}

#[test]
fn switching_the_apic_off_masks_the_timer_physically_and_keeps_it_masked() {
    let mut apic = enabled(InterruptMode::Exitless);
    let msr = IA32_X2APIC_LVT_TIMER;
    apic.write(msr, 0x2_00ec).unwrap();
    let off = ApicAction::WritePhysical { msr, value: 0x3_00ec };
    assert_eq!(apic.write(IA32_X2APIC_SIVR, 0xff), Ok(off));
    assert_eq!(apic.write(msr, 0x2_00ec), Ok(off), "an entry cannot be unmasked while off");
    assert_eq!(apic.read(IA32_X2APIC_SIVR), Ok(ApicRead::Value(0xff)));
}

#[test]
fn the_spurious_vector_is_the_guests_and_the_enable_bit_is_not() {
    let mut apic = apic(InterruptMode::Exitless);
    let (msr, value) = (IA32_X2APIC_SIVR, 0x1df);
    let grant = ApicAction::Grant { vector: Vector(0xdf), why: Reason::Lvt, msr, value };
    assert_eq!(apic.write(msr, 0x3df), Ok(grant));
    assert_eq!(apic.read(msr), Ok(ApicRead::Value(0x3df)));
}

#[test]
fn identifiers_follow_from_the_apic_id() {
    let apic = apic(InterruptMode::Exitless);
    assert_eq!(apic.read(IA32_X2APIC_APICID), Ok(ApicRead::Value(0x21)));
    assert_eq!(apic.read(IA32_X2APIC_LDR), Ok(ApicRead::Value(0x2_0002)));
    assert_eq!(apic.base(), 0xfee0_0d00);
    let apic = apic.addressing();
    assert!(apic.accepts(Destination::Logical(0x2_0003), false));
    assert!(!apic.accepts(Destination::Logical(0x1_0002), false));
    assert!(apic.accepts(Destination::Logical(u32::MAX), false));
    assert!(apic.accepts(Destination::Physical(ApicId(0x21)), false));
    assert!(!apic.accepts(Destination::Physical(ApicId(0x20)), false));
    assert!(apic.accepts(Destination::Own, true) && !apic.accepts(Destination::Own, false));
    assert!(apic.accepts(Destination::Others, false) && !apic.accepts(Destination::Others, true));
    for field in [0x21, 0xff] {
        assert!(apic.accepts(Destination::of_byte(field, false), false));
    }
    assert!(!apic.accepts(Destination::of_byte(0x2, true), false), "its cluster is 2, not 0");
}

#[test]
fn an_ipi_below_vector_16_is_an_error_and_is_not_sent() {
    let mut apic = enabled(InterruptMode::Exitless);
    assert_eq!(apic.write(IA32_X2APIC_ICR, 0x4000f), Ok(ApicAction::None));
    assert_eq!(apic.read(IA32_X2APIC_ESR), Ok(ApicRead::Value(0)), "latched by a write only");
    apic.write(IA32_X2APIC_ESR, 0).unwrap();
    assert_eq!(apic.read(IA32_X2APIC_ESR), Ok(ApicRead::Value(0x20)));
    let ipi = apic.write(IA32_X2APIC_ICR, 0xfd | 0x21 << 32).unwrap();
    let destination = Destination::Physical(ApicId(0x21));
    let request = IcrRequest { kind: IpiKind::Fixed, vector: Vector(0xfd), destination };
    assert_eq!(ipi, ApicAction::Ipi(request));
    assert_eq!(apic.read(IA32_X2APIC_ICR), Ok(ApicRead::Value(0xfd | 0x21 << 32)));
}

#[test]
fn the_first_error_since_the_last_write_of_esr_interrupts_by_its_lvt_entry() {
    let own = |vector| {
        let (kind, destination) = (IpiKind::Fixed, Destination::Own);
        Ok(ApicAction::Ipi(IcrRequest { kind, vector: Vector(vector), destination }))
    };
    for mode in [InterruptMode::Exitless, InterruptMode::Exiting, InterruptMode::Posted] {
        let mut apic = enabled(mode);
        assert_eq!(apic.write(IA32_X2APIC_ICR, 5), Ok(ApicAction::None), "masked");
        apic.write(IA32_X2APIC_LVT_ERROR, 0xfe).unwrap();
        apic.write(IA32_X2APIC_ESR, 0).unwrap();
        assert_eq!(apic.write(IA32_X2APIC_ICR, 5), own(0xfe));
        assert_eq!(apic.write(IA32_X2APIC_ICR, 5), Ok(ApicAction::None), "the second");
        apic.write(IA32_X2APIC_ESR, 0).unwrap();
        if !mode.is_exitless() {
            assert_eq!(apic.write(IA32_X2APIC_SELF_IPI, 5), own(0xfe));
            apic.write(IA32_X2APIC_ESR, 0).unwrap();
            assert_eq!(apic.read(IA32_X2APIC_ESR), Ok(ApicRead::Value(0x60)));
        }
        apic.write(IA32_X2APIC_LVT_ERROR, 3).unwrap();
        assert_eq!(apic.write(IA32_X2APIC_ICR, 5), Ok(ApicAction::None), "its vector is illegal");
        apic.write(IA32_X2APIC_ESR, 0).unwrap();
        assert_eq!(apic.read(IA32_X2APIC_ESR), Ok(ApicRead::Value(0x60)));
    }
}

#[test]
fn the_software_apic_shows_and_ends_what_was_injected() {
    let mut apic = enabled(InterruptMode::Exiting);
    apic.accept(Vector(0x51), TriggerMode::Level);
    apic.write(IA32_X2APIC_SELF_IPI, 0x41).unwrap();
    assert_eq!(apic.read(IA32_X2APIC_IRR0 + 2), Ok(ApicRead::Value(0x2_0002)));
    assert_eq!(apic.pending.next(), Some(Vector(0x51)));
    apic.pending.injected(Vector(0x51));
    assert_eq!(apic.pending.next(), None);
    assert_eq!(apic.read(IA32_X2APIC_PPR), Ok(ApicRead::Value(0x50)));
    assert_eq!(apic.read(IA32_X2APIC_ISR0 + 2), Ok(ApicRead::Value(0x2_0000)));
    let eoi = ApicAction::Eoi { vector: Vector(0x51), trigger: TriggerMode::Level };
    assert_eq!(apic.write(IA32_X2APIC_EOI, 0), Ok(eoi));
    assert_eq!(apic.write(IA32_X2APIC_EOI, 0), Ok(ApicAction::None));
    assert_eq!(apic.pending.next(), Some(Vector(0x41)));
    apic.write(IA32_X2APIC_TPR, 0x40).unwrap();
    assert_eq!(apic.pending.next(), None);
    apic.init();
    assert_eq!(apic.read(IA32_X2APIC_IRR0 + 2), Ok(ApicRead::Value(0)));
}

#[test]
fn the_base_register_changes_modes_as_the_manual_allows() {
    const DISABLED: u64 = 0xfee0_0100;
    const XAPIC: u64 = 0xfee0_0900;
    const X2APIC: u64 = 0xfee0_0d00;
    let paths: [(&[u64], u64, bool); 10] = [
        (&[], X2APIC, true),
        (&[], XAPIC, false),
        (&[], DISABLED, true),
        (&[DISABLED], X2APIC, false),
        (&[DISABLED], XAPIC, true),
        (&[DISABLED, XAPIC], X2APIC, true),
        (&[], 0xfee0_0500, false),
        (&[DISABLED], 0xfed4_0900, true),
        (&[], 0x80_fee0_0d00, false),
        (&[], X2APIC | 1, false),
    ];
    for (before, to, allowed) in paths {
        let mut apic = apic(InterruptMode::Exitless);
        for value in before {
            apic.write_base(*value, 39).unwrap();
        }
        let old = apic.base();
        assert_eq!(apic.write_base(to, 39).is_ok(), allowed, "{before:x?} {to:x}");
        assert_eq!(apic.base(), if allowed { to } else { old });
    }
}

proptest! {
    #[test]
    fn any_writes_reach_only_the_registers_that_may_be_physical(
        exiting: bool,
        writes in proptest::collection::vec((0x800_u32..0x840, any::<u64>(), 0_u32..64), 0..100),
    ) {
        let mode = if exiting { InterruptMode::Exiting } else { InterruptMode::Exitless };
        let mut apic = apic(mode);
        for (msr, value, shift) in writes {
            match apic.write(msr, value >> shift) {
                Ok(ApicAction::WritePhysical { msr, .. } | ApicAction::Grant { msr, .. }) if exiting => {
                    prop_assert!([0x832, 0x838, 0x83e].contains(&msr), "{msr:#x}");
                }
                Ok(ApicAction::WritePhysical { msr, value } | ApicAction::Grant { msr, value, .. }) => {
                    let may = [0x808, 0x80b, 0x80f, 0x832, 0x838, 0x83e, 0x83f].contains(&msr);
                    prop_assert!(may, "{msr:#x}");
                    prop_assert!(msr != 0x80f || value & 0x100 != 0, "the enable bit stays");
                    prop_assert!(msr != 0x832 || value & 0x700 == 0, "fixed delivery");
                }
                Ok(ApicAction::Ipi(request)) => prop_assert!(!request.illegal_vector()),
                Ok(ApicAction::None | ApicAction::Eoi { .. }) | Err(GpFault) => {}
            }
            prop_assert!(apic.base() == 0xfee0_0d00);
        }
    }
}

#[test]
fn a_guest_that_does_not_know_x2apic_mode_begins_in_xapic_mode() {
    let apic = apic(InterruptMode::Exitless).in_xapic_mode();
    assert_eq!(apic.base(), 0xfee0_0900);
    assert_eq!(apic.page_offset(Gpa::new(0xfee0_0080)), Some(0x80));
    assert_eq!(apic.read(arch::msr::IA32_X2APIC_SIVR), Err(GpFault));
}
