//! The guest's own debug registers while gdb's breakpoints are in the CPU's: its moves to and from them exit, and reach
//! what it had there (SDM "Debug Registers"; APM "Debug Registers").

use arch::register::Gpr;
use arch::vcpu::DebugRegisters;

/// What a register holds with nothing in it, and what the guest may set.
const STATUS_ONES: u64 = 0xffff_0ff0;
const STATUS: u64 = 0xe00f;
const CONTROL_ONES: u64 = 0x400;
const CONTROL: u64 = 0xffff_23ff;
/// DR7: general detect, and L0 to G3.
const GENERAL_DETECT: u64 = 1 << 13;
const ENABLED: u64 = 0xff;
/// DR6: a debug register was touched; a single step, a task switch; B0 to B3.
const TOUCHED: u64 = 1 << 13;
const COLLECTED: u64 = 1 << 14 | 1 << 15;
const BREAKPOINTS: u64 = 0xf;

/// A MOV between a general and a debug register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Move {
    /// The general register.
    pub general: Gpr,
    /// DR0 to DR15, of which there are eight.
    register: u8,
    to_debug: bool,
    /// Length of the instruction.
    pub length: u8,
}

/// Who moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mover {
    /// In 64-bit mode.
    pub bits64: bool,
    /// Its privilege.
    pub cpl: u8,
    /// CR4.DE: DR4 and DR5 are no other names of DR6 and DR7.
    pub extensions: bool,
}

/// The exception that a move raises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// #UD.
    InvalidOpcode,
    /// #GP(0).
    GeneralProtection,
    /// #DB: DR7.GD was set.
    Detected,
}

impl Move {
    /// What the bytes at RIP are; `None` where another CPU has changed them since.
    #[must_use]
    pub fn decode(code: &[u8], bits64: bool) -> Option<Self> {
        const PREFIXES: [u8; 10] = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf2, 0xf3];
        let legacy = code.iter().take_while(|byte| PREFIXES.contains(byte)).count();
        let behind = code.get(legacy..)?;
        let (rex, rest) = match behind.split_first()? {
            (byte, rest) if bits64 && byte & 0xf0 == 0x40 => (*byte, rest),
            _ => (0, behind),
        };
        let [0x0f, opcode @ (0x21 | 0x23), operands, ..] = *rest else { return None };
        Some(Self {
            general: Gpr::from_encoding(operands & 7 | (rex & 1) << 3),
            register: operands >> 3 & 7 | (rex & 4) << 1,
            to_debug: opcode == 0x23,
            length: (code.len() - rest.len() + 3) as u8,
        })
    }
}

/// gdb's breakpoints, which are in the CPU, and what the guest has in its debug registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kept {
    /// gdb's.
    pub placed: DebugRegisters,
    /// The guest's.
    pub own: DebugRegisters,
}

impl Kept {
    /// Which of gdb's breakpoints a debug exception is for, bit n for DRn.
    #[must_use]
    pub fn met(&self, conditions: u64) -> u8 {
        let on = (0..4).filter(|slot| self.placed.control >> (2 * slot) & 3 != 0);
        on.fold(0, |met, slot| met | (conditions as u8 & 1 << slot))
    }

    /// Whether a debug exception is for a step of the guest's own, or its task switch.
    #[must_use]
    pub const fn stepped(conditions: u64) -> bool {
        conditions & COLLECTED != 0
    }

    /// A debug exception is for the guest: what DR6 has told of it is its own. gdb's is to be set again.
    pub fn take_status(&mut self, status: u64) {
        self.own.status |= status & COLLECTED;
    }

    /// Whether the guest waits for breakpoints of its own.
    #[must_use]
    pub const fn waits(&self) -> bool {
        self.own.control & ENABLED != 0
    }

