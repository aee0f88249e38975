//! IOPL and the TSS's bits.

use payload::fact;

use super::{INSB, MASK, REP_INSB, REP_OUTSB, string};
use crate::pages::{self, HOLE, TARGET};
use crate::trial::{self, Mode, Registers};

pub(super) fn all() {
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
