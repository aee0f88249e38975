//! A frequency that is known between two bounds.

use core::fmt;

/// Parts per million that make the whole.
const MILLION: u128 = 1_000_000;

/// The true frequency is not below `low` and not above `high`, both in Hz.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Interval {
    /// The least that it can be.
    pub(crate) low: u64,
    /// The most that it can be.
    pub(crate) high: u64,
}

impl Interval {
    /// Nothing is known.
    pub(crate) const ANY: Self = Self { low: 0, high: u64::MAX };

    /// `hz`, give or take `ppm` parts per million of it.
    pub(crate) fn around(hz: u64, ppm: u64) -> Self {
        Self { low: hz, high: hz }.widened(ppm)
    }

    pub(crate) fn middle(self) -> u64 {
        self.low + (self.high - self.low) / 2
    }

    /// Whether a frequency can be in both.
    pub(crate) fn overlaps(self, other: Self) -> bool {
        self.low <= other.high && other.low <= self.high
    }

    /// What is in both, if anything is.
    pub(crate) fn and(self, other: Self) -> Option<Self> {
        let both = Self { low: self.low.max(other.low), high: self.high.min(other.high) };
        self.overlaps(other).then_some(both)
    }

    /// Each bound moved outwards by `ppm` parts per million of itself.
    pub(crate) fn widened(self, ppm: u64) -> Self {
        let part = |hz: u64| (u128::from(hz) * u128::from(ppm)).div_ceil(MILLION) as u64;
        let (low, high) = (part(self.low), part(self.high));
        Self { low: self.low.saturating_sub(low), high: self.high.saturating_add(high) }
    }

    /// How far, in parts per million and rounded up, the true frequency can be from `hz`.
    pub(crate) fn error_ppm(self, hz: u64) -> u64 {
        let far = hz.abs_diff(self.low).max(hz.abs_diff(self.high));
        let ppm = (u128::from(far) * MILLION).div_ceil(u128::from(hz.max(1)));
        u64::try_from(ppm).unwrap_or(u64::MAX)
    }
}

/// In kHz, as the log has it.
impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (low, high) = (self.low / 1000, self.high.div_ceil(1000));
        match *self {
            Self::ANY => write!(f, "anything"),
            Self { low: 0, .. } => write!(f, "up to {high} kHz"),
            Self { high: u64::MAX, .. } => write!(f, "{low} kHz or more"),
            _ => write!(f, "{low} to {high} kHz"),
        }
    }
}
