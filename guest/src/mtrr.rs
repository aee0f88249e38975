//! Memory type range registers: there are no ranges, and the default type is without effect.
//!
//! What the guest's memory is cached as follows its PAT and the nested table; the registers are here because a
//! system that finds no MTRRs does not use the PAT either. A range would be one without effect, too, and Linux
//! would read each twice while it starts. (SDM "Memory Type Range Registers (MTRRs)".)

use arch::msr::{IA32_MTRR_DEF_TYPE, IA32_MTRRCAP};

/// No variable ranges, no fixed ranges; write-combining is a type.
const CAPABILITY: u64 = 1 << 10;
const WRITE_BACK: u64 = 6;
const ENABLE: u64 = 1 << 11;
const FIXED_ENABLE: u64 = 1 << 10;

/// One vCPU's registers: the default type.
#[derive(Clone, Debug)]
pub(crate) struct Mtrrs(u64);

impl Default for Mtrrs {
    fn default() -> Self {
        Self(ENABLE | WRITE_BACK)
    }
}

impl Mtrrs {
    /// The value; `None` where `msr` is not one of these.
    pub(crate) const fn read(&self, msr: u32) -> Option<u64> {
        match msr {
            IA32_MTRRCAP => Some(CAPABILITY),
            IA32_MTRR_DEF_TYPE => Some(self.0),
            _ => None,
        }
    }

    /// Whether the value is allowed and has been written; `None` where `msr` is not one of these.
    pub(crate) const fn write(&mut self, msr: u32, value: u64) -> Option<bool> {
        match msr {
            IA32_MTRRCAP => Some(false),
            IA32_MTRR_DEF_TYPE => {
                let reserved = value & !(ENABLE | FIXED_ENABLE | 0xff);
                let valid = reserved == 0 && matches!(value & 0xff, 0 | 1 | 4 | 5 | 6);
                if valid {
                    self.0 = value;
                }
                Some(valid)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_write_back_and_there_are_no_ranges() {
        let mut mtrrs = Mtrrs::default();
        assert_eq!(mtrrs.read(IA32_MTRR_DEF_TYPE), Some(0x806));
        assert_eq!(mtrrs.read(IA32_MTRRCAP), Some(0x400));
        for range in [0x200, 0x20f, 0x250, 0x26f] {
            assert_eq!((mtrrs.read(range), mtrrs.write(range, 0)), (None, None));
        }
    }

    #[test]
    fn types_and_reserved_bits_are_checked() {
        let mut mtrrs = Mtrrs::default();
        for (msr, value, allowed) in
            [(0x2ff, 0xc00, true), (0x2ff, 2, false), (0x2ff, 1 << 12, false), (0xfe, 0, false)]
        {
            let before = mtrrs.read(msr);
            assert_eq!(mtrrs.write(msr, value), Some(allowed), "{msr:#x} {value:#x}");
            assert_eq!(mtrrs.read(msr), if allowed { Some(value) } else { before });
        }
    }
}
