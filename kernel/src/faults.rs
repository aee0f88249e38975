//! The IOMMU's fault log: of each guest the first ones one by one, then how many each function had.

use alloc::format;

use arch::iommu::Fault;
use iommu::faults::{FaultLog, Said};
use spin::Mutex;
use view::{Column, Lines, Table};

use crate::console::{self, logln};
use crate::hardware::Hardware;

static FAULTS: Mutex<FaultLog> = Mutex::new(FaultLog::new());

/// Takes the fault records off the IOMMU and gives the log what they say.
pub(crate) fn read(hardware: &Hardware) {
    let Some(iommu) = hardware.iommu else { return };
    let lost = iommu.lock().poll_faults(&mut |fault| log(hardware, fault));
    if FAULTS.lock().overflowed(lost) {
        logln!("IOMMU: its fault records overflowed; that is counted only from now on");
    }
}

fn log(hardware: &Hardware, fault: Fault) {
    let owner = hardware.owners_index(fault.source);
    let said = FAULTS.lock().note(fault, owner);
    let guest = hardware.owner(fault.source);
    match said {
        Said::Whole => {
            console::log_in_passing(owner, format_args!("IOMMU fault: {fault}; guest: {guest}"));
        }
        Said::MoreFollow => {
            let text =
                format_args!("IOMMU fault: more of guest {guest} follow and are counted only");
            console::log_in_passing(owner, text);
        }
        Said::Nothing => {}
    }
}

/// How many faults there were, and which function and guest had them.
pub(crate) fn lines(hardware: &Hardware, iommu: &str) -> Lines {
    let known = FAULTS.lock().clone();
    let overflows = match known.overflows() {
        0 => Lines::default(),
        times => Lines::from([format!("  its records overflowed {times} times: there were more")]),
    };
    let mut lines = Lines::from([format!("{iommu}: {} faults", known.total())]);
    lines.extend(overflows);
    let mut table = Table::new(&[
        Column::Left("  function"),
        Column::Left("guest"),
        Column::Right("faults"),
        Column::Left("the last"),
    ]);
    for (last, count) in known.functions() {
        let (function, guest) = (format!("  {}", last.source), hardware.owner(last.source).into());
        table.row([function, guest, format!("{count}"), format!("{last}")]);
    }
    if !known.functions().is_empty() {
        lines.extend(table.lines());
    }
    lines
}

/// Reads the fault records once more, and says how many faults there were.
pub(crate) fn last_look(hardware: &Hardware) {
    read(hardware);
    let faults = FAULTS.lock().total();
    if faults > 0 {
        logln!("IOMMU faults: {faults}");
    }
}
