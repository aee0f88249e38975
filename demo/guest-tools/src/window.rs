//! A window around a piece of work: exits of every virtual CPU and interrupts of one device, before
//! and after.

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::counters::{self, Counters, Difference, ThisCpu};
use crate::interrupts;

/// An open window.
#[derive(Debug)]
pub struct Window {
    name: String,
    interrupts: u64,
    exits: Vec<(usize, Option<Counters>)>,
}

/// What happened inside.
#[derive(Debug)]
pub struct Outcome {
    /// Interrupts of the device.
    pub interrupts: u64,
    /// Exits of all virtual CPUs; `None` where the machine is not a Nexit guest.
    pub exits: Option<Difference>,
}

impl Window {
    /// Opens a window that counts the interrupts of the lines that contain `name`.
    ///
    /// # Errors
    /// `/proc/interrupts` cannot be read, or the thread cannot move to one of its CPUs.
    pub fn open(name: &str) -> io::Result<Self> {
        let interrupts = read_interrupts(name)?;
        Ok(Self { name: name.to_owned(), interrupts, exits: read_all()? })
    }

    /// Closes the window.
    ///
    /// # Errors
    /// As [`Window::open`].
    pub fn close(self) -> io::Result<Outcome> {
        let later = read_all()?;
        let interrupts = read_interrupts(&self.name)?.saturating_sub(self.interrupts);
        let mut exits: Option<Difference> = None;
        for ((_, before), (_, after)) in self.exits.iter().zip(&later) {
            if let (Some(before), Some(after)) = (before, after) {
                exits.get_or_insert_default().add(before.until(after));
            }
        }
        Ok(Outcome { interrupts, exits })
    }
}

fn read_interrupts(name: &str) -> io::Result<u64> {
    Ok(interrupts::count(&std::fs::read_to_string("/proc/interrupts")?, name))
}

/// One reading per CPU that this thread may run on; each is taken on that CPU.
fn read_all() -> io::Result<Vec<(usize, Option<Counters>)>> {
    let allowed = sched_getaffinity(None)?;
    let mut readings = Vec::new();
    for cpu in (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)) {
        let mut only = CpuSet::new();
        only.set(cpu);
        sched_setaffinity(None, &only)?;
        readings.push((cpu, counters::read(&mut ThisCpu)));
    }
    sched_setaffinity(None, &allowed)?;
    Ok(readings)
}

/// The outcome as words of a result line.
#[must_use]
pub fn describe(outcome: &Outcome) -> String {
    let exits = outcome.exits.as_ref();
    let exits =
        exits.map_or_else(|| "exits=unknown (bare machine)".to_owned(), ToString::to_string);
    format!("interrupts={} {exits}", outcome.interrupts)
}
