//! Scripted clocks: a TSC with a known frequency, counters beside it, and what interrupts their reading.

use std::boxed::Box;
use std::cell::Cell;
use std::rc::Rc;

use arch::clock::{Counter, Reading};

/// The machine's time, in ticks of its TSC.
#[derive(Clone)]
pub(crate) struct Time(Rc<Cell<u64>>);

impl Time {
    pub(crate) fn new() -> Self {
        Self(Rc::new(Cell::new(1 << 40)))
    }
    fn pass(&self, ticks: u64) -> u64 {
        self.0.set(self.0.get() + ticks);
        self.0.get()
    }
    pub(crate) fn ticks(&self) -> u64 {
        self.0.get() - (1 << 40)
    }
}

/// A counter beside a TSC.
pub(crate) struct Script {
    pub(crate) time: Time,
    pub(crate) name: &'static str,
    pub(crate) tsc_hz: u64,
    /// What it says of itself.
    pub(crate) hz: u64,
    /// How fast it is.
    pub(crate) real_hz: u64,
    pub(crate) bits: u32,
    pub(crate) refuses: Option<&'static str>,
    /// It shows multiples of this alone.
    pub(crate) jumps_by: u64,
    /// It stops when the TSC has gone on by this.
    pub(crate) stops_after: u64,
    /// TSC ticks that a reading takes.
    pub(crate) cost: u64,
    /// What comes between any two moments, in TSC ticks.
    pub(crate) interruption: Box<dyn FnMut() -> u64>,
    pub(crate) readings: u64,
}

impl Script {
    /// An honest clock on a quiet machine.
    pub(crate) fn new(name: &'static str, time: &Time, tsc_hz: u64, hz: u64, bits: u32) -> Self {
        Self {
            time: time.clone(),
            name,
            tsc_hz,
            hz,
            real_hz: hz,
            bits,
            refuses: None,
            jumps_by: 1,
            stops_after: u64::MAX,
            cost: tsc_hz / 1_000_000,
            interruption: Box::new(|| 0),
            readings: 0,
        }
    }

    fn pause(&mut self, ticks: u64) -> u64 {
        let more = (self.interruption)();
        self.time.pass(ticks + more)
    }
}

impl Counter for Script {
    fn bits(&self) -> u32 {
        self.bits
    }
    fn start(&mut self) -> Result<(), &'static str> {
        self.refuses.map_or(Ok(()), Err)
    }
    fn reading(&mut self) -> Reading {
        self.readings += 1;
        let before = self.pause(10);
        let at = self.pause(self.cost / 2);
        let ticks = u128::from(at - (1 << 40)).min(self.stops_after.into());
        let count = (ticks * u128::from(self.real_hz) / u128::from(self.tsc_hz)) as u64;
        let after = self.pause(self.cost / 2 + 1);
        let count = (count / self.jumps_by * self.jumps_by) & ((1 << self.bits) - 1);
        Reading { before, count, after }
    }
}
