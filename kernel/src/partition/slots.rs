//! The processors of a guest, as the configuration names them.

use alloc::boxed::Box;
use alloc::vec::Vec;

use arch::ApicId;
use arch::vcpu::InterruptMode;
use config::GuestConfig;
use vmx::{PidPointers, PostedInterrupts, Posting};

use crate::hardware::Hardware;
use crate::vcpu_slot::VcpuSlot;

/// APIC identifiers as the guest sees them.
pub(super) fn virtual_ids(guest: &GuestConfig) -> Vec<ApicId> {
    (0..guest.cpus.len() as u32).map(ApicId).collect()
}

/// The processors of a guest: they exist, says `plan`.
pub(super) fn slots(hardware: &Hardware, guest: &GuestConfig) -> &'static [VcpuSlot] {
    let posted = guest.interrupts == InterruptMode::Posted;
    let table = posted.then(|| &*Box::<PidPointers>::leak(Box::default()));
    let numbers = guest.cpus.iter().zip(processors(hardware, guest)).enumerate();
    let slots = numbers.map(|(index, (number, id))| {
        let posting = table.map(|table| {
            let descriptor = Box::leak(Box::new(PostedInterrupts::new(id)));
            Posting { descriptor, table, index }
        });
        VcpuSlot::new(id, *number, posting)
    });
    slots.collect::<Vec<_>>().leak()
}

/// The physical CPUs of a guest.
pub(super) fn processors(hardware: &Hardware, guest: &GuestConfig) -> Vec<ApicId> {
    guest.cpus.iter().filter_map(|cpu| hardware.cpus.get(*cpu as usize).copied()).collect()
}
