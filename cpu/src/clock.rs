//! Clocks: counters that the TSC can be measured by, and what time it is.

use arch::clock::{Counter, Reading};
use arch::machine::Width;

use crate::instructions::{cpuid, port_read, port_write, tsc, write_msr};

/// Takes what firmware has added to this CPU's TSC off again, so that all CPUs have the same (SDM "IA32_TSC_ADJUST
/// MSR"). A guest cannot add to it.
///
/// # Safety
/// Ring 0, and nobody measures a time on this CPU meanwhile.
pub unsafe fn take_tsc_adjustment_off() {
    const STRUCTURED_FEATURES: u32 = 7;
    const TSC_ADJUST: u32 = 1 << 1;
    if cpuid(0, 0).eax >= STRUCTURED_FEATURES && cpuid(STRUCTURED_FEATURES, 0).ebx & TSC_ADJUST != 0
    {
        // SAFETY: CPUID shows the MSR, which takes any value.
        unsafe { write_msr(arch::msr::IA32_TSC_ADJUST, 0) };
    }
}

/// The TSC once everything before has been done, and before anything behind is begun (SDM "RDTSC—Read
/// Time-Stamp Counter").
fn tsc_in_order() -> u64 {
    // SAFETY: every CPU in long mode has LFENCE.
    unsafe { core::arch::x86_64::_mm_lfence() };
    let now = tsc();
    // SAFETY: as above.
    unsafe { core::arch::x86_64::_mm_lfence() };
    now
}

/// Reads a counter between two readings of the TSC.
pub(crate) fn bracketed(read: impl FnOnce() -> u64) -> Reading {
    let before = tsc_in_order();
    let count = read();
    Reading { before, count, after: tsc_in_order() }
}

/// The ACPI timer (ACPI Specification, "Power Management Timer").
#[derive(Clone, Copy, Debug)]
pub struct AcpiTimer {
    port: u16,
}

impl AcpiTimer {
    /// Its rate.
    pub const HZ: u64 = 3_579_545;

    /// The timer at this port.
    ///
    /// # Safety
    /// Ring 0, and the firmware names the port as the timer's.
    #[must_use]
    pub const unsafe fn new(port: u16) -> Self {
        Self { port }
    }
}

impl Counter for AcpiTimer {
    /// The firmware may say 32, but these count the same in both.
    fn bits(&self) -> u32 {
        24
    }

    fn start(&mut self) -> Result<(), &'static str> {
        Ok(())
    }

    fn reading(&mut self) -> Reading {
        // SAFETY: `new`'s caller vouched for the port; a read of it changes nothing.
        bracketed(|| unsafe { port_read(self.port, Width::Dword) }.into())
    }
}

/// Channel 2 of the PIT (Intel 8254, "Mode Definitions": mode 2), which counts down from 65536 again and again.
#[derive(Debug)]
pub struct Pit(());

const PIT_CHANNEL_2: u16 = 0x42;
const PIT_COMMAND: u16 = 0x43;
const CONTROL_PORT_B: u16 = 0x61;

impl Pit {
    /// Its rate.
    pub const HZ: u64 = 1_193_182;

    /// The PIT.
    ///
    /// # Safety
    /// Ring 0, and nobody else uses its channel 2 or port 0x61.
    #[must_use]
    pub const unsafe fn new() -> Self {
        Self(())
    }

    fn input(&mut self, port: u16) -> u32 {
        // SAFETY: `new`'s caller vouched for the PIT.
        unsafe { port_read(port, Width::Byte) }
    }

    fn output(&mut self, port: u16, value: u32) {
        // SAFETY: `new`'s caller vouched for the PIT.
        unsafe { port_write(port, Width::Byte, value) };
    }
}

impl Counter for Pit {
    fn bits(&self) -> u32 {
        16
    }

    fn start(&mut self) -> Result<(), &'static str> {
        const GATE: u32 = 1;
        const SPEAKER: u32 = 2;
        const COUNT_FROM_65536_MODE_2: u32 = 0xb4;
        let control = self.input(CONTROL_PORT_B);
        if control == 0xff {
            return Err("is not there: port 0x61 reads as all ones");
        }
        self.output(CONTROL_PORT_B, control & !SPEAKER | GATE);
        for (port, value) in
            [(PIT_COMMAND, COUNT_FROM_65536_MODE_2), (PIT_CHANNEL_2, 0), (PIT_CHANNEL_2, 0)]
        {
            self.output(port, value);
        }
        Ok(())
    }

    /// The command holds the count fast; that it is read later changes nothing.
    fn reading(&mut self) -> Reading {
        const LATCH_2: u32 = 0x80;
        let latched = bracketed(|| {
            self.output(PIT_COMMAND, LATCH_2);
            0
        });
        let low = self.input(PIT_CHANNEL_2);
        let high = self.input(PIT_CHANNEL_2);
        let count = 0x1_0000 - u64::from(high << 8 | low);
        Reading { count, ..latched }
    }
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
