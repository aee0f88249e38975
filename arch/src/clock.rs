//! A counter that the time-stamp counter can be measured by.

/// One reading of a [`Counter`]: it had `count` at some moment between the two values of the TSC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reading {
    /// The TSC before it was read.
    pub before: u64,
    /// What it had counted.
    pub count: u64,
    /// The TSC after it was read.
    pub after: u64,
}

/// A counter that runs at a fixed rate, such as the HPET's.
pub trait Counter {
    /// Its count wraps behind this many bits (63 at most).
    fn bits(&self) -> u32;
    /// Makes it count.
    ///
    /// # Errors
    /// Says why it cannot be used.
    fn start(&mut self) -> Result<(), &'static str>;
    /// Reads it. Nothing but this read lies between the two readings of the TSC.
    fn reading(&mut self) -> Reading;
}
