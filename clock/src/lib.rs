//! How fast the time-stamp counter (TSC) runs.
//!
//! CPUID may *claim* a frequency; other clocks let it be *measured*. A claim counts unless a measurement
//! without doubt contradicts it. Neither is a number alone: each is an interval that holds the true
//! value, and two of them contradict each other where they do not overlap.
//!
//! Invariant: whatever interrupts a measurement (system-management mode, a hypervisor below, other work on
//! an emulator's host) makes its interval wider, and never moves it off the true value. Everything ends
//! after a bounded number of readings, and nothing is believed that was not shown.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod apic_timer;
mod claims;
mod frequency;
mod interval;
mod window;

pub use apic_timer::apic_timer_hz;
pub use frequency::{Clock, Frequency, Refused, tsc_frequency};

#[cfg(test)]
mod script;
#[cfg(test)]
mod tests;
