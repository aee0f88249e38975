//! The shadow against its definition, byte by byte, and the incremental against the whole.

use super::*;
use crate::grants::Reason;
use arch::Gva;
use arch::machine::NotGuestMemory;
use proptest::prelude::*;

type Page = [u8; PAGE_BYTES];

/// Two pages of guest memory at 0x5000 and 0x9000, and the shadows of both.
struct Machine {
    real: [Page; 2],
    shadow: [Page; 2],
}

const PAGES: [u64; 2] = [0x5000, 0x9000];

impl GuestMemory for Machine {
    fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), NotGuestMemory> {
        let page =
            PAGES.iter().position(|p| *p == gpa.page().as_u64()).ok_or(NotGuestMemory(gpa))?;
        let at = gpa.page_offset() as usize;
        bytes.copy_from_slice(&self.real[page][at..at + bytes.len()]);
        Ok(())
    }

    fn write(&mut self, gpa: Gpa, _: &[u8]) -> Result<(), NotGuestMemory> {
        Err(NotGuestMemory(gpa))
    }
}

fn idt(start: u64, limit: u16, format: GateFormat) -> ShadowIdt {
    let base = Gva::new(0xffff_fe00_0000_0000 + start);
    ShadowIdt::new(DescriptorTable { base, limit }, format, PAGES.map(|p| Some(Gpa::new(p))))
}

/// The definition: in the two pages taken together, the flags byte of each external vector that is
/// not granted, and whose whole gate is within the limit, is that of an interrupt gate of the
/// guest's DPL that is not present.
fn naive(real: &[Page; 2], idtr: (u64, u16), size: usize, granted: &[u8]) -> [Page; 2] {
    let mut shadow = *real;
    for vector in 32..=255_u8 {
        let gate = usize::from(vector) * size;
        let at = idtr.0 as usize + gate + 5;
        if gate + size - 1 <= usize::from(idtr.1) && !granted.contains(&vector) {
            let flags = &mut shadow[at / PAGE_BYTES][at % PAGE_BYTES];
            *flags = *flags & 0x60 | 0x0e;
        }
    }
    shadow
}

/// [`ShadowIdt::derive`] on plain bytes.
fn derive(
    idt: &ShadowIdt,
    page: usize,
    offset: usize,
    real: &[u8],
    grants: &Grants,
    shadow: &mut Page,
) {
    let shared = [const { AtomicU8::new(0) }; PAGE_BYTES];
    shared.iter().zip(&*shadow).for_each(|(to, from)| to.store(*from, Ordering::Relaxed));
    idt.derive(page, offset, real, grants, &shared);
    shared.iter().zip(shadow).for_each(|(from, to)| *to = from.load(Ordering::Relaxed));
}

fn whole(idt: &ShadowIdt, real: &[Page; 2], grants: &Grants) -> [Page; 2] {
    let mut shadow = [[0xcc; PAGE_BYTES]; 2];
    for page in 0..2 {
        derive(idt, page, 0, &real[page], grants, &mut shadow[page]);
    }
    shadow
}

fn grant_all(vectors: &[u8]) -> Grants {
    let grants = Grants::new();
    for vector in vectors {
        grants.grant(Vector(*vector), Reason::Device);
    }
    grants
}

/// One thing that happens to a table.
#[derive(Clone, Debug)]
enum Step {
    Write { at: usize, bytes: Vec<u8> },
    Grant(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..2 * PAGE_BYTES, proptest::collection::vec(any::<u8>(), 1..40))
            .prop_map(|(at, bytes)| Step::Write { at, bytes }),
        any::<u8>().prop_map(Step::Grant),
    ]
}

fn start() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 0_u64..4096, 4080_u64..4096, (0_u64..256).prop_map(|n| n * 16)]
}

fn limit() -> impl Strategy<Value = u16> {
    prop_oneof![
        Just(0xfff),
        Just(0x7ff),
        Just(0x1ff),
        Just(0),
        Just(0xffff),
        any::<u16>(),
        0..4096_u16
    ]
}

fn format() -> impl Strategy<Value = GateFormat> {
    prop_oneof![Just(GateFormat::Bits32), Just(GateFormat::Bits64)]
}

