//! A guest's lives: how one ends, what the user wishes, and how the next begins.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use config::Afterwards;
use cpu::instructions;
use cpu::local_apic::LocalApic;
use guest::short_lives::{LifeEnd, ShortLives};
use guest::vm::Outcome;

use super::Partition;
use super::build::Shared;
use crate::backend::Backend;
use crate::monitor::Watched;
use crate::ram::{GuestRam, Scrubbing};
use crate::refusal::Refusal;
use crate::run;
use crate::seat::Seat;

pub(super) const NO_WISH: u32 = 0;
const STOP: u32 = 1;
const RESTART: u32 = 2;
const START: u32 = 3;

impl<B: Backend> Partition<B> {
    /// Whether a guest that ended so would begin anew, whatever the user wishes.
    pub(crate) fn may_restart_after(&self, outcome: Outcome) -> bool {
        let then = match outcome {
            Outcome::Reboot => self.plan.guest.on_reboot,
            Outcome::TripleFault | Outcome::Crash => self.plan.guest.on_crash,
            Outcome::PowerOff | Outcome::Halted | Outcome::Stopped => Afterwards::Stop,
        };
        then == Afterwards::Restart
    }

    /// Whether it begins anew.
    pub(crate) fn restarts_after(&self, outcome: Outcome) -> bool {
        match self.wish.load(Ordering::Acquire) {
            STOP => false,
            RESTART => true,
            _ => self.may_restart_after(outcome),
        }
    }

    /// Milliseconds to wait before it begins anew, after a life that ended so.
    pub(crate) fn pause(&self, outcome: Outcome) -> u64 {
        let end = match outcome {
            _ if self.wish.load(Ordering::Acquire) == RESTART => LifeEnd::User,
            Outcome::TripleFault | Outcome::Crash => LifeEnd::Crash,
            Outcome::Reboot => LifeEnd::Reboot,
            Outcome::PowerOff | Outcome::Halted | Outcome::Stopped => LifeEnd::User,
        };
        let life = instructions::tsc().wrapping_sub(self.clock_base.load(Ordering::Relaxed));
        let life_ms = life / self.plan.hardware.clock.tsc_khz.max(1);
        self.short_lives.lock().life_ended(end, life_ms)
    }

    /// The end of a life, once all its CPUs have left: everything is given back but the RAM, which
    /// is scrubbed.
    pub(crate) fn end_life(&self) -> GuestRam {
        let ram = self.shared.lock().give_back(&self.plan);
        self.plan.say_scrubbing(&ram);
        let work = Arc::new(Scrubbing::new(ram.clone()));
        *self.scrubbing.lock() = Some(work.clone());
        work.help(|| self.plan.look_after());
        work.wait(|| self.plan.look_after());
        *self.scrubbing.lock() = None;
        ram
    }

    /// A CPU that waits for the next life helps with what is to be done before it.
    pub(crate) fn help(&self) {
        let work = self.scrubbing.lock().clone();
        if let Some(work) = work {
            work.help(|| self.plan.look_after());
        }
    }

    /// Gives the RAM of an ended life back: the guest is over.
    pub(crate) fn give_back(&self, ram: GuestRam) {
        ram.give_back(self.plan.hardware.memory);
        self.ram_bytes.store(0, Ordering::Relaxed);
    }

    /// Begins a new life, in the RAM of the last one or in new RAM.
    pub(crate) fn begin_life(&self, ram: Option<GuestRam>) -> Result<(), Refusal> {
        let ram = ram.map_or_else(|| self.plan.allocate(), Ok)?;
        let mut shared = match Shared::new(&self.plan, &ram) {
            Ok(shared) => shared,
            Err(refusal) => {
                self.give_back(ram);
                return Err(refusal);
            }
        };
        let row = *self.short_lives.lock();
        shared.vm.crash_told = row.crash_told();
        if row.told() {
            shared.vm.be_terse();
            shared.machine.be_terse();
        }
        *self.shared.lock() = shared;
        self.ram_bytes.store(ram.size(), Ordering::Relaxed);
        for seat in self.seats() {
            seat.forget_requests();
        }
        self.clock_base.store(instructions::tsc(), Ordering::Relaxed);
        *self.outcome.lock() = None;
        self.present.store(self.seats().len(), Ordering::Release);
        self.over.store(false, Ordering::Release);
        self.lives.fetch_add(1, Ordering::AcqRel);
        // A wish to begin is fulfilled; one to stop that came meanwhile is not forgotten.
        let granted = |wish| (wish != STOP).then_some(NO_WISH);
        if self.wish.fetch_update(Ordering::AcqRel, Ordering::Acquire, granted).is_err() {
            self.end(Outcome::Stopped, LocalApic::current());
        }
        Ok(())
    }

    /// It shall be started: `false` where that was asked for already.
    pub(crate) fn shall_start(&self) -> bool {
        *self.short_lives.lock() = ShortLives::default();
        self.wish.swap(START, Ordering::AcqRel) != START
    }

    /// It could not be started: it stays over.
    pub(crate) fn not_started(&self) {
        self.wish.store(NO_WISH, Ordering::Release);
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&self) -> Option<Outcome> {
        *self.outcome.lock()
    }

    /// It was stopped while it waited to begin anew.
    pub(crate) fn stopped_instead(&self) -> Outcome {
        *self.outcome.lock().insert(Outcome::Stopped)
    }

    /// It ends so, unless it has ended already; its CPUs leave.
    pub(crate) fn end(&self, outcome: Outcome, own: LocalApic) {
        self.outcome.lock().get_or_insert(outcome);
        for seat in self.seats() {
            seat.ask_to_stop(own);
        }
    }

    /// A virtual CPU has left; `true` if it was the last.
    pub(crate) fn one_has_left(&self) -> bool {
        self.present.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

impl<B: Backend> Watched for Partition<B> {
    fn name(&self) -> &str {
        &self.plan.guest.name
    }

    fn seats(&self) -> &[Seat] {
        self.plan.seats
    }

    fn outcome(&self) -> Option<Outcome> {
        self.ended()
    }

    fn start(&'static self) {
        run::start(self.plan.hardware, self);
    }

    fn stop(&self, own: LocalApic) {
        self.wish.store(STOP, Ordering::Release);
        self.end(Outcome::Stopped, own);
    }

    fn restart(&'static self, own: LocalApic) {
        if self.over.load(Ordering::Acquire) {
            return self.start();
        }
        self.wish.store(RESTART, Ordering::Release);
        self.end(Outcome::Stopped, own);
    }

    fn ram_bytes(&self) -> u64 {
        self.ram_bytes.load(Ordering::Relaxed)
    }

    fn irqs(&self) {
        self.log_irqs();
    }
}
