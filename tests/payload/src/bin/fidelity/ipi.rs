//! Interprocessor interrupts of a CPU that is alone: which destinations, shorthands and delivery modes reach it.

use crate::fact;
use crate::local::{self, ICR, attempt, mode, read, write};
use crate::trap::{self, Told};

const VECTOR: u32 = 0x56;
const LOGICAL: u32 = 1 << 11;
const LOWEST: u32 = 1 << 8;
const NMI: u32 = 4 << 8;
const ASSERT: u32 = 1 << 14;
const LEVEL: u32 = 1 << 15;
const SELF: u32 = 1 << 18;
const ALL: u32 = 2 << 18;
const OTHERS: u32 = 3 << 18;
const LDR: u16 = 0xd0;
const DFR: u16 = 0xe0;
const FLAT: u32 = u32::MAX;
const CLUSTER: u32 = 0x0fff_ffff;

/// Sends this to a destination of 32 bits, or in xAPIC mode of 8.
fn send_to(destination: u32, low: u32) -> Told {
    if local::in_x2apic_mode() {
        return Told(attempt(ICR, u64::from(destination) << 32 | u64::from(low)));
    }
    write(0x310, destination << 24);
    write(ICR, low);
    Told(None)
}

/// What comes of it: vectors, and NMIs.
fn told(name: &str, destination: u32, low: u32) {
    let mode = mode();
    let sent = send_to(destination, low);
    let came = trap::listen();
    fact!("ipi: {mode}: {name}"; "{sent}, {came}, {} NMIs", crate::nmi::count());
}

pub(crate) fn all() {
    destinations();
    shorthands();
    delivery_modes();
    trigger_mode();
    disabled();
}

fn destinations() {
    told("physical, the own", 0, VECTOR);
    told("physical, the own, edge, asserted", 0, ASSERT | VECTOR);
    told("physical, 1", 1, VECTOR);
    told("physical, 8 bits of ones", 0xff, VECTOR);
    told("physical, lowest priority", 0, LOWEST | VECTOR);
    if local::in_x2apic_mode() {
        told("physical, 0xFFFFFFFF", u32::MAX, VECTOR);
        told("physical, 0xFFFFFFFF, an NMI", u32::MAX, ASSERT | NMI);
        told("physical, 0xFF000000", 0xff00_0000, VECTOR);
        told("physical, 0x10000", 0x1_0000, VECTOR);
        for set in [0, 1, 2, 0xffff, 0xfffe, 0x1_0001, 0xffff_0001, 0xff, u32::MAX] {
            logical(set, "by identifier");
        }
        told("logical, lowest priority", 1, LOGICAL | LOWEST | VECTOR);
        return;
    }
    told("physical, 0xFF, an NMI", 0xff, ASSERT | NMI);
    told("physical, 15", 15, VECTOR);
    for (model, dfr, ldr, sets) in [
        ("flat, LDR 0x02", FLAT, 2, [0, 1, 2, 3, 0xfd, 0xff]),
        ("flat, LDR 0", FLAT, 0, [0, 1, 2, 0x80, 0xf0, 0xff]),
        ("flat, LDR 0x81", FLAT, 0x81, [0, 1, 0x80, 0x7e, 0x81, 0xff]),
        ("cluster, LDR 0x21", CLUSTER, 0x21, [0x21, 0x22, 0x31, 0xf1, 0xff, 0x2f]),
        ("cluster, LDR 0x20", CLUSTER, 0x20, [0x21, 0x2f, 0x20, 0xf1, 0xff, 0]),
        ("cluster, LDR 0x06", CLUSTER, 0x06, [0x02, 0x04, 0x09, 0xf8, 0xff, 0x16]),
    ] {
        write(DFR, dfr);
        write(LDR, ldr << 24);
        for set in sets {
            logical(set, model);
        }
    }
    write(DFR, FLAT);
    write(LDR, 2 << 24);
    told("logical, lowest priority", 2, LOGICAL | LOWEST | VECTOR);
    told("logical, lowest priority, nobody", 4, LOGICAL | LOWEST | VECTOR);
    told("logical, an NMI", 2, LOGICAL | ASSERT | NMI);
    write(LDR, 0);
}

fn logical(set: u32, model: &str) {
    let mode = mode();
    let sent = send_to(set, LOGICAL | VECTOR);
    let came = trap::listen();
    fact!("ipi: {mode}: logical, {set:#x}, {model}"; "{sent}, {came}");
}

fn shorthands() {
    // The destination does not count.
    told("self", 9, SELF | VECTOR);
    told("self, logical", 9, SELF | LOGICAL | VECTOR);
    told("all including self", 9, ALL | VECTOR);
    told("all excluding self", 0, OTHERS | VECTOR);
    told("all excluding self, physical 0xFF", 0xff, OTHERS | VECTOR);
    told("all including self, an NMI", 9, ALL | ASSERT | NMI);
    told("all excluding self, an NMI", 0, OTHERS | ASSERT | NMI);
    told("all excluding self, lowest priority", 0, OTHERS | LOWEST | VECTOR);
    told("all excluding self, INIT", 0, OTHERS | ASSERT | 5 << 8);
    told("all excluding self, start-up", 0, OTHERS | ASSERT | 6 << 8 | 0x10);
}

fn delivery_modes() {
    told("an NMI, whose vector does not count", 0, ASSERT | NMI | 5);
    told("delivery mode 3", 0, 3 << 8 | VECTOR);
    told("delivery mode 7", 0, 7 << 8 | VECTOR);
    told("INIT level de-assert", 0, LEVEL | 5 << 8);
    told("start-up while it runs", 0, ASSERT | 6 << 8 | 0x10);
    told("an NMI to 1", 1, ASSERT | NMI);
}

/// TMR behind an edge and a level, and that a fixed one is sent whatever its level.
fn trigger_mode() {
    let mode = mode();
    let bit = || read(0x180 + 0x10 * (VECTOR as u16 / 32)) >> (VECTOR % 32) & 1;
    for (name, low) in [
        ("edge", VECTOR),
        ("edge, asserted", ASSERT | VECTOR),
        ("level, asserted", LEVEL | ASSERT | VECTOR),
        ("edge again", VECTOR),
        ("level, not asserted", LEVEL | VECTOR),
    ] {
        let _ = send_to(0, low);
        let came = trap::listen();
        fact!("ipi: {mode}: {name}, and TMR"; "{came}, {}", bit());
        let _ = send_to(0, VECTOR);
        let _ = trap::listen();
    }
}

/// What a software-disabled local APIC takes, and what was requested before.
fn disabled() {
    let mode = mode();
    local::disable();
    told("disabled: a vector", 0, VECTOR);
    told("disabled: an NMI", 0, ASSERT | NMI);
    local::enable();
    fact!("ipi: {mode}: enabled again: the vector"; "{}", trap::listen());
    if local::in_x2apic_mode() {
        local::disable();
        write(0x3f0, VECTOR);
        local::enable();
        fact!("ipi: {mode}: disabled: SELF IPI"; "{}", trap::listen());
    }
    let _ = send_to(0, VECTOR);
    local::disable();
    let word = read(0x200 + 0x10 * (VECTOR as u16 / 32));
    fact!("ipi: {mode}: requested, and then disabled: IRR"; "{word:#x}");
    local::enable();
    fact!("ipi: {mode}: requested, disabled and enabled again"; "{}", trap::listen());
}
