//! A guest's lifecycle, from its first generation to its last: how a generation ended, which command is pending, and what
//! comes next.

use config::Afterwards;

use crate::restart_backoff::{EndedBy, RestartBackoff};
use crate::vm::Outcome;

/// A command of the monitor that is not carried out yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pending {
    Stop,
    Restart,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// It runs, or is between two generations.
    Alive,
    /// It has ended and does not restart by itself.
    Stopped,
    /// It was stopped and is being started.
    Starting,
}

/// The result of the monitor's `start`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// It is to be started now.
    Now,
    /// It is being started already.
    Already,
    /// It has not ended.
    Alive,
}

/// What a CPU that has left a generation does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AfterEnd {
    /// The next generation has begun.
    Next,
    /// It waits: that is not decided yet.
    Wait,
    /// It stops: there is no next generation.
    Stopped,
}

/// A guest, from its first generation to its last.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    on_reboot: Afterwards,
    on_crash: Afterwards,
    cpus: usize,
    /// CPUs that have not left this generation.
    present: usize,
    /// Counts its generations, from 1.
    generation: u32,
    state: State,
    pending: Option<Pending>,
    outcome: Option<Outcome>,
    row: RestartBackoff,
}

impl Lifecycle {
    /// A guest with this number of CPUs, in its first generation.
    #[must_use]
    pub fn new(cpus: usize, on_reboot: Afterwards, on_crash: Afterwards) -> Self {
        let (state, row) = (State::Alive, RestartBackoff::default());
        let (present, generation, pending, outcome) = (cpus, 1, None, None);
        Self { on_reboot, on_crash, cpus, present, generation, state, pending, outcome, row }
    }

    /// Counts its generations, from 1.
    #[must_use]
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// How it ended, if it has.
    #[must_use]
    pub const fn outcome(&self) -> Option<Outcome> {
        self.outcome
    }

    /// The short generations that the last generation ended a row of.
    #[must_use]
    pub const fn row(&self) -> RestartBackoff {
        self.row
    }

    /// This generation ends so, unless it has ended already.
    pub fn end(&mut self, outcome: Outcome) {
        self.outcome.get_or_insert(outcome);
    }

    /// A CPU has left this generation; `true` if it was the last.
    pub const fn leave(&mut self) -> bool {
        self.present = self.present.saturating_sub(1);
        self.present == 0
    }

    /// What a CPU does after it has left generation `generation`.
    #[must_use]
    pub fn after(&self, generation: u32) -> AfterEnd {
        match self.state {
            _ if self.generation != generation => AfterEnd::Next,
            State::Alive => AfterEnd::Wait,
            State::Stopped | State::Starting => AfterEnd::Stopped,
        }
    }

    /// All CPUs have left a generation that took `run_ms`: the milliseconds to wait before the next.
    pub fn pause_ms(&mut self, run_ms: u64) -> u64 {
        let end = match self.ended() {
            _ if self.pending == Some(Pending::Restart) => EndedBy::User,
            Outcome::TripleFault | Outcome::Crash => EndedBy::Crash,
            Outcome::Reboot => EndedBy::Reboot,
            Outcome::PowerOff | Outcome::Halted | Outcome::Stopped => EndedBy::User,
        };
        self.row.generation_ended(end, run_ms)
    }

    /// Whether it restarts, as far as is known by now.
    #[must_use]
    pub fn restarts(&self) -> bool {
        match self.pending {
            Some(Pending::Stop) => false,
            Some(Pending::Restart) => true,
            None => self.restarts_by_itself(),
        }
    }

    /// It has restarted. `false`: stop it at once, because a `stop` arrived meanwhile.
    pub fn begun(&mut self) -> bool {
        self.state = State::Alive;
        self.present = self.cpus;
        self.generation = self.generation.wrapping_add(1);
        // A request for a generation is fulfilled; a `stop` is not.
        self.pending = self.pending.filter(|pending| *pending == Pending::Stop);
        self.outcome = self.pending.map(|_| Outcome::Stopped);
        self.pending.is_none()
    }

