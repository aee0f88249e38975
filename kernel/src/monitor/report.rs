//! All that one needs when a guest hangs, in one answer that can be mailed.

use alloc::format;

use guest::vm::Outcome;
use view::registers::last_exits;
use view::{Lines, Size};

use super::{GuestControl, answers, places};
use crate::hardware::Hardware;
use crate::vcpu_slot::Look;

/// What a CPU holds.
pub(super) fn registers(who: &str, guest: &dyn GuestControl, look: &Look) -> Lines {
    if look.waiting {
        return [format!("{who}: waits for a start-up IPI")].into();
    }
    let mut lines = look.registers.lines(who);
    lines.extend(last_exits(&format!("{}", look.recent)));
    lines.extend(places::names(guest, &look.registers));
    lines
}

/// The report of a guest.
pub(super) fn report(
    hardware: &Hardware,
    guest: &dyn GuestControl,
    looks: impl Iterator<Item = (usize, Option<Look>)>,
) -> Lines {
    let name = guest.name();
    let state = guest.outcome().map_or("running", Outcome::key);
    let mut lines = Lines::new();
    lines.push(format!(
        "report of {name}: {state}, up {} s, {}; Nexit {}, TSC at {} kHz",
        guest.run_ms() / 1000,
        Size(guest.ram_bytes()),
        env!("CARGO_PKG_VERSION"),
        hardware.clock.tsc_khz
    ));
    let mut part = |title: &str, of: Lines| {
        lines.push(format!("== {title}"));
        lines.extend(of);
    };
    part("guests", answers::guests_table());
    part("exits", answers::exits(hardware, guest));
    part("interrupts", guest.irqs());
    part("IOMMU", answers::iommu(hardware));
    for function in guest.functions() {
        part("VT-d", answers::vtd(hardware, *function));
    }
    for (cpu, look) in looks {
        let who = format!("{name}, CPU {cpu}");
        let Some(look) = look else {
            part("registers", [format!("{who}: no answer")].into());
            continue;
        };
        part("registers", registers(&who, guest, &look));
        if !look.waiting {
            part("stack", places::stack(guest, &look.registers));
            part("code", places::walk(&who, guest, &look.registers, look.registers.code_address()));
        }
    }
    part("log", answers::log());
    lines.push(format!("end of the report of {name}"));
    lines
}