    /// Carries a move out; `value`: what the general register holds, and, for [`Ok`], is to hold then.
    ///
    /// # Errors
    /// The exception that it raises.
    pub fn carry_out(&mut self, it: Move, value: u64, who: Mover) -> Result<u64, Refused> {
        if it.register > 7 || who.extensions && matches!(it.register, 4 | 5) {
            return Err(Refused::InvalidOpcode);
        }
        if who.cpl > 0 {
            return Err(Refused::GeneralProtection);
        }
        let own = &mut self.own;
        if own.control & GENERAL_DETECT != 0 {
            own.control &= !GENERAL_DETECT;
            own.status = own.status & !BREAKPOINTS | TOUCHED;
            return Err(Refused::Detected);
        }
        let DebugRegisters { addresses, status, control } = own;
        let (register, ones, mask) = match it.register {
            4 | 6 => (status, STATUS_ONES, STATUS),
            5 | 7 => (control, CONTROL_ONES, CONTROL),
            at => (addresses.get_mut(usize::from(at)).ok_or(Refused::InvalidOpcode)?, 0, !0),
        };
        if !it.to_debug {
            return Ok(*register);
        }
        let wanted = if who.bits64 { value } else { value & 0xffff_ffff };
        if mask != !0 && wanted >> 32 != 0 {
            return Err(Refused::GeneralProtection);
        }
        *register = wanted & mask | ones;
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: Mover = Mover { bits64: true, cpl: 0, extensions: false };

    fn kept() -> Kept {
        let placed = DebugRegisters {
            addresses: [0x1000, 0, 0x3000, 0],
            control: 0x400 | 0x22,
            ..DebugRegisters::default()
        };
        Kept { placed, own: DebugRegisters::default() }
    }

    fn moved(register: u8, to_debug: bool) -> Move {
        Move { general: Gpr::Rax, register, to_debug, length: 3 }
    }

    #[test]
    fn a_move_is_known_behind_prefixes_too() {
        for (code, bits64, expected) in [
            (&[0x0f, 0x21, 0xc0][..], true, Some((Gpr::Rax, 0, false, 3))),
            (&[0x0f, 0x23, 0xf9], true, Some((Gpr::Rcx, 7, true, 3))),
            (&[0x41, 0x0f, 0x23, 0xf7], true, Some((Gpr::R15, 6, true, 4))),
            (&[0x66, 0x44, 0x0f, 0x21, 0x38], true, Some((Gpr::Rax, 15, false, 5))),
            (&[0x44, 0x0f, 0x21, 0x38], false, None),
            (&[0x0f, 0x22, 0xc0], true, None),
            (&[0x0f, 0x21], true, None),
            (&[0x66], true, None),
            (&[], true, None),
        ] {
            let it = Move::decode(code, bits64);
            let seen = it.map(|it| (it.general, it.register, it.to_debug, it.length));
            assert_eq!(seen, expected, "{code:x?}");
        }
    }

    #[test]
    fn the_guest_reads_back_what_it_wrote_and_the_cpu_keeps_gdbs() {
        let mut it = kept();
        for (register, value, reads) in [
            (0, 0xffff_8000_1234_5678, 0xffff_8000_1234_5678),
            (3, 3, 3),
            (6, 0, 0xffff_0ff0),
            (6, 0xffff_ffff, 0xffff_efff),
            (7, 0xffff_ffff & !GENERAL_DETECT, 0xffff_07ff),
            (5, 0x1, 0x401),
        ] {
            assert_eq!(it.carry_out(moved(register, true), value, KERNEL), Ok(value));
            assert_eq!(it.carry_out(moved(register, false), 0, KERNEL), Ok(reads), "DR{register}");
        }
        assert_eq!(it.placed, kept().placed);
        assert!(it.waits() && !kept().waits());
        let narrow = Mover { bits64: false, ..KERNEL };
        assert_eq!(it.carry_out(moved(1, true), 0x5_0000_0007, narrow), Ok(0x5_0000_0007));
        assert_eq!(it.own.addresses[1], 7);
    }

    #[test]
    fn a_move_is_refused_as_the_cpu_refuses_it() {
        use Refused::{Detected, GeneralProtection, InvalidOpcode};
        let program = Mover { cpl: 3, ..KERNEL };
        let extended = Mover { extensions: true, ..KERNEL };
        for (it, value, who, expected) in [
            (moved(8, false), 0, KERNEL, InvalidOpcode),
            (moved(4, false), 0, extended, InvalidOpcode),
            (moved(0, false), 0, program, GeneralProtection),
            (moved(7, true), 1 << 32, KERNEL, GeneralProtection),
            (moved(6, true), 1 << 63, KERNEL, GeneralProtection),
        ] {
            let mut kept = kept();
            assert_eq!(kept.carry_out(it, value, who), Err(expected), "{it:?}");
            assert_eq!(kept.own, DebugRegisters::default());
        }
        let mut kept = kept();
        kept.own.control |= GENERAL_DETECT;
        assert_eq!(kept.carry_out(moved(0, false), 0, KERNEL), Err(Detected));
        assert_eq!((kept.own.status, kept.own.control), (0xffff_2ff0, 0x400), "once");
    }

    #[test]
    fn a_debug_exception_is_gdbs_by_its_breakpoints_alone() {
        let mut it = kept();
        assert_eq!((it.met(0b0001), it.met(0b1111), it.met(0b1010)), (1, 0b101, 0));
        assert!(Kept::stepped(0xffff_4ff0) && !Kept::stepped(0xffff_0fff));
        it.take_status(0xffff_4ff1);
        assert_eq!(it.own.status, 0xffff_4ff0, "B0 is gdb's");
    }
}
