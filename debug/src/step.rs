//! One instruction with the trap flag set and interrupts held off, so that the guest does not notice.
//!
//! The flags that it sees must be its own: what it pushes, and what stays of IF behind it.

use insn::flags::Effect;

/// RFLAGS.TF and RFLAGS.IF.
const TRAP: u64 = 1 << 8;
const INTERRUPTS: u64 = 1 << 9;

/// The flags to step with.
#[must_use]
pub const fn flags_for(flags: u64) -> u64 {
    flags & !INTERRUPTS
}

/// The flags behind an instruction of a program at `cpl` that began with `before` and was stepped with
/// [`flags_for`] of it, which has ended with `after`. `done`: it was carried out, and did not fault.
#[must_use]
pub const fn flags_after(before: u64, after: u64, effect: Effect, cpl: u8, done: bool) -> u64 {
    let privileged = cpl as u64 <= before >> 12 & 3;
    let own = matches!(effect, Effect::Clears | Effect::Loads) && done && privileged;
    if own { after } else { after | before & INTERRUPTS }
}

/// The second byte of the flags that the instruction has pushed, as the guest shall find it.
#[must_use]
pub const fn pushed(byte: u8, before: u64) -> u8 {
    const OURS: u64 = TRAP | INTERRUPTS;
    byte & !((OURS >> 8) as u8) | ((before & OURS) >> 8) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupts_are_on_behind_a_step_where_the_instruction_left_them_on() {
        let (on, off) = (0x202, 0x002);
        let after = |before, after, effect, done| flags_after(before, after, effect, 0, done);
        assert_eq!(after(on, off, Effect::Plain, true), on, "they were only held off");
        assert_eq!(after(off, off, Effect::Plain, true), off);
        assert_eq!(after(off, on, Effect::Plain, true), on, "STI");
        assert_eq!(after(on, off, Effect::Clears, true), off, "CLI");
        assert_eq!(after(on, off, Effect::Clears, false), on, "a CLI that was not carried out");
        assert_eq!(after(on, off, Effect::Loads, true), off, "IRET to a place with interrupts off");
        assert_eq!(after(off, on, Effect::Loads, true), on);
        assert_eq!(flags_after(on, off, Effect::Loads, 3, true), on, "POPF of a program: IF stays");
    }

    #[test]
    fn what_is_pushed_shows_nothing_of_the_step() {
        assert_eq!(pushed(0b01, 0x202), 0b10);
        assert_eq!(pushed(0b1101, 0x002), 0b1100);
        assert_eq!(pushed(0b01, 0x302), 0b11, "the guest's own trap flag");
    }
}
