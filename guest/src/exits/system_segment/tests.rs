//! LLDT, LTR, SLDT and STR on a scripted CPU, against the manual's conditions.

use arch::Gpa;
use arch::segment::{AccessRights, DescriptorTable};
use proptest::prelude::*;

use super::*;
use crate::exits::tests::World;
use crate::fake::{FakeMemory, FakeVcpu};

const GDT: u64 = 0x1000;
const OPERAND: u64 = 0x3000;
const PML4: u64 = 0x4000;
const PDPT: u64 = 0x5000;
const DIRECTORY: u64 = 0x6000;
const TABLE: u64 = 0x7000;

/// What Linux has: per-CPU TSS of 0x4087 bytes, ring 0, available.
const TSS: u128 = 0x0000_0000_ffff_fe00_0000_8900_3000_4087;
const LDT: u128 = 0x0000_0000_ffff_8880_1000_8201_2340_ffff;

const fn mode_bits(mode: Mode) -> (u64, u64, AccessRights) {
    match mode {
        Mode::Bits16 => (0x11, 0, AccessRights::CODE16),
        Mode::Bits32 => (0x11, 0, AccessRights::CODE32),
        Mode::Bits64 => (0x8000_0011, 0x500, AccessRights::CODE64),
    }
}

/// A CPU in protected mode; in long mode the first 2 MiB are mapped to themselves.
fn machine(mode: Mode) -> (FakeVcpu, FakeMemory) {
    let (cr0, efer, code) = mode_bits(mode);
    let mut vcpu = FakeVcpu::default();
    vcpu.state.cr0 = cr0 | Cr0::WP.bits();
    vcpu.state.cr3 = PML4;
    vcpu.state.cr4 = Cr4::PAE.bits();
    vcpu.state.efer = efer;
    vcpu.state.segments[SegmentRegister::Cs as usize].access = code;
    vcpu.state.gdtr = DescriptorTable { base: Gva::new(GDT), limit: 0x7f };
    vcpu.state.gpr[Gpr::Rbx as usize] = OPERAND;
    let mut memory = FakeMemory(vec![0; 0x8000]);
    set(&mut memory, PML4, &(PDPT | 3).to_le_bytes());
    set(&mut memory, PDPT, &(DIRECTORY | 3).to_le_bytes());
    set(&mut memory, DIRECTORY, &(TABLE | 3).to_le_bytes());
    for page in 0..8_u64 {
        set(&mut memory, TABLE + 8 * page, &(page << 12 | 3).to_le_bytes());
    }
    (vcpu, memory)
}

fn set(memory: &mut FakeMemory, at: u64, bytes: &[u8]) {
    memory.write(Gpa::new(at), bytes).unwrap();
}

fn descriptor(memory: &FakeMemory, selector: u16) -> u128 {
    let mut bytes = [0; 16];
    memory.read(Gpa::new(GDT + u64::from(selector & !7)), &mut bytes).unwrap();
    u128::from_le_bytes(bytes)
}

fn run(vcpu: &mut FakeVcpu, memory: &mut FakeMemory, bytes: &[u8]) -> Result<(), Refused> {
    let instruction = insn::decode(bytes, Mode::of(vcpu)).unwrap();
    let (before, ram) = (vcpu.state, memory.0.clone());
    let mut world = World::new(arch::vcpu::InterruptMode::Exiting);
    core::mem::swap(&mut world.vcpu, vcpu);
    core::mem::swap(&mut world.memory, memory);
    let done = world.context(|vm| vm).system_segment(&instruction);
    core::mem::swap(&mut world.vcpu, vcpu);
    core::mem::swap(&mut world.memory, memory);
    if done.is_ok() {
        assert_eq!(vcpu.state.rip, before.rip + bytes.len() as u64);
    } else {
        assert_eq!((vcpu.state, &memory.0), (before, &ram), "a fault leaves all as it was");
    }
    done
}

