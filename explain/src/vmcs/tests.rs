//! One broken rule at a time.

use super::*;
use SegmentRegister::{Cs, Ds, Es, Fs, Gs, Ldtr, Ss, Tr};
use proptest::prelude::*;
use std::collections::HashSet;

const SKYLAKE: Fixed = Fixed {
    cr0_fixed0: 0x8000_0021,
    cr0_fixed1: 0xffff_ffff,
    cr4_fixed0: 0x2000,
    cr4_fixed1: 0x0037_67ff,
    physical_address_bits: 46,
};

fn with(registers: StartState, ia32e: bool) -> GuestState {
    GuestState {
        registers,
        fixed: SKYLAKE,
        ia32e,
        dr7: 0x400,
        debugctl: 0,
        pat: 0x0007_0406_0007_0406,
        sysenter_esp: 0,
        sysenter_eip: 0,
        activity: 0,
        interruptibility: 0,
        pending_debug: 0,
        injection: 0,
        link_pointer: !0,
    }
}

/// The state in which Linux is entered by the 64-bit boot protocol.
fn long_mode() -> GuestState {
    let flat = |selector, access| Segment { selector, base: 0, limit: 0xffff_ffff, access };
    let data = flat(0x18, AccessRights::DATA32);
    let tr = Segment { selector: 0, base: 0, limit: 0x67, access: AccessRights::TSS_BUSY };
    let registers = StartState {
        rip: 0x100_0200,
        cr0: 0x8005_0033,
        cr3: 0x3_0000,
        cr4: 0x2020,
        efer: 0x500,
        segments: [
            data,
            flat(0x10, AccessRights::CODE64),
            data,
            data,
            data,
            data,
            Segment::NULL,
            tr,
        ],
        ..StartState::after_sipi(0)
    };
    with(registers, true)
}

fn real_mode() -> GuestState {
    let mut state = with(StartState::after_sipi(0x9a), false);
    state.registers.cr0 = 0x30;
    state.registers.cr4 = 0x2000;
    state
}

#[test]
fn the_states_that_guests_start_in_are_fine() {
    assert_eq!(check(&long_mode()), Ok(()));
    assert_eq!(check(&real_mode()), Ok(()));
}

type Change = fn(&mut GuestState);

fn access(state: &mut GuestState, register: SegmentRegister, rights: u32) {
    state.registers.segments[register as usize].access = AccessRights(rights);
}

fn base(state: &mut GuestState, register: SegmentRegister, base: u64) {
    state.registers.segments[register as usize].base = base;
}

/// Each breaks one rule of a state that is fine.
const CHANGES: &[Change] = &[
    |s| s.registers.cr0 &= !0x20,
    |s| s.registers.cr0 |= 1 << 32,
    |s| s.registers.cr0 &= !1,
    |s| s.registers.cr4 &= !0x2000,
    |s| s.registers.cr4 |= 1 << 31,
    |s| s.registers.cr0 &= !(1 << 31),
    |s| s.registers.cr4 &= !0x20,
    |s| s.registers.cr3 |= 1 << 46,
    |s| s.debugctl = 1 << 31,
    |s| s.dr7 |= 1 << 32,
    |s| s.sysenter_esp = 1 << 47,
    |s| s.sysenter_eip = 1 << 47,
    |s| s.pat = 0x0202_0202_0202_0202,
    |s| s.registers.efer |= 2,
    |s| s.registers.efer = 0x100,
    |s| s.registers.efer = 0x400,
    |s| base(s, Tr, 1 << 47),
    |s| base(s, Fs, 1 << 47),
    |s| base(s, Gs, 1 << 47),
    |s| base(s, Cs, 1 << 32),
    |s| base(s, Ss, 1 << 32),
    |s| base(s, Ds, 1 << 32),
    |s| base(s, Es, 1 << 32),
    |s| access(s, Cs, 0x1_a09b),
    |s| access(s, Cs, 0xa09a),
    |s| access(s, Cs, 0xa08b),
    |s| access(s, Cs, 0xa0fb),
    |s| access(s, Cs, 0xa01b),
    |s| access(s, Cs, 0xa19b),
    |s| access(s, Cs, 0xe09b),
    |s| access(s, Cs, 0x209b),
    |s| access(s, Ss, 0xc091),
    |s| access(s, Ss, 0xc083),
    |s| access(s, Ss, 0xc013),
    |s| access(s, Ss, 0xc193),
    |s| access(s, Ss, 0x4093),
    |s| access(s, Ds, 0xc090),
    |s| access(s, Ds, 0xc099),
    |s| access(s, Ds, 0xc083),
    |s| access(s, Ds, 0xc013),
    |s| access(s, Ds, 0xc193),
    |s| access(s, Ds, 0x4093),
    |s| access(s, Tr, 0x1_008b),
    |s| s.registers.segments[Tr as usize].selector = 4,
    |s| access(s, Tr, 0x89),
    |s| access(s, Tr, 0x0b),
    |s| access(s, Tr, 0x18b),
    |s| s.registers.segments[Tr as usize].limit = 0x10_0000,
    |s| access(s, Ldtr, 0x80),
    |s| s.registers.gdtr = DescriptorTable { base: Gva::new(1 << 47), limit: 0 },
    |s| s.registers.idtr = DescriptorTable { base: Gva::new(1 << 47), limit: 0 },
    |s| s.registers.rip = 1 << 47,
    |s| s.registers.rflags = 1 << 3 | 2,
    |s| s.registers.rflags = 0,
    |s| s.registers.rflags = 0x2_0002,
    |s| s.injection = 0x8000_0040,
    |s| s.activity = 4,
    |s| s.interruptibility = 1 << 5,
    |s| s.interruptibility = 3,
    |s| s.interruptibility = 1,
    |s| s.pending_debug = 1 << 20,
    |s| s.link_pointer = 0,
];

