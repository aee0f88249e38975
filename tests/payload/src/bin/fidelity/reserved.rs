//! The local APIC's registers bit by bit: what is kept, and what is refused.

use crate::fact;
use crate::local::{self, ICR, TPR, attempt, bits, mode, read, write};
use crate::trap::{self, Told};

const SVR: u16 = 0xf0;
const EOI: u16 = 0xb0;
const SELF_IPI: u16 = 0x3f0;
const ICR_HIGH: u16 = 0x310;
/// A vector to a CPU that is not there, in either mode.
const NOBODY: u64 = 0xab00_0000;

pub(crate) fn all() {
    let mode = mode();
    for (name, register, with) in [
        ("TPR", TPR, 0_u64),
        ("SVR", SVR, 0x1ff),
        ("ESR", 0x280, 0),
        ("divide configuration", 0x3e0, 0),
    ] {
        let [kept, refused] = bits(register, with);
        fact!("reserved: {mode}: bits that are kept: {name}"; "{kept:#x}");
        fact!("reserved: {mode}: bits that are refused: {name}"; "{refused:#x}");
        write(register, with as u32);
    }
    if local::in_x2apic_mode() {
        in_x2apic_mode();
    } else {
        in_xapic_mode();
    }
    let _ = trap::listen();
}

fn in_x2apic_mode() {
    let refused = bits(EOI, 0)[1];
    fact!("reserved: x2APIC: bits that are refused: EOI"; "{refused:#x}");
    fact!("reserved: x2APIC: EOI with 1"; "{}", Told(attempt(EOI, 1)));
    let refused = |register, first: u32, with: u64| {
        (first..64)
            .filter(|bit| attempt(register, with | 1 << bit).is_some())
            .fold(0_u64, |all, bit| all | 1 << bit)
    };
    fact!("reserved: x2APIC: bits that are refused: initial count"; "{:#x}", refused(0x380, 32, 0));
    fact!("reserved: x2APIC: bits that are refused: SELF IPI"; "{:#x}", refused(SELF_IPI, 8, 0x40));
    let with = NOBODY << 32 | 0x40;
    let mut kept = 0_u64;
    for bit in 8..64 {
        // The delivery status, which x2APIC mode has no more.
        if bit != 12 && attempt(ICR, with | 1 << bit).is_none() {
            kept |= icr() & 1 << bit;
        }
    }
    fact!("reserved: x2APIC: bits that are kept: ICR"; "{kept:#x}");
    let none = attempt(ICR, with);
    fact!("reserved: x2APIC: ICR as it was written"; "{}, {:#x}", Told(none), icr());
    let mut refused = 0_u64;
    for bit in (8..64).filter(|bit| *bit != 12) {
        if attempt(ICR, with | 1 << bit).is_some() {
            refused |= 1 << bit;
        }
    }
    fact!("reserved: x2APIC: bits that are refused: ICR"; "{refused:#x}");
    fact!("reserved: x2APIC: a refused write leaves ICR"; "{}", {
        let _ = attempt(ICR, with);
        let _ = attempt(ICR, with | 1 << 20 | 0x55);
        icr() == with
    });
    fact!("reserved: x2APIC: LDR"; "{:#x}", read(0xd0));
    fact!("reserved: x2APIC: identifier and version"; "{:#x}, {:#x}", read(0x20), read(0x30));
}

/// All 64 bits.
fn icr() -> u64 {
    // SAFETY: in x2APIC mode it is there.
    unsafe { cpu::instructions::read_msr(0x830) }
}

fn in_xapic_mode() {
    for (name, register, with) in
        [("LDR", 0xd0, 0_u64), ("DFR", 0xe0, 0x0fff_ffff), ("ICR, high half", ICR_HIGH, 0)]
    {
        let [kept, _] = bits(register, with);
        fact!("reserved: xAPIC: bits that are kept: {name}"; "{kept:#x}");
        write(register, 0);
        fact!("reserved: xAPIC: {name} after 0"; "{:#x}", read(register));
        write(register, u32::MAX);
        fact!("reserved: xAPIC: {name} after ones"; "{:#x}", read(register));
    }
    write(0xd0, 0);
    write(0xe0, u32::MAX);
    let mut kept = 0;
    for bit in 8..32 {
        write(ICR_HIGH, NOBODY as u32);
        write(ICR, 0x40 | 1 << bit);
        kept |= read(ICR) & 1 << bit;
    }
    fact!("reserved: xAPIC: bits that are kept: ICR"; "{kept:#x}");
    write(ICR_HIGH, NOBODY as u32);
    write(ICR, 0x45);
    fact!("reserved: xAPIC: ICR as it was written"; "{:#x}, {:#x}", read(ICR_HIGH), read(ICR));
    fact!("reserved: xAPIC: identifier and version"; "{:#x}, {:#x}", read(0x20), read(0x30));
    // The identifier may be written on some CPUs: not here.
    for (name, register) in
        [("version", 0x30), ("PPR", 0xa0), ("current count", 0x390), ("ISR", 0x110)]
    {
        let before = read(register);
        write(register, !before);
        fact!("reserved: xAPIC: {name} cannot be written"; "{}", read(register) == before);
    }
    // The next facts are of errors, and this may have been one.
    write(0x280, 0);
    write(0x280, 0);
}
