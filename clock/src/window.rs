//! Measuring one frequency by another: pairs of readings, and the interval that each pair leaves.
//!
//! Between two readings the counter went on by its difference, give or take a step, while the TSC went on
//! by no less than from the end of the first reading to the beginning of the second, and by no more than
//! from the beginning of the first to the end of the second. So each pair gives two bounds that hold
//! whatever came between, and what holds for all pairs is in the intersection.

use core::fmt;
use core::ops::RangeInclusive;

use arch::clock::{Counter, Reading};

use crate::interval::Interval;

/// Plausible TSC frequencies: from less than any CPU with x2APIC has (for Bochs) to more than any CPU has.
pub(crate) const PLAUSIBLE_HZ: RangeInclusive<u64> = 20_000_000..=10_000_000_000;
/// A window ends when its error is no more than this.
pub(crate) const TARGET_PPM: u64 = 100;
/// … or after this part of a second, of which one interruption takes a twentieth at most.
const WINDOW_PART: u64 = 2;
const INTERRUPTION_PART: u64 = 20;
/// … or after this many readings of any kind.
const MAX_READINGS: u32 = 10_000_000;
/// … or after this many that came too late: the counter may have wrapped meanwhile.
const MAX_LATE: u32 = 1000;
/// Number of counter steps observed to learn its granularity.
const STEPS: u32 = 16;
/// A counter that shows the same value this often, for this long, is stopped: a millisecond of the fastest TSC.
const MIN_SAME: u32 = 1000;
const MIN_SAME_TSC: u64 = 10_000_000;
/// … or so often at all: the TSC need not count either.
const MAX_SAME: u32 = 1_000_000;
/// So often the readings may contradict each other: a virtual machine's clock may be set right once.
const MAX_CONTRADICTIONS: u32 = 8;

/// Why a counter tells nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// It is not there.
    Unusable(&'static str),
    /// Its count stays the same.
    Still,
    /// Its readings contradict each other.
    Uneven,
    /// No TSC can have the frequency that it gives.
    Implausible(Interval),
    /// So much was in the way that nothing can be said.
    Interrupted,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unusable(why) => f.write_str(why),
            Self::Still => f.write_str("does not count"),
            Self::Uneven => f.write_str("does not count evenly"),
            Self::Implausible(interval) => write!(f, "gives {interval}, which no CPU has"),
            Self::Interrupted => f.write_str("could not be read often enough"),
        }
    }
}

/// What bounds a window.
pub(crate) struct Limits {
    /// The counter's frequency.
    pub(crate) hz: u64,
    /// The range of plausible results.
    pub(crate) plausible: RangeInclusive<u64>,
    /// It ends when the counter has gone on by this much …
    pub(crate) counts: u64,
    /// … or the TSC by this much.
    pub(crate) tsc: u64,
}

/// The TSC's frequency by a counter that runs at `hz`.
pub(crate) fn tsc_by(counter: &mut dyn Counter, hz: u64) -> Result<Interval, Fault> {
    let counts = hz / WINDOW_PART;
    measure(counter, &Limits { hz, plausible: PLAUSIBLE_HZ, counts, tsc: u64::MAX })
}

/// Reads `counter` until the error is small enough or a limit is reached.
pub(crate) fn measure(counter: &mut dyn Counter, limits: &Limits) -> Result<Interval, Fault> {
    counter.start().map_err(Fault::Unusable)?;
    let (anchor, step) = get_to_know(counter)?;
    let mask = mask(counter);
    let mut window =
        Window { limits, step, anchor, last: anchor, counted: 0, known: Interval::ANY };
    let (mut counts, mut late, mut contradictions) = (0u64, 0, 0);
    for _ in 0..MAX_READINGS {
        let now = counter.reading();
        let gone = now.count.wrapping_sub(window.last.count) & mask;
        if window.may_have_wrapped(now, mask) {
            window.begin_at(now);
            late += 1;
        } else {
            counts += gone.min(limits.hz / INTERRUPTION_PART);
            contradictions += u32::from(!window.learn(now, gone));
        }
        let known = window.known;
        if contradictions > MAX_CONTRADICTIONS {
            return Err(Fault::Uneven);
        }
        if known.high < *limits.plausible.start() || known.low > *limits.plausible.end() {
            return Err(Fault::Implausible(known));
        }
        let tsc = now.after.wrapping_sub(anchor.before);
        let over = counts >= limits.counts || tsc >= limits.tsc || late >= MAX_LATE;
        // A counter that has stopped lets the interval shrink, until it contradicts itself.
        if over || gone != 0 && known.error_ppm(known.middle()) <= TARGET_PPM {
            break;
        }
    }
    let known = window.known;
    if known.high == u64::MAX { Err(Fault::Interrupted) } else { Ok(known) }
}

