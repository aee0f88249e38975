//! Bus locks: a locked access that crosses a cache line, or goes to uncached memory, keeps all CPUs from memory meanwhile.
//! Where the CPU can, each one exits. A few cost the guest an exit each; who makes many waits before the next.
//!
//! Pure. No emulator has such exits: never run.

/// So often on average …
const PERIOD_US: u64 = 20;
/// … but for this many that may come at once.
const BURST: u64 = 1000;

/// The bus locks of one CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct BusLocks {
    /// When the last one would have been due at an even pace, as a TSC.
    due: u64,
}

impl BusLocks {
    /// One at `now`, of a TSC with this frequency: the TSC until which its CPU is to wait, at most a period from now.
    pub(crate) fn at(&mut self, now: u64, tsc_khz: u64) -> u64 {
        let period = (tsc_khz * PERIOD_US / 1000).max(1);
        self.due = self.due.max(now.saturating_sub(period * BURST)) + period;
        self.due.clamp(now, now + period)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KHZ: u64 = 2_000_000;
    const PERIOD: u64 = 40_000;

    #[test]
    fn a_burst_waits_for_nothing_and_who_goes_on_keeps_the_pace() {
        let mut locks = BusLocks::default();
        let mut now = 1 << 40;
        for lock in 0..BURST {
            assert_eq!(locks.at(now, KHZ), now, "{lock}");
        }
        let start = now;
        for _ in 0..100 {
            now = locks.at(now, KHZ);
        }
        assert_eq!(now - start, 100 * PERIOD);
    }

    #[test]
    fn one_in_a_while_never_waits_and_no_wait_is_longer_than_a_period() {
        let mut locks = BusLocks::default();
        for lock in 0..10_000 {
            let now = (1 << 40) + lock * PERIOD;
            assert_eq!(locks.at(now, KHZ), now);
        }
        for now in [0, 1, u64::MAX >> 1] {
            let mut flood = BusLocks::default();
            for _ in 0..5000 {
                let until = flood.at(now, KHZ);
                assert!((now..=now + PERIOD).contains(&until));
            }
        }
    }
}
