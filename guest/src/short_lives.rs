//! A guest whose lives are short, one after the other: how long it waits before it begins anew, and how
//! much of the next life is worth a line.

/// A life that ended sooner than this after its beginning was a short one.
const SHORT_MS: u64 = 10_000;
/// The longest wait.
const LONGEST_PAUSE_MS: u64 = 1_000;
/// After so many short lives the log has what a guest can have it say.
const TOLD_LIVES: u32 = 4;

/// What ended a life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LifeEnd {
    /// A crash.
    Crash,
    /// The guest asked for a reset.
    Reboot,
    /// The user's word.
    User,
}

/// The short lives of a guest up to now, without a longer one between them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ShortLives {
    count: u32,
    crashed: bool,
}

impl ShortLives {
    /// A life has ended after `life_ms`. How many milliseconds to wait before the next: none after the
    /// first short life, then 1, twice as long each time, up to a second.
    pub fn life_ended(&mut self, end: LifeEnd, life_ms: u64) -> u64 {
        if end == LifeEnd::User || life_ms >= SHORT_MS {
            *self = Self::default();
            return 0;
        }
        self.count = self.count.saturating_add(1);
        self.crashed |= end == LifeEnd::Crash;
        let doublings = self.count.checked_sub(2);
        doublings.map_or(0, |n| 1_u64.checked_shl(n).unwrap_or(u64::MAX).min(LONGEST_PAUSE_MS))
    }

    /// Whether the log has the registers of a crash of this row.
    #[must_use]
    pub const fn crash_told(self) -> bool {
        self.crashed
    }

    /// Whether the log has all that the guest can have it say, several times.
    #[must_use]
    pub const fn told(self) -> bool {
        self.count >= TOLD_LIVES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_a_second_and_a_longer_life_ends_the_row() {
        for end in [LifeEnd::Crash, LifeEnd::Reboot] {
            let mut lives = ShortLives::default();
            let waits: Vec<u64> = (0..13).map(|_| lives.life_ended(end, 9_999)).collect();
            assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 1000]);
            assert!((0..100).all(|_| lives.life_ended(end, 0) == 1000), "however long it goes on");
            assert!(lives.told());
            assert_eq!(lives.life_ended(end, 10_000), 0);
            assert!(!lives.told() && !lives.crash_told());
            assert_eq!((lives.life_ended(end, 0), lives.life_ended(end, 0)), (0, 1));
        }
    }

    #[test]
    fn a_reboot_between_two_crashes_ends_no_row() {
        let mut lives = ShortLives::default();
        lives.life_ended(LifeEnd::Reboot, 0);
        assert!(!lives.crash_told(), "its registers were not seen yet");
        lives.life_ended(LifeEnd::Crash, 0);
        lives.life_ended(LifeEnd::Reboot, 0);
        assert!(lives.crash_told() && !lives.told());
        assert_eq!(lives.life_ended(LifeEnd::Crash, 0), 4);
        assert!(lives.told());
    }

    #[test]
    fn a_guest_that_the_user_restarts_never_waits() {
        let mut lives = ShortLives::default();
        assert!((0..100).all(|_| lives.life_ended(LifeEnd::User, 0) == 0));
        assert!(!lives.crash_told() && !lives.told());
    }
}
