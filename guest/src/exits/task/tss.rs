//! What a task switch saves and loads: the two forms of a task-state segment (SDM "Task-State Segment (TSS)", "16-Bit
//! Task-State Segment (TSS)"). Pure.

use arch::register::Gpr;
use arch::segment::SegmentRegister;

/// The registers that a TSS has a place for, in its order. They are 4 bytes each in a 32-bit TSS, 2 in a 16-bit one.
pub(super) const GENERAL: [Gpr; 8] =
    [Gpr::Rax, Gpr::Rcx, Gpr::Rdx, Gpr::Rbx, Gpr::Rsp, Gpr::Rbp, Gpr::Rsi, Gpr::Rdi];
/// The same of the selectors; a 16-bit TSS has the first four.
pub(super) const SELECTORS: [SegmentRegister; 6] = [
    SegmentRegister::Es,
    SegmentRegister::Cs,
    SegmentRegister::Ss,
    SegmentRegister::Ds,
    SegmentRegister::Fs,
    SegmentRegister::Gs,
];

/// The bytes of a TSS that a switch looks at.
pub(super) type Bytes = [u8; 104];

/// Which form a TSS has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    Bits16,
    Bits32,
}

/// The state of a task that does not run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct State {
    /// Not in a 16-bit TSS, and never saved.
    pub(super) cr3: Option<u32>,
    pub(super) rip: u32,
    pub(super) rflags: u32,
    pub(super) general: [u32; 8],
    pub(super) selectors: [u16; 6],
    /// Never saved.
    pub(super) ldt: u16,
    /// The debug trap bit. Never saved; a 16-bit TSS has none.
    pub(super) trap: bool,
}

impl Form {
    /// Of the type field of a TSS descriptor.
    pub(super) const fn of(kind: u8) -> Self {
        const BITS32: u8 = 8;
        if kind & BITS32 != 0 { Self::Bits32 } else { Self::Bits16 }
    }

    /// Offset of the last byte that a task's TSS must have.
    pub(super) const fn last(self) -> u32 {
        match self {
            Self::Bits16 => 0x2b,
            Self::Bits32 => 0x67,
        }
    }

    /// Bytes of a register's place.
    const fn size(self) -> usize {
        match self {
            Self::Bits16 => 2,
            Self::Bits32 => 4,
        }
    }

    const fn selectors(self) -> usize {
        match self {
            Self::Bits16 => 4,
            Self::Bits32 => 6,
        }
    }

    /// Where the instruction pointer is, and behind it the flags, the general registers, the selectors and the LDT's.
    const fn first(self) -> usize {
        match self {
            Self::Bits16 => 0x0e,
            Self::Bits32 => 0x20,
        }
    }

    /// The bytes that a switch saves to.
    pub(super) const fn saved(self) -> core::ops::Range<usize> {
        self.first()..self.place(2 + 8 + self.selectors())
    }

    const fn place(self, index: usize) -> usize {
        self.first() + index * self.size()
    }

    fn read(self, bytes: &Bytes, at: usize, size: usize) -> u32 {
        let bytes = bytes.get(at..at + size).unwrap_or_default();
        bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
    }

    /// What a TSS holds.
    pub(super) fn load(self, bytes: &Bytes) -> State {
        const CR3: usize = 0x1c;
        const TRAP: usize = 0x64;
        let register = |index| self.read(bytes, self.place(index), self.size());
        let selector = |index| self.read(bytes, self.place(10 + index), 2) as u16;
        let long = self == Self::Bits32;
        State {
            cr3: long.then(|| self.read(bytes, CR3, 4)),
            rip: register(0),
            rflags: register(1),
            general: core::array::from_fn(|index| register(2 + index)),
            selectors: core::array::from_fn(|index| {
                if index < self.selectors() { selector(index) } else { 0 }
            }),
            ldt: selector(self.selectors()),
            trap: long && self.read(bytes, TRAP, 1) & 1 != 0,
        }
    }

    /// Puts `state` in its places, less what is never saved.
    pub(super) fn save(self, state: &State, bytes: &mut Bytes) {
        let mut put = |at: usize, value: u32, size: usize| {
            let place = bytes.get_mut(at..at + size).unwrap_or_default();
            for (to, from) in place.iter_mut().zip(value.to_le_bytes()) {
                *to = from;
            }
        };
        let registers = [state.rip, state.rflags].into_iter().chain(state.general);
        for (index, value) in registers.enumerate() {
            put(self.place(index), value, self.size());
        }
        for (index, selector) in state.selectors.into_iter().take(self.selectors()).enumerate() {
            put(self.place(10 + index), selector.into(), 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Byte n of the TSS is n.
    fn counted() -> Bytes {
        core::array::from_fn(|index| index as u8)
    }

    #[test]
    fn every_register_is_where_the_manual_has_it() {
        let state = Form::Bits32.load(&counted());
        assert_eq!(
            (state.cr3, state.rip, state.rflags),
            (Some(0x1f1e_1d1c), 0x2322_2120, 0x2726_2524)
        );
        let [eax, .., edi] = state.general;
        assert_eq!((eax, edi), (0x2b2a_2928, 0x4746_4544));
        assert_eq!(
            (state.selectors, state.ldt),
            ([0x4948, 0x4d4c, 0x5150, 0x5554, 0x5958, 0x5d5c], 0x6160)
        );
        assert!(!state.trap, "0x64 is even");
        let state = Form::Bits16.load(&counted());
        assert_eq!((state.cr3, state.rip, state.rflags), (None, 0x0f0e, 0x1110));
        let [ax, .., di] = state.general;
        assert_eq!((ax, di), (0x1312, 0x2120));
        assert_eq!((state.selectors, state.ldt), ([0x2322, 0x2524, 0x2726, 0x2928, 0, 0], 0x2b2a));
        let mut bytes = counted();
        bytes[0x64] = 1;
        assert!(Form::Bits32.load(&bytes).trap && !Form::Bits16.load(&bytes).trap);
    }

    #[test]
    fn what_is_saved_is_loaded_again_and_the_rest_of_the_segment_stays() {
        for form in [Form::Bits16, Form::Bits32] {
            let state = form.load(&counted());
            let mut bytes = [0xee; 104];
            form.save(&state, &mut bytes);
            let again = form.load(&bytes);
            let untouched = State { cr3: again.cr3, ldt: again.ldt, trap: again.trap, ..state };
            assert_eq!(again, untouched, "{form:?}");
            for (at, byte) in bytes.iter().enumerate().filter(|(at, _)| !form.saved().contains(at))
            {
                assert_eq!(*byte, 0xee, "{form:?} {at:#x}");
            }
        }
        assert_eq!((Form::Bits16.saved(), Form::Bits32.saved()), (0x0e..0x2a, 0x20..0x60));
    }
}
