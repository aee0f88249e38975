//! Writes to the pages in which the IDT lies.

use payload::{Counter, exits, exits_during, say, verdict};

use crate::arrival::self_ipis;
use crate::idt::{Idt, SELF_IPI_VECTOR, device, room, second, taken, taken_by_second};

/// An offset at which the gate of vector 0x40 lies across the border of two pages.
pub(crate) const STRADDLING: usize = 4096 - 16 * 0x40 - 8;

pub(crate) fn rewritten_gate_counts(table: Idt) {
    let faults = exits(Counter::NestedPageFault);
    table.set(SELF_IPI_VECTOR, second as *const ());
    let faults = exits(Counter::NestedPageFault) - faults;
    let first = taken(|| self_ipis(10));
    let second = taken_by_second();
    table.set(SELF_IPI_VECTOR, device as *const ());
    verdict(
        "a rewritten gate takes effect at once",
        first == 0 && second == 10,
        format_args!("old handler {first}, new handler {second}"),
    );
    say!("exits for writing one gate: {faults}");
}

/// What else lies in a page of the IDT stays the guest's to read and write.
pub(crate) fn neighbours_are_written() {
    const WORDS: usize = STRADDLING / 8;
    let first = room().cast::<u64>();
    // The words lie below the table, in the room.
    let word = |index: usize| first.wrapping_add(index);
    for index in 0..WORDS {
        // SAFETY: see `word`.
        unsafe { word(index).write_volatile(!(index as u64)) };
    }
    let wrong = |index: &usize| {
        // SAFETY: see `word`.
        let value = unsafe { word(*index).read_volatile() };
        value != !(*index as u64)
    };
    let wrong = (0..WORDS).find(wrong);
    let arrived = taken(|| self_ipis(1));
    verdict(
        "data that share a page with the IDT can be written",
        wrong.is_none() && arrived == 1,
        format_args!("{WORDS} words, wrong {wrong:?}; {arrived} interrupt taken after it"),
    );
    // One instruction for many words, which faults again at each.
    // SAFETY: see `word`.
    unsafe {
        core::arch::asm!(
            "rep stosq",
            inout("rcx") WORDS => _,
            inout("rdi") first => _,
            in("rax") 0x5a5a_u64,
        );
    }
    let filled = (0..WORDS).all(|index| {
        // SAFETY: see `word`.
        let value = unsafe { word(index).read_volatile() };
        value == 0x5a5a
    });
    verdict("a string instruction may fill them", filled, format_args!("{WORDS} words"));
}

/// Stores of XMM registers to what shares a page with the IDT: the hypervisor carries them out where that page is
/// shadowed.
pub(crate) fn vector_registers_are_stored() {
    const OSFXSR: u64 = 1 << 9;
    let first = room().cast::<[u64; 2]>();
    let patterns = [5_u64, 11].map(|number| [0x0123_4567_89ab_cdef ^ number, !number]);
    // SAFETY: every 64-bit CPU has SSE; the compiler uses no vector registers; the words lie below the table, in
    // the room (see `neighbours_are_written`).
    unsafe {
        core::arch::asm!(
            "mov {cr4}, cr4",
            "or {cr4}, {osfxsr}",
            "mov cr4, {cr4}",
            "movups xmm5, [{low}]",
            "movups xmm11, [{high}]",
            "movups [{to}], xmm5",
            "movups [{to} + 20], xmm11",
            cr4 = out(reg) _,
            osfxsr = const OSFXSR,
            low = in(reg) &raw const patterns[0],
            high = in(reg) &raw const patterns[1],
            to = in(reg) first,
            options(nostack),
        );
    }
    let read = [0, 20].map(|offset| {
        // SAFETY: as above.
        unsafe { first.wrapping_byte_add(offset).read_unaligned() }
    });
    verdict(
        "vector registers are stored there as they are",
        read == patterns,
        format_args!("{read:x?}"),
    );
}

/// The IDT has moved: the pages where it was are like any others again.
pub(crate) fn pages_left_are_given_back() {
    let bytes = room();
    let spent = exits_during(|| {
        for offset in 0..2 * 4096 {
            // SAFETY: the first two pages of the room hold no table any more.
            unsafe { bytes.wrapping_add(offset).write_volatile(0xff) };
        }
    });
    let arrived = taken(|| self_ipis(1));
    verdict(
        "pages that the IDT has left are the guest's again",
        spent == 0 && arrived == 1,
        format_args!("{spent} exits for 8192 writes; {arrived} interrupt taken after them"),
    );
}
