//! Delivery in long mode: stacks of the IST, what a frame holds, faults during a delivery and what becomes of them,
//! changes of privilege, compatibility mode, system calls.

use cpu::instructions::{read_msr, write_msr};
use payload::fact;

use crate::long::window::{FAR_DESCRIPTORS, IDT_SECOND, LAST, RSP0, TASK_PAGE, page, top};
use crate::long::{
    ABSENT, CODE_32, CODE_64, CONFORMING, DATA, FAR_CODE, Trial, USER_32, USER_64,
    long_system_call,
    window::{MAIN, Window},
};

const IF: u64 = 1 << 9;
const AC: u64 = 1 << 18;
const NOT_CANONICAL: u64 = 0x9000_0000_0000;
/// A gate's attributes.
const GATE: u64 = 0x8e;
const ANYBODYS: u64 = 0xee;
const TRAP: u64 = 0x8f;
const CLOSED: u64 = 0x0e;

/// Codes: an exception or INT each.
const INT: [u8; 2] = [0xcd, 0x90];
const INT_80: [u8; 2] = [0xcd, 0x80];
const DE: [u8; 4] = [0x31, 0xc9, 0xf7, 0xf1];
const INT1: [u8; 1] = [0xf1];
const INT3: [u8; 1] = [0xcc];
const UD: [u8; 2] = [0x0f, 0x0b];
/// MOV DS, of a selector beyond the GDT.
const GP: [u8; 6] = [0x66, 0xb8, 0x38, 0x12, 0x8e, 0xd8];
/// A read at 1 MiB less than the end of the window's 2 MiB.
const PF: [u8; 11] = [0x48, 0xa1, 0, 0, 0x10, 0, 0x80, 0, 0, 0, 0x90];
/// MOV EAX, 0x80000001; CPUID; BT EDX, 11; INT 0x80.
const SYSCALL_IN_CF: [u8; 13] = [0xb8, 1, 0, 0, 0x80, 0x0f, 0xa2, 0x0f, 0xba, 0xe2, 11, 0xcd, 0x80];
const NOPS: [u8; 3] = [0x90; 3];
/// MOV to SS of RAX; NOP; NOP.
const SHADOW: [u8; 4] = [0x8e, 0xd0, 0x90, 0x90];

pub(crate) fn all() {
    Window::enter();
    stacks();
    gates();
    pages();
    privilege();
    compatibility();
    shadows();
    sizes();
    system_calls();
}

macro_rules! deliver {
    ($name:expr; $trial:expr) => {
        fact!("delivery: {}", $name; "{}", $trial.run())
    };
}

fn stacks() {
    for stack in 1..=7 {
        fact!("delivery: INT by IST {stack}"; "{}",
            Trial { gates: &[(0x90, CODE_64, GATE, stack)], ..Trial::new(&INT) }.run());
    }
    for less in [0, 1, 7, 8, 15] {
        fact!("delivery: INT with a stack {less} below its end"; "{}",
            Trial { rsp: top(MAIN) - less, ..Trial::new(&INT) }.run());
    }
    for (name, code, vector) in [
        ("#DE", &DE[..], 0),
        ("INT1", &INT1, 1),
        ("INT3", &INT3, 3),
        ("#UD", &UD, 6),
        ("#GP", &GP, 13),
        ("#PF", &PF, 14),
    ] {
        fact!("delivery: {name}"; "{}", Trial::new(code).run());
        fact!("delivery: {name} by IST 3"; "{}",
            Trial { gates: &[(vector, CODE_64, GATE, 3)], ..Trial::new(code) }.run());
        fact!("delivery: {name} by a trap gate, IF"; "{}",
            Trial { gates: &[(vector, CODE_64, TRAP, 0)], rflags: IF | 2, ..Trial::new(code) }.run());
    }
    let waits = Trial { interrupt: 0x91, rflags: IF | 2, ..Trial::new(&NOPS) };
    deliver!("an interrupt"; waits);
    deliver!("an interrupt by IST 2"; Trial { gates: &[(0x91, CODE_64, GATE, 2)], ..waits });
    deliver!("an interrupt by a trap gate"; Trial { gates: &[(0x91, CODE_64, TRAP, 0)], ..waits });
    // NMI: MOV ECX, 0x830; MOV EAX, 0x4400; WRMSR; NOPs.
    let nmi: [u8; 44] = core::array::from_fn(|at| {
        const CODE: [u8; 12] = [0xb9, 0x30, 8, 0, 0, 0xb8, 0, 0x44, 0, 0, 0x0f, 0x30];
        CODE.get(at).copied().unwrap_or(0x90)
    });
    deliver!("NMI"; Trial::new(&nmi));
    deliver!("NMI by IST 4"; Trial { gates: &[(2, CODE_64, GATE, 4)], ..Trial::new(&nmi) });
    // An event in the handler of one on the same stack: INT3 in the code behind INT, at CPL 0.
    deliver!("INT twice by IST 1"; Trial {
        gates: &[(0x90, CODE_64, GATE, 1)], returns: 1, ..Trial::new(&[0xcd, 0x90, 0xcd, 0x90])
    });
}

