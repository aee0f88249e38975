//! FXSAVE and MXCSR, and what CR0 and CR4 have to do with floating-point and vector instructions.

use payload::fact;

use super::{AREA, FILL, FXRSTOR, FXSAVE, LDMXCSR, MXCSR, at, fill, on, set_word, word};
use crate::control::{self, cr0, cr4, refused, set_cr0, set_cr4};
use crate::pages::{self, ALL, PRESENT, TARGET, USER};
use crate::trial::{self, Mode, Registers};

/// FXSAVE, FXRSTOR and MXCSR.
pub(super) fn legacy() {
    let before = cr4();
    set_cr4(before | control::OSFXSR | control::OSXMMEXCPT);
    // FNINIT; XORPS XMM0, XMM0; FLD1; MOVMSKPS EAX, XMM0.
    trial::kernel(&[0xdb, 0xe3, 0x0f, 0x57, 0xc0, 0xd9, 0xe8], 0);
    fill(FILL);
    fact!("xsave: FXSAVE"; "{}", on(FXSAVE, 0));
    fact!("xsave: FXSAVE: control and status, MXCSR and its mask, ST0"; "{:#x}, {:#x}, {:#x} {:#x}",
        word(0) & 0xff_ffff_ffff, word(MXCSR), word(32), word(40) & 0xffff);
    fact!("xsave: FXSAVE: 0x140, 0x1a0, 0x1d0"; "{:#x}, {:#x}, {:#x}", word(0x140), word(0x1a0), word(0x1d0));
    fact!("xsave: FXRSTOR"; "{}", on(FXRSTOR, 0));
    let reserved = refused(|bit| {
        set_word(MXCSR, bit & 0xffff_ffff);
        on(FXRSTOR, 0).fine()
    });
    fact!("xsave: FXRSTOR, bits of MXCSR that are refused"; "{reserved:#x}");
    let reserved = refused(|bit| {
        set_word(0, bit & 0xffff_ffff);
        on(LDMXCSR, 0).fine()
    });
    fact!("xsave: LDMXCSR, bits that are refused"; "{reserved:#x}");
    set_word(0, 0x1f80);
    on(LDMXCSR, 0);
    for (name, code) in [("FXSAVE", FXSAVE), ("FXRSTOR", FXRSTOR)] {
        fill(0);
        set_word(MXCSR, 0x1f80);
        fact!("xsave: {name} at 8 behind 16"; "{}", at(code, AREA.address() + 8, 0));
        fact!("xsave: {name} at 1 behind 16"; "{}", at(code, AREA.address() + 1, 0));
        fact!("xsave: {name} in no page"; "{}", at(code, pages::at(pages::HOLE), 0));
        fact!("xsave: {name} that ends in no page"; "{}", at(code, pages::at(pages::HOLE) - 256, 0));
    }
    pages::map(TARGET, PRESENT | USER);
    let registers = Registers { rdi: pages::at(TARGET), ..Registers::default() };
    fact!("xsave: FXSAVE at CPL 3 in a page for reading"; "{}", trial::run(Mode::User, FXSAVE, registers));
    pages::map(TARGET, ALL);
    set_cr4(before);
}

/// CR0's EM, TS, MP and NE and CR4's OSFXSR and OSXMMEXCPT.
pub(super) fn guards() {
    const CODES: [(&str, &[u8]); 8] = [
        ("FLD1", &[0xd9, 0xe8]),
        ("FWAIT", &[0x9b]),
        ("FNINIT", &[0xdb, 0xe3]),
        ("XORPS", &[0x0f, 0x57, 0xc0]),
        ("EMMS", &[0x0f, 0x77]),
        ("FXSAVE", FXSAVE),
        ("FXRSTOR", FXRSTOR),
        ("LDMXCSR", &[0x0f, 0xae, 0x57, 0x18]),
    ];
    let (control_0, control_4) = (cr0(), cr4());
    fill(0);
    set_word(MXCSR, 0x1f80);
    for fxsr in [0, control::OSFXSR] {
        set_cr4(control_4 & !control::OSFXSR | fxsr);
        for bits in 0..8 {
            let [monitor, emulate, switched] = [bits & 1, bits >> 1 & 1, bits >> 2];
            let changed =
                (monitor * control::MP) | (emulate * control::EM) | (switched * control::TS);
            set_cr0(control_0 & !(control::MP | control::EM | control::TS) | changed);
            let seen = CODES.map(|(_, code)| on(code, 0).after.vector);
            fact!("xsave: OSFXSR={} TS={switched} EM={emulate} MP={monitor}: FLD1, FWAIT, FNINIT, XORPS, EMMS, FXSAVE, FXRSTOR, LDMXCSR", u8::from(fxsr != 0);
                "{seen:?}");
        }
    }
    set_cr0(control_0);
    // FNINIT; FLDCW [RDI]; FLD1; FLDZ; FDIVP; FWAIT. The exception of division by zero is not masked.
    const DIVIDE: &[u8] = &[0xdb, 0xe3, 0xd9, 0x2f, 0xd9, 0xe8, 0xd9, 0xee, 0xde, 0xf9, 0x9b];
    set_word(0, 0x37b);
    fact!("xsave: x87 divides by zero, FWAIT"; "{}", on(DIVIDE, 0));
    // FNSTSW AX, which does not wait.
    fact!("xsave: x87's status"; "{:#x}", trial::kernel(&[0xdf, 0xe0], 0).after.rax & 0xffff);
    for (name, code) in
        [("FLD1", &[0xd9, 0xe8][..]), ("FNSTSW", &[0xdf, 0xe0]), ("EMMS", &[0x0f, 0x77])]
    {
        fact!("xsave: after x87's error, {name}"; "{}", trial::kernel(code, 0));
    }
    set_cr4(control_4 | control::OSFXSR);
    fact!("xsave: after x87's error, XORPS"; "{}", trial::kernel(&[0x0f, 0x57, 0xc0], 0));
    fact!("xsave: after x87's error, FNINIT and FLD1"; "{}", trial::kernel(&[0xdb, 0xe3, 0xd9, 0xe8], 0));
    // LDMXCSR [RDI]; XORPS XMM0, XMM0; CVTSI2SS XMM1, EDI; DIVSS XMM1, XMM0; STMXCSR [RDI].
    const DIVIDE_SSE: &[u8] = &[
        0x0f, 0xae, 0x17, 0x0f, 0x57, 0xc0, 0xf3, 0x0f, 0x2a, 0xcf, 0xf3, 0x0f, 0x5e, 0xc8, 0x0f,
        0xae, 0x1f,
    ];
    for (exceptions, set) in [(0, 0), (1, control::OSXMMEXCPT)] {
        set_cr4(control_4 & !control::OSXMMEXCPT | control::OSFXSR | set);
        set_word(0, 0x1f80 & !0x1200);
        fact!("xsave: OSXMMEXCPT={exceptions}: SSE divides by zero"; "{}", on(DIVIDE_SSE, 0));
    }
    set_word(0, 0x1f80);
    fact!("xsave: SSE divides by zero, masked: MXCSR"; "{}, {:#x}", on(DIVIDE_SSE, 0), word(0) & 0xffff);
    set_word(0, 0x1f80);
    on(LDMXCSR, 0);
    trial::kernel(&[0xdb, 0xe3], 0);
    set_cr4(control_4);
}
