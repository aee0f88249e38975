//! What each form of XSAVE writes, and what each of XRSTOR takes.

use core::fmt;

use payload::fact;

use super::{
    AREA, AREA_BYTES, AVX, COMPACTED, FILL, HAS_XGETBV_1, HAS_XSAVEC, HAS_XSAVEOPT, HAS_XSAVES,
    HEADER, MXCSR, SSE, X87, XRSTOR, XRSTORS, XSAVE, XSAVEC, XSAVEOPT, XSAVES, at, extended, fill,
    on, set_word, set_xcr0, supported, word, xcr,
};
use crate::control::refused;
use crate::pages::{self, TARGET};
use crate::trial::{self, Mode, Registers};

/// The blocks of 64 bytes that differ from what was there, a bit each.
struct Written;

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let written =
            |block: &usize| (0..8).any(|at| word(block * 64 + at * 8) != 0xa5a5_a5a5_a5a5_a5a5);
        let mut blocks = (0..AREA_BYTES / 64).filter(written).peekable();
        while let Some(first) = blocks.next() {
            let mut last = first;
            while blocks.next_if_eq(&(last + 1)).is_some() {
                last += 1;
            }
            write!(f, "{:#x}-{:#x} ", first * 64, last * 64 + 63)?;
        }
        write!(f, "XSTATE_BV={:#x} XCOMP_BV={:#x}", word(HEADER), word(COMPACTED))
    }
}

/// Every component in its initial state.
fn initial() {
    fill(0);
    set_word(MXCSR, 0x1f80);
    on(XRSTOR, !0);
}

/// FLD1, and ones in XMM0, or in YMM0 as well.
fn something(avx: bool) {
    trial::kernel(&[0xd9, 0xe8, 0x66, 0x0f, 0x76, 0xc0], 0);
    if avx {
        // VPCMPEQD XMM0, XMM0, XMM0; VINSERTF128 YMM0, YMM0, XMM0, 1.
        trial::kernel(&[0xc5, 0xf9, 0x76, 0xc0, 0xc4, 0xe3, 0x7d, 0x18, 0xc0, 0x01], 0);
    }
}

fn forms() -> impl Iterator<Item = (&'static str, &'static [u8])> {
    let features = extended();
    let list: [(&str, &[u8], u32); 4] = [
        ("XSAVE", XSAVE, 0),
        ("XSAVEOPT", XSAVEOPT, HAS_XSAVEOPT),
        ("XSAVEC", XSAVEC, HAS_XSAVEC),
        ("XSAVES", XSAVES, HAS_XSAVES),
    ];
    let there = list.into_iter().filter(move |(_, _, feature)| features & feature == *feature);
    there.map(|(name, code, _)| (name, code))
}

fn clear_header() {
    (0..8).for_each(|at| set_word(HEADER + at * 8, 0));
}

pub(super) fn save() {
    let most = supported() & (X87 | SSE | AVX);
    set_xcr0(most);
    for (name, code) in forms() {
        for components in [0, X87, SSE, AVX, !0] {
            initial();
            fill(FILL);
            clear_header();
            fact!("xsave: {name} of {components:#x}, all initial"; "{}, {Written}", on(code, components));
            initial();
            something(most & AVX != 0);
            fill(FILL);
            clear_header();
            fact!("xsave: {name} of {components:#x}, all in use"; "{}, {Written}", on(code, components));
        }
        fact!("xsave: {name} at 32 behind 64"; "{}", at(code, AREA.address() + 32, 1));
        fact!("xsave: {name} at 1 behind 64"; "{}", at(code, AREA.address() + 1, 1));
        fact!("xsave: {name} in no page"; "{}", at(code, pages::at(pages::HOLE), 1));
        fact!("xsave: {name} that ends in no page"; "{}", at(code, pages::at(pages::HOLE) - 512, 1));
        fact!("xsave: {name} where no address is"; "{}", at(code, 1 << 63, 1));
        let registers = Registers { rdi: pages::at(TARGET), rax: 1, ..Registers::default() };
        fact!("xsave: {name} at CPL 3"; "{}", trial::run(Mode::User, code, registers));
        let mut prefixed = [0xf0; 5];
        for (to, from) in prefixed.iter_mut().skip(1).zip(code) {
            *to = *from;
        }
        fact!("xsave: {name} with LOCK"; "{}", on(&prefixed, 1));
    }
    for (name, code, feature) in [
        ("XSAVEOPT", XSAVEOPT, HAS_XSAVEOPT),
        ("XSAVEC", XSAVEC, HAS_XSAVEC),
        ("XSAVES", XSAVES, HAS_XSAVES),
    ] {
        if extended() & feature == 0 {
            fact!("xsave: {name}, not announced"; "{}", on(code, 1));
        }
    }
    if extended() & HAS_XGETBV_1 != 0 {
        initial();
        something(most & AVX != 0);
        fact!("xsave: XINUSE of what is in use"; "{}", xcr(1));
    }
}

