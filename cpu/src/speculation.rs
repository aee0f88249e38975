//! A CPU changes hands: what speculation has learned of the last guest goes, and what that guest asked of speculation.
//! Once in each life of a guest on each of its CPUs; nothing of this is on the way of an exit (docs/side-channels.md).

use arch::machine::CpuidResult;

use crate::instructions::{cpuid, write_msr};

/// IA32_SPEC_CTRL, IA32_PRED_CMD, IA32_FLUSH_CMD (SDM volume 4; APM "Speculation Control MSRs").
const SPECULATION_CONTROL: u32 = 0x48;
const PREDICTION_COMMAND: u32 = 0x49;
const FLUSH_COMMAND: u32 = 0x10b;
/// What bit 0 of the two commands does: the indirect branch predictors are emptied; the first-level data cache is.
const DO_IT: u64 = 1;

/// The MSRs to write, each with its value, on a CPU with these answers to CPUID leaf 7 and 0x80000008.
fn writes(structured: CpuidResult, extended: CpuidResult) -> impl Iterator<Item = (u32, u64)> {
    let intel = |bit: u32| structured.edx >> bit & 1 != 0;
    let amd = |bit: u32| extended.ebx >> bit & 1 != 0;
    // IBRS, STIBP or SSBD of either vendor.
    let control = intel(26) || intel(27) || intel(31) || amd(14) || amd(15) || amd(24);
    let predictors = intel(26) || amd(12);
    let first_level_cache = intel(28);
    [
        (control, SPECULATION_CONTROL, 0),
        (predictors, PREDICTION_COMMAND, DO_IT),
        (first_level_cache, FLUSH_COMMAND, DO_IT),
    ]
    .into_iter()
    .filter(|(there, ..)| *there)
    .map(|(_, msr, value)| (msr, value))
}

/// Forgets the guest that ran on this CPU before.
///
/// # Safety
/// Ring 0, and no guest runs on this CPU.
pub unsafe fn forget() {
    let (basic, extended) = (cpuid(0, 0).eax, cpuid(0x8000_0000, 0).eax);
    let there = |leaf, most| if leaf <= most { cpuid(leaf, 0) } else { CpuidResult::default() };
    for (msr, value) in writes(there(7, basic), there(0x8000_0008, extended)) {
        // SAFETY: ring 0, says the caller; CPUID shows the MSR, and the value is one that it takes.
        unsafe { write_msr(msr, value) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_is_told_to_forget_by_the_msrs_that_it_has_and_no_other() {
        let cpu = |edx: u32, ebx: u32| {
            let structured = CpuidResult { edx, ..CpuidResult::default() };
            let extended = CpuidResult { ebx, ..CpuidResult::default() };
            writes(structured, extended).collect::<std::vec::Vec<_>>()
        };
        let (control, predictors, cache) = ((0x48, 0), (0x49, 1), (0x10b, 1));
        for (what, edx, ebx, expected) in [
            ("neither", 0, 0, &[][..]),
            ("Intel with IBRS and IBPB", 1 << 26, 0, &[control, predictors]),
            ("Intel with L1D_FLUSH, too", 1 << 26 | 1 << 28, 0, &[control, predictors, cache]),
            ("AMD with IBPB alone", 0, 1 << 12, &[predictors]),
            ("AMD with SSBD", 0, 1 << 12 | 1 << 24, &[control, predictors]),
        ] {
            assert_eq!(cpu(edx, ebx), expected, "{what}");
        }
    }
}
