//! Memory type range registers: stored, checked, and without effect.
//!
//! What the guest's memory is cached as follows its PAT and the nested table; the registers are
//! here because a system that finds no MTRRs does not use the PAT either. After reset everything is
//! write-back. (SDM "Memory Type Range Registers (MTRRs)".)

use arch::msr::{IA32_MTRR_DEF_TYPE, IA32_MTRRCAP};

const VARIABLE: usize = 8;
const PHYSBASE0: u32 = 0x200;
const PHYSMASK_LAST: u32 = PHYSBASE0 + 2 * VARIABLE as u32 - 1;
const FIXED: [u32; 11] =
    [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
/// Eight variable ranges, fixed ranges, write-combining.
const CAPABILITY: u64 = VARIABLE as u64 | 1 << 8 | 1 << 10;
const WRITE_BACK: u64 = 6;
const ENABLE: u64 = 1 << 11;
const FIXED_ENABLE: u64 = 1 << 10;
const MASK_VALID: u64 = 1 << 11;
/// Bits 51:12 of an address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// One vCPU's registers.
#[derive(Clone, Debug)]
pub(crate) struct Mtrrs {
    default_type: u64,
    fixed: [u64; FIXED.len()],
    variable: [u64; 2 * VARIABLE],
}

impl Default for Mtrrs {
    fn default() -> Self {
        let fixed = [u64::from_le_bytes([WRITE_BACK as u8; 8]); FIXED.len()];
        Self { default_type: ENABLE | WRITE_BACK, fixed, variable: [0; 2 * VARIABLE] }
    }
}

const fn is_type(value: u64) -> bool {
    matches!(value & 0xff, 0 | 1 | 4 | 5 | 6)
}

impl Mtrrs {
    /// The value; `None` where `msr` is not one of these.
    pub(crate) fn read(&self, msr: u32) -> Option<u64> {
        match msr {
            IA32_MTRRCAP => Some(CAPABILITY),
            IA32_MTRR_DEF_TYPE => Some(self.default_type),
            PHYSBASE0..=PHYSMASK_LAST => self.variable.get((msr - PHYSBASE0) as usize).copied(),
            _ => {
                let index = FIXED.iter().position(|fixed| *fixed == msr)?;
                self.fixed.get(index).copied()
            }
        }
    }

    /// Whether the value is allowed and has been written; `None` where `msr` is not one of these.
    pub(crate) fn write(&mut self, msr: u32, value: u64) -> Option<bool> {
        let (place, valid) = match msr {
            IA32_MTRRCAP => return Some(false),
            IA32_MTRR_DEF_TYPE => {
                let reserved = value & !(ENABLE | FIXED_ENABLE | 0xff);
                (&mut self.default_type, reserved == 0 && is_type(value))
            }
            PHYSBASE0..=PHYSMASK_LAST => {
                let valid = if msr & 1 == 0 {
                    value & !(ADDRESS | 0xff) == 0 && is_type(value)
                } else {
                    value & !(ADDRESS | MASK_VALID) == 0
                };
                (self.variable.get_mut((msr - PHYSBASE0) as usize)?, valid)
            }
            _ => {
                let index = FIXED.iter().position(|fixed| *fixed == msr)?;
                let valid = value.to_le_bytes().into_iter().all(|kind| is_type(kind.into()));
                (self.fixed.get_mut(index)?, valid)
            }
        };
        if valid {
            *place = value;
        }
        Some(valid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn everything_is_write_back_after_reset() {
        let mtrrs = Mtrrs::default();
        assert_eq!(mtrrs.read(IA32_MTRR_DEF_TYPE), Some(0x806));
        assert_eq!(mtrrs.read(0x26f), Some(0x0606_0606_0606_0606));
        assert_eq!(mtrrs.read(0x201), Some(0));
    }

    #[test]
    fn types_and_reserved_bits_are_checked() {
        let mut mtrrs = Mtrrs::default();
        for (msr, value, allowed) in [
            (0x2ff, 0xc00, true),
            (0x2ff, 2, false),
            (0x2ff, 1 << 12, false),
            (0x200, 0x8000_0006, true),
            (0x200, 0x8000_0007, false),
            (0x200, 0x8000_0106, false),
            (0x20f, 0x000f_ffff_8000_0800, true),
            (0x20f, 1, false),
            (0x250, 0x0606_0606_0606_0600, true),
            (0x250, 0x0306_0606_0606_0600, false),
            (0xfe, 0, false),
        ] {
            let before = mtrrs.read(msr);
            assert_eq!(mtrrs.write(msr, value), Some(allowed), "{msr:#x} {value:#x}");
            assert_eq!(mtrrs.read(msr), if allowed { Some(value) } else { before });
        }
    }

    proptest! {
        #[test]
        fn reading_and_writing_agree_on_which_registers_there_are(msr in 0u32..0x400, value: u64) {
            let mut mtrrs = Mtrrs::default();
            let there = mtrrs.read(msr).is_some();
            prop_assert_eq!(mtrrs.write(msr, value).is_some(), there);
        }
    }
}
