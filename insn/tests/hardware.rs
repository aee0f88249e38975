//! The arithmetic against the CPU that runs the test.
#![cfg(target_arch = "x86_64")]

use std::arch::asm;

use arch::Width;
use insn::alu::{BitFunction, Function, Unary, arithmetic, bit, unary};
use proptest::prelude::*;

const ALL: u64 = 0x8d5;
const AF: u64 = 0x10;

macro_rules! binary {
    ($name:literal, $width:expr, $a:expr, $b:expr, $flags:expr) => {{
        let (mut result, mut flags): (u64, u64) = ($a, $flags | 2);
        macro_rules! run {
            ($form:literal) => {
                // SAFETY: register arithmetic; only status flags are loaded, and the stack
                // pointer is where it was at the end.
                unsafe {
                    asm!(
                        "push {f}", "popfq", concat!($name, " {r:", $form, "}, {b:", $form, "}"),
                        "pushfq", "pop {f}",
                        r = inout(reg) result, b = in(reg) $b, f = inout(reg) flags,
                    )
                }
            };
        }
        match $width {
            Width::Byte => {
                let mut byte = result as u8;
                // SAFETY: as above.
                unsafe {
                    asm!(
                        "push {f}", "popfq", concat!($name, " {r}, {b}"), "pushfq", "pop {f}",
                        r = inout(reg_byte) byte, b = in(reg_byte) $b as u8, f = inout(reg) flags,
                    );
                }
                result = u64::from(byte);
            }
            Width::Word => run!("x"),
            Width::Dword => run!("e"),
            Width::Qword => run!("r"),
        }
        (result & $width.mask(), flags & ALL)
    }};
}

macro_rules! one {
    ($name:literal, $width:expr, $a:expr, $flags:expr) => {{
        let (mut result, mut flags): (u64, u64) = ($a, $flags | 2);
        macro_rules! run {
            ($form:literal) => {
                // SAFETY: as in `binary`.
                unsafe {
                    asm!(
                        "push {f}", "popfq", concat!($name, " {r:", $form, "}"),
                        "pushfq", "pop {f}",
                        r = inout(reg) result, f = inout(reg) flags,
                    )
                }
            };
        }
        match $width {
            Width::Byte => {
                let mut byte = result as u8;
                // SAFETY: as in `binary`.
                unsafe {
                    asm!(
                        "push {f}", "popfq", concat!($name, " {r}"), "pushfq", "pop {f}",
                        r = inout(reg_byte) byte, f = inout(reg) flags,
                    );
                }
                result = u64::from(byte);
            }
            Width::Word => run!("x"),
            Width::Dword => run!("e"),
            Width::Qword => run!("r"),
        }
        (result & $width.mask(), flags & ALL)
    }};
}

fn value() -> impl Strategy<Value = u64> {
    let edge = vec![
        0,
        1,
        0x7f,
        0x80,
        0xff,
        0x7fff,
        0x8000,
        0xffff,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        u64::MAX >> 1,
        1 << 63,
        u64::MAX,
    ];
    prop_oneof![any::<u64>(), prop::sample::select(edge)]
}

fn width() -> impl Strategy<Value = Width> {
    prop::sample::select(vec![Width::Byte, Width::Word, Width::Dword, Width::Qword])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn two_operand_functions_agree_with_the_cpu(
        a in value(), b in value(), width in width(), carry: bool,
    ) {
        let before = u64::from(carry);
        let of = |function| {
            let (result, flags) = arithmetic(function, width, a, b, before);
            (result, flags & ALL)
        };
        prop_assert_eq!(of(Function::Add), binary!("add", width, a, b, before));
        prop_assert_eq!(of(Function::Adc), binary!("adc", width, a, b, before));
        prop_assert_eq!(of(Function::Sub), binary!("sub", width, a, b, before));
        prop_assert_eq!(of(Function::Sbb), binary!("sbb", width, a, b, before));
        prop_assert_eq!(of(Function::Cmp).1, binary!("cmp", width, a, b, before).1);
        // AF is undefined after the logical ones.
        let logical = |(result, flags): (u64, u64)| (result, flags & !AF);
        prop_assert_eq!(of(Function::And), logical(binary!("and", width, a, b, before)));
        prop_assert_eq!(of(Function::Or), logical(binary!("or", width, a, b, before)));
        prop_assert_eq!(of(Function::Xor), logical(binary!("xor", width, a, b, before)));
    }

    #[test]
    fn one_operand_functions_agree_with_the_cpu(a in value(), width in width(), carry: bool) {
        let before = u64::from(carry);
        let of = |function| {
            let (result, flags) = unary(function, width, a, before);
            (result, flags & ALL)
        };
        prop_assert_eq!(of(Unary::Increment), one!("inc", width, a, before));
        prop_assert_eq!(of(Unary::Decrement), one!("dec", width, a, before));
        prop_assert_eq!(of(Unary::Negate), one!("neg", width, a, before));
        prop_assert_eq!(of(Unary::Not), one!("not", width, a, before));
    }

    #[test]
    fn bit_functions_agree_with_the_cpu(
        a in value(), offset in value(),
        width in prop::sample::select(vec![Width::Word, Width::Dword, Width::Qword]),
    ) {
        let of = |function| {
            let (result, flags) = bit(function, width, a, offset, 0);
            (result, flags & 1)
        };
        // The other status flags are undefined or untouched after them.
        macro_rules! cpu {
            ($name:literal) => {{
                let (mut result, mut carry) = (a, 0_u8);
                macro_rules! run {
                    ($form:literal) => {
                        // SAFETY: register arithmetic.
                        unsafe {
                            asm!(
                                concat!($name, " {r:", $form, "}, {b:", $form, "}"), "setc {c}",
                                r = inout(reg) result, b = in(reg) offset, c = out(reg_byte) carry,
                            )
                        }
                    };
                }
                match width {
                    Width::Byte => unreachable!("not a form of the instruction"),
                    Width::Word => run!("x"),
                    Width::Dword => run!("e"),
                    Width::Qword => run!("r"),
                }
                (result & width.mask(), u64::from(carry))
            }};
        }
        let masked = |(result, carry): (u64, u64)| (result & width.mask(), carry);
        prop_assert_eq!(masked(of(BitFunction::Test)), cpu!("bt"));
        prop_assert_eq!(masked(of(BitFunction::Set)), cpu!("bts"));
        prop_assert_eq!(masked(of(BitFunction::Reset)), cpu!("btr"));
        prop_assert_eq!(masked(of(BitFunction::Complement)), cpu!("btc"));
    }
}
