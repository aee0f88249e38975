//! A guest that waits for what cannot come: nothing else would say so.
//!
//! Two waits are known: its first CPU executes zeros, as behind an interrupt vector or a call that leads to no BIOS; or it
//! is the only one that runs, is halted or in a short loop with interrupts on, and no clock can interrupt it. Each is
//! said once, as a guest may also wait for a device.

use arch::machine::Machine;
use arch::register::{Cr0, Rflags};
use arch::vcpu::Vcpu;

use crate::devices::pit;
use crate::vm::{Context, Platform};

/// What it waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wait {
    Zeros,
    Tick,
}

impl Wait {
    /// Milliseconds after which it is one.
    const fn patience(self) -> u64 {
        match self {
            Self::Zeros => 1000,
            Self::Tick => 3000,
        }
    }
}

/// What the host has found the last times that it had the CPU.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct WaitDetector {
    /// The wait, where, and since which TSC.
    waits: Option<(Wait, u64, u64)>,
    looked: u64,
    said: [bool; 2],
}

impl<P: Platform> Context<'_, P> {
    /// The host has the CPU: looks twice a second.
    pub(super) fn look_for_waits(&mut self) {
        let WaitDetector { waits, looked, said } = self.cpu.wait_detector;
        let (now, khz) = (self.machine.tsc(), self.machine.tsc_khz().max(1));
        if said == [true; 2] || self.cpu.index != 0 || now.wrapping_sub(looked) / khz < 500 {
            return;
        }
        self.cpu.wait_detector.looked = now;
        let rip = self.vcpu.rip();
        let found = self.wait();
        let same = |wait, at: u64| found == Some(wait) && (wait == Wait::Zeros || near(at, rip));
        let known = waits.filter(|(wait, at, _)| same(*wait, *at));
        let waits = known.or(found.map(|wait| (wait, rip, now)));
        self.cpu.wait_detector.waits = waits;
        if let Some((wait, at, since)) = waits
            && now.wrapping_sub(since) / khz >= wait.patience()
            && let Some(said) = self.cpu.wait_detector.said.get_mut(wait as usize)
            && !core::mem::replace(said, true)
        {
            let after = since.wrapping_sub(self.cpu.began) / khz;
            self.say_wait(wait, at, after);
        }
    }

    fn wait(&self) -> Option<Wait> {
        let mut bytes = [1; 16];
        if self.code_from(self.vcpu.rip(), &mut bytes) && bytes == [0; 16] {
            return Some(Wait::Zeros);
        }
        let alone = self.guest.runs_alone();
        let enabled = self.vcpu.rflags() & Rflags::IF.bits() != 0;
        (enabled && alone && !self.a_clock_may_interrupt()).then_some(Wait::Tick)
    }

    fn a_clock_may_interrupt(&self) -> bool {
        let entry = self.vm.io_apic.entry(pit::GSI);
        let by_io_apic = entry.is_some_and(|entry| self.receiver(entry).is_some());
        let by_pit = self.has_pit() && (by_io_apic || self.vm.legacy.ticks());
        by_pit || self.cpu.apic.timer_may_interrupt()
    }

    fn say_wait(&mut self, wait: Wait, at: u64, after: u64) {
        let name = &self.guest.name;
        let (seconds, rest) = (after / 1000, after % 1000);
        match wait {
            Wait::Zeros => {
                let real = self.vcpu.cr0() & Cr0::PE.bits() == 0;
                let mode = if real { "in real mode, " } else { "" };
                self.machine.log(format_args!(
                    "guest {name}: CPU 0 executes zeros at {at:#x}, {mode}since {seconds}.{rest:03} s after its start: a \
                     call or an interrupt has led there, and there is no BIOS"
                ));
            }
            Wait::Tick => {
                let pit = if self.has_pit() {
                    "IRQ 0 is masked at its 8259s and its I/O APIC"
                } else {
                    "the PIT's line is not its own"
                };
                self.machine.log(format_args!(
                    "guest {name}: CPU 0 waits at {at:#x} since {seconds}.{rest:03} s after its start, and no clock can \
                     interrupt it: {pit}, and its local APIC's timer is masked"
                ));
            }
        }
    }
}

/// In one short loop.
fn near(one: u64, other: u64) -> bool {
    one.abs_diff(other) < 128
}
