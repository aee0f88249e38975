//! Events that come together: NMIs in the shadows of STI and MOV to SS, with an interrupt that waits and with a single step;
//! and single steps over instructions that change RFLAGS.TF, raise an exception, wait, or leave for another privilege.
//!
//! All of it with the window of [`crate::long`], whose handlers return.

use cpu::instructions::{read_msr, write_msr};
use payload::fact;

use crate::long::window::{MAIN, top};
use crate::long::{CODE_64, Trial, USER_32, USER_64, long_system_call};

const IF: u64 = 1 << 9;
const TF: u64 = 1 << 8;
const WAITS: u8 = 0x91;

/// MOV EBX, SS; MOV ECX, 0x830; MOV EAX, 0x4400: then WRMSR sends an NMI, and `SS` is MOV to SS of EBX.
const HEAD: [u8; 12] = [0x8c, 0xd3, 0xb9, 0x30, 8, 0, 0, 0xb8, 0, 0x44, 0, 0];
/// PUSH and POPF: TF, without IF and with it.
const STEP: [u8; 6] = [0x68, 2, 1, 0, 0, 0x9d];
const STEP_IF: [u8; 6] = [0x68, 2, 3, 0, 0, 0x9d];

pub(crate) fn all() {
    non_maskable();
    steps();
    halted();
    transfers();
}

/// `parts`, one behind the other, and NOPs.
fn join(parts: &[&[u8]]) -> [u8; 48] {
    let mut code = [0x90; 48];
    for (to, from) in code.iter_mut().zip(parts.iter().copied().flatten()) {
        *to = *from;
    }
    code
}

fn non_maskable() {
    for (name, code, returns, interrupt) in [
        ("sent", &[0x0f, 0x30][..], 1, 0),
        ("sent in the shadow of STI", &[0xfb, 0x0f, 0x30], 1, 0),
        ("sent in the shadow of MOV to SS", &[0x8e, 0xd3, 0x0f, 0x30], 1, 0),
        ("sent, and an interrupt waits for IF", &[0x0f, 0x30, 0x90, 0xfb], 2, WAITS),
        ("sent in the shadow of STI, and an interrupt waits", &[0xfb, 0x0f, 0x30], 2, WAITS),
        ("sent in front of STI, and an interrupt waits", &[0x0f, 0x30, 0xfb, 0x90], 2, WAITS),
        (
            "sent in front of STI and HLT, and an interrupt waits",
            &[0x0f, 0x30, 0xfb, 0xf4],
            2,
            WAITS,
        ),
        ("sent in front of HLT", &[0x0f, 0x30, 0xf4], 0, 0),
        ("sent in front of MOV to SS", &[0x0f, 0x30, 0x8e, 0xd3], 1, 0),
        ("sent in front of INT3", &[0x0f, 0x30, 0xcc], 2, 0),
        ("sent in front of #UD", &[0x0f, 0x30, 0x0f, 0x0b], 1, 0),
        ("sent in front of CPUID", &[0x0f, 0x30, 0x0f, 0xa2], 1, 0),
        ("sent twice", &[0x0f, 0x30, 0x0f, 0x30], 2, 0),
    ] {
        let trial = |code| Trial { returns, interrupt, ..Trial::new(code) };
        fact!("events: NMI {name}"; "{}", trial(&join(&[&HEAD, code])).run());
    }
    for (name, step, code, returns, interrupt) in [
        ("alone", &STEP, &[0x0f, 0x30][..], 3, 0),
        ("in the shadow of MOV to SS", &STEP, &[0x8e, 0xd3, 0x0f, 0x30], 3, 0),
        ("in the shadow of STI", &STEP, &[0xfb, 0x0f, 0x30], 4, 0),
        ("in the shadow of STI, and an interrupt waits", &STEP, &[0xfb, 0x0f, 0x30], 5, WAITS),
        ("with IF, and an interrupt waits", &STEP_IF, &[0x0f, 0x30], 4, WAITS),
        ("in front of INT3", &STEP, &[0x0f, 0x30, 0xcc], 4, 0),
        ("in front of CPUID", &STEP, &[0x0f, 0x30, 0x0f, 0xa2], 3, 0),
    ] {
        let trial = |code| Trial { returns, interrupt, ..Trial::new(code) };
        fact!("events: NMI sent in a single step {name}"; "{}", trial(&join(&[&HEAD, step, code])).run());
    }
    // Handlers on stacks of their own.
    let gates = [(2, CODE_64, 0x8e, 4), (1, CODE_64, 0x8e, 3)];
    let code = join(&[&HEAD, &STEP, &[0x0f, 0x30]]);
    fact!("events: NMI sent in a single step, by ISTs"; "{}",
        Trial { returns: 3, gates: &gates, ..Trial::new(&code) }.run());
}