// ax is the operand; the other forms are in the memory tests.
const SLDT: [u8; 3] = [0x0f, 0x00, 0xc0];
const STR: [u8; 3] = [0x0f, 0x00, 0xc8];
const LLDT: [u8; 3] = [0x0f, 0x00, 0xd0];
const LTR: [u8; 3] = [0x0f, 0x00, 0xd8];

/// Loads `selector` from AX with `entry` at 0x40 in the GDT.
fn load_ax(
    mode: Mode,
    bytes: &[u8],
    selector: u16,
    entry: u128,
) -> (Result<(), Refused>, FakeVcpu, FakeMemory) {
    let (mut vcpu, mut memory) = machine(mode);
    set(&mut memory, GDT + 0x40, &entry.to_le_bytes());
    vcpu.state.gpr[0] = 0xffff_ffff_ffff_0000 | u64::from(selector);
    let done = run(&mut vcpu, &mut memory, bytes);
    (done, vcpu, memory)
}

fn refused(mode: Mode, bytes: &[u8], selector: u16, entry: u128) -> Refused {
    load_ax(mode, bytes, selector, entry).0.unwrap_err()
}

const fn gp(error_code: u32) -> Refused {
    fault(exception::GP, Some(error_code))
}

#[test]
fn ltr_loads_a_64_bit_tss_and_marks_it_busy() {
    let (done, vcpu, memory) = load_ax(Mode::Bits64, &LTR, 0x40, TSS);
    assert_eq!(done, Ok(()));
    let expected = Segment {
        selector: 0x40,
        base: 0xffff_fe00_0000_3000,
        limit: 0x4087,
        access: AccessRights::TSS_BUSY,
    };
    assert_eq!(vcpu.segment(SegmentRegister::Tr), expected);
    assert_eq!(descriptor(&memory, 0x40), TSS | 2 << 40);
}

#[test]
fn lldt_loads_a_64_bit_ldt_and_leaves_the_gdt_alone() {
    let (done, vcpu, memory) = load_ax(Mode::Bits64, &LLDT, 0x43, LDT);
    assert_eq!(done, Ok(()));
    let expected = Segment {
        selector: 0x43,
        base: 0xffff_8880_1001_2340,
        limit: 0xffff,
        access: AccessRights(0x82),
    };
    assert_eq!(vcpu.segment(SegmentRegister::Ldtr), expected);
    assert_eq!(descriptor(&memory, 0x40), LDT);
}

#[test]
fn legacy_mode_takes_8_bytes_and_knows_16_bit_tss() {
    // The next descriptor of the table stands where 64-bit mode has its upper half.
    let next = 0x00cf_9b00_0000_ffff << 64;
    for (entry, kind) in [(0x12c0_8934_5678_0067, 0xb), (0x12c0_8134_5678_0067, 3)] {
        let (done, vcpu, memory) = load_ax(Mode::Bits32, &LTR, 0x40, next | entry);
        assert_eq!(done, Ok(()));
        let expected = Segment {
            selector: 0x40,
            base: 0x1234_5678,
            limit: 0x0006_7fff,
            access: AccessRights(0xc080 | kind),
        };
        assert_eq!(vcpu.segment(SegmentRegister::Tr), expected);
        assert_eq!(descriptor(&memory, 0x40), next | entry | 2 << 40);
    }
}

#[test]
fn ia_32e_mode_knows_no_16_bit_tss() {
    let tss_16 = TSS & !(8 << 40);
    assert_eq!(refused(Mode::Bits64, &LTR, 0x40, tss_16), gp(0x40));
}

#[test]
fn a_null_selector_makes_ldtr_unusable_and_is_no_tss() {
    for null in 0..4 {
        let (done, vcpu, _) = load_ax(Mode::Bits64, &LLDT, null, 0);
        assert_eq!(done, Ok(()));
        let ldtr = vcpu.segment(SegmentRegister::Ldtr);
        assert_eq!(ldtr, Segment { selector: null, ..Segment::NULL });
        assert_eq!(refused(Mode::Bits64, &LTR, null, 0), gp(0));
    }
}