fn gates() {
    let with = |code, gate| Trial { gates: gate, ..Trial::new(code) };
    deliver!("INT by a gate that is not present"; with(&INT, &[(0x90, CODE_64, CLOSED, 0)]));
    for (name, code, vector) in [
        ("#DE", &DE[..], 0),
        ("INT1", &INT1, 1),
        ("INT3", &INT3, 3),
        ("#UD", &UD, 6),
        ("#GP", &GP, 13),
        ("#PF", &PF, 14),
    ] {
        let gate = [(vector, CODE_64, CLOSED, 0), (8, CODE_64, GATE, 5)];
        fact!("delivery: {name} by a gate that is not present"; "{}",
            Trial { gates: &gate, ..Trial::new(code) }.run());
    }
    for (name, selector) in [
        ("null", 0),
        ("beyond the GDT", 0x1238),
        ("in an LDT", 0xc),
        ("of a data segment", DATA),
        ("of 32-bit code", CODE_32),
        ("of code for CPL 3", USER_64),
        ("of code that is not present", ABSENT),
        ("of the TSS", 0x40),
        ("with an RPL of 3", CODE_64 | 3),
        ("in the GDT's second page", FAR_CODE),
    ] {
        fact!("delivery: INT by a gate with a selector {name}"; "{}",
            Trial { gates: &[(0x90, selector, GATE, 0)], ..Trial::new(&INT) }.run());
        fact!("delivery: #UD by a gate with a selector {name}"; "{}",
            Trial { gates: &[(6, selector, GATE, 0)], ..Trial::new(&UD) }.run());
    }
    for kind in [0x85, 0x86, 0x87, 0x8c, 0x80, 0x81] {
        fact!("delivery: INT by a gate {kind:x}"; "{}",
            Trial { gates: &[(0x90, CODE_64, kind, 0)], ..Trial::new(&INT) }.run());
    }
    let waits = Trial { interrupt: 0x91, rflags: IF | 2, ..Trial::new(&NOPS) };
    deliver!("an interrupt by a gate with a null selector"; Trial { gates: &[(0x91, 0, GATE, 0)], ..waits });
    deliver!("an interrupt by a gate that is no more"; Trial { gates: &[(0x91, CODE_64, CLOSED, 0)], ..waits });
}

