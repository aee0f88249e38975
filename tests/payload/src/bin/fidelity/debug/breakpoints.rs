//! Breakpoints: lengths, two at once, elements of string instructions, what RF and MOV to SS hold back.

use super::{CLEAR, NOTHING, READ, Trial, WRITE, extensions, told};
use crate::trap;

const fn kind(access: u64, length: u64) -> u64 {
    NOTHING | 1 | access << 16 | length << 18
}

const ON_WRITE: u64 = 1;
const ON_PORT: u64 = 2;
const ON_ACCESS: u64 = 3;
/// Values of the length's field.
const ONE: u64 = 0;
const TWO: u64 = 1;
const EIGHT: u64 = 2;
const FOUR: u64 = 3;

#[repr(align(64))]
struct Bytes([u8; 128]);

pub(super) fn all() {
    let bytes = Bytes([0x10; 128]);
    // In the middle of them, and at an address that all lengths are aligned to.
    let at = &raw const bytes.0 as u64 + 64;
    lengths(at);
    execution();
    strings(at);
    behind_stack_switch(at);
}

/// MOV [RDI], of each width, and MOV from it.
fn lengths(at: u64) {
    let store: &[u8] = &[0x88, 0x07, 0x90];
    let store_4: &[u8] = &[0x89, 0x07, 0x90];
    let store_8: &[u8] = &[0x48, 0x89, 0x07, 0x90];
    let trials: &[Trial<'_>] = &[
        ("a byte's write, 8 bytes from 7 below", store, at - 7, CLEAR, kind(ON_WRITE, EIGHT)),
        ("a byte's write, 8 bytes from 8 below", store, at - 8, CLEAR, kind(ON_WRITE, EIGHT)),
        ("a byte's write, 4 bytes from 3 above", store, at + 3, CLEAR, kind(ON_WRITE, FOUR)),
        ("a byte's write, 2 bytes from 1 above", store, at + 1, CLEAR, kind(ON_WRITE, TWO)),
        ("a byte's write, 1 byte above", store, at + 1, CLEAR, kind(ON_WRITE, ONE)),
        ("a write of 4 bytes, its last byte", store_4, at + 3, CLEAR, kind(ON_WRITE, ONE)),
        ("a write of 4 bytes, the byte above", store_4, at + 4, CLEAR, kind(ON_WRITE, ONE)),
        ("a write of 8 bytes, its last byte", store_8, at + 7, CLEAR, kind(ON_WRITE, ONE)),
        ("a write of 8 bytes, 8 bytes", store_8, at, CLEAR, kind(ON_WRITE, EIGHT)),
        ("a write by G0", store_4, at, CLEAR, kind(ON_WRITE, FOUR) + 1),
        ("a write with LE and GE", store_4, at, CLEAR, kind(ON_WRITE, FOUR) | 0x300),
        (
            "a write by two, read or write with the second",
            store_4,
            at,
            CLEAR,
            WRITE | 4 | 0xf << 20,
        ),
        ("a write by two, reads with the first", store_4, at, CLEAR, READ | 4 | 0xd << 20),
        ("a write, no port without CR4.DE", store_4, at, CLEAR, kind(ON_PORT, FOUR)),
        // MOV from [RDI], XADD, XCHG, TEST, INC, PUSH and POP.
        (
            "a read of 4 bytes, its last byte",
            &[0x8b, 0x07, 0x90],
            at + 3,
            CLEAR,
            kind(ON_ACCESS, ONE),
        ),
        ("XADD, on writes", &[0x0f, 0xc1, 0x07, 0x90], at, CLEAR, WRITE),
        ("XCHG, on writes", &[0x87, 0x07, 0x90], at, CLEAR, WRITE),
        ("TEST, on writes", &[0x85, 0x07, 0x90], at, CLEAR, WRITE),
        ("INC, on reads and writes", &[0xff, 0x07, 0x90], at, CLEAR, READ),
        ("PUSH of it", &[0xff, 0x37, 0x58, 0x90], at, CLEAR, READ),
        ("POP to it", &[0x50, 0x8f, 0x07, 0x90], at, CLEAR, WRITE),
        // What is no access.
        ("PREFETCHT0", &[0x0f, 0x18, 0x0f, 0x90], at, CLEAR, READ),
        ("NOP with an operand", &[0x0f, 0x1f, 0x07, 0x90], at, CLEAR, READ),
        ("LEA", &[0x8d, 0x07, 0x90], at, CLEAR, READ),
    ];
    for trial in trials {
        told(trial, at);
    }
}