    /// It stays as it has ended, or as it was when it was to be started. Its outcome is `Stopped` if only a command kept it
    /// from restarting.
    pub fn stay_stopped(&mut self) {
        if self.pending == Some(Pending::Stop) && self.restarts_by_itself() {
            self.outcome = Some(Outcome::Stopped);
        }
        self.state = State::Stopped;
        self.pending = None;
    }

    /// It stays as it has ended, unless a `restart` has come since [`Self::restarts`] said no: `false` then.
    pub fn stays(&mut self) -> bool {
        let stays = !self.restarts();
        if stays {
            self.stay_stopped();
        }
        stays
    }

    /// The user wants it stopped. Whether its CPUs are to be told.
    pub fn stop(&mut self) -> bool {
        if self.state != State::Stopped {
            self.pending = Some(Pending::Stop);
            self.end(Outcome::Stopped);
        }
        self.state == State::Alive
    }

    /// The user wants it to restart. Whether its CPUs are to be told; if not it is to be started.
    pub fn restart(&mut self) -> bool {
        let alive = self.state == State::Alive;
        if alive {
            self.pending = Some(Pending::Restart);
            self.end(Outcome::Stopped);
        }
        alive
    }

    /// The user wants it started.
    pub fn start(&mut self) -> Start {
        match self.state {
            State::Alive => return Start::Alive,
            State::Starting => {
                self.pending = None;
                return Start::Already;
            }
            State::Stopped => {}
        }
        self.state = State::Starting;
        self.row = RestartBackoff::default();
        Start::Now
    }

    fn ended(&self) -> Outcome {
        self.outcome.unwrap_or(Outcome::Crash)
    }

    /// Whether it would restart, whatever the user asks for.
    fn restarts_by_itself(&self) -> bool {
        let then = match self.ended() {
            Outcome::Reboot => self.on_reboot,
            Outcome::TripleFault | Outcome::Crash => self.on_crash,
            Outcome::PowerOff | Outcome::Halted | Outcome::Stopped => Afterwards::Stop,
        };
        then == Afterwards::Restart
    }
}

#[cfg(test)]
mod every_order;

#[cfg(test)]
mod tests {
    use super::*;

    fn guest() -> Lifecycle {
        Lifecycle::new(2, Afterwards::Restart, Afterwards::Stop)
    }

    /// A guest whose generation has ended with `outcome` and whose CPUs have left.
    fn ended(outcome: Outcome) -> Lifecycle {
        let mut guest = guest();
        guest.end(outcome);
        assert!(!guest.leave() && guest.leave());
        guest
    }

    fn stay_stopped(guest: &mut Lifecycle) -> Outcome {
        guest.stay_stopped();
        guest.outcome().unwrap()
    }

    fn over() -> Lifecycle {
        let mut guest = ended(Outcome::PowerOff);
        assert!(!guest.restarts());
        assert_eq!(stay_stopped(&mut guest), Outcome::PowerOff);
        guest
    }

    #[test]
    fn the_configuration_says_what_comes_after_an_end() {
        for (outcome, restarts) in [
            (Outcome::Reboot, true),
            (Outcome::Crash, false),
            (Outcome::TripleFault, false),
            (Outcome::PowerOff, false),
            (Outcome::Halted, false),
        ] {
            assert_eq!(ended(outcome).restarts(), restarts, "{outcome:?}");
        }
        let mut crash = Lifecycle::new(1, Afterwards::Stop, Afterwards::Restart);
        crash.end(Outcome::TripleFault);
        assert!(crash.restarts());
    }

    #[test]
    fn the_first_end_counts() {
        let mut guest = guest();
        guest.end(Outcome::Reboot);
        guest.end(Outcome::Crash);
        assert_eq!(guest.outcome(), Some(Outcome::Reboot));
    }

