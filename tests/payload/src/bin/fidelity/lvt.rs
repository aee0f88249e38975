//! The local vector table: what each entry keeps of its delivery mode and of its other bits.

use crate::local::{self, attempt, mode, read, write};
use crate::trap::Told;
use crate::{fact, trap};

const MASKED: u32 = 1 << 16;
const VECTOR: u32 = 0x40;
const CMCI: u16 = 0x2f0;

const ENTRIES: [(&str, u16); 6] = [
    ("timer", 0x320),
    ("thermal sensor", 0x330),
    ("performance counters", 0x340),
    ("LINT0", 0x350),
    ("LINT1", 0x360),
    ("error", 0x370),
];
/// The delivery modes by their numbers; 3 and 6 are reserved in an entry.
const MODES: [&str; 8] = ["fixed", "1", "SMI", "3", "NMI", "INIT", "6", "ExtINT"];

pub(crate) fn all() {
    let mode = mode();
    for (name, entry) in ENTRIES {
        let before = read(entry);
        for (number, delivery) in MODES.iter().enumerate() {
            let refused = attempt(entry, u64::from(MASKED | (number as u32) << 8 | VECTOR));
            let kept = read(entry);
            fact!("lvt: {mode}: {name}, {delivery}"; "{}, {kept:#x}", Told(refused));
            write(entry, MASKED);
        }
        let [kept, refused] = local::bits(entry, MASKED.into());
        fact!("lvt: {mode}: bits that are kept: {name}"; "{kept:#x}");
        fact!("lvt: {mode}: bits that are refused: {name}"; "{refused:#x}");
        write(entry, before | MASKED);
    }
    version(mode);
    disabled(mode);
}

/// The last entry by the version register, and whether that of corrected machine checks is there with it.
fn version(mode: &str) {
    let last = read(0x30) >> 16 & 0xff;
    fact!("lvt: {mode}: the last entry that the version tells of"; "{last}");
    // QEMU, which has the AMD CPU here, would keep the error of an access in ESR for ever.
    if !local::in_x2apic_mode() && !local::of_intel() {
        return;
    }
    let there = attempt(CMCI, u64::from(MASKED | VECTOR)).is_none() && {
        let kept = trap::run(read_cmci, 0).is_none() && read(CMCI) == MASKED | VECTOR;
        if kept {
            write(CMCI, MASKED);
        }
        kept
    };
    fact!("lvt: {mode}: the entry of corrected machine checks is as the version says"; "{}", there == (last >= 6));
}

extern "C" fn read_cmci(_: u64) {
    core::hint::black_box(read(CMCI));
}

/// While the local APIC is software-disabled the masks cannot be cleared.
fn disabled(mode: &str) {
    local::disable();
    for (name, entry) in ENTRIES {
        write(entry, VECTOR);
        fact!("lvt: {mode}: written without a mask while disabled: {name}"; "{:#x}", read(entry));
    }
    local::enable();
    for (_, entry) in ENTRIES {
        write(entry, MASKED);
    }
}
