//! IOPL, the TSS's bits, and the check of alignment.

use payload::fact;

use super::{INSB, INSD, INSW, MASK, PRIVILEGE, REP_INSB, REP_OUTSB, string};
use crate::control::{cr0, set_cr0};
use crate::pages::{self, HOLE, TARGET};
use crate::trial::{self, Mode, Registers};

/// With CR0.AM = 1: what an address that is no multiple of the width is to strings that exit, at CPL 3 with AC and IOPL.
fn alignment() {
    const ALIGNMENT_CHECK: u64 = 1 << 18;
    const ALIGNMENT_MASK: u64 = 1 << 18;
    let before = cr0();
    set_cr0(before | ALIGNMENT_MASK);
    let at = |mode: Mode, code: &[u8], offset: u64, flags: u64| {
        let registers = Registers {
            rdx: 0x80,
            rcx: 2,
            rdi: pages::at(TARGET) + offset,
            rsi: pages::at(TARGET) + offset,
            flags: PRIVILEGE | flags,
            ..Registers::default()
        };
        trial::run(mode, code, registers)
    };
    for (name, code) in [
        ("MOV", &[0x66, 0x89, 0x07][..]),
        ("INSB", INSB),
        ("INSW", INSW),
        ("INSD", INSD),
        ("OUTSW", &[0x66, 0x6f]),
        ("OUTSD", &[0x6f]),
        ("REP INSW", &[0xf3, 0x66, 0x6d]),
        ("REP OUTSW", &[0xf3, 0x66, 0x6f]),
        ("REP OUTSD", &[0xf3, 0x6f]),
        ("SGDT", &[0x0f, 0x01, 0x07]),
        ("SIDT", &[0x0f, 0x01, 0x0f]),
        ("STR", &[0x0f, 0x00, 0x0f]),
    ] {
        let seen = [0, 1, 2, 4, 6].map(|offset| at(Mode::User, code, offset, ALIGNMENT_CHECK));
        let [zero, one, two, four, six] = seen;
        fact!("ports: alignment checked: {name} at 0, 1, 2, 4, 6"; "{zero}, {one}, {two}, {four}, {six}");
        fact!("ports: alignment checked: RCX behind {name} at 1"; "{:#x}", one.after.rcx);
        fact!("ports: alignment not checked by CPL 0, without AC: {name}"; "{}, {}",
            at(Mode::Kernel, code, 1, ALIGNMENT_CHECK), at(Mode::User, code, 1, 0));
    }
    set_cr0(before);
}

pub(super) fn all() {
    alignment();
    const IN: &[u8] = &[0xec];
    const INS: [(&str, &[u8]); 3] =
        [("byte", &[0xec]), ("word", &[0x66, 0xed]), ("doubleword", &[0xed])];
    let at = |port: u64, code: &[u8], flags: u64| {
        trial::run(
            Mode::User,
            code,
            Registers {
                rdx: port,
                rdi: pages::at(TARGET),
                rsi: pages::at(TARGET),
                rcx: 2,
                flags,
                ..Registers::default()
            },
        )
    };
    for level in 0..4 {
        trial::permit(false, 104);
        fact!("ports: CPL 3, IOPL {level}, no port permitted: IN, OUT, INSB, REP OUTSB, CLI, STI"; "{}, {}, {}, {}, {}, {}",
            at(MASK, IN, level << 12), at(MASK, &[0xee], level << 12), at(MASK, INSB, level << 12),
            at(MASK, REP_OUTSB, level << 12), at(0, &[0xfa], level << 12), at(0, &[0xfb, 0xfa], level << 12));
    }
    for port in [MASK - 3, MASK - 1, MASK, MASK + 1] {
        trial::permit(true, 104);
        trial::permit_port(MASK as u16, false);
        let [byte, word, double] = INS.map(|(_, code)| at(port, code, 0));
        fact!("ports: CPL 3, all but {MASK:#x} permitted: byte, word, doubleword at {port:#x}"; "{byte}, {word}, {double}");
        trial::permit(false, 104);
        (0..2).for_each(|next| trial::permit_port((MASK + next) as u16, true));
        let [byte, word, double] = INS.map(|(_, code)| at(port, code, 0));
        fact!("ports: CPL 3, {MASK:#x} and the next permitted: byte, word, doubleword at {port:#x}"; "{byte}, {word}, {double}");
    }
    trial::permit(true, 104);
    let [byte, word, double] = INS.map(|(_, code)| at(0xffff, code, 0));
    fact!("ports: CPL 3, all permitted: byte, word, doubleword at 0xffff"; "{byte}, {word}, {double}");
    fact!("ports: CPL 3, all permitted: REP INSB in no page"; "{}", string(Mode::User, REP_INSB, 2, pages::at(HOLE), 0));
    // From here on the TSS ends before the port's bit.
    for offset in [104 + 8192 - 20, 104 + 8192, 104 + 8193, 0xffff] {
        trial::permit(true, offset);
        fact!("ports: CPL 3, the bits at {offset:#x}: IN of {MASK:#x}"; "{}", at(MASK, IN, 0));
    }
    trial::permit(true, 104);
    for (name, code) in [("POPF", &[0x68, 0x02, 0x32, 0, 0, 0x9d][..]), ("PUSHF", &[0x9c, 0x58])] {
        let seen = trial::user(code, 0);
        fact!("ports: CPL 3, {name} of IF and IOPL"; "{seen}, {:#x}, {:#x}", seen.after.flags & 0x3200, seen.after.rax & 0x3200);
    }
}
