//! A guest's RAM: where it lies in the guest, where the machine has it, and the nested table between.

use alloc::vec::Vec;

use arch::address::PAGE_SIZE;
use arch::{Gpa, Hpa};
use config::GuestConfig;
use cpu::config_space::EcamWindow;
use guest::memory_map::{Ecam, GpaRange, MemoryMap};
use guest::pci::VirtualBus;
use mem::reserve::Frames;
use mem::{Access, MemoryType, Table};

use crate::bring_up::Hardware;
use crate::memory::Memory;
use crate::ram::{GuestRam, MOST_BLOCKS, RamBlock};
use crate::refusal::{Refusal, refuse};

/// Where the guest's memory lies in its own address space.
pub(super) fn memory_map(hardware: &Hardware, guest: &GuestConfig) -> MemoryMap {
    // One above 4 GiB would lie where the guest has RAM or the BARs of its devices: it does without.
    let low = |window: &&EcamWindow| {
        (window.segment, window.first_bus) == (0, 0) && window.range().end().as_u64() <= 1 << 32
    };
    let ecam = hardware.ecam.iter().find(low).map(|window| Ecam {
        base: Gpa::new(window.base.as_u64()),
        buses: u16::from(window.last_bus) + 1,
    });
    match &hardware.identity_ram {
        Some(runs) => MemoryMap::identity(runs.clone(), ecam),
        None => MemoryMap::new(guest.memory, ecam),
    }
}

/// Finds host memory for every run of the map; its content is whatever was there.
pub(super) fn allocate(
    hardware: &Hardware,
    guest: &GuestConfig,
    map: &MemoryMap,
) -> Result<GuestRam, Refusal> {
    let free = hardware.memory.available();
    let mut blocks = Vec::new();
    let found = find_blocks(hardware, map, &mut blocks);
    blocks.retain(|block| block.length > 0);
    // SAFETY: fresh memory of the pool, or memory that was kept out of it for this guest.
    let ram = found.and_then(|()| unsafe { GuestRam::new(&blocks) });
    ram.ok_or_else(|| {
        for block in blocks.iter().filter(|block| block.pooled) {
            hardware.memory.free(block.hpa, block.length);
        }
        refuse!(
            "nexit.toml: guest {}: memory = {} MiB is not there (in at most {MOST_BLOCKS} pieces): \
             the machine has {} MiB free",
            guest.name,
            guest.memory >> 20,
            free >> 20
        )
    })
}

fn find_blocks(hardware: &Hardware, map: &MemoryMap, blocks: &mut Vec<RamBlock>) -> Option<()> {
    const LEGACY: GpaRange = GpaRange { start: Gpa::new(0xa_0000), length: 0x6_0000 };
    let memory = hardware.memory;
    for run in map.ram() {
        if hardware.identity_ram.is_none() {
            allocate_run(memory, *run, blocks)?;
            continue;
        }
        // Identity-mapped, but the legacy area comes from elsewhere: the machine's own holds its
        // firmware.
        let (start, end) = (run.start.as_u64(), run.end());
        let legacy_end = LEGACY.end();
        let identity = |start: u64, end: u64| RamBlock {
            gpa: Gpa::new(start),
            hpa: Hpa::new(start),
            length: end - start,
            pooled: false,
        };
        if run.contains(LEGACY) {
            blocks.push(identity(start, LEGACY.start.as_u64()));
            allocate_run(memory, LEGACY, blocks)?;
            blocks.push(identity(legacy_end, end));
        } else {
            blocks.push(identity(start, end));
        }
    }
    Some(())
}

/// Takes memory for a run in few blocks: the whole, or else halves down to 2 MiB.
fn allocate_run(memory: Memory, run: GpaRange, blocks: &mut Vec<RamBlock>) -> Option<()> {
    const GIB: u64 = 1 << 30;
    const MIB_2: u64 = 2 << 20;
    let (mut gpa, mut left) = (run.start, run.length);
    while left > 0 {
        let mut length = left;
        let hpa = loop {
            let alignments = [GIB, MIB_2, PAGE_SIZE];
            let fitting = alignments.iter().filter(|alignment| **alignment <= length);
            let found = fitting.clone().find_map(|alignment| memory.allocate(length, *alignment));
            match found {
                Some(hpa) => break hpa,
                None if length > MIB_2 => length = (length / 2).next_multiple_of(MIB_2),
                None => return None,
            }
        };
        blocks.push(RamBlock { gpa, hpa, length, pooled: true });
        gpa = gpa.wrapping_add(length);
        left -= length;
    }
    Some(())
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

/// Frames for all that may change in a guest's nested table in one life: its BARs, wherever it moves them,
/// and the pages of its RAM that shadow pages stand for. Taken before its first instruction: no neighbour
/// finds less memory because a guest moves its BARs.
pub(super) fn reserve(
    mut memory: Memory,
    guest: &GuestConfig,
    bus: &VirtualBus,
    cpus: usize,
) -> Result<Frames, Refusal> {
    /// Two pages for each CPU, each in a page of 2 MiB in one of 1 GiB; and those that they were in before.
    const SHADOW: usize = 4;
    const SHADOW_BEFORE: usize = 64;
    let bars = bus.mapped_bars().map(|(length, cut)| mem::reserve::tables_for(length, cut));
    let shared = bus.mapped_memory().map(mem::reserve::tables_for_pages);
    let count = bars.chain(shared).sum::<usize>() + cpus * SHADOW + SHADOW_BEFORE;
    let free = memory.available() >> 10;
    let mut frames = Frames::default();
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