pub(super) fn restore() {
    let most = supported() & (X87 | SSE | AVX);
    set_xcr0(most);
    initial();
    something(most & AVX != 0);
    fill(0);
    on(XSAVE, !0);
    trial::kernel(&[0xdb, 0xe3, 0x0f, 0x57, 0xc0], 0);
    fact!("xsave: XRSTOR of what was saved"; "{}", on(XRSTOR, !0));
    fill(FILL);
    clear_header();
    on(XSAVE, !0);
    fact!("xsave: saved once more"; "{Written}, {:#x}, {:#x}, {:#x}", word(40) & 0xffff, word(0xa0), word(576));
    let names = [("XRSTOR", XRSTOR, false), ("XRSTORS", XRSTORS, true)];
    for (name, code, supervisor) in names {
        if supervisor && extended() & HAS_XSAVES == 0 {
            fact!("xsave: {name}, not announced"; "{}", on(code, 1));
            continue;
        }
        let compacted = extended() & HAS_XSAVEC != 0;
        for (form, high) in [("standard", 0), ("compacted", 1 << 63)] {
            let header = |at: usize, value: u64| {
                fill(0);
                set_word(MXCSR, 0x1f80);
                set_word(COMPACTED, high | if high == 0 { 0 } else { most });
                set_word(at, word(at) | value);
                on(code, most).fine()
            };
            let all = header(HEADER, 0);
            fact!("xsave: {name}, {form}, announced {compacted}"; "{all}");
            if !all {
                continue;
            }
            let in_use = refused(|bit| header(HEADER, bit));
            let layout = refused(|bit| header(COMPACTED, bit));
            fact!("xsave: {name}, {form}: bits of XSTATE_BV, XCOMP_BV that are refused"; "{in_use:#x}, {layout:#x}");
            let rest: [bool; 6] =
                core::array::from_fn(|at| header(HEADER + 16 + 8 * at, 1 << (8 * at + 3)));
            fact!("xsave: {name}, {form}: a bit in bytes 16 to 63 of the header"; "{rest:?}");
            let control = refused(|bit| {
                fill(0);
                set_word(HEADER, SSE);
                set_word(COMPACTED, high | if high == 0 { 0 } else { most });
                set_word(MXCSR, bit & 0xffff_ffff);
                on(code, most).fine()
            });
            fact!("xsave: {name}, {form}: bits of MXCSR that are refused"; "{control:#x}");
        }
        fill(0);
        set_word(MXCSR, 0x1f80);
        fact!("xsave: {name} at 32 behind 64"; "{}", at(code, AREA.address() + 32, 1));
        fact!("xsave: {name} in no page"; "{}", at(code, pages::at(pages::HOLE), 1));
        let registers = Registers { rdi: pages::at(TARGET), rax: 1, ..Registers::default() };
        // SAFETY: the target's data.
        unsafe { pages::data(TARGET).write_bytes(0, 4096) };
        fact!("xsave: {name} at CPL 3"; "{}", trial::run(Mode::User, code, registers));
    }
    initial();
    // STMXCSR [RDI].
    on(&[0x0f, 0xae, 0x1f], 0);
    fact!("xsave: MXCSR after XRSTOR of what is initial"; "{:#x}", word(0) & 0xffff_ffff);
}