#[test]
fn a_selector_into_the_ldt_or_beyond_the_limit_is_refused() {
    assert_eq!(refused(Mode::Bits64, &LTR, 0x44, TSS), gp(0x44));
    assert_eq!(refused(Mode::Bits64, &LLDT, 0x47, LDT), gp(0x44));
    // The limit is 0x7f: 8 bytes at 0x78 are inside, 16 are not.
    assert_eq!(refused(Mode::Bits64, &LLDT, 0x7b, 0), gp(0x78));
    assert_eq!(refused(Mode::Bits64, &LLDT, !4, 0), gp(0xfff8));
    let (mut vcpu, mut memory) = machine(Mode::Bits32);
    set(&mut memory, GDT + 0x78, &(LDT as u64).to_le_bytes());
    vcpu.state.gpr[0] = 0x78;
    assert_eq!(run(&mut vcpu, &mut memory, &LLDT), Ok(()));
    vcpu.state.gdtr.limit = 0x7e;
    assert_eq!(run(&mut vcpu, &mut memory, &LLDT), Err(gp(0x78)));
}

#[test]
fn a_descriptor_of_another_kind_is_refused_before_its_presence_counts() {
    for kind in 0..32_u128 {
        let entry = TSS & !(0x9f << 40) | kind << 40;
        let absent = fault(exception::NP, Some(0x40));
        let tr = if kind == 9 { absent } else { gp(0x40) };
        assert_eq!(refused(Mode::Bits64, &LTR, 0x41, entry), tr, "{kind:#x}");
        let ldtr = if kind == 2 { absent } else { gp(0x40) };
        assert_eq!(refused(Mode::Bits64, &LLDT, 0x41, entry), ldtr, "{kind:#x}");
    }
}

#[test]
fn a_busy_tss_is_not_loaded_twice() {
    let (_, mut vcpu, mut memory) = load_ax(Mode::Bits64, &LTR, 0x40, TSS);
    assert_eq!(run(&mut vcpu, &mut memory, &LTR), Err(gp(0x40)));
}

#[test]
fn a_base_that_is_not_canonical_is_refused() {
    let entry = TSS & !(0xffff_ffff << 64) | 0x00ff_8000 << 64;
    assert_eq!(refused(Mode::Bits64, &LTR, 0x40, entry), gp(0x40));
    let (mut vcpu, mut memory) = machine(Mode::Bits32);
    // Five levels need no table of their own where paging is off.
    vcpu.state.cr4 |= Cr4::LA57.bits();
    set(&mut memory, GDT + 0x40, &entry.to_le_bytes());
    let base = load(&vcpu, &mut memory, SegmentRegister::Tr, 0x40, true).map(|tr| tr.base);
    assert_eq!(base, Ok(0x00ff_8000_0000_3000));
    set(&mut memory, GDT + 0x40, &(TSS & !(0xff << 88) | 1 << 88).to_le_bytes());
    let refused = load(&vcpu, &mut memory, SegmentRegister::Tr, 0x40, true);
    assert_eq!(refused, Err(gp(0x40)));
}

#[test]
fn an_upper_half_that_is_a_descriptor_of_its_own_is_refused() {
    assert_eq!(refused(Mode::Bits64, &LTR, 0x40, TSS | 1 << (64 + 40)), gp(0x40));
    assert_eq!(refused(Mode::Bits64, &LLDT, 0x40, LDT | 1 << (64 + 44)), gp(0x40));
}

#[test]
fn a_gdt_that_is_not_there_or_read_only_is_the_guest_s_page_fault() {
    let page_fault = |at, error_code| {
        let event = Event::exception(exception::PF, Some(error_code));
        Refused::Fault(event, Some(Gva::new(at)))
    };
    let (mut vcpu, mut memory) = machine(Mode::Bits64);
    set(&mut memory, GDT + 0x40, &TSS.to_le_bytes());
    vcpu.state.gpr[0] = 0x40;
    set(&mut memory, TABLE + 8, &(GDT | 1).to_le_bytes());
    assert_eq!(run(&mut vcpu, &mut memory, &LTR), Err(page_fault(GDT + 0x45, 3)));
    set(&mut memory, TABLE + 8, &[0; 8]);
    assert_eq!(run(&mut vcpu, &mut memory, &LTR), Err(page_fault(GDT + 0x40, 0)));
}

