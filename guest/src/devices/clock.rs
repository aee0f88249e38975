//! Time for the virtual devices: the TSC and how fast it runs.

use arch::machine::Machine;

/// A moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PitClock {
    /// The time-stamp counter.
    pub tsc: u64,
    /// Its frequency in kHz.
    pub tsc_khz: u64,
}

impl PitClock {
    #[must_use]
    pub fn now(machine: &impl Machine) -> Self {
        Self { tsc: machine.tsc(), tsc_khz: machine.tsc_khz() }
    }

    /// How many ticks of a clock of `frequency_hz` fit between `tsc` and now.
    #[must_use]
    pub fn ticks_since(self, tsc: u64, frequency_hz: u64) -> u64 {
        let cycles = u128::from(self.tsc.wrapping_sub(tsc));
        let per_second = u128::from(self.tsc_khz.max(1)) * 1000;
        (cycles * u128::from(frequency_hz) / per_second) as u64
    }
}
