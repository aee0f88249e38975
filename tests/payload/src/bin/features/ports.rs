//! Ports and devices' memory by string instructions, of every width and address size, and by CPL 3: the registers that
//! each leaves, and the faults.
//!
//! The port is the mask of the second 8259, which keeps what is written and reads it back; the first 8259's mask keeps all
//! of it from the CPU.

mod device;
mod permissions;

use core::fmt;

use payload::fact;

use crate::pages::{self, ALL, HOLE, PRESENT, TARGET, USER};
use crate::trial::{self, Mode, Outcome, Registers};

const MASK: u64 = 0xa1;
const DIRECTION: u64 = 1 << 10;
const TRAP: u64 = 1 << 8;
const PRIVILEGE: u64 = 3 << 12;
const HELD: u8 = 0x5a;

const INSB: &[u8] = &[0x6c];
const INSW: &[u8] = &[0x66, 0x6d];
const INSD: &[u8] = &[0x6d];
const OUTSB: &[u8] = &[0x6e];
const REP_INSB: &[u8] = &[0xf3, 0x6c];
const REP_OUTSB: &[u8] = &[0xf3, 0x6e];

pub(crate) fn all() {
    strings();
    segments();
    small_addresses();
    faults();
    steps();
    permissions::all();
    device::registers();
    device::register_pages();
    hold(0xff);
}

fn hold(value: u8) {
    // MOV EAX, EDI; OUT 0xA1, AL.
    trial::kernel(&[0x89, 0xf8, 0xe6, MASK as u8], value.into());
}

fn held() -> u64 {
    trial::kernel(&[0xe4, MASK as u8], 0).after.rax & 0xff
}

fn fill(value: u8) {
    // SAFETY: the target's data.
    unsafe { pages::data(TARGET).write_bytes(value, 4096) };
}

fn byte(at: usize) -> u8 {
    // SAFETY: a byte of the target's data.
    unsafe { pages::data(TARGET).wrapping_add(at).read_volatile() }
}

fn set_byte(at: usize, value: u8) {
    // SAFETY: as above.
    unsafe { pages::data(TARGET).wrapping_add(at).write_volatile(value) };
}

/// What is left of the registers that a string instruction counts with.
struct Left(Outcome);

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let after = &self.0.after;
        write!(f, "{}: {:#x} {:#x} {:#x}", self.0, after.rcx, after.rsi, after.rdi)?;
        write!(f, ", flags {:#x}", after.flags & 0xcd5)
    }
}

fn string(mode: Mode, code: &[u8], count: u64, at: u64, flags: u64) -> Left {
    let registers = Registers {
        rcx: count,
        rsi: at,
        rdi: at,
        rdx: MASK | 0x1234_0000,
        flags: flags | 0x8d5,
        ..Registers::default()
    };
    Left(trial::run(mode, code, registers))
}

/// Up and down, once and repeated.
fn strings() {
    for (flags, name) in [(0, "up"), (DIRECTION, "down")] {
        for (what, code) in [("INSB", INSB), ("INSW", INSW), ("INSD", INSD), ("REP INSB", REP_INSB)]
        {
            hold(HELD);
            fill(0x11);
            let left = string(Mode::Kernel, code, 5, pages::at(TARGET) + 16, flags);
            let written =
                (0..32).filter(|at| byte(*at) != 0x11).fold(0u32, |bits, at| bits | 1 << at);
            fact!("ports: {what} {name}"; "{left}, {written:#x}");
        }
        for (what, code) in [("OUTSB", OUTSB), ("REP OUTSB", REP_OUTSB)] {
            (0..32).for_each(|at| set_byte(at, at as u8));
            let left = string(Mode::Kernel, code, 5, pages::at(TARGET) + 16, flags);
            fact!("ports: {what} {name}"; "{left}, {:#x}", held());
        }
    }
    for code in [REP_INSB, REP_OUTSB] {
        let name = if code == REP_INSB { "REP INSB" } else { "REP OUTSB" };
        hold(HELD);
        fact!("ports: {name} no times, in no page"; "{}, {:#x}", string(Mode::Kernel, code, 0, pages::at(HOLE), 0), held());
        fact!("ports: {name} to the end of a page"; "{}", string(Mode::Kernel, code, 0x100, pages::at(HOLE) - 0x100, 0));
    }
    hold(HELD);
    fill(0);
    let left = string(Mode::Kernel, REP_INSB, 4096, pages::at(TARGET), 0);
    fact!("ports: REP INSB of a page"; "{left}, {}", (0..4096).all(|at| byte(at) == HELD));
    // REPNE is REP.
    fact!("ports: REPNE INSB"; "{}", string(Mode::Kernel, &[0xf2, 0x6c], 3, pages::at(TARGET), 0));
    // REX.W changes nothing: 4 bytes.
    fact!("ports: INS with REX.W"; "{}", string(Mode::Kernel, &[0x48, 0x6d], 3, pages::at(TARGET), 0));
    let full = Registers { rax: !0, rdx: MASK, ..Registers::default() };
    for (name, code, bits) in [
        ("AL", &[0xec][..], 8),
        ("AX", &[0x66, 0xed], 16),
        ("EAX", &[0xed], 32),
        ("EAX with REX.W", &[0x48, 0xed], 32),
    ] {
        let seen = trial::run(Mode::Kernel, code, full).after.rax;
        fact!("ports: IN to {name}: what is left of RAX"; "{:#x}", seen >> bits);
    }
    fact!("ports: IN with LOCK"; "{}", trial::run(Mode::Kernel, &[0xf0, 0xec], full));
}

