//! One broken rule at a time.

use super::*;
use crate::capability::tests::SKYLAKE;
use SegmentRegister::{Cs, Ds, Es, Fs, Gs, Ldtr, Ss, Tr};
use arch::segment::{AccessRights, DescriptorTable};
use arch::{Gva, vcpu::StartState};
use proptest::prelude::*;
use std::collections::HashSet;

fn with(registers: StartState, ia32e: bool) -> GuestState {
    GuestState {
        registers,
        capabilities: SKYLAKE,
        ia32e,
        dr7: 0x400,
        debugctl: 0,
        pat: 0x0007_0406_0007_0406,
        sysenter_esp: 0,
        sysenter_eip: 0,
        activity: 0,
        interruptibility: 0,
        pending_debug: 0,
        injection: InterruptionInformation(0),
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
    |s| s.injection = InterruptionInformation(0x8000_0040),
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
    (state.activity, state.injection) = (1, InterruptionInformation(0x8000_0b0d));
    assert_eq!(check(&state), Err("an event is injected that cannot wake a halted guest"));
    state.injection = InterruptionInformation(0x8000_0202);
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
        state.capabilities.physical_address_bits = width;
        (state.ia32e, state.injection) = (ia32e, InterruptionInformation(injection));
        let _ = check(&state);
    }
}
