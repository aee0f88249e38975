//! PAT and MTRRs, as registers.

use payload::fact;

use super::{READ, access, with};
use crate::control::{self, refused};
use crate::pages::{self, Level};
use crate::trial::Mode;

const IA32_PAT: u32 = 0x277;
const IA32_MTRRCAP: u32 = 0xfe;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;

pub(super) fn all() {
    let pat = control::read_msr(IA32_PAT).or_zero();
    fact!("paging: PAT at first"; "{pat:#x}");
    let all = control::write_msr(IA32_PAT, 0x0706_0504_0100_0607);
    fact!("paging: PAT with every type"; "{all}, {:#x}", control::read_msr(IA32_PAT).or_zero());
    control::write_msr(IA32_PAT, pat);
    // Through each entry of the PAT, by PWT, PCD and PAT.
    let entry = pages::entry(Level::Pte);
    let usual = pages::read(entry);
    let seen: [u64; 8] = core::array::from_fn(|index| {
        let index = index as u64;
        let bits = (index & 3) << 3 | (index >> 2) << 7;
        with(entry, usual | bits, || access(Mode::Kernel, READ).after.rax & 0xff)
    });
    fact!("paging: a page by each entry of the PAT"; "{seen:x?}");
    let capability = control::read_msr(IA32_MTRRCAP).or_zero();
    fact!("paging: IA32_MTRRCAP: whether WC is a type"; "{}", capability >> 10 & 1);
    let default = control::read_msr(IA32_MTRR_DEF_TYPE).or_zero();
    fact!("paging: IA32_MTRR_DEF_TYPE: E"; "{}", default >> 11 & 1);
    let kinds = (0..256)
        .filter(|kind| control::write_msr(IA32_MTRR_DEF_TYPE, default & !0xff | kind).fine());
    let kinds = kinds.fold([0u64; 4], |mut mask, kind| {
        if let Some(word) = mask.get_mut(kind as usize / 64) {
            *word |= 1 << (kind % 64);
        }
        mask
    });
    control::write_msr(IA32_MTRR_DEF_TYPE, default);
    fact!("paging: types that IA32_MTRR_DEF_TYPE takes"; "{kinds:x?}");
    let bits =
        refused(|bit| bit < 0x100 || control::write_msr(IA32_MTRR_DEF_TYPE, default ^ bit).fine());
    control::write_msr(IA32_MTRR_DEF_TYPE, default);
    fact!("paging: bits 8 to 63 that IA32_MTRR_DEF_TYPE refuses"; "{bits:#x}");
    fact!("paging: IA32_MTRRCAP written"; "{}", control::write_msr(IA32_MTRRCAP, capability));
}
