//! Exceptions: vector, error code, RF in the frame, and where.

use crate::fact;
use crate::trap::{self, Told};

/// The argument: where nothing is mapped, and where no address is.
const NOT_MAPPED: u64 = 0x1_0000_0000;
const NOT_CANONICAL: u64 = 0x8000_0000_0000;

/// What raises one: name, code, RDI.
const CODES: &[(&str, &[u8], u64)] = &[
    ("DIV by 0", &[0x31, 0xc9, 0xf7, 0xf1], 0),
    ("INT1", &[0xf1], 0),
    ("INT3", &[0xcc], 0),
    ("UD2", &[0x0f, 0x0b], 0),
    ("LOCK NOP", &[0xf0, 0x90], 0),
    ("a read where nothing is mapped", &[0x8b, 0x07], NOT_MAPPED),
    ("a write where nothing is mapped", &[0x89, 0x07], NOT_MAPPED),
    ("a jump to where nothing is mapped", &[0xff, 0xe7], NOT_MAPPED),
    ("a read of no address", &[0x8b, 0x07], NOT_CANONICAL),
    ("a read of no address by the stack", &[0x48, 0x89, 0xfd, 0x8b, 0x45, 0x00], NOT_CANONICAL),
    ("a selector beyond the GDT", &[0x8e, 0xdf], 0x1238),
    ("a selector beyond the GDT for SS", &[0x8e, 0xd7], 0x1238),
    ("RDMSR of none", &[0x89, 0xf9, 0x0f, 0x32], 0x1234_5678),
    ("WRMSR of none", &[0x89, 0xf9, 0x0f, 0x30], 0x1234_5678),
    // MOV RAX, CRn; BTS RAX, bit; MOV CRn, RAX.
    ("CR0 with bit 32", &[0x0f, 0x20, 0xc0, 0x48, 0x0f, 0xba, 0xe8, 32, 0x0f, 0x22, 0xc0], 0),
    ("DR7 = ones", &[0x0f, 0x23, 0xff], !0),
    ("CR1", &[0x0f, 0x22, 0xcf], 0),
    ("VMCALL", &[0x0f, 0x01, 0xc1], 0),
    ("VMMCALL", &[0x0f, 0x01, 0xd9], 0),
    ("VMRUN", &[0x0f, 0x01, 0xd8], 0),
    ("SYSRET with no EFER.SCE", &[0x48, 0x0f, 0x07], 0),
    ("RSM", &[0x0f, 0xaa], 0),
    ("IRETQ to a null CS", &[0x6a, 0, 0x6a, 0, 0x6a, 2, 0x6a, 0, 0x6a, 0, 0x48, 0xcf], 0),
];

pub(crate) fn all() {
    for (name, code, argument) in CODES {
        fact!("exception: {name}"; "{}", Told(trap::bytes(code, *argument)));
    }
    // PUSHF, or TF in it, POPF; NOP; NOP.
    let single_step = [0x9c, 0x80, 0x4c, 0x24, 1, 1, 0x9d, 0x90, 0x90];
    fact!("exception: a single step"; "{}", Told(trap::bytes(&single_step, 0)));
    for (name, instruction) in [
        ("CPUID", &[0x0f, 0xa2][..]),
        ("RDMSR", &[0x0f, 0x32]),
        ("IN", &[0xe4, 0x80]),
        ("OUT", &[0xe6, 0x80]),
        ("a prefix and CPUID", &[0x66, 0x0f, 0xa2]),
    ] {
        // PUSH RBX; MOV ECX, EDI; XOR EAX, EAX; PUSHF; OR TF; POPF; the instruction; NOP; POP RBX.
        let mut code = [0x90_u8; 24];
        let head = [0x53, 0x89, 0xf9, 0x31, 0xc0, 0x9c, 0x80, 0x4c, 0x24, 1, 1, 0x9d];
        code[..12].copy_from_slice(&head);
        code[12..12 + instruction.len()].copy_from_slice(instruction);
        code[23] = 0x5b;
        fact!("exception: a single step behind {name}"; "{}", Told(trap::bytes(&code, 0x1b)));
    }
    for (name, selector, flags) in [
        ("not present", 8, 0x0e),
        ("of type 5", 8, 0x85),
        ("of type 0", 8, 0x80),
        ("with a data selector", 16, trap::GATE),
        ("with a null selector", 0, trap::GATE),
        ("with a selector beyond the GDT", 0x1238, trap::GATE),
    ] {
        trap::set_gate(0x35, selector, flags);
        fact!("exception: INT by a gate {name}"; "{}", Told(trap::bytes(&[0xcd, 0x35], 0)));
    }
    trap::set_gate(0x35, 8, trap::GATE);
    trap::load(0x20 * 16 - 1);
    fact!("exception: INT beyond the IDT"; "{}", Told(trap::bytes(&[0xcd, 0x35], 0)));
    trap::load(0xfff);
}
