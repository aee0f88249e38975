//! A guest from its first generation to its last: what its CPUs do between two. What comes next `guest::lifecycle` says.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use arch::machine::NotGuestMemory;
use arch::{Bdf, Gpa, Vector};
use cpu::instructions::tsc;
use cpu::local_apic::LocalApic;
use guest::lifecycle::{AfterEnd, Start};
use guest::vm::Outcome;
use mem::table::Mapping;
use view::Lines;

use crate::backend::Backend;
use crate::console::{self, logln};
use crate::hardware::Hardware;
use crate::monitor::GuestControl;
use crate::partition::Partition;
use crate::processors::{self, Processor};
use crate::vcpu_slot::VcpuSlot;
use crate::{faults, housekeeping, power, run};

/// Guests that have not ended.
static ALIVE: AtomicUsize = AtomicUsize::new(0);

/// Has the CPUs of all guests run them.
pub(crate) fn enter<B: Backend>(partitions: &[&'static Partition<B>]) {
    ALIVE.store(partitions.len(), Ordering::Release);
    for partition in partitions {
        logln!("guest {}: entering", partition.name());
        assign(partition, 0);
    }
}

/// Has every CPU of the guest, but those before `first`, run it.
fn assign<B: Backend>(partition: &'static Partition<B>, first: usize) {
    for (index, slot) in partition.slots().iter().enumerate().skip(first) {
        let job = move |processor: &Processor| run_generation(partition, index, processor);
        processors::assign(slot.processor, Box::new(job));
    }
}

/// The job of virtual CPU `index`: runs it generation after generation, until the guest is stopped.
fn run_generation<B: Backend>(partition: &Partition<B>, index: usize, processor: &Processor) {
    let hardware = partition.hardware();
    loop {
        let generation = partition.lifecycle.lock().generation();
        if let Err(refusal) = run::run(partition, index, processor) {
            logln!("guest {}: stopped: {refusal}", partition.name());
            partition.end(Outcome::Crash, processor.apic);
        }
        let last = partition.lifecycle.lock().leave();
        if last {
            last_one_out(partition, processor);
        }
        loop {
            let after = partition.lifecycle.lock().after(generation);
            match after {
                AfterEnd::Next => break,
                AfterEnd::Stopped => return,
                AfterEnd::Wait => {}
            }
            partition.help(attend(hardware, processor));
            housekeeping::idle(hardware, processor);
        }
    }
}

/// The last CPU to leave takes back what the guest had, and does what comes next.
fn last_one_out<B: Backend>(partition: &Partition<B>, processor: &Processor) {
    let (name, hardware) = (partition.name(), partition.hardware());
    let lifecycle = || partition.lifecycle.lock();
    faults::last_look(hardware);
    let outcome = partition.outcome().unwrap_or(Outcome::Crash);
    let run_ms = partition.run_ms();
    let pause_ms = lifecycle().pause_ms(run_ms);
    partition.take_back(attend(hardware, processor));
    if lifecycle().restarts() {
        let pause = if pause_ms == 0 { "" } else { &format!(" in {pause_ms} ms") };
        logln!("guest {name}: {}: restarting{pause}", outcome.key());
        let (start, ticks) = (tsc(), pause_ms * hardware.clock.tsc_khz);
        while tsc().wrapping_sub(start) < ticks && lifecycle().restarts() {
            housekeeping::idle(hardware, processor);
        }
    }
    // Until it is said: an operator who reads it may start the guest at once. The start waits for this CPU.
    loop {
        if lifecycle().restarts() {
            match partition.begin(processor.apic, attend(hardware, processor)) {
                Ok(()) => return,
                Err(refusal) => logln!("guest {name}: {refusal}"),
            }
            lifecycle().stay_stopped();
            break;
        }
        partition.free_ram();
        if lifecycle().stays() {
            break;
        }
    }
    let key = partition.outcome().unwrap_or(Outcome::Crash).key();
    let exits = partition.slots().iter().map(|slot| (slot.number, *slot.counters.lock()));
    let exits: Vec<_> = exits.collect();
    console::report_guest(partition.index(), name, key, partition.page_counts, &exits);
    one_less(partition.hardware());
}

/// A guest has ended; after the last one the machine is switched off.
fn one_less(hardware: &Hardware) {
    if ALIVE.fetch_sub(1, Ordering::AcqRel) == 1 {
        logln!("all guests have ended");
        power::off(hardware.soft_off)
    }
}

/// The job of the first CPU of a guest that is started after its end.
fn start<B: Backend>(partition: &'static Partition<B>, processor: &Processor) {
    let (name, hardware) = (partition.name(), partition.hardware());
    let mut others = partition.slots().iter().skip(1);
    while others.any(|slot| processors::is_busy(slot.processor)) {
        // They are on their way back from the last generation.
        housekeeping::idle(hardware, processor);
    }
    match partition.begin(processor.apic, attend(hardware, processor)) {
        Ok(()) => {
            logln!("guest {name}: started");
            assign(partition, 1);
            run_generation(partition, 0, processor);
        }
        Err(refusal) => {
            logln!("guest {name}: not started: {refusal}");
            partition.lifecycle.lock().stay_stopped();
            one_less(hardware);
        }
    }
}

/// What a CPU that works on a guest for a while does now and then.
fn attend(hardware: &Hardware, processor: &Processor) -> impl FnMut() {
    || housekeeping::attend(hardware, processor.apic)
}

impl<B: Backend> GuestControl for Partition<B> {
    fn name(&self) -> &str {
        self.name()
    }

    fn slots(&self) -> &[VcpuSlot] {
        self.slots()
    }

    fn outcome(&self) -> Option<Outcome> {
        self.outcome()
    }

    fn start(&'static self) {
        let Some(first) = self.slots().first() else { return };
        let asked = self.lifecycle.lock().start();
        match asked {
            Start::Now => {
                ALIVE.fetch_add(1, Ordering::AcqRel);
                let job = move |processor: &Processor| start(self, processor);
                processors::assign(first.processor, Box::new(job));
            }
            Start::Already => {}
            Start::Alive => {
                let name = self.name();
                logln!("{name} has not ended: `restart` stops it and starts it afresh");
            }
        }
    }

    fn stop(&self, own: LocalApic) {
        let mut lifecycle = self.lifecycle.lock();
        if lifecycle.stop() {
            self.ask_to_stop(own);
        }
    }

    fn restart(&'static self, own: LocalApic) {
        let mut lifecycle = self.lifecycle.lock();
        if lifecycle.restart() {
            return self.ask_to_stop(own);
        }
        drop(lifecycle);
        GuestControl::start(self);
    }

    fn ram_bytes(&self) -> u64 {
        self.ram_bytes()
    }

    fn irqs(&self) -> Lines {
        self.irqs()
    }

    fn functions(&self) -> &[Bdf] {
        self.functions()
    }

    fn run_ms(&self) -> u64 {
        self.run_ms()
    }

    fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), NotGuestMemory> {
        self.read(gpa, bytes)
    }

    fn nested(&self, gpa: Gpa) -> Option<(Mapping, bool)> {
        self.nested(gpa)
    }

    fn seen(&self, gpa: Gpa, bytes: &mut [u8]) -> bool {
        self.seen(gpa, bytes)
    }

    fn symbols(&self) -> Option<&'static [u8]> {
        self.symbols()
    }

    fn granted(&self, vector: Vector) -> String {
        self.granted(vector)
    }
}
