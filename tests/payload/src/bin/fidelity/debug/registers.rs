//! The debug registers themselves: what is kept of what is written, DR4 and DR5 with CR4.DE and without, and who may move
//! what while DR7.GD is set.

use core::arch::asm;

use super::{CLEAR, GENERAL_DETECT, NOTHING, Trial, extensions, take};
use crate::fact;
use crate::trap::{self, Told};

/// MOV to RAX from a debug register, and to it from RDI.
const fn from(register: u8) -> [u8; 3] {
    [0x0f, 0x21, 0xc0 | register << 3]
}

const fn to(register: u8) -> [u8; 3] {
    [0x0f, 0x23, 0xc7 | register << 3]
}

/// DR6 and DR7 as they are; both are put back to what they are with nothing on.
fn kept() -> [u64; 2] {
    let (status, control) = take();
    [status, control]
}

pub(super) fn all() {
    for (name, value) in [
        ("0", 0),
        ("ones in the low half", 0xffff_ffff),
        ("bits 0 to 3", 15),
        ("bit 11", 1 << 11),
        ("bit 12", 1 << 12),
        ("bits 13 to 15", 7 << 13),
        ("bit 16", 1 << 16),
        ("bit 32", 1 << 32),
        ("ones", !0),
    ] {
        let seen = Told(trap::bytes(&to(6), value));
        fact!("debug: DR6 written with {name}"; "{seen}, {:#x}", kept()[0]);
    }
    // Without GD: with it, it could not be read.
    for (name, value) in [
        ("0", 0),
        ("ones in the low half but GD", 0xffff_dfff),
        ("LE and GE", 0x300),
        ("bit 10", 1 << 10),
        ("bit 11", 1 << 11),
        ("bit 12", 1 << 12),
        ("bits 14 and 15", 3 << 14),
        ("bit 32", 1 << 32),
        ("ones", !0),
    ] {
        let seen = Told(trap::bytes(&to(7), value));
        fact!("debug: DR7 written with {name}"; "{seen}, {:#x}", kept()[1]);
    }
    for register in 0..4 {
        let code = [to(register), from(register)].concat_in_place();
        let seen = Told(trap::bytes(&code, 0x1234_5678_9abc_def0));
        // SAFETY: nothing is on.
        let (values, _) = unsafe { cpu::instructions::debug_registers() };
        let value = values[usize::from(register)];
        fact!("debug: DR{register} written with no address"; "{seen}, {value:#x}");
        trap::bytes(&to(register), 0);
    }
    aliases();
    detected();
}

trait Concat {
    fn concat_in_place(self) -> [u8; 6];
}

impl Concat for [[u8; 3]; 2] {
    fn concat_in_place(self) -> [u8; 6] {
        let mut all = [0; 6];
        all[..3].copy_from_slice(&self[0]);
        all[3..].copy_from_slice(&self[1]);
        all
    }
}

fn aliases() {
    for on in [false, true] {
        extensions(on);
        let with = if on { "with CR4.DE" } else { "without CR4.DE" };
        for register in [4, 5] {
            fact!("debug: DR{register} read, {with}"; "{}", Told(trap::bytes(&from(register), 0)));
            let value = if register == 4 { CLEAR | 5 } else { NOTHING | 0x300 };
            let seen = Told(trap::bytes(&to(register), value));
            let [status, control] = kept();
            fact!("debug: DR{register} written, {with}"; "{seen}, DR6 {status:#x}, DR7 {control:#x}");
        }
    }
    extensions(false);
    for register in [8, 15] {
        let read = [0x44, 0x0f, 0x21, 0xc0 | (register & 7) << 3];
        let write = [0x44, 0x0f, 0x23, 0xc7 | (register & 7) << 3];
        fact!("debug: DR{register} read"; "{}", Told(trap::bytes(&read, 0)));
        fact!("debug: DR{register} written"; "{}", Told(trap::bytes(&write, 0)));
    }
    // What is not a register is one: the two bits of ModRM that are ignored.
    fact!("debug: DR0 read with ModRM.mod = 0"; "{}", Told(trap::bytes(&[0x0f, 0x21, 0x00], 0)));
    fact!("debug: DR0 read with LOCK"; "{}", Told(trap::bytes(&[0xf0, 0x0f, 0x21, 0xc0], 0)));
}

fn detected() {
    for register in 0..8 {
        let (read, write) = (from(register), to(register));
        // A value that each of them takes.
        let argument = if register & 1 == 0 { CLEAR } else { NOTHING };
        let name = ["DR0", "DR1", "DR2", "DR3", "DR4", "DR5", "DR6", "DR7"][usize::from(register)];
        let trial: [(&str, &[u8]); 2] = [("read", &read), ("written", &write)];
        for (how, code) in trial {
            detect(name, how, code, argument);
        }
    }
    extensions(true);
    for register in [4, 5] {
        let read = from(register);
        let name = if register == 4 { "DR4, with CR4.DE," } else { "DR5, with CR4.DE," };
        detect(name, "read", &read, 0);
    }
    extensions(false);
    detect("INT1", "executed", &[0xf1, 0x90], 0);
    let others: &[Trial<'_>] = &[
        ("a read of DR7 with GD, and B0 before", &from(7), 0, CLEAR | 1, GENERAL_DETECT),
        // PUSHF; TF in it; POPF; the read: a step before it.
        (
            "a single step with GD",
            &[0x9c, 0x80, 0x4c, 0x24, 1, 1, 0x9d, 0x0f, 0x21, 0xc0],
            0,
            CLEAR,
            GENERAL_DETECT,
        ),
        // MOV RCX, SS; MOV SS, RCX; the read.
        (
            "a read of DR0 with GD behind MOV to SS",
            &[0x8c, 0xd1, 0x8e, 0xd1, 0x0f, 0x21, 0xc0],
            0,
            CLEAR,
            GENERAL_DETECT,
        ),
        // An execution breakpoint at the read itself.
        (
            "a read of DR0 with GD and a breakpoint",
            &from(0),
            trap::code(),
            CLEAR,
            GENERAL_DETECT | 1,
        ),
    ];
    for (name, code, address, status, control) in others {
        super::set(*address, *status, *control);
        let seen = Told(trap::bytes(code, 0));
        end_detection();
        let (status, control) = take();
        fact!("debug: {name}"; "{seen}, DR6 {status:#x}, DR7 {control:#x}");
    }
}

fn detect(name: &str, how: &str, code: &[u8], argument: u64) {
    super::set(0, CLEAR, GENERAL_DETECT);
    let seen = Told(trap::bytes(code, argument));
    end_detection();
    let (status, control) = take();
    fact!("debug: {name} {how} with GD"; "{seen}, DR6 {status:#x}, DR7 {control:#x}");
}

/// Where nothing has met GD, this does.
fn end_detection() {
    extern "C" fn read(_: u64) {
        // SAFETY: a #DB ends the trial.
        unsafe { asm!("mov {}, dr7", out(reg) _) };
    }
    trap::run(read, 0);
}