/// The least interrupted of the first readings, and how far the counter goes at a step: an emulator may
/// let it jump several counts at once.
fn get_to_know(counter: &mut dyn Counter) -> Result<(Reading, u64), Fault> {
    let mask = mask(counter);
    let mut last = counter.reading();
    let (mut best, mut smallest, mut steps) = (last, u64::MAX, 0);
    let (mut changed_at, mut same) = (last.before, 0);
    while steps < STEPS {
        let now = counter.reading();
        let gone = now.count.wrapping_sub(last.count) & mask;
        if gone == 0 {
            same += 1;
            let long = now.after.wrapping_sub(changed_at) > MIN_SAME_TSC;
            if same > MAX_SAME || long && same > MIN_SAME {
                return Err(Fault::Still);
            }
        } else {
            (smallest, steps) = (smallest.min(gone), steps + 1);
            (changed_at, same) = (now.after, 0);
        }
        if now.doubt() <= best.doubt() {
            best = now;
        }
        last = now;
    }
    // The best reading may not be the last one: the window begins with it only if nothing can have wrapped
    // since, which the next reading tells.
    Ok((best, fineness(smallest)))
}

/// How fine a counter is that goes by so much at a step: steps of 3.58 counts show as 3 or 4.
fn fineness(step: u64) -> u64 {
    step.saturating_add(1)
}

fn mask(counter: &dyn Counter) -> u64 {
    (1 << counter.bits().min(63)) - 1
}

/// How long a reading took.
trait Doubt {
    fn doubt(&self) -> u64;
}

impl Doubt for Reading {
    fn doubt(&self) -> u64 {
        self.after.wrapping_sub(self.before)
    }
}

struct Window<'a> {
    limits: &'a Limits,
    step: u64,
    /// The reading with which later ones are compared.
    anchor: Reading,
    last: Reading,
    /// The counter's advance since the anchor.
    counted: u64,
    known: Interval,
}

impl Window<'_> {
    /// Whether the counter can have gone round once since the last reading, so that its difference says
    /// nothing.
    fn may_have_wrapped(&self, now: Reading, mask: u64) -> bool {
        let slowest = self.known.low.max(*self.limits.plausible.start());
        let longest = u128::from(now.after.wrapping_sub(self.last.before));
        let most = longest * u128::from(self.limits.hz) / u128::from(slowest.max(1));
        most + u128::from(2 * self.step) >= u128::from(mask)
    }

    fn begin_at(&mut self, now: Reading) {
        (self.anchor, self.last, self.counted) = (now, now, 0);
    }

    /// Adds a reading; the counter has advanced by `gone` since the last. `false` if it
    /// contradicts the interval so far, which is then discarded.
    fn learn(&mut self, now: Reading, gone: u64) -> bool {
        self.counted = self.counted.saturating_add(gone);
        self.last = now;
        if gone != 0 {
            // The first readings may have been too far apart to show how fine it is.
            self.step = self.step.min(fineness(gone));
        }
        let Some(known) = self.known.and(self.pair(now)) else {
            self.known = Interval::ANY;
            self.begin_at(now);
            return false;
        };
        self.known = known;
        // The interval from the old anchor stays valid.
        if now.doubt() < self.anchor.doubt() / 2 {
            self.begin_at(now);
        }
        true
    }

    /// The interval that follows from the anchor and `now`.
    fn pair(&self, now: Reading) -> Interval {
        let hz = u128::from(self.limits.hz);
        let least = now.before.saturating_sub(self.anchor.after);
        let most = now.after.wrapping_sub(self.anchor.before);
        let narrow = |value: u128| u64::try_from(value).unwrap_or(u64::MAX);
        let low = u128::from(least) * hz / u128::from(self.counted.saturating_add(self.step));
        let high = match self.counted.checked_sub(self.step) {
            None | Some(0) => u64::MAX,
            Some(counts) => narrow((u128::from(most) * hz).div_ceil(u128::from(counts))),
        };
        Interval { low: narrow(low), high }
    }
}