fn pages() {
    // Faults of a page by IST 5, double faults by IST 6.
    let safe = [(14, CODE_64, GATE, 5), (8, CODE_64, GATE, 6), (12, CODE_64, GATE, 5)];
    let trial = |code| Trial { gates: &safe, ..Trial::new(code) };
    deliver!("INT, its gate's page is absent"; Trial { absent: &[IDT_SECOND], ..trial(&INT) });
    deliver!("INT, its code segment's page is absent"; Trial {
        absent: &[FAR_DESCRIPTORS],
        gates: &[safe[0], (0x90, FAR_CODE, GATE, 0)], ..Trial::new(&INT)
    });
    deliver!("an interrupt, its gate's page is absent"; Trial {
        absent: &[IDT_SECOND], interrupt: 0x91, rflags: IF | 2, ..trial(&NOPS)
    });
    let own = [page(MAIN)];
    for (name, code) in
        [("INT", &INT[..]), ("#UD", &UD), ("#GP", &GP), ("#PF", &PF), ("#DE", &DE), ("INT1", &INT1)]
    {
        fact!("delivery: {name}, the stack's page is absent"; "{}", Trial {
            absent: &own,
            gates: &[safe[0], safe[1]],
            ..Trial::new(code)
        }.run());
        fact!("delivery: {name}, the stack is at no address"; "{}", Trial {
            rsp: NOT_CANONICAL,
            gates: &[safe[0], safe[1], safe[2]],
            ..Trial::new(code)
        }.run());
    }
    deliver!("#PF, and its own stack's page is absent"; Trial {
        absent: &own, gates: &[safe[1]], ..Trial::new(&PF)
    });
    deliver!("INT by IST 1, whose page is absent"; Trial {
        absent: &[page(1)], gates: &[safe[0], safe[1], (0x90, CODE_64, GATE, 1)], ..Trial::new(&INT)
    });
    deliver!("INT by IST 1, which is at no address"; Trial {
        task: &[(0x24, NOT_CANONICAL)],
        gates: &[safe[0], safe[1], safe[2], (0x90, CODE_64, GATE, 1)], ..Trial::new(&INT)
    });
    deliver!("#UD by IST 1, which is at no address"; Trial {
        task: &[(0x24, NOT_CANONICAL)],
        gates: &[safe[0], safe[1], safe[2], (6, CODE_64, GATE, 1)], ..Trial::new(&UD)
    });
    deliver!("INT by IST 1, the TSS's page is absent"; Trial {
        absent: &[TASK_PAGE], gates: &[(0x90, CODE_64, GATE, 1)], ..Trial::new(&INT)
    });
    deliver!("INT by IST 7, the TSS ends before"; Trial {
        task_limit: 0x5a, gates: &[(0x90, CODE_64, GATE, 6)], ..Trial::new(&INT)
    });
    deliver!("#UD by IST 6, the TSS ends before"; Trial {
        task_limit: 0x4b, gates: &[(6, CODE_64, GATE, 6)], ..Trial::new(&UD)
    });
}

fn privilege() {
    deliver!("CPL 3: INT by a gate for CPL 3"; Trial::user(&INT_80));
    deliver!("CPL 3: INT by a gate for CPL 0"; Trial::user(&INT));
    deliver!("CPL 3: INT by such a gate that is not present"; Trial {
        gates: &[(0x80, CODE_64, 0x6e, 0)], ..Trial::user(&INT_80)
    });
    for (name, code, vector) in [("INT3", &INT3[..], 3), ("INT1", &INT1, 1), ("#UD", &UD, 6)] {
        fact!("delivery: CPL 3: {name}"; "{}", Trial::user(code).run());
        fact!("delivery: CPL 3: {name} by a gate for CPL 3"; "{}",
            Trial { gates: &[(vector, CODE_64, ANYBODYS, 0)], ..Trial::user(code) }.run());
        fact!("delivery: CPL 3: {name} by IST 2"; "{}",
            Trial { gates: &[(vector, CODE_64, ANYBODYS, 2)], ..Trial::user(code) }.run());
    }
    for (name, code) in [
        ("HLT", &[0xf4][..]),
        ("CLI", &[0xfa]),
        ("IN", &[0xe4, 0x21]),
        ("RDMSR", &[0x0f, 0x32]),
        ("MOV from CR0", &[0x0f, 0x20, 0xc0]),
        ("MOV from DR7", &[0x0f, 0x21, 0xf8]),
        ("LGDT", &[0x0f, 0x01, 0x14, 0x25, 0, 0, 4, 0]),
        ("LIDT", &[0x0f, 0x01, 0x1c, 0x25, 0, 0, 4, 0]),
        ("LLDT", &[0x0f, 0x00, 0xd0]),
        ("LTR", &[0x0f, 0x00, 0xd8]),
        ("INVLPG", &[0x0f, 0x01, 0x38]),
        ("WBINVD", &[0x0f, 0x09]),
        ("INVD", &[0x0f, 0x08]),
        ("CLTS", &[0x0f, 0x06]),
        ("SWAPGS", &[0x0f, 0x01, 0xf8]),
        ("XSETBV", &[0x0f, 0x01, 0xd1]),
        ("VMCALL", &[0x0f, 0x01, 0xc1]),
        ("VMMCALL", &[0x0f, 0x01, 0xd9]),
        ("VMRUN", &[0x0f, 0x01, 0xd8]),
        ("MWAIT", &[0x0f, 0x01, 0xc9]),
        ("RSM", &[0x0f, 0xaa]),
        ("#GP", &GP),
        ("#PF", &PF),
        ("#DE", &DE),
        ("IRETQ to CPL 0", &[0x6a, 16, 0x54, 0x6a, 2, 0x6a, 8, 0x6a, 0, 0x48, 0xcf]),
    ] {
        fact!("delivery: CPL 3: {name}"; "{}", Trial::user(code).run());
    }
    let waits = Trial { interrupt: 0x91, rflags: IF | 2, ..Trial::user(&NOPS) };
    deliver!("CPL 3: an interrupt"; waits);
    deliver!("CPL 3: an interrupt by IST 2"; Trial { gates: &[(0x91, CODE_64, GATE, 2)], ..waits });
    let safe = [(14, CODE_64, GATE, 5), (8, CODE_64, GATE, 6), (12, CODE_64, GATE, 5)];
    deliver!("CPL 3: RSP0's page is absent"; Trial {
        absent: &[page(RSP0)], gates: &[safe[0], safe[1]], ..Trial::user(&INT_80)
    });
    deliver!("CPL 3: RSP0 is at no address"; Trial {
        task: &[(4, NOT_CANONICAL)], gates: &safe, ..Trial::user(&INT_80)
    });
    deliver!("CPL 3: RSP0 is at no address, #UD"; Trial {
        task: &[(4, NOT_CANONICAL)], gates: &safe, ..Trial::user(&UD)
    });
    deliver!("CPL 3: RSP0 is odd"; Trial { task: &[(4, top(RSP0) - 7)], ..Trial::user(&INT_80) });
    deliver!("CPL 3: a conforming handler"; Trial {
        gates: &[(0x80, CONFORMING, ANYBODYS, 0)], ..Trial::user(&INT_80)
    });
    deliver!("a conforming handler"; Trial { gates: &[(0x90, CONFORMING, GATE, 0)], ..Trial::new(&INT) });
    // MOV RAX, RSP; OR AL, 1; MOV RCX, [RAX - 64].
    let odd = [0x48, 0x89, 0xe0, 0x48, 0x83, 0xe8, 0x3f, 0x48, 0x8b, 0x08];
    deliver!("CPL 3: an access that is not aligned, with no CR0.AM"; Trial { rflags: AC | 2, ..Trial::user(&odd) });
    alignment(true);
    deliver!("CPL 3: an access that is not aligned"; Trial { rflags: AC | 2, ..Trial::user(&odd) });
    deliver!("an access that is not aligned, at CPL 0"; Trial { rflags: AC | 2, ..Trial::new(&odd) });
    alignment(false);
    let step = Trial { rflags: 0x102, returns: 3, ..Trial::user(&[0x90, 0x0f, 0xa2, 0x90]) };
    deliver!("CPL 3: a single step over CPUID"; step);
    deliver!("CPL 3: a single step over INT"; Trial { code: &[0xcd, 0x80, 0x90], ..step });
}

