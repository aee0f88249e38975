//! The I/O APIC's index register, from CPL 3 and by addresses of every kind.

use payload::fact;

use super::{Left, TRAP};
use crate::pages::{self, HOLE, PRESENT, REGISTERS, TARGET, USER};
use crate::trial::{self, Mode, Outcome, Registers};

fn register(code: &[u8], rax: u64, address: u64) -> Outcome {
    let registers =
        Registers { rdi: address, rsi: address, rax, rcx: 2, flags: 0x8d5, ..Registers::default() };
    trial::run(Mode::User, code, registers)
}

/// The I/O APIC's index register, from CPL 3 and by addresses of every kind.
pub(super) fn registers() {
    let at = pages::at(REGISTERS);
    let user = register;
    fact!("ports: a device's register written at CPL 3"; "{}", user(&[0x89, 0x07], 0x15, at));
    let seen = user(&[0x8b, 0x07], 0, at);
    fact!("ports: and read"; "{seen}, {:#x}, {:#x}", seen.after.rax, seen.after.flags & 0xcd5);
    for (name, code) in [
        ("ADD EAX, [RDI]", &[0x03, 0x07][..]),
        ("CMP [RDI], EAX", &[0x39, 0x07]),
        ("TEST [RDI], EAX", &[0x85, 0x07]),
        ("LODSD", &[0xad]),
        ("XCHG [RDI], EAX", &[0x87, 0x07]),
        ("LOCK XADD [RDI], EAX", &[0xf0, 0x0f, 0xc1, 0x07]),
        ("BT [RDI], EAX", &[0x0f, 0xa3, 0x07]),
        ("MOVZX EAX, [RDI]", &[0x0f, 0xb6, 0x07]),
        ("MOVSX RAX, [RDI]", &[0x48, 0x0f, 0xbe, 0x07]),
        ("PUSH word [RDI]", &[0x66, 0xff, 0x37, 0x66, 0x58]),
        ("CMOVNZ EAX, [RDI]", &[0x0f, 0x45, 0x07]),
    ] {
        user(&[0x89, 0x07], 0x15, at);
        let seen = user(code, 3, at);
        let left = user(&[0x8b, 0x07], 0, at).after.rax;
        fact!("ports: a device's register by {name}"; "{seen}, {:#x}, {:#x}, {left:#x}", seen.after.rax & 0xffff_ffff, seen.after.flags & 0x8d5);
    }
}

/// The same by FS, with other rights, in a step, and copied.
pub(super) fn register_pages() {
    let at = pages::at(REGISTERS);
    let user = register;
    user(&[0x89, 0x07], 0x12, at);
    crate::control::write_msr(0xc000_0100, at - 0x1000);
    let seen = user(&[0x64, 0x8b, 0x07], 0, 0x1000);
    fact!("ports: a device's register by FS"; "{seen}, {:#x}", seen.after.rax);
    crate::control::write_msr(0xc000_0100, 0);
    let entry = pages::page_entry(REGISTERS);
    let usual = pages::read(entry);
    for (name, rights) in
        [("for reading", PRESENT | USER), ("of the supervisor", PRESENT | 2), ("not there", 0)]
    {
        pages::write(entry, usual & !7 | rights);
        fact!("ports: a device's page {name}: CPL 3 reads, writes"; "{}, {}", user(&[0x8b, 0x07], 0, at), user(&[0x89, 0x07], 0, at));
    }
    pages::write(entry, usual & !(pages::ACCESSED | pages::DIRTY));
    user(&[0x8b, 0x07], 0, at);
    let read = pages::read(entry) >> 5 & 3;
    user(&[0x89, 0x07], 0x12, at);
    fact!("ports: A and D of a device's page, read, written"; "{read}, {}", pages::read(entry) >> 5 & 3);
    let step = trial::run(
        Mode::User,
        &[0x8b, 0x07, 0x90],
        Registers { rdi: at, flags: TRAP, ..Registers::default() },
    );
    fact!("ports: a step over a read of a device"; "{step}, {:#x}", step.after.rax);
    // MOVSD and back: the second is in no page.
    let copy = |from: u64, to: u64, count: u64| {
        trial::run(
            Mode::User,
            &[0xf3, 0xa5],
            Registers { rsi: from, rdi: to, rcx: count, ..Registers::default() },
        )
    };
    fact!("ports: REP MOVSD from a device, once"; "{}", Left(copy(at, pages::at(TARGET), 1)));
    fact!("ports: REP MOVSD from a device into no page"; "{}", Left(copy(at, pages::at(HOLE), 1)));
    fact!("ports: REP MOVSD from no page to a device"; "{}", Left(copy(pages::at(HOLE), at, 1)));
}
