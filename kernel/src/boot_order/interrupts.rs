//! The I/O APICs, by the names that the firmware's tables give them.

use alloc::vec::Vec;

use arch::address::HpaRange;
use boot::BootInfo;
use cpu::io_apic::IoApic;
use firmware::IoApicEntry;
use iommu::dmar::Dmar;

use crate::console::logln;
use crate::memory;

/// The I/O APICs that the firmware names, all inputs masked.
pub(super) fn io_apics(info: &BootInfo<'_>, entries: &[IoApicEntry]) -> Vec<IoApic> {
    const REGISTERS: u64 = 0x20;
    let mut found = Vec::new();
    for entry in entries {
        let registers = HpaRange { start: entry.address, length: REGISTERS };
        // SAFETY: the firmware names this as an I/O APIC, and it is no RAM; below 4 GiB everything else is
        // mapped uncached.
        let new = || unsafe { IoApic::new(entry.address, entry.id, entry.first_gsi) };
        match if memory::is_ram(info, registers) { None } else { new() } {
            Some(io_apic) => found.push(io_apic),
            None => {
                logln!("there is no I/O APIC {} at {}: it is left out", entry.id, entry.address)
            }
        }
    }
    found
}

/// Calls the I/O APICs what the DMAR table calls them.
pub(super) fn name_io_apics(io_apics: &mut [IoApic], dmar: &Dmar<'_>) {
    let identifiers: Vec<u8> = io_apics.iter().map(|io_apic| io_apic.id).collect();
    for (io_apic, name) in io_apics.iter_mut().zip(dmar.ioapic_names(&identifiers)) {
        match name {
            None => logln!(
                "the DMAR table does not name I/O APIC {}: its lines do not work",
                io_apic.id
            ),
            Some(name) if name != io_apic.id => {
                logln!("I/O APIC {} of the MADT is I/O APIC {name} of the DMAR table", io_apic.id);
                io_apic.id = name;
            }
            Some(_) => {}
        }
    }
}