/// OUTS takes any segment, INS takes ES.
fn segments() {
    // The page is FS's base.
    let base = pages::at(TARGET);
    crate::control::write_msr(0xc000_0100, base);
    (0..32).for_each(|at| set_byte(at, 0x80 + at as u8));
    let low = |code: &[u8]| {
        let registers = Registers { rsi: 7, rdi: 7, rcx: 1, rdx: MASK, ..Registers::default() };
        trial::run(Mode::Kernel, code, registers)
    };
    fact!("ports: OUTSB from FS"; "{}, {:#x}", low(&[0x64, 0x6e]), held());
    fact!("ports: REP OUTSB from FS with 32-bit addresses"; "{}, {:#x}", low(&[0x64, 0x67, 0xf3, 0x6e]), held());
    crate::control::write_msr(0xc000_0100, 1 << 46);
    fact!("ports: OUTSB from FS where no page is"; "{}", low(&[0x64, 0x6e]));
    let end = Registers { rsi: !0 - 3, rdx: MASK, ..Registers::default() };
    crate::control::write_msr(0xc000_0100, base + 8);
    set_byte(4, 0x33);
    fact!("ports: OUTSB from FS by a negative offset"; "{}, {:#x}", trial::run(Mode::Kernel, &[0x64, 0x6e], end), held());
    crate::control::write_msr(0xc000_0100, 0);
    // Data with a limit of 15 bytes, in 32-bit code: MOV ES, EBX; INSB.
    let limited = |code: &[u8], at: u64| {
        let registers = Registers {
            rbx: trial::SHORT_DATA | 3,
            rsi: at,
            rdi: at,
            rdx: MASK,
            rcx: 2,
            flags: PRIVILEGE,
            ..Registers::default()
        };
        trial::run(Mode::User32, code, registers)
    };
    for at in [15, 16] {
        fact!("ports: 32-bit INSB to a segment of 16 bytes, at {at}"; "{}", limited(&[0x8e, 0xc3, 0x6c], at));
        fact!("ports: 32-bit OUTSB from a segment of 16 bytes, at {at}"; "{}", limited(&[0x8e, 0xc3, 0x26, 0x6e], at));
    }
    fact!("ports: 32-bit INSD across the end of a segment"; "{}", limited(&[0x8e, 0xc3, 0x6d], 13));
    fact!("ports: 32-bit INSB to a null segment"; "{}", limited(&[0x31, 0xc0, 0x8e, 0xc0, 0x6c], 0));
    fact!("ports: 32-bit OUTSB from a null segment"; "{}", limited(&[0x31, 0xc0, 0x8e, 0xc0, 0x26, 0x6e], 0));
    // CS can be read and not written.
    fact!("ports: 32-bit OUTSB from CS"; "{}", limited(&[0x2e, 0x6e], pages::LOW_TARGET));
    fact!("ports: 32-bit INSB, to CS as ES"; "{}", limited(&[0x8c, 0xcb, 0x8e, 0xc3, 0x6c], pages::LOW_TARGET));
    trial::kernel(&[0x6a, 0x10, 0x58, 0x8e, 0xc0], 0);
}

