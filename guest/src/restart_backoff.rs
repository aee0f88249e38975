//! The restart back-off of a guest whose generations are short: how long to wait before the next restart, and
//! how much the next generation may log.

/// A generation shorter than this counts as short.
const SHORT_MS: u64 = 10_000;
/// The longest wait.
const LONGEST_PAUSE_MS: u64 = 1_000;
/// After this many short generations in a row, the log already has everything that a guest can make it say.
const LOGGED_GENERATIONS: u32 = 4;

/// What ended a generation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EndedBy {
    Crash,
    /// The guest asked for a reset.
    Reboot,
    User,
}

/// Counts a guest's short generations in a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RestartBackoff {
    count: u32,
    crashed: bool,
}

impl RestartBackoff {
    /// A generation has ended after `lasted_ms`. Returns the milliseconds to wait before the next: 0 after the
    /// first short generation, then 1, twice as long each time, up to a second.
    pub fn generation_ended(&mut self, end: EndedBy, lasted_ms: u64) -> u64 {
        if end == EndedBy::User || lasted_ms >= SHORT_MS {
            *self = Self::default();
            return 0;
        }
        self.count = self.count.saturating_add(1);
        self.crashed |= end == EndedBy::Crash;
        let doublings = self.count.checked_sub(2);
        doublings.map_or(0, |n| 1_u64.checked_shl(n).unwrap_or(u64::MAX).min(LONGEST_PAUSE_MS))
    }

    /// Whether the log has the registers of a crash in this row.
    #[must_use]
    pub const fn crash_logged(self) -> bool {
        self.crashed
    }

    /// Whether the log already has, several times, everything that the guest can make it say.
    #[must_use]
    pub const fn is_logged(self) -> bool {
        self.count >= LOGGED_GENERATIONS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_a_second_and_a_longer_life_ends_the_row() {
        for end in [EndedBy::Crash, EndedBy::Reboot] {
            let mut backoff = RestartBackoff::default();
            let waits: Vec<u64> = (0..13).map(|_| backoff.generation_ended(end, 9_999)).collect();
            assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 1000]);
            assert!(
                (0..100).all(|_| backoff.generation_ended(end, 0) == 1000),
                "however long it goes on"
            );
            assert!(backoff.is_logged());
            assert_eq!(backoff.generation_ended(end, 10_000), 0);
            assert!(!backoff.is_logged() && !backoff.crash_logged());
            assert_eq!(
                (backoff.generation_ended(end, 0), backoff.generation_ended(end, 0)),
                (0, 1)
            );
        }
    }

    #[test]
    fn a_reboot_between_two_crashes_ends_no_row() {
        let mut backoff = RestartBackoff::default();
        backoff.generation_ended(EndedBy::Reboot, 0);
        assert!(!backoff.crash_logged(), "its registers were not seen yet");
        backoff.generation_ended(EndedBy::Crash, 0);
        backoff.generation_ended(EndedBy::Reboot, 0);
        assert!(backoff.crash_logged() && !backoff.is_logged());
        assert_eq!(backoff.generation_ended(EndedBy::Crash, 0), 4);
        assert!(backoff.is_logged());
    }

    #[test]
    fn a_guest_that_the_user_restarts_never_waits() {
        let mut backoff = RestartBackoff::default();
        assert!((0..100).all(|_| backoff.generation_ended(EndedBy::User, 0) == 0));
        assert!(!backoff.crash_logged() && !backoff.is_logged());
    }
}