#[test]
fn real_mode_and_virtual_8086_mode_know_none_of_the_four() {
    for bytes in [SLDT, STR, LLDT, LTR] {
        let (mut vcpu, mut memory) = machine(Mode::Bits16);
        vcpu.state.cr0 = 0x10;
        assert_eq!(run(&mut vcpu, &mut memory, &bytes), Err(fault(exception::UD, None)));
        let (mut vcpu, mut memory) = machine(Mode::Bits16);
        vcpu.state.rflags |= Rflags::VM.bits();
        assert_eq!(run(&mut vcpu, &mut memory, &bytes), Err(fault(exception::UD, None)));
    }
}

#[test]
fn user_mode_may_store_but_not_load() {
    let (mut vcpu, mut memory) = machine(Mode::Bits64);
    vcpu.state.segments[SegmentRegister::Ss as usize].access = AccessRights(0xc0f3);
    assert_eq!(run(&mut vcpu, &mut memory, &LLDT), Err(gp(0)));
    assert_eq!(run(&mut vcpu, &mut memory, &LTR), Err(gp(0)));
    assert_eq!(run(&mut vcpu, &mut memory, &SLDT), Ok(()));
    // To a supervisor page: str [rbx]
    let fault = run(&mut vcpu, &mut memory, &[0x0f, 0x00, 0x0b]).unwrap_err();
    let event = Event::exception(exception::PF, Some(7));
    assert_eq!(fault, Refused::Fault(event, Some(Gva::new(OPERAND))));
}

#[test]
fn a_store_to_a_register_keeps_or_clears_by_its_width() {
    let stored = |mode, bytes: &[u8]| {
        let (mut vcpu, mut memory) = machine(mode);
        vcpu.state.segments[SegmentRegister::Tr as usize].selector = 0xabcd;
        vcpu.state.gpr[0] = 0x1111_2222_3333_4444;
        assert_eq!(run(&mut vcpu, &mut memory, bytes), Ok(()));
        vcpu.state.gpr[0]
    };
    assert_eq!(stored(Mode::Bits64, &[0x66, 0x0f, 0x00, 0xc8]), 0x1111_2222_3333_abcd);
    assert_eq!(stored(Mode::Bits64, &STR), 0xabcd);
    assert_eq!(stored(Mode::Bits64, &[0x48, 0x0f, 0x00, 0xc8]), 0xabcd);
    assert_eq!(stored(Mode::Bits16, &STR), 0x1111_2222_3333_abcd);
}

#[test]
fn operands_in_memory_are_16_bits_wide() {
    let (mut vcpu, mut memory) = machine(Mode::Bits64);
    set(&mut memory, GDT + 0x40, &LDT.to_le_bytes());
    set(&mut memory, OPERAND, &[0x40, 0, 0xff, 0xff]);
    // lldt [rbx]; sldt [rbx + 4] with REX.W
    assert_eq!(run(&mut vcpu, &mut memory, &[0x0f, 0x00, 0x13]), Ok(()));
    assert_eq!(vcpu.segment(SegmentRegister::Ldtr).base, 0xffff_8880_1001_2340);
    set(&mut memory, OPERAND + 4, &[0xee; 4]);
    assert_eq!(run(&mut vcpu, &mut memory, &[0x48, 0x0f, 0x00, 0x43, 0x04]), Ok(()));
    assert_eq!(memory.0[OPERAND as usize + 4..][..4], [0x40, 0, 0xee, 0xee]);
}

#[test]
fn another_instruction_is_not_taken_for_one_of_the_four() {
    let (mut vcpu, mut memory) = machine(Mode::Bits64);
    // mov [rbx], al
    let done = run(&mut vcpu, &mut memory, &[0x88, 0x03]);
    assert_eq!(done, Err(Refused::Another));
}