/// 16- and 32-bit registers that wrap.
fn small_addresses() {
    hold(HELD);
    // In 64-bit code with 32-bit addresses, and the upper halves set.
    let high = 0x1111_1111_0000_0000;
    let registers = |at: u64, count: u64| Registers {
        rcx: count,
        rsi: at,
        rdi: at,
        rdx: MASK,
        flags: 2,
        ..Registers::default()
    };
    let seen = trial::run(
        Mode::Kernel,
        &[0x67, 0xf3, 0x6c],
        registers(high | pages::LOW_TARGET, high | 3),
    );
    fact!("ports: REP INSB with 32-bit addresses"; "{}", Left(seen));
    let seen =
        trial::run(Mode::Kernel, &[0x67, 0xf3, 0x6c], registers(high | pages::LOW_TARGET, high));
    fact!("ports: REP INSB with 32-bit addresses, no times"; "{}", Left(seen));
    let seen = trial::run(Mode::Kernel, &[0x67, 0x6e], registers(high | 0xffff_ffff, 0));
    fact!("ports: OUTSB with 32-bit addresses, the last byte of 4 GiB"; "{}", Left(seen));
    // 16-bit code: the segments are flat, offsets have 16 bits.
    for (name, code) in
        [("REP OUTSB", &[0xf3, 0x6e][..]), ("REP OUTSB with 32-bit addresses", &[0x67, 0xf3, 0x6e])]
    {
        let seen = trial::run(Mode::Kernel16, code, registers(0x1_fffe, 0x2_0004));
        let after = seen.after;
        fact!("ports: 16-bit code: {name}"; "{seen}: {:#x} {:#x}", after.rcx & 0xffff_ffff, after.rsi & 0xffff_ffff);
    }
    for (name, code) in [
        ("LODSB", &[0xac][..]),
        ("REP LODSW", &[0xf3, 0xad]),
        ("LOOP", &[0xe2, 0]),
        ("JCXZ", &[0xe3, 0]),
    ] {
        let seen = trial::run(Mode::Kernel16, code, registers(0x1_ffff, 0x2_0001));
        fact!("ports: 16-bit code: {name}"; "{seen}: {:#x} {:#x}", seen.after.rcx & 0xffff_ffff, seen.after.rsi & 0xffff_ffff);
    }
    for width in 0..3 {
        // IN by every width of code: the operand size is 16 bits where the code's is.
        let code: &[u8] = [&[0xec][..], &[0xed], &[0x66, 0xed]][width];
        let seen = trial::run(
            Mode::Kernel16,
            code,
            Registers { rax: 0x1111_1111, rdx: 0x80, ..Registers::default() },
        );
        fact!("ports: 16-bit code: IN {width}: upper half kept"; "{seen}, {}", seen.after.rax >> 16 & 0xffff == 0x1111);
    }
}

/// Where there is no page, or one for reading: the registers are those of the element that faults.
fn faults() {
    let end = pages::at(HOLE);
    for (name, code) in [
        ("INSB", INSB),
        ("INSW", INSW),
        ("INSD", INSD),
        ("REP INSB", REP_INSB),
        ("OUTSB", OUTSB),
        ("REP OUTSB", REP_OUTSB),
        ("REP INSD", &[0xf3, 0x6d]),
        ("REP OUTSD", &[0xf3, 0x6f]),
        ("REP MOVSQ", &[0xf3, 0x48, 0xa5]),
        ("REP STOSQ", &[0xf3, 0x48, 0xab]),
        ("REP LODSQ", &[0xf3, 0x48, 0xad]),
    ] {
        hold(HELD);
        fact!("ports: {name} in no page"; "{}", string(Mode::Kernel, code, 8, end, 0));
        fact!("ports: {name} 10 bytes before no page"; "{}", string(Mode::Kernel, code, 16, end - 10, 0));
        fact!("ports: {name} downwards into no page"; "{}", string(Mode::Kernel, code, 16, end + 4096 + 1, DIRECTION));
        fact!("ports: {name} where no address is"; "{}", string(Mode::Kernel, code, 1, 1 << 63, 0));
    }
    pages::map(TARGET, PRESENT | USER);
    fact!("ports: REP INSB at CPL 3 to a page for reading"; "{}",
        string(Mode::User, REP_INSB, 3, pages::at(TARGET), PRIVILEGE));
    fact!("ports: REP OUTSB at CPL 3 from a page for reading"; "{}",
        string(Mode::User, REP_OUTSB, 3, pages::at(TARGET), PRIVILEGE));
    pages::map(TARGET, PRESENT);
    fact!("ports: REP OUTSB at CPL 3 from a page of the supervisor"; "{}",
        string(Mode::User, REP_OUTSB, 3, pages::at(TARGET), PRIVILEGE));
    fact!("ports: REP INSB at CPL 3 to a page of the supervisor"; "{}",
        string(Mode::User, REP_INSB, 3, pages::at(TARGET), PRIVILEGE));
    pages::map(TARGET, ALL);
    for (what, code) in [("INSB", REP_INSB), ("OUTSB", REP_OUTSB)] {
        let entry = pages::page_entry(TARGET);
        pages::write(entry, pages::read(entry) & !(pages::ACCESSED | pages::DIRTY));
        string(Mode::Kernel, code, 3, pages::at(TARGET), 0);
        fact!("ports: A and D after REP {what}"; "{}", (pages::read(entry) & (pages::ACCESSED | pages::DIRTY)) >> 5);
    }
}

/// With RFLAGS.TF: one element is a step.
fn steps() {
    for (name, code) in [
        ("REP INSB", REP_INSB),
        ("REP OUTSB", REP_OUTSB),
        ("REP MOVSB", &[0xf3, 0xa4][..]),
        ("INSB", INSB),
        ("OUT", &[0xe6, MASK as u8]),
        ("IN", &[0xe4, MASK as u8]),
    ] {
        for count in [3, 1, 0] {
            hold(HELD);
            fact!("ports: a step of {name}, RCX={count}"; "{}", string(Mode::Kernel, code, count, pages::at(TARGET), TRAP));
        }
    }
}
