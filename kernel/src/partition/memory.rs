//! A guest's RAM: where it lies in the guest, where the machine has it, and the nested table between.

use config::GuestConfig;
use guest::memory_map::{Ecam, MemoryMap};
use guest::pci::VirtualBus;
use mem::reserve::{Frames, tables_for, tables_for_pages};
use mem::{MemoryType, Rights, Table};

use crate::hardware::Hardware;
use crate::memory::{Memory, Own, out_of_memory};
use crate::owned::{OwnFrames, Owned};
use crate::ram::{GuestRam, OwnedRam};
use crate::refusal::{Refusal, refuse};

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
) -> Result<OwnedRam, Refusal> {
    let identity_ram = hardware.identity_ram.as_deref();
    let found = plan::memory::find(guest, map, identity_ram, &mut { hardware.memory })?;
    let pages = found.pages.into_iter().map(Owned::new).collect();
    // SAFETY: fresh memory of the pool, or memory that was kept out of it for this guest.
    let ram = unsafe { GuestRam::new(&found.blocks) }.ok_or_else(out_of_memory)?;
    Ok(OwnedRam(ram, pages))
}

pub(super) fn map_ram<F: mem::table::Format>(
    nested: &mut Table<F, Own>,
    mut memory: Memory,
    ram: &GuestRam,
) -> Result<(), Refusal> {
    for block in ram.blocks() {
        let (gpa, kind) = (block.gpa.as_u64(), MemoryType::WriteBack);
        nested.map(&mut memory, gpa, block.hpa, block.length, Rights::ALL, kind)?.nothing_cached();
    }
    Ok(())
}

/// Frames for all that may change in a guest's nested table in one generation: its BARs, wherever it moves them,
/// and the pages of its RAM that shadow pages stand for. Taken before its first instruction: no neighbour
/// finds less memory because a guest moves its BARs.
pub(super) fn reserve(
    mut memory: Memory,
    guest: &GuestConfig,
    bus: &VirtualBus,
    cpus: usize,
) -> Result<OwnFrames, Refusal> {
    /// Two pages for each CPU, each in a page of 2 MiB in one of 1 GiB; and those that they were in before.
    const SHADOW: usize = 4;
    const SHADOW_BEFORE: usize = 64;
    let bars = bus.mapped_bars().map(|(length, cut)| tables_for(length, cut));
    let shared = bus.mapped_memory().map(tables_for_pages);
    let count = bars.chain(shared).sum::<usize>() + cpus * SHADOW + SHADOW_BEFORE;
    let free = memory.available() >> 10;
    let mut frames = Owned::new(Frames::default());
    for _ in 0..count {
        let frame = memory.frame().map_err(|_| {
            refuse!(
                "nexit.toml: guest {}: {count} pages for the tables of its devices are not there: the machine has \
                 {free} KiB free; give the guests less memory",
                guest.name
            )
        })?;
        frames.put(&mut memory, frame);
    }
    Ok(frames)
}
