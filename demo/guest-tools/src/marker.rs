//! Markers for the counting plugin (`bench/README.md`): a NOP that opens or closes a window. It costs one
//! instruction, and nothing notices it where nobody counts.

use core::arch::asm;

/// The window of `measure`: a whole command.
pub const COMMAND: u8 = 1;
/// The window within: the work of the command, without its start and end.
pub const WORK: u8 = 2;

/// Opens window `WINDOW`.
pub fn open<const WINDOW: u8>() {
    // SAFETY: `nop dword ptr [rax + displacement]` touches nothing.
    unsafe {
        asm!(".byte 0x0f, 0x1f, 0x80, {}, 0x78, 0x65, 0x6e", const WINDOW,
            options(nostack, preserves_flags));
    }
}

/// Closes window `WINDOW`.
pub fn close<const WINDOW: u8>() {
    // SAFETY: as above.
    unsafe {
        asm!(".byte 0x0f, 0x1f, 0x80, {}, 0x78, 0x65, 0x6e", const WINDOW | 0x80,
            options(nostack, preserves_flags));
    }
}
