//! System instructions and registers at CPL 0: what is refused, and how.

use crate::fact;
use crate::trap::{self, Told};

/// Where no address is.
const NOT_CANONICAL: u64 = 0x8000_0000_0000;
/// EDX:EAX = RDI.
const RDX_OF_RDI: [u8; 10] = [0x89, 0xf8, 0x48, 0x89, 0xfa, 0x48, 0xc1, 0xea, 32, 0x90];

/// Name, code, RDI.
const CODES: &[(&str, &[u8], u64)] = &[
    ("SYSCALL with no EFER.SCE", &[0x0f, 0x05], 0),
    ("CR4.OSXSAVE set", &[0x0f, 0x20, 0xe0, 0x48, 0x0f, 0xba, 0xe8, 18, 0x0f, 0x22, 0xe0], 0),
    ("XGETBV of 2", &[0xb9, 2, 0, 0, 0, 0x0f, 0x01, 0xd0], 0),
    (
        "XSETBV of register 1",
        &[0xb9, 1, 0, 0, 0, 0x31, 0xd2, 0xb8, 1, 0, 0, 0, 0x0f, 0x01, 0xd1],
        0,
    ),
    ("XCR0 without x87", &[0x31, 0xc9, 0x31, 0xd2, 0xb8, 2, 0, 0, 0, 0x0f, 0x01, 0xd1], 0),
    ("XCR0 with AVX and no SSE", &[0x31, 0xc9, 0x31, 0xd2, 0xb8, 5, 0, 0, 0, 0x0f, 0x01, 0xd1], 0),
    ("CLTS", &[0x0f, 0x06], 0),
    ("SWAPGS twice", &[0x0f, 0x01, 0xf8, 0x0f, 0x01, 0xf8], 0),
    ("SMSW", &[0x0f, 0x01, 0xe0], 0),
    ("RDPKRU with no CR4.PKE", &[0x31, 0xc9, 0x0f, 0x01, 0xee], 0),
    ("INVLPG of no address", &[0x0f, 0x01, 0x3f], NOT_CANONICAL),
    ("FXSAVE at an odd place", &[0x0f, 0xae, 0x07], 0x10_0001),
    ("far RET to a null selector", &[0x6a, 0, 0x6a, 0, 0x48, 0xcb], 0),
    ("far RET to a data segment", &[0x6a, 16, 0x6a, 0, 0x48, 0xcb], 0),
    (
        "far JMP to a selector beyond the GDT",
        &[0x68, 0x38, 0x12, 0, 0, 0x6a, 0, 0x48, 0xff, 0x2c, 0x24],
        0,
    ),
    ("INTO", &[0xce], 0),
    ("PUSH CS", &[0x0e], 0),
    ("CALL far by a pointer", &[0x9a, 0, 0, 0, 0, 8, 0], 0),
    ("LES", &[0xc4, 0x07], 0),
    ("an instruction of 16 bytes", &[0x66; 16], 0),
];

/// MSR writes that the CPU refuses: name, MSR, value.
const WRITES: &[(&str, u32, u64)] = &[
    ("EFER with bit 1", 0xc000_0080, 0x502),
    ("LSTAR with no address", 0xc000_0082, NOT_CANONICAL),
    ("FS.base with no address", 0xc000_0100, NOT_CANONICAL),
    ("KernelGSbase with no address", 0xc000_0102, NOT_CANONICAL),
    ("SYSENTER_EIP with no address", 0x176, NOT_CANONICAL),
    ("PAT with type 2", 0x277, 0x0007_0406_0007_0402),
    ("PAT with type 8", 0x277, 0x0007_0406_0007_0408),
    ("APIC_BASE with bit 9", 0x1b, 0xfee0_0b00),
];

pub(crate) fn all() {
    for (name, code, argument) in CODES {
        fact!("system: {name}"; "{}", Told(trap::bytes(code, *argument)));
    }
    for (name, msr, value) in WRITES {
        // MOV ECX, msr; EDX:EAX = RDI; WRMSR.
        let mut code = [0; 17];
        code[0] = 0xb9;
        code[1..5].copy_from_slice(&msr.to_le_bytes());
        code[5..15].copy_from_slice(&RDX_OF_RDI);
        code[15..].copy_from_slice(&[0x0f, 0x30]);
        fact!("system: {name}"; "{}", Told(trap::bytes(&code, *value)));
    }
}
