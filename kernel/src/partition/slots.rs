//! The processors of a guest, as the configuration names them.

use alloc::vec::Vec;

use arch::ApicId;
use config::GuestConfig;

use crate::backend::Inbox;
use crate::hardware::Hardware;
use crate::vcpu_slot::VcpuSlot;

/// APIC identifiers as the guest sees them.
pub(super) fn virtual_ids(guest: &GuestConfig) -> Vec<ApicId> {
    (0..guest.cpus.len() as u32).map(ApicId).collect()
}

/// The processors of a guest: they exist, says `plan`.
pub(super) fn slots(hardware: &Hardware, guest: &GuestConfig) -> &'static [VcpuSlot] {
    let processors = processors(hardware, guest);
    let inboxes = Inbox::of_guest(guest.interrupts, &processors);
    let numbers = guest.cpus.iter().zip(processors).zip(inboxes);
    let slots = numbers.map(|((number, id), inbox)| VcpuSlot::new(id, *number, inbox));
    slots.collect::<Vec<_>>().leak()
}

/// The physical CPUs of a guest.
pub(super) fn processors(hardware: &Hardware, guest: &GuestConfig) -> Vec<ApicId> {
    guest.cpus.iter().filter_map(|cpu| hardware.cpus.get(*cpu as usize).copied()).collect()
}
