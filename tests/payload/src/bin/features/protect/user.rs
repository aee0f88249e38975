//! What CPL 3 may not, or only without UMIP: SGDT, SIDT, SLDT, STR and SMSW, and the instructions of the system.

use payload::fact;

use super::access;
use crate::control::{self, cr4, has, set_cr4};
use crate::pages::{self, ALL, PRESENT, TARGET, USER};
use crate::trial::{self, Mode, Registers};

pub(super) fn all() {
    const CODES: [(&str, &[u8]); 8] = [
        ("SGDT", &[0x0f, 0x01, 0x07]),
        ("SIDT", &[0x0f, 0x01, 0x0f]),
        ("SLDT to memory", &[0x0f, 0x00, 0x07]),
        ("SLDT to a register", &[0x0f, 0x00, 0xc0]),
        ("STR to memory", &[0x0f, 0x00, 0x0f]),
        ("STR to a register", &[0x0f, 0x00, 0xc8]),
        ("SMSW to memory", &[0x0f, 0x01, 0x27]),
        ("SMSW to a register", &[0x48, 0x0f, 0x01, 0xe0]),
    ];
    let before = cr4();
    for on in [false, true] {
        if on && !has(control::HAS_UMIP) {
            break;
        }
        set_cr4(if on { before | control::UMIP } else { before });
        for (name, code) in CODES {
            let seen = [(Mode::Kernel, 0), (Mode::User, 3)].map(|(mode, _)| access(mode, code, 0));
            let [kernel, user] = seen;
            fact!("protect: UMIP={}: {name} at CPL 0, 3", u8::from(on); "{kernel}, {user}");
        }
        pages::map(TARGET, PRESENT | USER);
        fact!("protect: UMIP={}: SIDT at CPL 3 to a page for reading", u8::from(on);
            "{}", access(Mode::User, &[0x0f, 0x01, 0x0f], 0));
        pages::map(TARGET, ALL);
    }
    set_cr4(before);
    let registers = Registers { rdi: pages::at(TARGET), ..Registers::default() };
    let word = |at: usize| {
        // SAFETY: the target's data.
        unsafe { pages::data(TARGET).wrapping_add(at).cast::<u16>().read_unaligned() }
    };
    trial::run(Mode::User, &[0x0f, 0x01, 0x07], registers);
    let global = word(0);
    trial::run(Mode::User, &[0x0f, 0x01, 0x0f], registers);
    fact!("protect: the limits that CPL 3 reads"; "{global:#x}, {:#x}", word(0));
    let [task, local, status] =
        [&[0x0f, 0x00, 0xc8][..], &[0x0f, 0x00, 0xc0], &[0x48, 0x0f, 0x01, 0xe0]]
            .map(|code| trial::user(code, 0).after.rax);
    fact!("protect: TR, LDTR and CR0 that CPL 3 reads"; "{task:#x}, {local:#x}, {status:#x}");
    for (name, code) in [
        ("LGDT", &[0x0f, 0x01, 0x17][..]),
        ("LIDT", &[0x0f, 0x01, 0x1f]),
        ("LLDT", &[0x0f, 0x00, 0xd0]),
        ("LTR", &[0x0f, 0x00, 0xd8]),
        ("LMSW", &[0x0f, 0x01, 0xf0]),
        ("CLTS", &[0x0f, 0x06]),
        ("HLT", &[0xf4]),
        ("INVD", &[0x0f, 0x08]),
        ("WBINVD", &[0x0f, 0x09]),
        ("INVLPG", &[0x0f, 0x01, 0x3f]),
        ("RDMSR", &[0x0f, 0x32]),
        ("WRMSR", &[0x0f, 0x30]),
        ("SWAPGS", &[0x0f, 0x01, 0xf8]),
        ("MOV DR7", &[0x0f, 0x21, 0xf8]),
        ("MONITOR", &[0x0f, 0x01, 0xc8]),
        ("VMCALL", &[0x0f, 0x01, 0xc1]),
        ("VMMCALL", &[0x0f, 0x01, 0xd9]),
        ("RDPMC", &[0x0f, 0x33]),
    ] {
        fact!("protect: {name} at CPL 3"; "{}", trial::user(code, pages::at(TARGET)));
    }
}
