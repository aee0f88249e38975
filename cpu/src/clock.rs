//! Clocks: how fast the TSC runs, and what time it is.

use arch::machine::Width;

use crate::instructions::{cpuid, port_read, port_write, tsc};

const PIT_HZ: u64 = 1_193_182;
const PIT_CHANNEL_2: u16 = 0x42;
const PIT_COMMAND: u16 = 0x43;
const CONTROL_PORT_B: u16 = 0x61;
/// About 10 ms: long enough for 0.01 %, short enough for a boot.
const PIT_TICKS: u64 = 11_932;
/// So often it is measured until one is precise to 0.1 %.
const ATTEMPTS: u32 = 10;
/// A PIT that never ends its count is not there: after this many polls the measurement is given up.
const MOST_POLLS: u32 = 20_000_000;

/// Frequency of the TSC in kHz: CPUID's own word where the measurement agrees with it, else the
/// measurement against the PIT's channel 2. `None` where there is neither.
///
/// An emulator's CPUID may claim a frequency that its TSC does not have, so CPUID alone is not
/// believed while there is a PIT.
///
/// # Safety
/// Ring 0, and nobody uses PIT channel 2 or port 0x61.
#[must_use]
pub unsafe fn tsc_khz() -> Option<u64> {
    let claimed = claimed_tsc_khz();
    // SAFETY: the caller vouches for the PIT.
    match (claimed, unsafe { measured_tsc_khz() }) {
        (Some(claimed), Some(measured)) if claimed.abs_diff(measured) <= measured / 100 => {
            Some(claimed)
        }
        (_, Some(measured)) => Some(measured),
        (claimed, None) => claimed,
    }
}

/// CPUID "Time Stamp Counter and Nominal Core Crystal Clock Information".
fn claimed_tsc_khz() -> Option<u64> {
    const LEAF: u32 = 0x15;
    if cpuid(0, 0).eax < LEAF {
        return None;
    }
    let leaf = cpuid(LEAF, 0);
    let crystal_hz = u64::from(leaf.ecx);
    let khz = (crystal_hz * u64::from(leaf.ebx)).checked_div(u64::from(leaf.eax))? / 1000;
    (khz > 0).then_some(khz)
}

/// What interrupts a measurement (system-management mode, other work on an emulator's host) spoils it;
/// how much shows in the time between two polls.
unsafe fn measured_tsc_khz() -> Option<u64> {
    let mut best = (0, u64::MAX);
    for _ in 0..ATTEMPTS {
        // SAFETY: the caller vouches for the PIT.
        let (ticks, doubt) = unsafe { measure_pit() }?;
        if doubt < best.1 {
            best = (ticks, doubt);
        }
        if doubt < ticks / 1000 {
            break;
        }
    }
    Some(best.0 * PIT_HZ / PIT_TICKS / 1000)
}

/// TSC ticks in [`PIT_TICKS`], and by how many that may be wrong.
unsafe fn measure_pit() -> Option<(u64, u64)> {
    const GATE: u32 = 1;
    const SPEAKER: u32 = 2;
    const OUTPUT: u32 = 1 << 5;
    // SAFETY: the caller vouches for port 0x61.
    let control = unsafe { port_read(CONTROL_PORT_B, Width::Byte) } & !SPEAKER;
    let steps = [
        (CONTROL_PORT_B, control | GATE),
        (PIT_COMMAND, 0xb0), // channel 2, low then high byte, mode 0: the output rises at zero
        (PIT_CHANNEL_2, PIT_TICKS as u32 & 0xff),
        (PIT_CHANNEL_2, PIT_TICKS as u32 >> 8),
    ];
    let mut before = 0;
    for (port, value) in steps {
        before = tsc();
        // SAFETY: the caller vouches for the PIT.
        unsafe { port_write(port, Width::Byte, value) };
    }
    let start = tsc();
    let mut last = start;
    for _ in 0..MOST_POLLS {
        // SAFETY: the caller vouches for port 0x61.
        let risen = unsafe { port_read(CONTROL_PORT_B, Width::Byte) } & OUTPUT != 0;
        let now = tsc();
        if risen {
            return Some((now - start, (start - before) + (now - last)));
        }
        last = now;
    }
    None
}

/// Seconds since 1970-01-01 00:00 by the real-time clock (MC146818), taken as UTC.
///
/// # Safety
/// Ring 0, and nobody else uses ports 0x70 and 0x71.
#[must_use]
pub unsafe fn unix_time() -> u64 {
    // Two equal readings in a row: no update was under way. A clock that never settles is not
    // worth waiting for.
    // SAFETY: the caller vouches for the ports.
    let mut last = unsafe { rtc_fields() };
    for _ in 0..1000 {
        // SAFETY: as above.
        let now = unsafe { rtc_fields() };
        if now == last {
            break;
        }
        last = now;
    }
    let [second, minute, hour, day, month, year, status_b] = last;
    let binary = status_b & 4 != 0;
    let decode = |value: u64| if binary { value } else { (value >> 4) * 10 + (value & 15) };
    let afternoon = status_b & 2 == 0 && hour & 0x80 != 0;
    let hour = decode(hour & 0x7f);
    let hour = if status_b & 2 == 0 { hour % 12 + if afternoon { 12 } else { 0 } } else { hour };
    let days = days_since_1970(2000 + decode(year), decode(month), decode(day));
    days * 86_400 + hour * 3_600 + decode(minute) * 60 + decode(second)
}

unsafe fn rtc_fields() -> [u64; 7] {
    const SECOND: u32 = 0;
    const STATUS_B: u32 = 11;
    [SECOND, 2, 4, 7, 8, 9, STATUS_B].map(|register| {
        // SAFETY: the caller vouches for the ports.
        unsafe { port_write(0x70, Width::Byte, register) };
        // SAFETY: as above.
        u64::from(unsafe { port_read(0x71, Width::Byte) })
    })
}

/// Days from 1970-01-01 to a date of the Gregorian calendar (year ≥ 1970).
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    // Years begin in March, so that the leap day is the last of its year.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year / 4 - year / 100 + year / 400;
    let days_to_month = (153 * month + 2) / 5;
    // 719 469 = days from 0000-03-01 to 1970-01-01, plus one because days count from 1.
    (year * 365 + leap_days + days_to_month + day).saturating_sub(719_469)
}

#[cfg(test)]
mod tests {
    use super::days_since_1970;

    #[test]
    fn the_calendar_knows_its_leap_years() {
        assert_eq!(days_since_1970(1970, 1, 1), 0);
        assert_eq!(days_since_1970(2000, 2, 29), 11_016);
        assert_eq!(days_since_1970(2000, 3, 1), 11_017);
        assert_eq!(days_since_1970(2026, 11, 22), 20_779);
    }
}
