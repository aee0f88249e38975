//! The two legacy 8259 interrupt controllers: remapped and masked, then never used.
//!
//! Firmware leaves them unmasked with vector base 8; with hardware-virtual interrupts off the first
//! `sti` of a guest would take one through its #DF gate.

use arch::machine::Width;

use crate::instructions::port_write;

/// Remaps both controllers away from the exceptions and masks every line.
///
/// # Safety
/// Ring 0, and nobody uses the controllers.
pub unsafe fn disable() {
    const FIRST: u16 = 0x20;
    const SECOND: u16 = 0xa0;
    let sequence = [
        (FIRST, 0x11), // ICW1: edge, cascade, ICW4 follows
        (SECOND, 0x11),
        (FIRST + 1, 0x20), // ICW2: vector base
        (SECOND + 1, 0x28),
        (FIRST + 1, 4), // ICW3: the second controller hangs on line 2
        (SECOND + 1, 2),
        (FIRST + 1, 1), // ICW4: 8086 mode
        (SECOND + 1, 1),
        (FIRST + 1, 0xff), // OCW1: all masked
        (SECOND + 1, 0xff),
    ];
    for (port, value) in sequence {
        // SAFETY: the ports are the controllers'; the caller vouches that nobody uses them.
        unsafe { port_write(port, Width::Byte, value) };
    }
}
