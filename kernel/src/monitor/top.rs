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
    say([alloc::format!("every {} s, until a key", PERIOD_MS / 1000)].into());
    refresh(hardware);
}

/// The operator has seen enough.
pub(super) fn end() {
    *SHOWN.lock() = None;
}

/// Shows the next table, if it is time.
pub(super) fn refresh(hardware: &Hardware) {
    let (now, khz) = (tsc(), hardware.clock.tsc_khz.max(1));
    let due = |shown: &mut Shown| now.wrapping_sub(shown.at) / khz >= PERIOD_MS;
    // Another CPU that comes by meanwhile finds none.
    let Some(before) = SHOWN.lock().take_if(due) else { return };
    let counted = counted();
    let mut all = Vec::new();
    let places = guests().iter().flat_map(|guest| {
        let cpus = 0..guest.slots().len();
        cpus.map(move |cpu| (guest.name(), cpu))
    });
    for ((guest, cpu), (now, then)) in places.zip(counted.iter().zip(&before.counted)) {
        let ms = now.0.saturating_sub(then.0) / khz;
        all.push(Busy { guest, cpu, ms, counts: answers::counts(&now.1, &then.1) });
    }
    // Before the table goes out, which takes a while: a key may end it meanwhile.
    *SHOWN.lock() = Some(Shown { at: now, counted });
    say(exits::top(&all));
}