/// Sets CR0.AM.
fn alignment(on: bool) {
    use x86_64::registers::control::{Cr0, Cr0Flags};
    // SAFETY: code at CPL 0 is not checked.
    unsafe { Cr0::update(|flags| flags.set(Cr0Flags::ALIGNMENT_MASK, on)) };
}

fn compatibility() {
    for (name, user) in [("compatibility mode, CPL 0", false), ("compatibility mode, CPL 3", true)]
    {
        let trial = |code| {
            let base = if user { Trial::user(code) } else { Trial::new(code) };
            Trial { cs: if user { USER_32 } else { CODE_32 }, rsp: 0x4_1000, ..base }
        };
        for (what, code) in [
            ("INT", &INT_80[..]),
            ("INT3", &INT3),
            ("INT1", &INT1),
            ("#UD", &UD),
            ("INTO with OF", &[0xb0, 0x7f, 0xfe, 0xc0, 0xce]),
            ("INTO without OF", &[0xce]),
            ("BOUND of FFFFFFFF", &[0x83, 0xc8, 0xff, 0xbe, 0, 8, 4, 0, 0x62, 0x06]),
            ("DAA", &[0x27]),
            ("#GP", &GP),
            ("a read at 4 GiB less 4", &[0xa1, 0xfc, 0xff, 0xff, 0xff]),
            ("LES of a null selector", &[0xbe, 0, 8, 4, 0, 0xc4, 0x06]),
            ("SYSCALL", &[0x0f, 0x05]),
            ("SYSENTER", &[0x0f, 0x34]),
            ("PUSHFD", &[0x9c, 0x58]),
            ("CPUID", &[0x0f, 0xa2]),
            ("IN", &[0xe4, 0x21]),
            ("SYSCALL as CPUID has it, in CF", &SYSCALL_IN_CF),
        ] {
            fact!("delivery: {name}: {what}"; "{}", trial(code).run());
        }
        for (what, code) in [("INT1", &INT1), ("INT3", &INT3)] {
            let last = Trial { at: LAST, ..trial(code) };
            fact!("delivery: {name}: {what} in the last byte below 4 GiB"; "{}", last.run());
        }
        let step = Trial { rflags: 0x102, returns: 3, ..trial(&[0x90, 0x0f, 0xa2, 0x90]) };
        fact!("delivery: {name}: a single step over CPUID"; "{}", step.run());
        let waits = Trial { interrupt: 0x91, rflags: IF | 2, ..trial(&NOPS) };
        fact!("delivery: {name}: an interrupt"; "{}", waits.run());
        fact!("delivery: {name}: an interrupt by IST 2"; "{}",
            Trial { gates: &[(0x91, CODE_64, GATE, 2)], ..waits }.run());
    }
}

