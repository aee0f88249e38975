//! What an instruction does with RFLAGS, for whoever has it executed with flags that are not the guest's own.

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
    /// MOV to SS or POP SS: a trap comes behind the instruction that follows (SDM "Masking Exceptions and Interrupts When
    /// Switching Stacks"), so whoever steps executes that one, too.
    HoldsTraps,
}

/// What the instruction with these bytes does.
#[must_use]
pub fn effect(code: &[u8], bits64: bool) -> Effect {
    const PREFIXES: [u8; 11] = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3];
    /// In the reg field of ModR/M.
    const SS: u8 = 2;
    let prefix = |byte: &&u8| PREFIXES.contains(*byte) || bits64 && **byte & 0xf0 == 0x40;
    let prefixes = code.iter().take_while(prefix).count();
    let mut opcode = code.iter().skip(prefixes);
    let leaves = |length| Effect::Leaves(prefixes as u8 + length);
    match (opcode.next(), opcode.next()) {
        (Some(0xfa), _) => Effect::Clears,
        (Some(0x8e), Some(modrm)) if modrm >> 3 & 7 == SS => Effect::HoldsTraps,
        (Some(0x17), _) if !bits64 => Effect::HoldsTraps,
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
            (&[0x8e, 0xd0], Effect::HoldsTraps),
            (&[0x66, 0x41, 0x8e, 0x55, 0x08], Effect::HoldsTraps),
            (&[0x8e, 0xd8], Effect::Plain),
            (&[0x0f, 0xb2, 0x13], Effect::Plain), // LSS
            (&[0x17], Effect::Plain),
            (&[0x90], Effect::Plain),
            (&[], Effect::Plain),
        ] {
            assert_eq!(effect(code, true), expected, "{code:02x?}");
        }
        assert_eq!(effect(&[0x17], false), Effect::HoldsTraps, "POP SS");
        assert_eq!(effect(&[0x48, 0xfa], false), Effect::Plain, "outside 64-bit mode 48 is DEC");
    }
}
