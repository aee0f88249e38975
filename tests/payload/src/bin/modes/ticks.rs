//! Ticks of the 8254 through the 8259s in real mode, where a program halts for the next, as a BIOS and DOS do.

use crate::low::Mode;

pub(crate) fn all() {
    crate::group!(Mode::Real, "ticks", ticks_code, ticks_code_end, ticks_list, ticks_list_end)
        .run();
}

// Line 0 of the first 8259 at vector 0x60, and one tick in some milliseconds (mode 0).
crate::trials!(
    "ticks";
    ".macro send_to port, value",
    "mov al, \\value",
    "out \\port, al",
    ".endm",
    ".macro tick",
    "send_to 0x43, 0x30",
    "send_to 0x40, 0",
    "send_to 0x40, 0x20",
    "send_to 0x20, 0x11",
    "send_to 0x21, 0x60",
    "send_to 0x21, 4",
    "send_to 0x21, 1",
    "send_to 0x21, 0xfe",
    "mov word ptr [returns], 1",
    ".endm",
    // What is in service; then nothing is.
    ".macro ended",
    "send_to 0x20, 0x0b",
    "xor eax, eax",
    "in al, 0x20",
    "tell",
    "send_to 0x20, 0x20",
    "send_to 0x21, 0xff",
    ".endm",
    "trial \"a tick ends STI, HLT\"",
    "tick",
    "sti",
    "hlt",
    "cli",
    "ended",
    "trial \"a tick ends HLT behind other instructions\"",
    "tick",
    "sti",
    "nop",
    "hlt",
    "cli",
    "ended",
    ".purgem send_to",
    ".purgem tick",
    ".purgem ended",
);