fn shadows() {
    // STI in front of MOV to SS would hold them back, too: the interrupt waits for POPF.
    // MOV SS; then what raises an event.
    for (name, code) in [
        ("INT", &[0x8e, 0xd0, 0xcd, 0x90][..]),
        ("INT3", &[0x8e, 0xd0, 0xcc]),
        ("INT1", &[0x8e, 0xd0, 0xf1]),
        ("#UD", &[0x8e, 0xd0, 0x0f, 0x0b]),
        ("#GP", &[0x8e, 0xd0, 0x0f, 0x22, 0xcf]),
        ("CPUID", &[0x8e, 0xd0, 0x0f, 0xa2, 0x90]),
        ("STI", &[0x8e, 0xd0, 0xfb, 0x90, 0x90]),
        ("POP to SS", &[0x50, 0x8e, 0xd0, 0x66, 0x8e, 0xd0, 0x58, 0x90]),
        ("NOP", &SHADOW),
    ] {
        fact!("delivery: {name} behind MOV to SS"; "{}", Trial::new(code).run());
        fact!("delivery: {name} behind MOV to SS, a single step"; "{}",
            Trial { rflags: 0x102, returns: 2, ..Trial::new(code) }.run());
    }
    // The interrupt is sent in the code: RDX:RAX, ECX, WRMSR with IF, and then it comes at once; so it is sent with IF = 0.
    let sti = |code| Trial { interrupt: 0x91, ..Trial::new(code) };
    for (name, code) in [
        ("STI; NOP", &[0xfb, 0x90, 0x90][..]),
        ("STI; CLI", &[0xfb, 0xfa, 0x90]),
        ("STI; STI", &[0xfb, 0xfb, 0x90, 0x90]),
        ("STI; HLT", &[0xfb, 0xf4, 0x90]),
        ("STI; MOV to SS", &[0xfb, 0x8e, 0xd0, 0x90, 0x90]),
        ("STI; INT", &[0xfb, 0xcd, 0x90, 0x90]),
        ("STI; #UD", &[0xfb, 0x0f, 0x0b, 0x90]),
        ("STI; CPUID", &[0xfb, 0x0f, 0xa2, 0x90]),
        ("STI; PUSHF; POPF", &[0xfb, 0x9c, 0x9d, 0x90]),
        ("POPF", &[0x68, 2, 2, 0, 0, 0x9d, 0x90]),
        // No MOV to CR8 while one waits: QEMU ends there under AMD-V (assertion bql_locked).
    ] {
        fact!("delivery: an interrupt at {name}"; "{}", sti(code).run());
    }
}