#[test]
fn each_broken_rule_has_its_own_sentence() {
    let mut sentences = HashSet::new();
    for (number, change) in CHANGES.iter().enumerate() {
        let mut state = long_mode();
        change(&mut state);
        let sentence = check(&state).expect_err(&number.to_string());
        assert!(sentences.insert(sentence), "change {number}: {sentence} was said before");
    }
}

#[test]
fn rules_that_need_more_than_one_thing_are_seen_too() {
    let mut state = long_mode();
    (state.activity, state.injection) = (1, 0x8000_0b0d);
    assert_eq!(check(&state), Err("an event is injected that cannot wake a halted guest"));
    state.injection = 0x8000_0202;
    assert_eq!(check(&state), Ok(()));
    state.interruptibility = 2;
    assert_eq!(check(&state), Err("an inactive guest blocks events by STI or MOV SS"));
    state.activity = 0;
    assert_eq!(check(&state), Err("an NMI is injected while MOV SS blocks events"));

    let mut state = real_mode();
    state.registers.rip = 1 << 32;
    assert_eq!(check(&state), Err("RIP has bits 63:32 set outside 64-bit mode"));
    let mut state = real_mode();
    access(&mut state, SegmentRegister::Ss, 0xf3);
    assert!(check(&state).is_err());
    state.registers.cr4 |= 1 << 17;
    assert_eq!(check(&state), Err("CR4.PCIDE is 1 outside IA-32e mode"));
}

proptest! {
    #[test]
    fn any_state_is_judged(
        cr0: u64, cr4: u64, efer: u64, rip: u64, rflags: u64, rights: [u32; 8], ia32e: bool,
        injection: u32, width: u8,
    ) {
        let mut state = long_mode();
        for (segment, rights) in state.registers.segments.iter_mut().zip(rights) {
            segment.access = AccessRights(rights);
        }
        state.registers = StartState { cr0, cr4, efer, rip, rflags, ..state.registers };
        state.fixed.physical_address_bits = width;
        (state.ia32e, state.injection) = (ia32e, injection);
        let _ = check(&state);
    }
}

#[test]
fn every_listed_instruction_error_has_its_own_sentence() {
    let listed: Vec<u64> = (1..=28).filter(|n| ![14, 21, 27].contains(n)).collect();
    let sentences: HashSet<_> = listed.iter().map(|n| instruction_error(*n)).collect();
    assert_eq!(sentences.len(), listed.len());
    assert!(!sentences.contains(instruction_error(14)));
}

#[test]
fn each_entry_failure_has_its_own_sentence() {
    let all = [(33, 2), (33, 3), (33, 4), (34, 1), (41, 0), (99, 0)];
    let sentences: HashSet<_> = all.iter().map(|(r, q)| entry_failure(*r, *q)).collect();
    assert_eq!(sentences.len(), all.len());
    assert_eq!(entry_failure(33, 0), None);
}

/// The state of a 64-bit guest as the image writes it.
#[test]
fn every_field_is_found_by_its_encoding() {
    let text = "800=18 802=10 804=18 806=18 808=18 80a=18 80c=0 80e=0 2800=ffffffffffffffff 2802=0 \
                2804=7040600070406 2806=500 4012=d3ff 4016=0 4800=ffffffff 4802=ffffffff 4804=ffffffff \
                4806=ffffffff 4808=ffffffff 480a=ffffffff 480c=0 480e=67 4810=0 4812=0 4814=c093 4816=a09b \
                4818=c093 481a=c093 481c=c093 481e=c093 4820=10000 4822=8b 4824=0 4826=0 6800=80050033 \
                6802=30000 6804=2020 681a=400 681e=1000200 6820=2 486=80000021 487=ffffffff 488=2000 \
                489=3767ff 80000008=2e";
    let state = GuestState::read(&State::parse(text));
    let mut expected = long_mode();
    let (gdtr, idtr) = (DescriptorTable::default(), DescriptorTable::default());
    expected.registers = StartState { gdtr, idtr, rflags: 2, ..expected.registers };
    assert_eq!(state, expected);
    assert_eq!(state.broken(), None);
}
