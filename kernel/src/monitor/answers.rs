//! Answers that need no guest's CPU.

use alloc::string::String;
use alloc::vec::Vec;
use alloc::{format, vec};
use core::sync::atomic::Ordering;

use arch::Bdf;
use guest::counters::{Counter, ExitCounters};
use guest::vm::Outcome;
use view::exits::{self, Count};
use view::{Column, Lines, Size, Table, remapping};

use super::{GuestControl, guests};
use crate::hardware::Hardware;
use crate::{console, faults, heap};

/// Every guest.
pub(super) fn guests_table() -> Lines {
    let mut table = Table::new(&[
        Column::Right("#"),
        Column::Left("guest"),
        Column::Left("state"),
        Column::Right("up, s"),
        Column::Right("memory"),
        Column::Left("CPUs"),
        Column::Left("functions"),
    ]);
    for (index, guest) in guests().iter().enumerate() {
        let cpus: Vec<u32> = guest.slots().iter().map(|slot| slot.number).collect();
        let functions: Vec<String> =
            guest.functions().iter().map(|function| format!("{function}")).collect();
        let functions = if functions.is_empty() { "-".into() } else { functions.join(" ") };
        let state = guest.outcome().map_or("running", Outcome::key);
        table.row([
            format!("{}", index + 1),
            guest.name().into(),
            state.into(),
            format!("{}", guest.run_ms() / 1000),
            format!("{}", Size(guest.ram_bytes())),
            format!("{cpus:?}"),
            functions,
        ]);
    }
    table.lines()
}

/// By reason, with what came since `before`.
pub(super) fn counts(now: &ExitCounters, before: &ExitCounters) -> Vec<Count> {
    let count = |counter: Counter| {
        let total = now.get(counter);
        Count { reason: counter.key(), total, new: total.saturating_sub(before.get(counter)) }
    };
    Counter::ALL.map(count).into()
}

/// The counters as of each CPU's last call by the watchdog, and since the `exits` before.
pub(super) fn exits(hardware: &Hardware, guest: &dyn GuestControl) -> Lines {
    let mut lines = vec![];
    for (index, slot) in guest.slots().iter().enumerate() {
        let exits = *slot.counters.lock();
        let at = slot.counted_at.load(Ordering::Acquire);
        let (before, shown) = core::mem::replace(&mut *slot.shown.lock(), (at, exits));
        let ms = at.saturating_sub(before) / hardware.clock.tsc_khz.max(1);
        let who = format!("{}, CPU {index}", guest.name());
        lines.extend(exits::table(&who, &counts(&exits, &shown), ms));
    }
    lines
}

/// Every PCI function.
pub(super) fn devices(hardware: &Hardware) -> Lines {
    let mut table = Table::new(&[
        Column::Left("function"),
        Column::Left("vendor:device"),
        Column::Left("class"),
        Column::Left("guest"),
    ]);
    for function in &hardware.functions {
        table.row([
            format!("{}", function.bdf),
            format!("{:04x}:{:04x}", function.vendor, function.device),
            format!("{:06x}", function.class),
            hardware.owner(function.bdf).into(),
        ]);
    }
    table.lines()
}

/// The IOMMU and its faults.
pub(super) fn iommu(hardware: &Hardware) -> Lines {
    let Some(iommu) = hardware.iommu else { return vec!["the machine has no IOMMU".into()] };
    let name = iommu.lock().name();
    faults::lines(hardware, name)
}

/// What the IOMMU was told of a function.
pub(super) fn vtd(hardware: &Hardware, function: Bdf) -> Lines {
    if !hardware.functions.iter().any(|it| it.bdf == function) {
        return vec![format!("the machine has no function {function}: `devices` lists them")];
    }
    let Some(iommu) = hardware.iommu else { return vec!["the machine has no IOMMU".into()] };
    let mut entries = vec![];
    let iommu = iommu.lock();
    let context = iommu.context_entry(function);
    iommu.remap_entries(function, &mut |index, words| entries.push((index.0, words)));
    drop(iommu);
    let mut lines = remapping::context(&format!("{function}"), context);
    lines.extend(remapping::entries(&entries));
    lines
}

/// The log, as it is kept in memory.
pub(super) fn log() -> Lines {
    console::kept_log().iter().map(|line| format!("| {line}")).collect()
}

/// Who has how much memory.
pub(super) fn sizes(hardware: &Hardware) -> Lines {
    let mut table =
        Table::new(&[Column::Left("whose"), Column::Right("memory"), Column::Right("bytes")]);
    let mut row = |whose: &str, bytes| {
        table.row([whose.into(), format!("{}", Size(bytes)), format!("{bytes}")]);
    };
    row("the hypervisor's", hardware.memory.own());
    row("of that its heap", heap::used() as u64);
    for guest in guests() {
        row(guest.name(), guest.ram_bytes());
    }
    row("free", hardware.memory.available());
    let mut lines = table.lines();
    if let Some(iommu) = hardware.iommu {
        lines.push(format!("remapping entries in use: {}", iommu.lock().remaps_in_use()));
    }
    lines
}