fn sizes() {
    for (name, code) in [
        ("INT with needless prefixes", &[0x66, 0x67, 0xf3, 0x48, 0xcd, 0x90][..]),
        ("INT3 with a prefix", &[0x66, 0xcc]),
        ("UD2 with a prefix", &[0x66, 0x0f, 0x0b]),
        ("PUSH and POP of 16 bits", &[0x66, 0x68, 0x34, 0x12, 0xcd, 0x90]),
        ("IRET of 32 bits", &[0x6a, 16, 0x54, 0x9c, 0x6a, 8, 0x6a, 0, 0xcf]),
        ("an address of 32 bits", &[0x48, 0x83, 0xc8, 0xff, 0x67, 0x8a, 0x00, 0xcd, 0x90]),
        ("RETF of 32 bits", &[0x68, 8, 0, 4, 0, 0x68, 8, 0, 4, 0, 0xcb]),
        ("ENTER of 16 bits", &[0x66, 0xc8, 8, 0, 0, 0xcd, 0x90]),
        ("PUSHFQ with RF", &[0x9c, 0x58, 0xcd, 0x90]),
    ] {
        fact!("delivery: {name}"; "{}", Trial::new(code).run());
    }
    deliver!("IRETQ with RF to an instruction that faults"; Trial { rflags: 1 << 16 | 2, ..Trial::new(&UD) });
    deliver!("IRETQ with RF to INT"; Trial { rflags: 1 << 16 | 2, ..Trial::new(&INT) });
    deliver!("IRETQ with NT"; Trial { rflags: 1 << 14 | 2, ..Trial::new(&INT) });
    deliver!("IRETQ with NT, and IRETQ again"; Trial { rflags: 1 << 14 | 2, ..Trial::new(&[0x48, 0xcf]) });
    deliver!("IRETQ with all flags that may be"; Trial { rflags: 0x24_4cd7, ..Trial::new(&INT) });
}

fn system_calls() {
    const STAR: u32 = 0xc000_0081;
    const LSTAR: u32 = 0xc000_0082;
    const CSTAR: u32 = 0xc000_0083;
    const FMASK: u32 = 0xc000_0084;
    const EFER: u32 = 0xc000_0080;
    let entry = long_system_call as *const () as u64;
    // SAFETY: every CPU in long mode has it.
    let efer = unsafe { read_msr(EFER) };
    for (msr, value) in [
        (STAR, CODE_64 << 32 | (USER_32 & !3) << 48),
        (LSTAR, entry),
        (CSTAR, entry),
        (FMASK, 0x700),
        (EFER, efer | 1),
        (0x174, CODE_64),
        (0x175, top(MAIN) - 64),
        (0x176, entry),
    ] {
        // SAFETY: as above; what they name is there.
        unsafe { write_msr(msr, value) };
    }
    let user = Trial { rflags: 0xad7, ..Trial::user(&[0x0f, 0x05]) };
    deliver!("SYSCALL"; user);
    deliver!("SYSCALL as CPUID has it, in CF"; Trial::user(&SYSCALL_IN_CF));
    deliver!("SYSCALL at CPL 0"; Trial::new(&[0x0f, 0x05]));
    let short = |code| Trial { cs: USER_32, rsp: 0x4_1000, ..Trial::user(code) };
    deliver!("SYSCALL, compatibility mode"; short(&[0x0f, 0x05]));
    deliver!("SYSENTER"; Trial { code: &[0x0f, 0x34], ..user });
    deliver!("SYSENTER, compatibility mode"; short(&[0x0f, 0x34]));
    deliver!("SYSCALL, a single step"; Trial { rflags: 0x102, ..user });
    // MOV ECX, 0x40010; MOV R11D, flags; SYSRET; INT 80 there.
    let back = |flags: u8, wide: u8| {
        let mut code = [0xcc; 24];
        let head = [0xb9, 0x10, 0, 4, 0, 0x41, 0xbb, flags, 0x2, 0, 0];
        code[..11].copy_from_slice(&head);
        code[11..14].copy_from_slice(&[wide, 0x0f, 0x07]);
        code[16..18].copy_from_slice(&[0xcd, 0x80]);
        code
    };
    deliver!("SYSRET to 64-bit mode"; Trial::new(&back(0x02, 0x48)));
    deliver!("SYSRET to compatibility mode"; Trial::new(&back(0xd7, 0x3e)));
    deliver!("SYSRET at CPL 3"; Trial::user(&back(0x02, 0x48)));
    // MOV ECX, stack; MOV EDX, 0x40010; SYSEXIT.
    let exit = |wide: u8| {
        let mut code = [0xcc; 24];
        code[..10].copy_from_slice(&[0xb9, 0, 0x10, 4, 0, 0xba, 0x10, 0, 4, 0]);
        code[10..13].copy_from_slice(&[wide, 0x0f, 0x35]);
        code[16..18].copy_from_slice(&[0xcd, 0x80]);
        code
    };
    deliver!("SYSEXIT to 64-bit mode"; Trial::new(&exit(0x48)));
    deliver!("SYSEXIT to compatibility mode"; Trial::new(&exit(0x3e)));
    // SAFETY: as it was.
    unsafe { write_msr(EFER, efer) };
    deliver!("SYSCALL with no EFER.SCE"; user);
}
