//! Interrupts of the 8259s, for a guest without a driver for its local APIC: the PIT's ticks and the console's.
//!
//! They reach the guest's first CPU while its local APIC is off or its LINT0 says so. The machine's PIT then interrupts
//! that CPU by an NMI, which is the host's in every mode: it exits, the virtual PIT says whether it was due, and the
//! interrupt is injected as soon as the guest can take it (decision 0072). So each tick costs one exit, and one more
//! where the guest has interrupts off. A guest that masks them or whose I/O APIC has the PIT's line pays nothing.

use arch::Vector;
use arch::interrupt::{DeliveryMode, InterruptTarget, TriggerMode};
use arch::machine::{InterruptLine, Machine};
use arch::vcpu::{Event, InterruptMode, Vcpu};
use eli::Reason;

use crate::devices::pit;
use crate::vm::{Context, Platform, VmLock};

/// The CPU that the 8259s interrupt.
const FIRST: usize = 0;
/// A guest that has taken so many lives on them: those of a Linux that goes on to its local APIC are fewer.
const MANY: u8 = 250;

/// What is between a guest's 8259s and its first CPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Legacy {
    /// Its local APIC lets them through.
    open: bool,
    /// The machine's PIT interrupts it by NMIs.
    ticking: bool,
    /// How many it has taken; no more are counted once the log says so.
    taken: u8,
}

impl Default for Legacy {
    fn default() -> Self {
        Self { open: true, ticking: false, taken: 0 }
    }
}

impl Legacy {
    /// The machine's PIT interrupts the first CPU through the 8259s.
    pub(super) const fn ticks(&self) -> bool {
        self.ticking
    }

    /// The line of the machine's PIT goes somewhere else.
    pub(super) const fn lose_line(&mut self) {
        self.ticking = false;
    }

    /// The log already says everything.
    pub(crate) const fn be_quiet(&mut self) {
        self.taken = MANY;
    }
}

impl<P: Platform, L: VmLock> Context<'_, P, &L> {
    /// The CPU can take an interrupt, or has been about to halt while one waits.
    #[inline(always)]
    pub(super) fn offer_legacy_interrupt(&mut self) {
        if self.cpu.legacy_waits {
            self.again().offer_waiting();
        }
    }

    #[cold]
    #[inline(never)]
    fn offer_waiting(&mut self) {
        self.locked(|context| context.pass_legacy_interrupt());
        // In the exiting mode this is done before the entry.
        if self.guest.mode != InterruptMode::Exiting && core::mem::take(&mut self.cpu.halting) {
            self.vcpu.let_halt();
        }
    }
}

impl<P: Platform> Context<'_, P> {
    /// After whatever may change what the 8259s ask for, or whether it reaches the CPU.
    pub(super) fn serve_8259s(&mut self) {
        if !self.vm.devices.has_8259s() {
            return;
        }
        if self.cpu.index == FIRST {
            self.vm.legacy.open = self.cpu.apic.takes_external_interrupts();
        }
        self.route_ticks(self.ticks_wanted());
        self.pass_legacy_interrupt();
    }

    /// Before the guest's PIT is programmed: from here on it may tick too often.
    pub(super) fn stop_frequent_ticks(&mut self) {
        if !self.ticks_wanted() {
            self.route_ticks(false);
        }
    }

    /// The host has the CPU, perhaps because the machine's PIT has ticked.
    pub(super) fn legacy_tick(&mut self) {
        if self.cpu.index == FIRST && self.vm.legacy.ticking {
            self.vm.devices.tick(self.machine);
        }
        if self.vm.devices.has_8259s() {
            self.pass_legacy_interrupt();
        }
    }

    /// Whether the PIT's ticks are to come through the 8259s. The I/O APIC's input comes first.
    fn ticks_wanted(&self) -> bool {
        let entry = self.vm.io_apic.entry(pit::GSI);
        let taken = entry.is_some_and(|entry| self.receiver(entry).is_some());
        self.vm.legacy.open && !taken && self.vm.devices.ticks_wanted()
    }

    /// Whether the line of the machine's PIT is the guest's.
    pub(super) fn has_pit(&self) -> bool {
        self.vm.lines.iter().any(|line| line.gsi == pit::GSI)
    }

    fn route_ticks(&mut self, wanted: bool) {
        if wanted == self.vm.legacy.ticking || !self.has_pit() {
            return;
        }
        let nmi = |destination| InterruptTarget {
            vector: Vector(0),
            destination,
            trigger: TriggerMode::Edge,
            delivery: DeliveryMode::Nmi,
        };
        let target = self.guest.cpus.get(FIRST).copied().filter(|_| wanted).map(nmi);
        self.vm.legacy.ticking = wanted;
        if let Err(refused) = self.machine.route(InterruptLine::Gsi(pit::GSI), target) {
            self.log_limited(format_args!("no tick of the PIT reaches it: {}", refused.0));
        } else if wanted {
            self.vm.devices.begin_ticks(self.machine);
        }
    }

    /// Injects what the 8259s ask for, or asks for the moment to.
    fn pass_legacy_interrupt(&mut self) {
        let waits = self.vm.legacy.open && self.vm.devices.asks();
        if self.cpu.index != FIRST {
            if waits {
                self.machine.have_exit(FIRST);
            }
            return;
        }
        if !waits && !self.cpu.legacy_waits {
            return;
        }
        self.cpu.legacy_waits = waits;
        if waits && !self.vcpu.injecting() && self.vcpu.interruptible() {
            if let Some(vector) = self.vm.devices.acknowledge() {
                self.take_legacy_interrupt(vector);
            }
            self.cpu.legacy_waits = self.vm.devices.asks();
        }
        self.vcpu.set_interrupt_window(self.cpu.legacy_waits);
    }

    fn take_legacy_interrupt(&mut self, vector: Vector) {
        if vector.is_external() {
            self.grant(vector, Reason::Device);
        }
        self.vcpu.inject(Event::interrupt(vector));
        if self.vm.legacy.taken < MANY {
            self.vm.legacy.taken += 1;
            if self.vm.legacy.taken == MANY {
                let name = &self.guest.name;
                self.machine.log(format_args!(
                    "guest {name}: its clock ticks through the 8259s: each tick exits; have it use its local APIC (Linux: \
                     without noapic, nolapic, acpi=off) for none"
                ));
            }
        }
    }
}
