//! Every order in which two CPUs of a guest, the operator and the guest itself can do what they do, step by step as
//! `kernel/src/lifecycle.rs` does it. Each step holds the lock on the lifecycle, so nothing comes within one.

use std::collections::HashSet;
use std::format;
use std::string::String;
use std::vec::Vec;

use super::*;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cpu {
    /// In the guest, in this generation.
    Runs(u32),
    /// It was the last to leave, and looks what comes next.
    Decides(u32),
    Begins(u32),
    Stays(u32),
    /// It has left this generation.
    Waits(u32),
    /// It has no job.
    Idle,
    /// It does the job that `start` gave it.
    Starts,
}

#[derive(Clone, Debug)]
struct World {
    guest: Lifecycle,
    cpus: [Cpu; 2],
    /// `Request::Stop` of each.
    asked: [bool; 2],
    /// A job that each was given and has not begun.
    given: [bool; 2],
    /// What the last command, or the guest's own end, comes to.
    shall_run: bool,
    commands: u8,
    ends: u8,
}

impl World {
    fn begin(&mut self) {
        let begun = self.guest.begun();
        self.asked = [!begun; 2];
    }

    /// The next step of a CPU, if it has one.
    fn step(&self, index: usize) -> Option<Self> {
        let mut next = self.clone();
        next.cpus[index] = match self.cpus[index] {
            Cpu::Runs(now) if self.asked[index] => {
                if next.guest.leave() {
                    Cpu::Decides(now)
                } else {
                    Cpu::Waits(now)
                }
            }
            Cpu::Decides(now) if next.guest.restarts() => Cpu::Begins(now),
            Cpu::Decides(now) => Cpu::Stays(now),
            Cpu::Begins(now) => {
                next.begin();
                Cpu::Waits(now)
            }
            Cpu::Stays(now) if next.guest.stays() => Cpu::Waits(now),
            Cpu::Stays(now) => Cpu::Decides(now),
            Cpu::Waits(now) => match next.guest.after(now) {
                AfterEnd::Next => Cpu::Runs(next.guest.generation()),
                AfterEnd::Stopped => Cpu::Idle,
                AfterEnd::Wait => return None,
            },
            Cpu::Idle if self.given[index] => {
                next.given[index] = false;
                if index == 0 { Cpu::Starts } else { Cpu::Runs(next.guest.generation()) }
            }
            Cpu::Starts if self.cpus[1] == Cpu::Idle && !self.given[1] => {
                next.begin();
                next.given[1] = true;
                Cpu::Runs(next.guest.generation())
            }
            Cpu::Runs(_) | Cpu::Idle | Cpu::Starts => return None,
        };
        Some(next)
    }

    fn start(&mut self) {
        match self.guest.start() {
            Start::Now => (self.given[0], self.shall_run) = (true, true),
            Start::Already => self.shall_run = true,
            // The operator is told so.
            Start::Alive => {}
        }
    }

    fn operated(&self) -> impl Iterator<Item = Self> + '_ {
        (0..3).filter(|_| self.commands > 0).map(|command| {
            let mut next = self.clone();
            next.commands -= 1;
            match command {
                0 => {
                    let stopped = next.guest.state == State::Stopped;
                    if next.guest.stop() {
                        next.asked = [true; 2];
                    }
                    next.shall_run &= stopped;
                }
                1 => next.start(),
                _ if next.guest.restart() => (next.asked, next.shall_run) = ([true; 2], true),
                _ => next.start(),
            }
            next
        })
    }

    /// The guest ends by itself.
    fn ended(&self) -> impl Iterator<Item = Self> + '_ {
        let runs = self.cpus.iter().any(|cpu| matches!(cpu, Cpu::Runs(_)));
        let outcomes = [Outcome::Reboot, Outcome::PowerOff].into_iter();
        outcomes.filter(move |_| runs && self.ends > 0).map(|outcome| {
            let mut next = self.clone();
            next.ends -= 1;
            next.shall_run &= outcome == Outcome::Reboot || next.guest.outcome().is_some();
            next.guest.end(outcome);
            next.asked = [true; 2];
            next
        })
    }

    /// No CPU has a step left: the guest is where it shall be.
    fn check(&self, way: &[String]) {
        let generation = self.guest.generation();
        if self.shall_run {
            assert_eq!(self.cpus, [Cpu::Runs(generation); 2], "{way:#?}");
            assert_eq!((self.asked, self.guest.outcome()), ([false; 2], None), "{way:#?}");
        } else {
            assert_eq!((self.cpus, self.given), ([Cpu::Idle; 2], [false; 2]), "{way:#?}");
        }
    }
}

fn explore(world: World, seen: &mut HashSet<String>, way: &mut Vec<String>) {
    let name = format!("{world:?}");
    if !seen.insert(name.clone()) {
        return;
    }
    way.push(name);
    let steps: Vec<_> = (0..2).filter_map(|index| world.step(index)).collect();
    if steps.is_empty() {
        world.check(way);
    }
    let further = world.operated().chain(world.ended());
    for next in steps.into_iter().chain(further) {
        explore(next, seen, way);
    }
    way.pop();
}

#[test]
fn in_every_order_of_commands_and_ends_the_last_word_counts_and_no_generation_hears_an_older_stop()
{
    let mut seen = HashSet::new();
    for (commands, ends) in [(3, 1), (2, 2)] {
        let world = World {
            guest: Lifecycle::new(2, Afterwards::Restart, Afterwards::Stop),
            cpus: [Cpu::Runs(1); 2],
            asked: [false; 2],
            given: [false; 2],
            shall_run: true,
            commands,
            ends,
        };
        explore(world, &mut seen, &mut Vec::new());
    }
    assert!(seen.len() > 1000, "{} states", seen.len());
}