/// Instructions.
fn execution() {
    let code = trap::code();
    /// MOV RAX, RSP; PUSH SS, RSP, RFLAGS, CS, RIP; IRETQ; NOP; NOP.
    const fn iret(flags: u8) -> [u8; 25] {
        [
            0x48, 0x89, 0xe0, 0x6a, 16, 0x50, 0x68, 2, 0, flags, 0, 0x6a, 8, 0x48, 0x8d, 0x0d, 3,
            0, 0, 0, 0x51, 0x48, 0xcf, 0x90, 0x90,
        ]
    }
    const EXECUTE: u64 = NOTHING | 1;
    let plain: &[u8] = &[0x90, 0x66, 0x90, 0x90];
    let shadow: &[u8] = &[0x8c, 0xd1, 0x8e, 0xd1, 0x90, 0x90];
    let cpuid: &[u8] = &[0x53, 0x31, 0xc0, 0x0f, 0xa2, 0x90, 0x5b];
    let trials: &[Trial<'_>] = &[
        ("an instruction, its second byte", plain, code + 2, CLEAR, EXECUTE),
        ("an instruction, by both", plain, code + 1, CLEAR, EXECUTE | 4),
        ("an instruction, of 2 bytes", plain, code + 1, CLEAR, EXECUTE | TWO << 18),
        ("an instruction, of 8 bytes", plain, code + 1, CLEAR, EXECUTE | EIGHT << 18),
        ("an instruction, B1 and BS before", plain, code + 1, CLEAR | 1 << 14 | 2, EXECUTE),
        ("an instruction behind IRETQ", &iret(0), code + 23, CLEAR, EXECUTE),
        ("an instruction behind IRETQ that sets RF", &iret(1), code + 23, CLEAR, EXECUTE),
        ("the second behind IRETQ that sets RF", &iret(1), code + 24, CLEAR, EXECUTE),
        // POPF does not set RF: PUSH 0x10002; POPF.
        (
            "an instruction behind POPF that has RF",
            &[0x68, 2, 0, 1, 0, 0x9d, 0x90],
            code + 6,
            CLEAR,
            EXECUTE,
        ),
        ("an instruction behind MOV to SS", shadow, code + 4, CLEAR, EXECUTE),
        ("the second behind MOV to SS", shadow, code + 5, CLEAR, EXECUTE),
        ("STI", &[0xfb, 0xfa], code, CLEAR, EXECUTE),
        ("the instruction behind STI", &[0xfb, 0xfa], code + 1, CLEAR, EXECUTE),
        ("CPUID", cpuid, code + 3, CLEAR, EXECUTE),
        ("the instruction behind CPUID", cpuid, code + 5, CLEAR, EXECUTE),
        ("UD2", &[0x90, 0x0f, 0x0b], code + 1, CLEAR, EXECUTE),
        ("INT1, at it", &[0x90, 0xf1], code + 1, CLEAR, EXECUTE),
        ("INT3, at it", &[0x90, 0xcc], code + 1, CLEAR, EXECUTE),
    ];
    for trial in trials {
        told(trial, 0);
    }
}