    #[test]
    fn a_new_generation_begins_with_all_cpus_and_no_end() {
        let mut guest = ended(Outcome::Reboot);
        assert_eq!(guest.after(1), AfterEnd::Wait);
        assert!(guest.begun());
        assert_eq!((guest.after(1), guest.after(2)), (AfterEnd::Next, AfterEnd::Wait));
        assert_eq!((guest.generation(), guest.outcome()), (2, None));
        assert!(!guest.leave() && guest.leave());
    }

    #[test]
    fn a_guest_that_is_over_lets_its_cpus_go_until_it_has_been_started() {
        let mut guest = over();
        assert_eq!(guest.after(1), AfterEnd::Stopped);
        assert_eq!(guest.start(), Start::Now);
        assert_eq!(guest.after(1), AfterEnd::Stopped, "one that is late lets go, too");
        assert!(guest.begun());
        assert_eq!((guest.after(1), guest.start()), (AfterEnd::Next, Start::Alive));
    }

    #[test]
    fn a_guest_is_started_once_however_often_the_user_asks() {
        let mut guest = over();
        assert_eq!(guest.start(), Start::Now);
        assert!(!guest.restart() && !guest.stop(), "it has no CPU that could be told");
        assert_eq!(
            guest.start(),
            Start::Already,
            "not a second time, though it was stopped between"
        );
        assert!(guest.begun(), "the last word counts");
    }

    #[test]
    fn a_guest_that_could_not_be_started_can_be_started_again() {
        let mut guest = over();
        assert_eq!(guest.start(), Start::Now);
        assert_eq!(stay_stopped(&mut guest), Outcome::PowerOff);
        assert!(!guest.restart());
        assert_eq!(guest.start(), Start::Now);
    }

    #[test]
    fn a_stop_while_it_waits_to_begin_anew_keeps_it_over() {
        let mut guest = ended(Outcome::Reboot);
        assert!(guest.restarts());
        guest.stop();
        assert!(!guest.restarts());
        assert_eq!(stay_stopped(&mut guest), Outcome::Stopped);
    }

    #[test]
    fn a_stop_after_a_crash_that_is_not_followed_by_a_generation_leaves_the_crash() {
        let mut guest = ended(Outcome::Crash);
        guest.stop();
        assert_eq!(stay_stopped(&mut guest), Outcome::Crash);
    }

    #[test]
    fn a_stop_while_it_begins_stops_it_at_once_and_for_good() {
        for mut guest in [ended(Outcome::Reboot), over()] {
            guest.start();
            guest.stop();
            assert!(!guest.begun());
            assert_eq!(guest.outcome(), Some(Outcome::Stopped));
            assert!(!guest.leave() && guest.leave());
            assert!(!guest.restarts());
            assert_eq!(stay_stopped(&mut guest), Outcome::Stopped);
        }
    }

    #[test]
    fn a_stop_of_a_guest_that_is_over_does_not_stop_its_next_generation() {
        let mut guest = over();
        guest.stop();
        assert_eq!(guest.start(), Start::Now);
        assert!(guest.begun());
        assert_eq!(guest.outcome(), None);
    }

    #[test]
    fn a_restart_by_the_user_begins_anew_once_whatever_the_configuration_says() {
        let mut guest = Lifecycle::new(1, Afterwards::Stop, Afterwards::Stop);
        assert!(guest.restart());
        assert!(guest.leave() && guest.restarts());
        assert!(guest.begun());
        guest.end(Outcome::Reboot);
        assert!(!guest.restarts());
    }

    #[test]
    fn only_generations_that_end_by_themselves_make_a_row() {
        let mut guest = Lifecycle::new(1, Afterwards::Restart, Afterwards::Restart);
        let mut crash = |ask: bool| {
            guest.end(Outcome::Crash);
            if ask {
                guest.restart();
            }
            let pause = guest.pause_ms(5);
            guest.begun();
            pause
        };
        assert_eq!([crash(false), crash(false), crash(false)], [0, 1, 2]);
        assert_eq!([crash(true), crash(false), crash(false)], [0, 0, 1]);
    }
}
