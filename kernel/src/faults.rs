//! The IOMMU's fault log: the first ones one by one, then how many each function had.

use alloc::format;
use core::sync::atomic::{AtomicU32, Ordering};

use arch::iommu::Fault;
use arrayvec::ArrayVec;
use spin::Mutex;
use view::{Column, Lines, Table};

use crate::console::{self, logln};
use crate::hardware::Hardware;

/// Faults that are logged one by one; the rest is counted.
const MAX_LOGGED: u32 = 16;
/// Functions that are told apart in what the monitor shows.
const MAX_FUNCTIONS: usize = 16;

static FAULTS: AtomicU32 = AtomicU32::new(0);
/// The last fault of each function, and how many it had.
static FAULTING: Mutex<ArrayVec<(Fault, u32), MAX_FUNCTIONS>> = Mutex::new(ArrayVec::new_const());

/// Takes the fault records off the IOMMU and gives the log what they say.
pub(crate) fn read(hardware: &Hardware) {
    let Some(iommu) = hardware.iommu else { return };
    let lost = iommu.lock().poll_faults(&mut |fault| log(hardware, fault));
    if lost > 0 {
        logln!("IOMMU: its fault records overflowed {lost} times");
    }
}

fn log(hardware: &Hardware, fault: Fault) {
    let before = FAULTS.fetch_add(1, Ordering::Relaxed);
    let mut faulting = FAULTING.lock();
    match faulting.iter_mut().find(|(known, _)| known.source == fault.source) {
        Some((known, count)) => (*known, *count) = (fault, count.saturating_add(1)),
        // What finds no room is in the sum.
        None => drop(faulting.try_push((fault, 1))),
    }
    if before < MAX_LOGGED {
        let text = format_args!("IOMMU fault: {fault}; guest: {}", hardware.owner(fault.source));
        console::log_in_passing(hardware.owners_index(fault.source), text);
    } else if before == MAX_LOGGED {
        logln!("IOMMU fault: more follow and are counted only");
    }
}

/// How many faults there were, and which function and guest had them.
pub(crate) fn lines(hardware: &Hardware, iommu: &str) -> Lines {
    let mut lines = Lines::from([format!("{iommu}: {} faults", FAULTS.load(Ordering::Relaxed))]);
    let mut table = Table::new(&[
        Column::Left("  function"),
        Column::Left("guest"),
        Column::Right("faults"),
        Column::Left("the last"),
    ]);
    let known = FAULTING.lock().clone();
    for (last, count) in &known {
        let (function, guest) = (format!("  {}", last.source), hardware.owner(last.source).into());
        table.row([function, guest, format!("{count}"), format!("{last}")]);
    }
    if !known.is_empty() {
        lines.extend(table.lines());
    }
    lines
}

/// Reads the fault records once more, and says how many faults there were.
pub(crate) fn last_look(hardware: &Hardware) {
    read(hardware);
    let faults = FAULTS.load(Ordering::Relaxed);
    if faults > 0 {
        logln!("IOMMU faults: {faults}");
    }
}
