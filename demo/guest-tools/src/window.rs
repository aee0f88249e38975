//! A window around a piece of work: exits of every virtual CPU and interrupts of one device, before
//! and after. For the counting plugin it is the window [`marker::WORK`].

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::busy::Busy;
use crate::counters::{self, Counters, Difference, ThisCpu};
use crate::{interrupts, marker};

/// An open window.
#[derive(Debug)]
pub struct Window {
    name: String,
    interrupts: u64,
    exits: Vec<Reading>,
    busy: Option<Busy>,
}

/// The counts of a window.
#[derive(Debug)]
pub struct Counts {
    /// Interrupts of the device.
    pub interrupts: u64,
    /// Exits of all virtual CPUs; `None` where the machine is not a Nexit guest.
    pub exits: Option<Difference>,
    /// Ticks of the CPUs that were not idle, where they were asked for ([`Busy`]).
    pub busy: Option<u64>,
}

impl Window {
    /// Opens a window that counts the interrupts of the lines that contain `name`.
    ///
    /// # Errors
    /// `/proc/interrupts` cannot be read, or the thread cannot move to one of its CPUs.
    pub fn open(name: &str) -> io::Result<Self> {
        let interrupts = read_interrupts(name)?;
        let exits = read_all()?;
        let busy = Busy::start()?;
        marker::open::<{ marker::WORK }>();
        Ok(Self { name: name.to_owned(), interrupts, exits, busy })
    }

    /// Closes the window.
    ///
    /// # Errors
    /// As [`Window::open`].
    pub fn close(self) -> io::Result<Counts> {
        marker::close::<{ marker::WORK }>();
        let busy = self.busy.as_ref().map(Busy::so_far);
        let later = read_all()?;
        let interrupts = read_interrupts(&self.name)?.saturating_sub(self.interrupts);
        Ok(Counts { interrupts, exits: difference(&self.exits, &later), busy })
    }
}

/// The exits of all virtual CPUs between two readings; `None` where the machine is not a Nexit guest.
#[must_use]
pub fn difference(before: &[Reading], after: &[Reading]) -> Option<Difference> {
    let mut exits: Option<Difference> = None;
    for ((_, before), (_, after)) in before.iter().zip(after) {
        if let (Some(before), Some(after)) = (before, after) {
            exits.get_or_insert_default().add(before.until(after));
        }
    }
    exits
}

fn read_interrupts(name: &str) -> io::Result<u64> {
    Ok(interrupts::count(&std::fs::read_to_string("/proc/interrupts")?, name))
}

/// A CPU and its counters; `None` where the machine is not a Nexit guest.
pub type Reading = (usize, Option<Counters>);

/// One reading per CPU that this thread may run on; each is taken on that CPU.
///
/// # Errors
/// The thread cannot move to one of them.
pub fn read_all() -> io::Result<Vec<Reading>> {
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
pub fn describe(outcome: &Counts) -> String {
    let exits = outcome.exits.as_ref();
    let exits =
        exits.map_or_else(|| "exits=unknown (bare machine)".to_owned(), ToString::to_string);
    let busy = outcome.busy.map_or_else(String::new, |busy| format!(" busy={busy}"));
    format!("interrupts={}{busy} {exits}", outcome.interrupts)
}
