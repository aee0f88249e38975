//! A guest's RAM: where it lies in the guest, where the machine has it, and the nested table between.

use config::GuestConfig;
use guest::memory_map::{Ecam, MemoryMap};
use mem::{Access, MemoryType, Table};

use crate::bring_up::Hardware;
use crate::memory::{Memory, out_of_memory};
use crate::ram::GuestRam;
use crate::refusal::Refusal;

/// Where the guest's memory lies in its own address space.
pub(super) fn memory_map(hardware: &Hardware, guest: &GuestConfig) -> MemoryMap {
    plan::memory::map(guest, low_window(hardware), hardware.identity_ram.as_deref())
}

/// The window to configuration space that guests get.
pub(super) fn low_window(hardware: &Hardware) -> Option<Ecam> {
    let windows = hardware.ecam.iter();
    let windows = windows.map(|it| (it.segment, it.first_bus, it.last_bus, it.base));
    plan::memory::low_window(windows)
}

/// Finds host memory for every run of the map; its content is whatever was there.
pub(super) fn allocate(
    hardware: &Hardware,
    guest: &GuestConfig,
    map: &MemoryMap,
) -> Result<GuestRam, Refusal> {
    let identity_ram = hardware.identity_ram.as_deref();
    let blocks = plan::memory::find(guest, map, identity_ram, &mut { hardware.memory })?;
    // SAFETY: fresh memory of the pool, or memory that was kept out of it for this guest.
    unsafe { GuestRam::new(&blocks) }.ok_or_else(out_of_memory)
}

pub(super) fn map_ram<F: mem::table::Format>(
    nested: &mut Table<F>,
    mut memory: Memory,
    ram: &GuestRam,
) -> Result<(), Refusal> {
    for block in ram.blocks() {
        let (gpa, kind) = (block.gpa.as_u64(), MemoryType::WriteBack);
        nested.map(&mut memory, gpa, block.hpa, block.length, Access::ALL, kind)?.nothing_cached();
    }
    Ok(())
}
