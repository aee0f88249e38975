//! Leaf 0x15, made up where the CPU has none or a wrong one.
//!
//! Linux takes the crystal clock for more than the TSC: without TSC-deadline mode, which a guest's command
//! line can switch off, its local APIC timer runs by the crystal clock's frequency, uncalibrated
//! (`native_calibrate_tsc` in `arch/x86/kernel/tsc.c`, `lapic_init_clockevent` in
//! `arch/x86/kernel/apic/apic.c`). So the crystal clock that is made up is the timer's own, as it was
//! measured. The product of crystal clock and numerator fits in 32 bits, as Linux multiplies it so, in kHz.

use arch::machine::CpuidResult;

/// Denominators tried.
const MAX_DENOMINATOR: u64 = 4096;

/// The leaf for a TSC and a timer of these frequencies; zeros, with which the guest measures by itself, where
/// the timer's is not known and the guest may need it.
pub(super) fn made_up(tsc_khz: u32, timer_hz: Option<u64>, tsc_deadline: bool) -> CpuidResult {
    let tsc_khz = u64::from(tsc_khz);
    let by_timer = timer_hz.and_then(|hz| ratio(tsc_khz, (hz + 500) / 1000));
    // In TSC-deadline mode the crystal clock is nobody's.
    let by_tsc = || {
        let halves = tsc_khz.div_ceil(u64::from(u32::MAX) / 1000);
        tsc_deadline.then(|| ratio(tsc_khz, tsc_khz / halves.max(1))).flatten()
    };
    by_timer.or_else(by_tsc).unwrap_or_default()
}

fn ratio(tsc_khz: u64, crystal_khz: u64) -> Option<CpuidResult> {
    let ecx = u32::try_from(crystal_khz.checked_mul(1000)?).ok()?;
    // (error × denominator, denominator, numerator) of the best so far.
    let mut best: Option<(u64, u64, u64)> = None;
    for denominator in 1..=MAX_DENOMINATOR {
        let whole = tsc_khz * denominator;
        let numerator = (whole + crystal_khz / 2).checked_div(crystal_khz)?;
        let product = numerator * crystal_khz;
        if product > u64::from(u32::MAX) {
            break;
        }
        let error = product.abs_diff(whole);
        let better = best.is_none_or(|(least, with, _)| error * with < least * denominator);
        if better && numerator != 0 {
            best = Some((error, denominator, numerator));
        }
        if error == 0 {
            break;
        }
    }
    let (_, denominator, numerator) = best?;
    Some(CpuidResult { eax: denominator as u32, ebx: numerator as u32, ecx, edx: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What Linux makes of the leaf: the TSC's frequency and the local APIC timer's, in kHz.
    fn linux(leaf: CpuidResult) -> (u32, u32) {
        let crystal = leaf.ecx / 1000;
        (crystal.checked_mul(leaf.ebx).unwrap() / leaf.eax, crystal)
    }

    #[test]
    fn a_timer_that_is_not_the_tsc_is_told_as_it_is() {
        for (tsc, timer_khz) in
            [(2_595_000, 24_000), (2_995_200, 100_000), (2_595_123, 1_000_000), (50_000, 50_000)]
        {
            for deadline in [false, true] {
                let leaf = made_up(tsc, Some(u64::from(timer_khz) * 1000), deadline);
                assert!(linux(leaf).0.abs_diff(tsc) <= 2, "{leaf:?} for {tsc} and {timer_khz}");
                assert_eq!(linux(leaf).1, timer_khz);
            }
        }
    }

    #[test]
    fn a_timer_that_is_not_known_is_not_told() {
        assert_eq!(made_up(2_595_000, None, false), CpuidResult::default());
        assert_eq!(linux(made_up(2_595_000, None, true)).0, 2_595_000);
        assert_eq!(linux(made_up(5_000_000, None, true)), (5_000_000, 2_500_000));
    }

    /// 101 ppm: no ratio whose product fits in 32 bits is nearer.
    #[test]
    fn the_worst_that_was_found_is_told_within_500_ppm() {
        let (tsc, timer) = linux(made_up(3_840_877, Some(1_919_772_500), false));
        assert_eq!((tsc.abs_diff(3_840_877) * 2000 / 3_840_877, timer), (0, 1_919_773));
    }

    proptest! {
        #[test]
        fn linux_reads_both_frequencies_back(
            tsc_khz in 50_000u32..4_290_000, timer_hz in 1_000_000u64..4_000_000_000
        ) {
            let leaf = made_up(tsc_khz, Some(timer_hz), false);
            let timer_khz = (timer_hz + 500) / 1000;
            if timer_khz <= u64::from(tsc_khz) {
                let (tsc, timer) = linux(leaf);
                // With the fastest timers that the product's 32 bits allow the denominator has but 1000 steps.
                prop_assert!(u64::from(tsc.abs_diff(tsc_khz)) * 2_000 <= u64::from(tsc_khz) + 2_000);
                prop_assert_eq!(u64::from(timer), timer_khz);
            }
        }
    }
}