/// SDM "Checks on Guest Segment Registers", for LDTR and TR.
fn passes_vm_entry(register: SegmentRegister, segment: Segment, ia_32e: bool) -> bool {
    let rights = segment.access.0;
    let kind = match (register, ia_32e) {
        (SegmentRegister::Tr, false) => matches!(rights & 0xf, 3 | 11),
        (SegmentRegister::Tr, true) => rights & 0xf == 11,
        _ => rights & 0xf == 2,
    };
    let granular = rights & 1 << 15 != 0;
    let limit =
        (granular || segment.limit >> 20 == 0) && (!granular || segment.limit & 0xfff == 0xfff);
    let base = if ia_32e { canonical(segment.base, false) } else { segment.base >> 32 == 0 };
    let system_and_present = rights & 0x90 == 0x80;
    let reserved = rights & 0xffff_0f00 == 0;
    kind && limit && base && system_and_present && reserved && segment.selector & 4 == 0
}

/// Descriptors of which many are loadable.
fn entry() -> impl Strategy<Value = u128> {
    let kind = prop_oneof![0..32_u128, Just(2), Just(9), Just(1)];
    let upper = prop_oneof![Just(0_u32), Just(0xffff_ffff), any::<u32>()];
    (any::<u64>(), kind, any::<bool>(), upper, any::<bool>()).prop_map(
        |(low, kind, present, upper, clean)| {
            let low = u128::from(low) & !(0x9f << 40) | kind << 40 | u128::from(present) << 47;
            let kind = if clean { 0 } else { 0x1f << (64 + 40) };
            low | u128::from(upper) << 64 | kind
        },
    )
}

proptest! {
    #[test]
    fn whatever_is_loaded_passes_the_checks_of_a_vm_entry(
        entry in entry(), selector in prop_oneof![0x40..0x48_u16, any::<u16>()], task: bool,
        mode in prop::sample::select(vec![Mode::Bits16, Mode::Bits32, Mode::Bits64]),
    ) {
        let register = if task { SegmentRegister::Tr } else { SegmentRegister::Ldtr };
        let bytes = if task { LTR } else { LLDT };
        let (done, vcpu, memory) = load_ax(mode, &bytes, selector, entry);
        let segment = vcpu.segment(register);
        match done {
            Ok(()) if segment.access.unusable() => prop_assert!(!task && selector < 4),
            Ok(()) => {
                prop_assert!(passes_vm_entry(register, segment, mode == Mode::Bits64));
                prop_assert_eq!(descriptor(&memory, 0x40), entry | u128::from(task) << 41);
                prop_assert_eq!(segment.selector, selector);
            }
            Err(Refused::Fault(event, None)) => {
                prop_assert!([exception::GP, exception::NP].contains(&event.vector.0));
                let null = selector < 4;
                let code = if null { 0 } else { u32::from(selector & !3) };
                prop_assert_eq!(event.error_code, Some(code));
            }
            Err(other) => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn a_descriptor_is_taken_apart_as_it_was_put_together(
        base: u64, limit in 0..1_u32 << 20, low_rights: u8, high_rights in 0..16_u8, selector: u16,
    ) {
        let (base_128, limit_128) = (u128::from(base), u128::from(limit));
        let descriptor = Descriptor(
            limit_128 & 0xffff
                | (base_128 & 0xff_ffff) << 16
                | u128::from(low_rights) << 40
                | (limit_128 >> 16) << 48
                | u128::from(high_rights) << 52
                | (base_128 >> 24) << 56,
        );
        let bytes = if high_rights & 8 != 0 { (u64::from(limit) + 1) * 4096 } else {
            u64::from(limit) + 1
        };
        let access = AccessRights(u32::from(low_rights) | u32::from(high_rights) << 12);
        let segment = descriptor.segment(selector);
        prop_assert_eq!((segment.base, segment.access), (base, access));
        prop_assert_eq!(u64::from(segment.limit) + 1, bytes);
        prop_assert_eq!(segment.selector, selector);
        prop_assert_eq!(descriptor.access_byte(), low_rights);
    }
}
