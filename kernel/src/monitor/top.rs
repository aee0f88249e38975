//! A live table of exits, until a key.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use cpu::instructions::tsc;
use guest::counters::ExitCounters;
use spin::Mutex;
use view::exits::{self, Busy};

use super::{answers, guests, say};
use crate::hardware::Hardware;

/// Milliseconds from one table to the next.
const PERIOD_MS: u64 = 2000;

/// What the last table showed.
struct Shown {
    /// TSC then.
    at: u64,
    /// Of each CPU of each guest: its exits, and the TSC when they were so many.
    counted: Vec<(u64, ExitCounters)>,
}

static SHOWN: Mutex<Option<Shown>> = Mutex::new(None);

fn counted() -> Vec<(u64, ExitCounters)> {
    let slots = guests().iter().flat_map(|guest| guest.slots());
    slots.map(|slot| (slot.counted_at.load(Ordering::Acquire), *slot.counters.lock())).collect()
}

/// From now on there is one.
pub(super) fn begin(hardware: &Hardware) {
    *SHOWN.lock() = Some(Shown { at: tsc(), counted: counted() });
    say([alloc::format!("every {} s, until a key (Ctrl-A t, if that began it)", PERIOD_MS / 1000)]
        .into());
    refresh(hardware);
}

/// The operator has seen enough.
pub(super) fn end() {
    *SHOWN.lock() = None;
}

/// Shows the next table, if it is time.
pub(super) fn refresh(hardware: &Hardware) {
    let khz = hardware.clock.tsc_khz.max(1);
    // In one step: a CPU that comes by meanwhile finds that it is not time yet, and a key that ends the table ends it.
    let mut place = SHOWN.lock();
    let now = tsc();
    let due = |shown: &&mut Shown| now.wrapping_sub(shown.at) / khz >= PERIOD_MS;
    let Some(shown) = place.as_mut().filter(due) else { return };
    let counted = counted();
    let before = core::mem::replace(shown, Shown { at: now, counted: counted.clone() });
    drop(place);
    let mut all = Vec::new();
    let places = guests().iter().flat_map(|guest| {
        let cpus = 0..guest.slots().len();
        cpus.map(move |cpu| (guest.name(), cpu))
    });
    for ((guest, cpu), (now, then)) in places.zip(counted.iter().zip(&before.counted)) {
        let ms = now.0.saturating_sub(then.0) / khz;
        all.push(Busy { guest, cpu, ms, counts: answers::counts(&now.1, &then.1) });
    }
    say(exits::top(&all));
}
