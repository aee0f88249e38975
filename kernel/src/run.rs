//! The run loop of one virtual CPU: enter the guest, handle the exit, again. Between two exits
//! nothing here runs.

use core::sync::atomic::{AtomicUsize, Ordering};

use arch::vcpu::{Event, StartState, Vcpu};
use arch::{Exit, ExitReason};
use guest::counters::Counter;
use guest::vm::{Context, CpuState, Next, Outcome};

use crate::backend::Backend;
use crate::bring_up::Hardware;
use crate::console::{self, logln};
use crate::monitor::Watched;
use crate::partition::{Edge, Partition, Shared};
use crate::processors::{self, Processor};
use crate::refusal::Refusal;
use crate::seat::Requests;
use crate::{power, watchdog};

/// Guests that have not ended.
static GUESTS: AtomicUsize = AtomicUsize::new(0);

/// Says how many guests there will be.
pub(crate) fn expect_guests(count: usize) {
    GUESTS.store(count, Ordering::Release);
}

/// A virtual CPU on the processor that calls.
struct Running<B: Backend> {
    hardware: &'static Hardware,
    partition: &'static Partition<B>,
    cpu: CpuState,
    vcpu: B::Cpu,
    /// It waits for a start-up IPI.
    waiting: bool,
}

/// Runs virtual CPU `index` of a guest until the guest ends. The last one of the last guest switches
/// the machine off.
pub(crate) fn run<B: Backend>(
    hardware: &'static Hardware,
    partition: &'static Partition<B>,
    index: usize,
    processor: &Processor,
) -> Result<(), Refusal> {
    let backend = B::enable(hardware.memory)?;
    let mut vcpu = partition.vcpu(&backend, hardware, processor)?;
    watchdog::arm(hardware, &mut vcpu);
    let mut running =
        Running { hardware, partition, cpu: partition.cpu_state(index), vcpu, waiting: true };
    loop {
        running.begin(processor);
        running.until_the_end(processor);
        if !running.leave(processor) {
            processors::set_busy(processor.apic.id(), false);
            return Ok(());
        }
    }
}

impl<B: Backend> Running<B> {
    /// The state at the guest's first instruction; all CPUs but the first wait for a start-up IPI.
    fn begin(&mut self, processor: &Processor) {
        // What came after the last life's end, such as a neighbour's doorbell.
        B::drain(processor.apic);
        self.cpu = self.partition.cpu_state(self.cpu.index);
        self.waiting = self.cpu.index != 0;
        if !self.waiting {
            self.enter(&self.partition.start, processor);
        }
        self.vcpu.set_interrupt_window(false);
        self.vcpu.flush_nested();
    }

    fn enter(&mut self, state: &StartState, processor: &Processor) {
        self.vcpu.load(state);
        B::hand_over(processor.apic, self.partition.interrupts());
    }

    fn until_the_end(&mut self, processor: &Processor) {
        let Some(seat) = self.partition.seats.get(self.cpu.index) else { return };
        loop {
            B::hold_nmis();
            let requests = seat.take_requests();
            if requests.stop() {
                return;
            }
            self.carry_out(requests, processor);
            if self.waiting {
                match requests.start() {
                    Some(vector) => {
                        self.enter(&StartState::after_sipi(vector), processor);
                        self.waiting = false;
                    }
                    None => self.nap(processor),
                }
                continue;
            }
            let exit = self.vcpu.run();
            let inside = self.vcpu.take_handled_inside();
            self.cpu.counters.add(Counter::ControlRegister, inside);
            if matches!(exit.reason, ExitReason::Nmi | ExitReason::PreemptionTimer) {
                *seat.counters.lock() = self.cpu.counters;
                watchdog::look_after(self.hardware, processor.apic);
            }
            if let Next::End(outcome) = self.handle(&exit) {
                self.partition.end(outcome, processor.apic);
            }
        }
    }

    fn carry_out(&mut self, requests: Requests, processor: &Processor) {
        if requests.flush() {
            self.vcpu.flush_nested();
        }
        if requests.init() {
            B::drain(processor.apic);
            self.with_context(|context| context.init());
            self.waiting = true;
        }
        if requests.registers() {
            self.with_context(|context| context.dump());
        }
        if requests.nmi() && !self.waiting {
            self.vcpu.inject(Event::nmi());
        }
    }

    fn handle(&mut self, exit: &Exit) -> Next {
        self.with_context(|context| context.handle(exit))
    }

    fn with_context<T>(&mut self, work: impl FnOnce(&mut Context<'_, Edge<B>>) -> T) -> T {
        let mut shared = self.partition.shared.lock();
        let Shared { vm, machine, ram, config } = &mut *shared;
        let mut context: Context<'_, Edge<B>> =
            Context { vm, cpu: &mut self.cpu, vcpu: &mut self.vcpu, machine, memory: ram, config };
        let result = work(&mut context);
        if machine.take_nested_changed() {
            self.vcpu.flush_nested();
            machine.ask_others_to_flush();
        }
        result
    }

    /// Leaves the guest: its interrupts are gone from this processor, and the last CPU to leave takes
    /// the devices back. `true` if the guest begins anew.
    fn leave(&mut self, processor: &Processor) -> bool {
        let partition = self.partition;
        let restarts = partition.restarts.load(Ordering::Acquire);
        partition.shared.lock().machine.routes().mask_lines();
        B::drain(processor.apic);
        if let Some(seat) = partition.seats.get(self.cpu.index) {
            *seat.counters.lock() = core::mem::take(&mut self.cpu.counters);
        }
        if partition.one_has_left() {
            self.last_one_out();
        }
        loop {
            if partition.over.load(Ordering::Acquire) {
                return false;
            }
            if partition.restarts.load(Ordering::Acquire) != restarts {
                return true;
            }
            self.nap(processor);
        }
    }

    /// Sleeps for a moment; what the boot processor has to do for all is done meanwhile.
    fn nap(&self, processor: &Processor) {
        B::nap(processor.apic);
        watchdog::look_after(self.hardware, processor.apic);
    }

    fn last_one_out(&mut self) {
        watchdog::last_look(self.hardware);
        let outcome = self.partition.ended().unwrap_or(Outcome::Crash);
        self.partition.take_devices_back();
        if self.partition.restarts_after(outcome) {
            logln!("guest {}: {}: it begins anew", self.partition.name(), outcome.key());
            match self.partition.restart(self.hardware) {
                Ok(()) => return,
                Err(refusal) => logln!("guest {}: {refusal}", self.partition.name()),
            }
        }
        let (index, name) = (self.partition.index, self.partition.name());
        console::report_guest(index, name, outcome.key(), self.partition.seats);
        self.partition.over.store(true, Ordering::Release);
        if GUESTS.fetch_sub(1, Ordering::AcqRel) == 1 {
            logln!("all guests have ended");
            power::off(self.hardware.soft_off)
        }
    }
}

impl<B: Backend> Partition<B> {
    fn take_devices_back(&self) {
        let mut shared = self.shared.lock();
        let Shared { vm, machine, config, .. } = &mut *shared;
        let mut nobody = |_| None;
        let mut host = guest::pci::Host { machine, config, target: &mut nobody };
        vm.bus.detach(&mut host);
        machine.routes().revoke_all();
    }
}
