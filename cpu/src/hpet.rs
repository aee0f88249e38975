//! The HPET as a once-a-second call to the host (IA-PC HPET Specification, "Register Overview").
//!
//! Its comparator drives an I/O APIC input whose remapping entry has delivery mode NMI, so that a
//! guest that has interrupts off cannot keep the host away.

use arch::Hpa;
use arch::clock::{Counter, Reading};
use arch::machine::Width;

use crate::clock::bracketed;
use crate::physical::{mmio_read, mmio_write};

/// Bits of the main counter that are read: all HPETs have them, and one access reads them.
const COUNTER_BITS: u32 = 32;

const CAPABILITIES: u64 = 0x000;
const CONFIGURATION: u64 = 0x010;
const MAIN_COUNTER: u64 = 0x0f0;
const TIMER0_CONFIGURATION: u64 = 0x100;
const TIMER0_COMPARATOR: u64 = 0x108;

const ENABLE: u64 = 1 << 0;
const LEGACY_ROUTE: u64 = 1 << 1;
const TIMER_INTERRUPT_ENABLE: u64 = 1 << 2;
const TIMER_PERIODIC: u64 = 1 << 3;
const TIMER_PERIODIC_CAPABLE: u64 = 1 << 4;
const TIMER_SET_ACCUMULATOR: u64 = 1 << 6;
const FEMTOSECONDS_PER_SECOND: u64 = 1_000_000_000_000_000;

/// The HPET's registers.
#[derive(Clone, Copy, Debug)]
pub struct Hpet {
    base: Hpa,
}

impl Hpet {
    /// The HPET whose registers are at `base`; `None` where nothing sensible answers there.
    ///
    /// # Safety
    /// `base` is the HPET's register page, mapped uncached, and nobody else drives it.
    #[must_use]
    pub unsafe fn new(base: Hpa) -> Option<Self> {
        let this = Self { base };
        let period = this.read(CAPABILITIES) >> 32;
        // The specification's bound on the counter's period is 100 ns.
        (1..=100_000_000).contains(&period).then_some(this)
    }

    /// The I/O APIC inputs that timer 0 can drive, as a bit mask.
    #[must_use]
    pub fn possible_inputs(&self) -> u32 {
        (self.read(TIMER0_CONFIGURATION) >> 32) as u32
    }

    /// Starts timer 0, edge-triggered, once a second, on I/O APIC input `input`. `false` where it
    /// cannot be periodic or cannot drive that input.
    #[must_use]
    pub fn start_each_second(&self, input: u32) -> bool {
        let timer = self.read(TIMER0_CONFIGURATION);
        let capable = timer & TIMER_PERIODIC_CAPABLE != 0;
        if input > 31 || !capable || self.possible_inputs() >> input & 1 == 0 {
            return false;
        }
        let ticks = self.hz();
        self.write(CONFIGURATION, self.read(CONFIGURATION) & !(ENABLE | LEGACY_ROUTE));
        self.write(MAIN_COUNTER, 0);
        let route = u64::from(input) << 9;
        self.write(
            TIMER0_CONFIGURATION,
            TIMER_INTERRUPT_ENABLE | TIMER_PERIODIC | TIMER_SET_ACCUMULATOR | route,
        );
        // The first write sets the comparator, the second the period.
        self.write(TIMER0_COMPARATOR, ticks);
        self.write(TIMER0_COMPARATOR, ticks);
        self.write(CONFIGURATION, self.read(CONFIGURATION) | ENABLE);
        true
    }

    /// The rate of its counter.
    #[must_use]
    pub fn hz(&self) -> u64 {
        FEMTOSECONDS_PER_SECOND / (self.read(CAPABILITIES) >> 32).max(1)
    }

    fn read(&self, register: u64) -> u64 {
        // SAFETY: `new`'s caller vouched for the page; the registers are aligned to 8 bytes.
        unsafe { mmio_read(self.base.wrapping_add(register), Width::Qword) }
    }

    fn write(&self, register: u64, value: u64) {
        // SAFETY: as for `read`; the HPET is the host's own.
        unsafe { mmio_write(self.base.wrapping_add(register), Width::Qword, value) };
    }
}

impl Counter for Hpet {
    fn bits(&self) -> u32 {
        COUNTER_BITS
    }

    /// Firmware may have left the counter off.
    fn start(&mut self) -> Result<(), &'static str> {
        self.write(CONFIGURATION, self.read(CONFIGURATION) & !LEGACY_ROUTE | ENABLE);
        Ok(())
    }

    fn reading(&mut self) -> Reading {
        let counter = self.base.wrapping_add(MAIN_COUNTER);
        // SAFETY: `new`'s caller vouched for the page; the counter is aligned to 8 bytes.
        bracketed(|| unsafe { mmio_read(counter, Width::Dword) })
    }
}