/// With TF from POPF on: what raises a step, and where.
fn steps() {
    for (name, code, returns) in [
        ("NOP", &[0x90][..], 2),
        ("POPF that clears TF", &[0x6a, 2, 0x9d], 3),
        ("POPF that sets it again", &[0x68, 2, 1, 0, 0, 0x9d], 3),
        ("PUSHF", &[0x9c, 0x58], 2),
        ("STI and CLI", &[0xfb, 0xfa], 3),
        ("DIV by 0", &[0x31, 0xc9, 0xf7, 0xf1], 1),
        ("#UD", &[0x0f, 0x0b], 0),
        ("MOV to DS that faults", &[0x66, 0xb8, 0x38, 0x12, 0x8e, 0xd8], 1),
        ("INT3", &[0xcc], 2),
        ("INT1", &[0xf1], 2),
        ("INT", &[0xcd, 0x90], 2),
        ("MOV to SS and INT3", &[0x8e, 0xd0, 0xcc], 2),
        ("MOV to SS and INT1", &[0x8e, 0xd0, 0xf1], 2),
        ("MOV to SS and INT", &[0x8e, 0xd0, 0xcd, 0x90], 2),
        ("MOV to SS twice", &[0x8e, 0xd0, 0x8e, 0xd0], 2),
        ("MOV to SS and PUSHF", &[0x8e, 0xd0, 0x9c, 0x58], 2),
        ("MOV to SS and POPF that clears TF", &[0x50, 0x6a, 2, 0x5b, 0x53, 0x8e, 0xd0, 0x9d], 6),
        ("REP MOVSB no times", &[0x31, 0xc9, 0xf3, 0xa4], 3),
        ("REP LODSB twice", &[0x6a, 2, 0x59, 0x48, 0x89, 0xe6, 0xf3, 0xac], 6),
        ("REPNE SCASB", &[0x6a, 2, 0x59, 0x48, 0x89, 0xe7, 0xf2, 0xae], 6),
        ("VMCALL", &[0x0f, 0x01, 0xc1], 0),
        ("VMMCALL", &[0x0f, 0x01, 0xd9], 0),
        ("RDMSR that faults", &[0xb9, 0x1a, 0, 0, 0, 0x0f, 0x32], 1),
        ("WBINVD", &[0x0f, 0x09], 2),
        ("MOV from CR0 and to it", &[0x0f, 0x20, 0xc0, 0x0f, 0x22, 0xc0], 3),
        ("MOV from CR4 and to it", &[0x0f, 0x20, 0xe0, 0x0f, 0x22, 0xe0], 3),
        ("MOV from CR3 and to it", &[0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8], 3),
        ("MOV from DR7 and to it", &[0x0f, 0x21, 0xf8, 0x0f, 0x23, 0xf8], 3),
        ("CLTS", &[0x0f, 0x06], 2),
        ("INVLPG", &[0x0f, 0x01, 0x3f], 2),
        ("SIDT and SGDT", &[0x0f, 0x01, 0x4c, 0x24, 0xe0, 0x0f, 0x01, 0x44, 0x24, 0xe0], 3),
        ("STR and SLDT", &[0x0f, 0x00, 0xc8, 0x0f, 0x00, 0xc0], 3),
        ("RDTSC", &[0x0f, 0x31], 2),
        ("PAUSE", &[0xf3, 0x90], 2),
        ("a read where no page is", &[0x48, 0xa1, 0, 0, 0x10, 0, 0x80, 0, 0, 0, 0x90], 0),
    ] {
        let code = join(&[&STEP, code]);
        fact!("events: a single step over {name}"; "{}", Trial { returns, ..Trial::new(&code) }.run());
    }
    // IRETQ sets it: MOV RAX, RSP; PUSH SS, RSP, RFLAGS, CS, RIP; IRETQ.
    let iret = |flags: u8| {
        let mut code = join(&[&[
            0x48, 0x89, 0xe0, 0x6a, 16, 0x50, 0x68, 2, flags, 0, 0, 0x6a, 8, 0x48, 0x8d, 0x0d, 3,
            0, 0, 0, 0x51, 0x48, 0xcf, 0x90, 0x90,
        ]]);
        code[25] = 0xcc;
        code
    };
    fact!("events: a single step behind IRETQ that sets TF"; "{}",
        Trial { returns: 3, ..Trial::new(&iret(1)) }.run());
    let stepped = Trial { rflags: TF | 2, returns: 7, ..Trial::new(&[]) };
    fact!("events: a single step over IRETQ that clears TF"; "{}",
        Trial { code: &iret(0), ..stepped }.run());
    // Nothing wakes a HLT that comes behind the interrupt.
    for (name, code, rflags, returns) in [
        ("STI and HLT", &[0xfb, 0xf4][..], 2, 1),
        ("POPF with IF", &[0x68, 2, 2, 0, 0, 0x9d], 2, 3),
        ("STI and NOP", &[0xfb, 0x90], 2, 4),
        ("NOP, with IF", &[0x90], IF | 2, 3),
        ("CPUID, with IF", &[0x0f, 0xa2], IF | 2, 3),
        ("STI and CPUID", &[0xfb, 0x0f, 0xa2], 2, 4),
        ("STI and INT3", &[0xfb, 0xcc], 2, 4),
        ("STI and MOV to SS", &[0xfb, 0x8e, 0xd0], 2, 4),
    ] {
        let trial = Trial { interrupt: WAITS, rflags: rflags | TF, returns, ..Trial::new(&[]) };
        let code = join(&[code]);
        fact!("events: a single step over {name}, and an interrupt waits"; "{}", Trial { code: &code, ..trial }.run());
    }
}