proptest! {
    #[test]
    fn the_whole_derivation_is_the_definition(
        start in start(), limit in limit(), format in format(), seed: u64,
        granted in proptest::collection::vec(any::<u8>(), 0..16),
    ) {
        let mut random = seed | 1;
        let real = [(); 2].map(|()| [0; PAGE_BYTES].map(|_: u8| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 56) as u8
        }));
        let idt = idt(start, limit, format);
        let shadow = whole(&idt, &real, &grant_all(&granted));
        let expected = naive(&real, (start, limit), format.size(), &granted);
        prop_assert!(shadow == expected);
    }

    #[test]
    fn any_sequence_of_writes_and_grants_ends_in_the_whole_derivation(
        start in start(), limit in limit(), format in format(),
        steps in proptest::collection::vec(step(), 0..60),
    ) {
        let idt = idt(start, limit, format);
        let grants = Grants::new();
        let mut granted = Vec::new();
        let mut machine = Machine { real: [[0xff; PAGE_BYTES]; 2], shadow: [[0; PAGE_BYTES]; 2] };
        machine.shadow = whole(&idt, &machine.real, &grants);
        for step in steps {
            match step {
                Step::Write { at, bytes } => {
                    let (page, offset) = (at / PAGE_BYTES, at % PAGE_BYTES);
                    let end = (offset + bytes.len()).min(PAGE_BYTES);
                    let bytes = &bytes[..end - offset];
                    machine.real[page][offset..end].copy_from_slice(bytes);
                    derive(&idt, page, offset, bytes, &grants, &mut machine.shadow[page]);
                }
                Step::Grant(vector) => {
                    granted.push(vector);
                    grants.grant(Vector(vector), Reason::Device);
                    if let Some(Position { page, offset }) = idt.flags_position(Vector(vector)) {
                        let flags = [idt.real_flags(Vector(vector), &machine).unwrap()];
                        derive(&idt, page, offset, &flags, &grants, &mut machine.shadow[page]);
                    }
                }
            }
        }
        prop_assert!(machine.shadow == whole(&idt, &machine.real, &grants));
        prop_assert!(machine.shadow == naive(&machine.real, (start, limit), format.size(), &granted));
    }

    #[test]
    fn any_range_leaves_the_rest_of_the_shadow_alone(
        page in 0_usize..3, offset in 0_usize..5000, length in 0_usize..5000,
        start in start(), limit in limit(), format in format(),
    ) {
        let mut shadow = [0xcc; PAGE_BYTES];
        // A flags byte that is the same open and closed.
        let real = vec![0x0e; length];
        derive(&idt(start, limit, format), page, offset, &real, &Grants::new(), &mut shadow);
        for (at, byte) in shadow.iter().enumerate() {
            let derived = at >= offset && at < offset + length;
            prop_assert_eq!(*byte, if derived { 0x0e } else { 0xcc });
        }
    }
}

#[test]
fn all_256_vectors_of_an_aligned_table_show_their_own_grant_only() {
    for format in [GateFormat::Bits32, GateFormat::Bits64] {
        let idt = idt(0, (256 * format.size() - 1) as u16, format);
        let real = [[0xff; PAGE_BYTES]; 2];
        for vector in 0..=255_u8 {
            let [shadow, _] = whole(&idt, &real, &grant_all(&[vector]));
            for other in 0..=255_u8 {
                let flags = shadow[usize::from(other) * format.size() + 5];
                let present = other < 32 || other == vector;
                assert_eq!(flags, if present { 0xff } else { 0x6e }, "{format:?} {vector} {other}");
            }
        }
    }
}

#[test]
fn a_gate_across_two_pages_is_hidden_where_its_flags_are() {
    // Gate 32 begins 4 or 12 bytes before the end of the first page: its flags byte is in the
    // second page, or in the first.
    for (before, page, offset) in [(4, 1, 1), (12, 0, 4089)] {
        let idt = idt(4096 - 512 - before, 0xfff, GateFormat::Bits64);
        assert_eq!(idt.flags_position(Vector(32)), Some(Position { page, offset }));
        let shadow = whole(&idt, &[[0xff; PAGE_BYTES]; 2], &Grants::new());
        assert_eq!(shadow[page][offset], 0x6e);
        assert_eq!(shadow[page].iter().position(|byte| *byte != 0xff), Some(offset));
    }
}

#[test]
fn a_short_table_hides_and_covers_whole_gates_only() {
    let idt = idt(0, 40 * 16 + 14, GateFormat::Bits64);
    assert!(idt.covers(Vector(39)));
    assert!(!idt.covers(Vector(40)), "its last byte is beyond the limit");
    let [shadow, _] = whole(&idt, &[[0xff; PAGE_BYTES]; 2], &Grants::new());
    assert_eq!((shadow[39 * 16 + 5], shadow[40 * 16 + 5]), (0x6e, 0xff));
}

#[test]
fn only_reached_pages_are_shadowed() {
    assert_eq!(idt(0, 0xfff, GateFormat::Bits64).pages()[1], None);
    assert_eq!(idt(0, 0xffff, GateFormat::Bits64).pages()[1], None, "256 gates end there");
    let straddling = idt(1, 0xfff, GateFormat::Bits64);
    assert_eq!(straddling.pages(), PAGES.map(|p| Some(Gpa::new(p))));
    assert_eq!(straddling.page_of(Gpa::new(0x9fff)), Some(1));
    assert_eq!(straddling.page_of(Gpa::new(0xa000)), None);
}

#[test]
fn the_real_gate_tells_what_the_guest_wants() {
    let mut machine = Machine { real: [[0; PAGE_BYTES]; 2], shadow: [[0; PAGE_BYTES]; 2] };
    machine.real[0][0x80 * 16 + 5] = 0xee;
    let idt = idt(0, 0xfff, GateFormat::Bits64);
    assert!(idt.real_gate_present(Vector(0x80), &machine));
    assert!(!idt.real_gate_present(Vector(0x81), &machine));
    let unmapped = ShadowIdt { pages: [None, None], ..idt };
    assert!(!unmapped.real_gate_present(Vector(0x80), &machine));
}
