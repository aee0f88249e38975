//! A guest that crashes again and again: how long it waits before it begins anew, and how much of a
//! crash is worth a line.

/// A life that crashed sooner than this after its beginning was a short one.
const SHORT_MS: u64 = 10_000;
/// The longest wait.
const LONGEST_PAUSE_MS: u64 = 1_000;

/// The short lives of a guest up to now, without a longer one between them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Crashes(u32);

impl Crashes {
    /// A life has ended after `life_ms`; by a crash or otherwise. How many milliseconds to wait
    /// before the next: none after the first short life, then 1, twice as long each time, up to a
    /// second.
    pub fn life_ended(&mut self, crashed: bool, life_ms: u64) -> u64 {
        let short = crashed && life_ms < SHORT_MS;
        self.0 = if short { self.0.saturating_add(1) } else { 0 };
        let doublings = self.0.checked_sub(2);
        doublings.map_or(0, |n| 1_u64.checked_shl(n).unwrap_or(u64::MAX).min(LONGEST_PAUSE_MS))
    }

    /// Whether the next crash is one of a row, whose registers the log has already.
    #[must_use]
    pub const fn in_a_row(self) -> bool {
        self.0 > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_a_second_and_a_longer_life_ends_the_row() {
        let mut crashes = Crashes::default();
        let waits: Vec<u64> = (0..13).map(|_| crashes.life_ended(true, 9_999)).collect();
        assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 1000]);
        assert!((0..100).all(|_| crashes.life_ended(true, 0) == 1000), "however long it goes on");
        assert!(crashes.in_a_row());
        assert_eq!(crashes.life_ended(true, 10_000), 0);
        assert!(!crashes.in_a_row());
        assert_eq!((crashes.life_ended(true, 0), crashes.life_ended(true, 0)), (0, 1));
    }

    #[test]
    fn a_guest_that_ends_of_its_own_will_never_waits() {
        let mut crashes = Crashes::default();
        assert!((0..100).all(|_| crashes.life_ended(false, 0) == 0));
        assert!(!crashes.in_a_row());
    }
}
