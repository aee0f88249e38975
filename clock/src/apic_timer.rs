//! How fast the local APIC's timer counts: by no manual at the TSC's rate, nor always at the crystal clock's.

use arch::clock::Counter;

use crate::window::{self, Limits};

/// The frequencies that such a timer can have.
const SLOWEST_HZ: u64 = 1_000_000;
const FASTEST_HZ: u64 = 10_000_000_000;

/// The frequency of the local APIC's timer by the TSC's: the same pairs, read the other way round. `None`
/// where the timer does not count, or not to be measured to a thousandth.
#[must_use]
pub fn apic_timer_hz(timer: &mut dyn Counter, tsc_khz: u64) -> Option<u64> {
    const MAX_ERROR_PPM: u64 = 1000;
    // If the timer ran at this, the TSC would have the frequency that comes out; they are as their ratio.
    const ASSUMED_HZ: u64 = 1_000_000_000;
    let tsc_hz = tsc_khz.checked_mul(1000)?;
    let tsc_if = |timer_hz: u64| {
        u64::try_from(u128::from(tsc_hz) * u128::from(ASSUMED_HZ) / u128::from(timer_hz)).ok()
    };
    let limits = Limits {
        hz: ASSUMED_HZ,
        plausible: tsc_if(FASTEST_HZ)?..=tsc_if(SLOWEST_HZ)?,
        counts: u64::MAX,
        tsc: tsc_hz / 2,
    };
    let ratio = window::measure(timer, &limits).ok()?;
    let middle = ratio.middle();
    (ratio.error_ppm(middle) <= MAX_ERROR_PPM).then(|| tsc_if(middle)).flatten()
}