/// HLT in a single step, and later the local APIC's timer.
fn halted() {
    const LVT_TIMER: u32 = 0x832;
    const INITIAL_COUNT: u32 = 0x838;
    const DIVIDE: u32 = 0x83e;
    const END: u32 = 0x80b;
    const PERIODIC: u64 = 1 << 17;
    const MASKED: u64 = 1 << 16;
    const BY_1: u64 = 11;
    const HALT: u64 = 20;
    // MOV ECX, INITIAL_COUNT; MOV EAX, 40 000 000; XOR EDX, EDX; WRMSR.
    let start: [u8; 14] = [0xb9, 0x38, 8, 0, 0, 0xb8, 0, 0x5a, 0x62, 2, 0x31, 0xd2, 0x0f, 0x30];
    for (name, flags) in [
        ("a single step over HLT, then the timer", &STEP_IF),
        ("HLT, then the timer", &[0x68, 2, 2, 0, 0, 0x9d]),
    ] {
        let code = join(&[&start, flags, &[0xf4]]);
        // Where the timer was quicker, once more.
        for last in [false, false, false, false, true] {
            // SAFETY: a vector with a handler.
            unsafe { write_msr(DIVIDE, BY_1) };
            // SAFETY: as above.
            unsafe { write_msr(LVT_TIMER, PERIODIC | u64::from(WAITS)) };
            let seen = Trial { returns: 2, ..Trial::new(&code) }.run();
            for (msr, value) in [(INITIAL_COUNT, 0), (LVT_TIMER, MASKED), (END, 0)] {
                // SAFETY: the timer is not needed any more.
                unsafe { write_msr(msr, value) };
            }
            if last || seen.first().is_some_and(|(_, at)| at > HALT) {
                fact!("events: {name}"; "{seen}");
                break;
            }
        }
    }
}