/// MOV ECX, 4; MOV RSI, RDI; then the instruction with REP.
fn strings(at: u64) {
    const HEAD: [u8; 8] = [0xb9, 4, 0, 0, 0, 0x48, 0x89, 0xfe];
    for (name, instruction, access) in [
        ("REP STOSB", &[0xf3, 0xaa][..], ON_WRITE),
        ("REP STOSQ", &[0xf3, 0x48, 0xab], ON_WRITE),
        ("REP MOVSB, what it writes", &[0xf3, 0xa4], ON_WRITE),
        ("REP LODSB", &[0xf3, 0xac], ON_ACCESS),
        ("REPNE SCASB", &[0xf2, 0xae], ON_ACCESS),
        ("REP CMPSB", &[0xf3, 0xa6], ON_ACCESS),
    ] {
        let mut code = [0x90; 13];
        code[..8].copy_from_slice(&HEAD);
        code[8..8 + instruction.len()].copy_from_slice(instruction);
        let width = if instruction.len() == 3 { 8 } else { 1 };
        for (which, element) in [("first", 0), ("second", 1), ("last", 3)] {
            let place = at + element * width;
            let mut text = [0_u8; 64];
            let name = join(&mut text, &[name, ", its ", which]);
            told(&(name, &code, place, CLEAR, kind(access, ONE)), at);
        }
    }
}

fn join<'a>(text: &'a mut [u8; 64], parts: &[&str]) -> &'a str {
    let bytes = parts.iter().flat_map(|part| part.bytes());
    let mut length = 0;
    for (to, from) in text.iter_mut().zip(bytes) {
        *to = from;
        length += 1;
    }
    core::str::from_utf8(&text[..length]).unwrap_or_default()
}

/// MOV SS, [RDI], where a breakpoint is: its trap comes behind the next instruction.
fn behind_stack_switch(at: u64) {
    // The selector.
    // SAFETY: one of the bytes that the caller owns.
    unsafe { (at as *mut u16).write_volatile(16) };
    let trials: &[Trial<'_>] = &[
        ("MOV to SS from memory, NOP", &[0x8e, 0x17, 0x90, 0x90], at, CLEAR, kind(ON_ACCESS, TWO)),
        (
            "MOV to SS from memory, CPUID",
            &[0x53, 0x8e, 0x17, 0x0f, 0xa2, 0x90, 0x5b],
            at,
            CLEAR,
            kind(ON_ACCESS, TWO),
        ),
        ("MOV to SS from memory, INT1", &[0x8e, 0x17, 0xf1, 0x90], at, CLEAR, kind(ON_ACCESS, TWO)),
        ("MOV to SS from memory, INT3", &[0x8e, 0x17, 0xcc, 0x90], at, CLEAR, kind(ON_ACCESS, TWO)),
        (
            "MOV to SS from memory, INT 1",
            &[0x8e, 0x17, 0xcd, 1, 0x90],
            at,
            CLEAR,
            kind(ON_ACCESS, TWO),
        ),
        (
            "MOV to SS from memory, IN",
            &[0x8e, 0x17, 0xe4, 0x21, 0x90],
            at,
            CLEAR,
            kind(ON_ACCESS, TWO),
        ),
        (
            "MOV to SS from memory, OUT",
            &[0x8e, 0x17, 0xe6, 0x80, 0x90],
            at,
            CLEAR,
            kind(ON_ACCESS, TWO),
        ),
        (
            "MOV to SS from memory, a write to it",
            &[0x8e, 0x17, 0x88, 0x07, 0x90],
            at,
            CLEAR,
            kind(ON_ACCESS, TWO),
        ),
        (
            "MOV to SS from memory, twice",
            &[0x8e, 0x17, 0x8e, 0x17, 0x90, 0x90],
            at,
            CLEAR,
            kind(ON_ACCESS, TWO),
        ),
    ];
    for trial in trials {
        told(trial, at);
    }
    extensions(true);
    told(
        &(
            "MOV to SS, IN from a port with a breakpoint",
            &[0x8c, 0xd1, 0x8e, 0xd1, 0xe4, 0x21, 0x90, 0x90],
            0x21,
            CLEAR,
            kind(ON_PORT, ONE),
        ),
        at,
    );
    extensions(false);
}
