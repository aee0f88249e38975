//! Debug exceptions: what DR6 and DR7 say in the handler, and in its frame. No data breakpoint in a single step: QEMU
//! ends there (`bql_lock_impl: assertion failed`).

mod breakpoints;
mod registers;

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
    let trials: &[Trial<'_>] = &[
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
    for trial in trials {
        told(trial, at);
    }
    accesses();
    registers::all();
    breakpoints::all();
}

/// Name, code, DR0, and DR6 and DR7 before.
type Trial<'a> = (&'a str, &'a [u8], u64, u64, u64);

fn told((name, bytes, address, status, control): &Trial<'_>, argument: u64) {
    set(*address, *status, *control);
    let seen = Told(trap::bytes(bytes, argument));
    let (status, control) = take();
    fact!("debug: {name}"; "{seen}, DR6 {status:#x}, DR7 {control:#x}");
}

/// CR4 with DE, without which there are no breakpoints for ports.
fn extensions(on: bool) {
    // SAFETY: DR4 and DR5 are not used.
    unsafe {
        asm!(
            "mov {value}, cr4", "and {value}, -9", "or {value}, {bit}", "mov cr4, {value}",
            value = out(reg) _, bit = in(reg) u64::from(on) << 3
        );
    }
}

/// Ports, the operands of INS and OUTS, and operands where no RAM is: what a hypervisor may access for its guest.
fn accesses() {
    /// L0, and what DR0 is for: a port, 2 ports; a write of 1 byte, a read or write of 1.
    const PORT: u64 = NOTHING | 1 | 0b0010 << 16;
    const PORTS: u64 = NOTHING | 1 | 0b0110 << 16;
    const WRITE_BYTE: u64 = NOTHING | 1 | 0b0001 << 16;
    const READ_BYTE: u64 = NOTHING | 1 | 0b0011 << 16;
    const IO_APIC: u64 = 0xfec0_0000;
    let bytes = [0_u8; 16];
    let at = &raw const bytes as u64;
    // IN AL, 21H; IN AX, 80H; OUT 80H, AL; NOP behind each.
    let mask: &[u8] = &[0xe4, 0x21, 0x90];
    let input: &[u8] = &[0x66, 0xe5, 0x80, 0x90];
    let output: &[u8] = &[0xe6, 0x80, 0x90];
    // PUSHF; TF in it; POPF; IN AL, 21H; NOP.
    let step: &[u8] = &[0x9c, 0x80, 0x4c, 0x24, 1, 1, 0x9d, 0xe4, 0x21, 0x90, 0x90];
    // MOV EDX, 21H; INSB, and MOV ECX, 3 with REP; MOV EDX, 80H; MOV RSI, RDI; OUTSB.
    let insb: &[u8] = &[0xba, 0x21, 0, 0, 0, 0x6c, 0x90];
    let rep_insb: &[u8] = &[0xba, 0x21, 0, 0, 0, 0xb9, 3, 0, 0, 0, 0xf3, 0x6c, 0x90];
    let outsb: &[u8] = &[0xba, 0x80, 0, 0, 0, 0x48, 0x89, 0xfe, 0x6e, 0x90];
    // MOV EAX, [RDI]; MOV [RDI], EAX; SGDT [RDI]; SIDT [RDI].
    let load: &[u8] = &[0x8b, 0x07, 0x90];
    let store: &[u8] = &[0x89, 0x07, 0x90];
    let sgdt: &[u8] = &[0x0f, 0x01, 0x07, 0x90];
    let sidt: &[u8] = &[0x0f, 0x01, 0x0f, 0x90];
    let trials: &[Trial<'_>] = &[
        ("port 0x21 read", mask, 0x21, CLEAR, PORT),
        ("port 0x21 read, B3 before", mask, 0x21, CLEAR | 8, PORT),
        ("port 0x21 read, breakpoint at 0x22", mask, 0x22, CLEAR, PORT),
        ("port 0x80 written", output, 0x80, CLEAR, PORT),
        ("ports 0x80 and 0x81 read, breakpoint at 0x81", input, 0x81, CLEAR, PORT),
        ("port 0x80 written, breakpoint at 0x80 and 0x81", output, 0x81, CLEAR, PORTS),
        ("INSB from the port", insb, 0x21, CLEAR, PORT),
        ("OUTSB to the port", outsb, 0x80, CLEAR, PORT),
        ("REP INSB from the port", rep_insb, 0x21, CLEAR, PORT),
        ("INSB to the byte", insb, at, CLEAR, WRITE_BYTE),
        ("REP INSB, its second byte", rep_insb, at + 1, CLEAR, WRITE_BYTE),
        ("OUTSB from the byte", outsb, at, CLEAR, READ_BYTE),
        ("OUTSB from the byte, breakpoint on writes", outsb, at, CLEAR, WRITE_BYTE),
        ("SGDT to the byte", sgdt, at + 4, CLEAR, WRITE_BYTE),
        ("SIDT to the byte", sidt, at + 9, CLEAR, WRITE_BYTE),
    ];
    extensions(true);
    for trial in trials {
        told(trial, at);
    }
    told(&("a single step over a port with a breakpoint", step, 0x21, CLEAR, PORT), at);
    told(&("a read of a device's register", load, IO_APIC, CLEAR, READ), IO_APIC);
    told(&("a read of a device's register, on writes", load, IO_APIC, CLEAR, WRITE), IO_APIC);
    told(&("a write to a device's register", store, IO_APIC, CLEAR, WRITE), IO_APIC);
    extensions(false);
}