/// Over instructions that change the privilege level.
fn transfers() {
    const EFER: u32 = 0xc000_0080;
    let entry = long_system_call as *const () as u64;
    // SAFETY: every CPU in long mode has it.
    let efer = unsafe { read_msr(EFER) };
    // SYSCALL leaves TF as it is, first; then it clears it.
    for (name, mask) in [("leaves TF", 0), ("clears TF", TF)] {
        for (msr, value) in [
            (0xc000_0081, CODE_64 << 32 | (USER_32 & !3) << 48),
            (0xc000_0082, entry),
            (0xc000_0083, entry),
            (0xc000_0084, mask),
            (EFER, efer | 1),
            (0x174, CODE_64),
            (0x175, top(MAIN) - 64),
            (0x176, entry),
        ] {
            // SAFETY: what they name is there.
            unsafe { write_msr(msr, value) };
        }
        let user = Trial { rflags: TF | 2, ..Trial::user(&[]) };
        fact!("events: a single step over SYSCALL that {name}"; "{}", Trial { code: &[0x0f, 0x05], ..user }.run());
        // SYSENTER clears IF and VM only.
        fact!("events: a single step over SYSENTER, where SYSCALL {name}"; "{}",
            Trial { code: &[0x0f, 0x34], ..user }.run());
    }
    // MOV ECX, 0x40010; MOV R11D, flags; SYSRET; NOP and INT 80 there.
    let back = |flags: u8| {
        let mut code = [0x90; 24];
        code[..14]
            .copy_from_slice(&[0xb9, 0x10, 0, 4, 0, 0x41, 0xbb, 2, flags, 0, 0, 0x48, 0x0f, 0x07]);
        code[17..19].copy_from_slice(&[0xcd, 0x80]);
        code
    };
    fact!("events: a single step behind SYSRET that sets TF"; "{}",
        Trial { returns: 1, ..Trial::new(&back(1)) }.run());
    let stepped = Trial { rflags: TF | 2, returns: 4, ..Trial::new(&[]) };
    fact!("events: a single step over SYSRET that clears TF"; "{}", Trial { code: &back(0), ..stepped }.run());
    fact!("events: a single step over SYSRET, TF in R11"; "{}", Trial { code: &back(1), ..stepped }.run());
    // MOV ECX, stack; MOV EDX, 0x40010; SYSEXIT, which keeps RFLAGS.
    let mut exit = [0x90; 24];
    exit[..13].copy_from_slice(&[0xb9, 0, 0x10, 4, 0, 0xba, 0x10, 0, 4, 0, 0x48, 0x0f, 0x35]);
    exit[17..19].copy_from_slice(&[0xcd, 0x80]);
    fact!("events: a single step over SYSEXIT"; "{}", Trial { code: &exit, ..stepped }.run());
    let user = Trial { rflags: TF | 2, returns: 1, cs: USER_64, ..Trial::user(&[]) };
    for (name, code) in [
        ("HLT", &[0xf4][..]),
        ("VMCALL", &[0x0f, 0x01, 0xc1]),
        ("VMMCALL", &[0x0f, 0x01, 0xd9]),
        ("IN that is not permitted", &[0xe4, 0x21]),
        ("INT3", &[0xcc]),
        ("INT by a gate for CPL 0", &[0xcd, 0x90]),
    ] {
        fact!("events: CPL 3: a single step over {name}"; "{}", Trial { code, ..user }.run());
    }
    // SAFETY: as it was.
    unsafe { write_msr(EFER, efer) };
}
