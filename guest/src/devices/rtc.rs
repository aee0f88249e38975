//! The MC146818 real-time clock at ports 0x70 and 0x71: the machine's time, read-only.
//!
//! Setting the time or an alarm has no effect; the guest's clock is its own afterwards.
//! (Motorola MC146818A data sheet, "Address Map" and "Registers".)

use arch::msr::PortRange;

/// Index and data.
pub const PORTS: PortRange = PortRange { first: 0x70, last: 0x71 };

/// 32,768 Hz time base, 1,024 Hz rate, no update in progress.
const STATUS_A: u8 = 0x26;
/// 24-hour mode, binary-coded decimal.
const STATUS_B: u8 = 0x02;
/// Valid RAM and time.
const STATUS_D: u8 = 0x80;

/// The index register.
#[derive(Clone, Debug, Default)]
pub struct Rtc {
    index: u8,
}

/// A date and time of day, UTC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Date {
    year: u64,
    month: u64,
    day: u64,
    weekday: u64,
    seconds: u64,
}

impl Date {
    /// Days are counted from 0000-03-01, so that the leap day is the last of its year, in eras of
    /// 400 years (146,097 days), after which the calendar repeats.
    const fn from_unix(time: u64) -> Self {
        let days = time / 86_400;
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        Self {
            year: era * 400 + year_of_era + (month <= 2) as u64,
            month,
            day: day_of_year - (153 * month_from_march + 2) / 5 + 1,
            weekday: (days + 4) % 7,
            seconds: time % 86_400,
        }
    }
}

const fn bcd(number: u64) -> u8 {
    (number / 10 % 10 * 16 + number % 10) as u8
}

impl Rtc {
    /// Reads the data port when the machine's time is `unix_time` (seconds since 1970).
    #[must_use]
    pub fn read(&self, unix_time: u64) -> u8 {
        let date = Date::from_unix(unix_time);
        match self.index {
            0x00 => bcd(date.seconds % 60),
            0x02 => bcd(date.seconds / 60 % 60),
            0x04 => bcd(date.seconds / 3600),
            0x06 => date.weekday as u8 + 1,
            0x07 => bcd(date.day),
            0x08 => bcd(date.month),
            0x09 => bcd(date.year % 100),
            0x0a => STATUS_A,
            0x0b => STATUS_B,
            0x0d => STATUS_D,
            0x32 => bcd(date.year / 100),
            _ => 0,
        }
    }

    /// Writes the index port. Bit 7 is the PC's NMI mask and no part of the index.
    pub fn select(&mut self, index: u8) {
        self.index = index & 0x7f;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_all(time: u64) -> [u8; 8] {
        let mut rtc = Rtc::default();
        [0x32, 9, 8, 7, 4, 2, 0, 6].map(|index| {
            rtc.select(0x80 | index);
            rtc.read(time)
        })
    }

    #[test]
    fn known_moments_read_as_they_should() {
        assert_eq!(read_all(0), [0x19, 0x70, 1, 1, 0, 0, 0, 5], "a Thursday");
        assert_eq!(read_all(951_827_696), [0x20, 0x00, 2, 0x29, 0x12, 0x34, 0x56, 3]);
        assert_eq!(read_all(4_102_444_799), [0x20, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59, 5]);
    }

    #[test]
    fn status_registers_say_valid_bcd_24_hours_and_no_update_in_progress() {
        let mut rtc = Rtc::default();
        let read = [0x0a, 0x0b, 0x0c, 0x0d].map(|index| {
            rtc.select(index);
            rtc.read(0)
        });
        assert_eq!(read, [0x26, 0x02, 0x00, 0x80]);
    }

    proptest! {
        #[test]
        fn dates_grow_day_by_day(day in 0u64..60_000) {
            let today = Date::from_unix(day * 86_400);
            let tomorrow = Date::from_unix((day + 1) * 86_400);
            let key = |date: Date| (date.year, date.month, date.day);
            prop_assert!(key(today) < key(tomorrow));
            prop_assert!((1..=12).contains(&today.month) && (1..=31).contains(&today.day));
            prop_assert!(tomorrow.day == today.day + 1 || tomorrow.day == 1);
            let every = |years| today.year.is_multiple_of(years);
            let leap = every(4) && !every(100) || every(400);
            prop_assert_eq!(today.month == 2 && today.day == 29 && !leap, false);
        }
    }
}
