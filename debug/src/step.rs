//! One instruction with the trap flag set and interrupts held off, so that the guest does not notice.
//!
//! The flags that it sees must be its own: what it pushes, and what stays of IF behind it.

/// RFLAGS.TF and RFLAGS.IF.
const TRAP: u64 = 1 << 8;
const INTERRUPTS: u64 = 1 << 9;

/// What an instruction does with the flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// It leaves IF as it is, or sets it.
    Plain,
    /// It clears IF.
    Clears,
    /// It loads the flags.
    Loads,
    /// It pushes them.
    Pushes,
    /// It leads to a handler with other flags, before a trap could come: a step ends where that comes back, so many bytes
    /// behind it.
    Leaves(u8),
}

/// What the instruction with these bytes does.
#[must_use]
pub fn effect(code: &[u8], bits64: bool) -> Effect {
    const PREFIXES: [u8; 11] = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3];
    let prefix = |byte: &&u8| PREFIXES.contains(*byte) || bits64 && **byte & 0xf0 == 0x40;
    let prefixes = code.iter().take_while(prefix).count();
    let mut opcode = code.iter().skip(prefixes);
    let leaves = |length| Effect::Leaves(prefixes as u8 + length);
    match (opcode.next(), opcode.next()) {
        (Some(0xfa), _) => Effect::Clears,
        (Some(0x9c), _) => Effect::Pushes,
        // POPF, IRET, SYSRET.
        (Some(0x9d | 0xcf), _) | (Some(0x0f), Some(0x07)) => Effect::Loads,
        // INT3, INTO, INT1.
        (Some(0xcc | 0xce | 0xf1), _) => leaves(1),
        // INT n, SYSCALL, SYSENTER.
        (Some(0xcd), _) | (Some(0x0f), Some(0x05 | 0x34)) => leaves(2),
        _ => Effect::Plain,
    }
}

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
    fn what_touches_the_flags_is_known_behind_prefixes_too() {
        for (code, expected) in [
            (&[0xfa][..], Effect::Clears),
            (&[0xfb], Effect::Plain),
            (&[0x9c], Effect::Pushes),
            (&[0x66, 0x9c], Effect::Pushes),
            (&[0x48, 0xcf], Effect::Loads),
            (&[0x9d], Effect::Loads),
            (&[0x48, 0x0f, 0x07], Effect::Loads),
            (&[0x0f, 0x05], Effect::Leaves(2)),
            (&[0x48, 0xcd, 0x80], Effect::Leaves(3)),
            (&[0xcc], Effect::Leaves(1)),
            (&[0x90], Effect::Plain),
            (&[], Effect::Plain),
        ] {
            assert_eq!(effect(code, true), expected, "{code:02x?}");
        }
        assert_eq!(effect(&[0x48, 0xfa], false), Effect::Plain, "outside 64-bit mode 48 is DEC");
    }

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
