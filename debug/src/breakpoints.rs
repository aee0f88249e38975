//! The four breakpoints that a CPU has (SDM "Debug Registers").

use arch::vcpu::DebugRegisters;

/// So many there are.
pub const SLOTS: usize = 4;

/// What a breakpoint waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The execution of an instruction. `software`: gdb has asked for a changed byte of code, which it gets only where
    /// all are taken.
    Execute {
        /// As gdb wants it called when it is met.
        software: bool,
    },
    Write,
    /// A read or a write: x86 has none for reads alone.
    Access {
        /// gdb asked for reads alone.
        read: bool,
    },
}

/// One breakpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Breakpoint {
    /// The linear address.
    pub address: u64,
    /// Bytes: 1, 2, 4 or 8, at a multiple of themselves; 1 for an instruction.
    pub length: u8,
    /// What for.
    pub kind: Kind,
}

/// Those of a guest, on all its CPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Breakpoints([Option<Breakpoint>; SLOTS]);

impl Breakpoints {
    /// Adds one; `false` where no CPU can have it, or has four.
    pub fn add(&mut self, new: Breakpoint) -> bool {
        let possible = matches!(new.length, 1 | 2 | 4 | 8)
            && new.address.is_multiple_of(u64::from(new.length))
            && (new.length == 1 || !matches!(new.kind, Kind::Execute { .. }));
        let free = self.0.iter_mut().find(|slot| slot.is_none()).filter(|_| possible);
        free.is_some_and(|slot| {
            *slot = Some(new);
            true
        })
    }

    /// Takes one away; `false` where there is none like it.
    pub fn remove(&mut self, old: Breakpoint) -> bool {
        let same = self.0.iter_mut().find(|slot| **slot == Some(old));
        same.is_some_and(|slot| slot.take().is_some())
    }

    /// The first of those of a set of slots (bit n for slot n).
    #[must_use]
    pub fn first(&self, slots: u8) -> Option<Breakpoint> {
        (0..).zip(self.0).find_map(|(slot, own)| own.filter(|_| slots >> slot & 1 != 0))
    }

    /// Makes room for one that only a CPU can have: takes away one that a changed byte of code can replace.
    pub fn make_room(&mut self) -> Option<Breakpoint> {
        let software = |own: &Breakpoint| own.kind == Kind::Execute { software: true };
        let slot = self.0.iter_mut().find(|slot| slot.as_ref().is_some_and(software));
        slot.and_then(Option::take)
    }

    /// Takes all away.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// As a CPU has them; `None` without any.
    #[must_use]
    pub fn registers(&self) -> Option<DebugRegisters> {
        let mut registers = DebugRegisters::default();
        for ((slot, own), address) in (0..).zip(self.0).zip(&mut registers.addresses) {
            let Some(Breakpoint { address: at, length, kind }) = own else { continue };
            *address = at;
            let condition = match kind {
                Kind::Execute { .. } => 0,
                Kind::Write => 1,
                Kind::Access { .. } => 3,
            };
            // 8 bytes are 10b, the others one less than they are.
            let length = if length == 8 { 2 } else { u64::from(length) - 1 };
            registers.control |= (length << 2 | condition) << (16 + 4 * slot) | 2 << (2 * slot);
        }
        (registers.control != DebugRegisters::default().control).then_some(registers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODE: Breakpoint =
        Breakpoint { address: 0x20_1001, length: 1, kind: Kind::Execute { software: false } };

    #[test]
    fn four_fit_and_each_can_be_taken_away() {
        let mut all = Breakpoints::default();
        assert_eq!(all.registers(), None);
        let nth = |n: u64| Breakpoint { address: CODE.address + n, ..CODE };
        assert!((0..4).all(|n| all.add(nth(n))));
        assert!(!all.add(nth(4)), "a CPU has four");
        assert!(all.remove(nth(2)) && !all.remove(nth(2)));
        assert!(all.add(nth(9)));
        assert_eq!(all.first(0b0100), Some(nth(9)));
        assert_eq!(all.first(0), None);
        assert_eq!(all.registers().unwrap().control, 0x400 | 0b1010_1010);
    }

    #[test]
    fn lengths_and_conditions_are_as_the_manual_has_them() {
        let mut all = Breakpoints::default();
        let data = |address, length, kind| Breakpoint { address, length, kind };
        assert!(all.add(data(0x1008, 8, Kind::Write)));
        assert!(all.add(data(0x1004, 4, Kind::Access { read: true })));
        let registers = all.registers().unwrap();
        assert_eq!(registers.addresses, [0x1008, 0x1004, 0, 0]);
        assert_eq!(registers.control, 0x400 | 0b1010 | 0b1001 << 16 | 0b1111 << 20);
        for impossible in [
            data(0x1004, 8, Kind::Write),
            data(0x1001, 2, Kind::Write),
            data(0x1000, 3, Kind::Write),
            data(0x1000, 16, Kind::Write),
            data(0x1000, 0, Kind::Write),
            data(0x1000, 2, CODE.kind),
        ] {
            assert!(!all.add(impossible), "{impossible:?}");
        }
    }
}
