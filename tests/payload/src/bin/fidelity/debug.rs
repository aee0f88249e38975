//! Debug exceptions: what DR6 and DR7 say in the handler, and in its frame. No data breakpoint in a single step: QEMU
//! ends there (`bql_lock_impl: assertion failed`).

use core::arch::asm;

use crate::fact;
use crate::trap::{self, Told};

/// DR7 with nothing on, and as after a reset DR6.
const NOTHING: u64 = 0x400;
const CLEAR: u64 = 0xffff_0ff0;
/// L0, and what DR0 is for: execution, a write of 4 bytes, a read or write of 4 bytes; L1 for a write of 4 bytes. GD.
const EXECUTE: u64 = NOTHING | 1;
const WRITE: u64 = NOTHING | 1 | 0b1101 << 16;
const READ: u64 = NOTHING | 1 | 0b1111 << 16;
const SECOND_WRITE: u64 = NOTHING | 1 << 2 | 0b1101 << 20;
const GENERAL_DETECT: u64 = NOTHING | 1 << 13;

fn set(address: u64, status: u64, control: u64) {
    // SAFETY: the handler of a debug exception leads back to the trial.
    unsafe {
        asm!(
            "mov dr7, {off}", "mov dr6, {status}", "mov dr0, {at}", "mov dr1, {at}", "mov dr7, {control}",
            off = in(reg) NOTHING, status = in(reg) status, at = in(reg) address, control = in(reg) control
        );
    }
}

/// DR6 and DR7 after a trial; then nothing is on.
fn take() -> (u64, u64) {
    let (status, control);
    // SAFETY: reads, and switches off.
    unsafe {
        asm!(
            "mov {status}, dr6", "mov {control}, dr7", "mov dr7, {off}",
            off = in(reg) NOTHING, status = out(reg) status, control = out(reg) control
        );
    }
    set(0, CLEAR, NOTHING);
    (status, control)
}

pub(crate) fn all() {
    let word = 0_u32;
    let at = &raw const word as u64;
    let code = trap::code();
    // NOP; NOP.
    let plain: &[u8] = &[0x90, 0x90];
    // MOV [RDI], EAX; MOV EAX, [RDI]; NOP.
    let write: &[u8] = &[0x89, 0x07, 0x90];
    let read: &[u8] = &[0x8b, 0x07, 0x90];
    // PUSHF; TF in it; POPF; NOP.
    let step: &[u8] = &[0x9c, 0x80, 0x4c, 0x24, 1, 1, 0x9d, 0x90, 0x90];
    // The same, and STI; then MOV to SS, whose trap comes behind the next instruction.
    let step_and_sti: &[u8] = &[0x9c, 0x80, 0x4c, 0x24, 1, 1, 0x9d, 0xfb, 0x90, 0xfa];
    let step_and_ss: &[u8] =
        &[0x8c, 0xd1, 0x9c, 0x80, 0x4c, 0x24, 1, 1, 0x9d, 0x8e, 0xd1, 0x90, 0x90];
    let trials: &[(&str, &[u8], u64, u64, u64)] = &[
        ("an instruction", plain, code + 1, CLEAR, EXECUTE),
        ("a write", write, at, CLEAR, WRITE),
        ("a write, with the second", write, at, CLEAR, SECOND_WRITE),
        ("a read, breakpoint on reads", read, at, CLEAR, READ),
        ("a read, breakpoint on writes", read, at, CLEAR, WRITE),
        ("a single step", step, at, CLEAR, NOTHING),
        ("a single step over STI", step_and_sti, at, CLEAR, NOTHING),
        ("a single step over MOV to SS", step_and_ss, at, CLEAR, NOTHING),
        ("a write, B3 and BS before", write, at, CLEAR | 1 << 14 | 1 << 3, WRITE),
        ("INT1", &[0xf1, 0x90], at, CLEAR, NOTHING),
        ("INT1, B0 before", &[0xf1, 0x90], at, CLEAR | 1, NOTHING),
        ("a read of DR0 with GD", &[0x0f, 0x21, 0xc0], at, CLEAR, GENERAL_DETECT),
    ];
    for (name, bytes, address, status, control) in trials {
        set(*address, *status, *control);
        let seen = Told(trap::bytes(bytes, at));
        let (status, control) = take();
        fact!("debug: {name}"; "{seen}, DR6 {status:#x}, DR7 {control:#x}");
    }
}
