//! The processors of a guest, as the configuration names them.

use alloc::boxed::Box;
use alloc::vec::Vec;

use arch::ApicId;
use arch::vcpu::InterruptMode;
use config::GuestConfig;
use vmx::{PidPointers, PostedInterrupts, Posting};

use crate::bring_up::Hardware;
use crate::refusal::{Refusal, refuse};
use crate::seat::Seat;

/// APIC identifiers as the guest sees them.
pub(super) fn virtual_ids(guest: &GuestConfig) -> Vec<ApicId> {
    (0..guest.cpus.len() as u32).map(ApicId).collect()
}

/// The processors of a guest. The configuration counts CPUs in the order of the MADT.
pub(super) fn seats(hardware: &Hardware, guest: &GuestConfig) -> Result<&'static [Seat], Refusal> {
    const MOST_CPUS: usize = 64;
    if guest.cpus.len() > MOST_CPUS {
        return Err(refuse!(
            "nexit.toml: guest {}: cpus has {} CPUs, and {MOST_CPUS} is the most for a guest",
            guest.name,
            guest.cpus.len()
        ));
    }
    let mut seats = Vec::with_capacity(guest.cpus.len());
    let posted = guest.interrupts == InterruptMode::Posted;
    let table = posted.then(|| &*Box::<PidPointers>::leak(Box::default()));
    for (index, number) in guest.cpus.iter().enumerate() {
        let id = hardware.cpus.get(*number as usize).filter(|id| hardware.started.contains(id));
        let id = id.ok_or_else(|| {
            refuse!(
                "nexit.toml: guest {}: cpus names CPU {number}, but the machine has {}, counted from \
                 0: choose among those",
                guest.name,
                hardware.started.len()
            )
        })?;
        let posting = table.map(|table| {
            let descriptor = Box::leak(Box::new(PostedInterrupts::new(*id)));
            Posting { descriptor, table, index }
        });
        seats.push(Seat::new(*id, *number, posting));
    }
    Ok(seats.leak())
}

/// The physical CPUs of a guest.
pub(super) fn processors(hardware: &Hardware, guest: &GuestConfig) -> Vec<ApicId> {
    guest.cpus.iter().filter_map(|cpu| hardware.cpus.get(*cpu as usize).copied()).collect()
}
