//! Where memory of guests comes from.

use alloc::format;
use alloc::vec::Vec;

use arch::address::{HpaRange, PAGE_SIZE};
use arch::{Gpa, Hpa};
use config::{Config, GuestConfig, SharedConfig};
use guest::memory_map::{Ecam, GpaRange, MemoryMap};
use mem::{FrameAllocator, Pages};

use crate::Refusal;

/// More pieces than this a guest's RAM is not made of.
pub const MAX_BLOCKS: usize = 32;

const MIB: u64 = 1 << 20;

/// Free memory.
pub trait Pool {
    /// What its pages are marked with.
    type Of;
    /// Takes contiguous memory.
    fn take(&mut self, bytes: u64, alignment: u64) -> Option<Pages<Self::Of>>;
    /// Puts some of it back.
    fn put_back(&mut self, pages: Pages<Self::Of>);
    /// Bytes that are left.
    fn available(&self) -> u64;
}

impl Pool for FrameAllocator {
    type Of = Self;

    fn take(&mut self, bytes: u64, alignment: u64) -> Option<Pages<Self>> {
        let start = self.lend(bytes, alignment)?;
        Some(Pages::of(self, HpaRange { start, length: bytes.next_multiple_of(PAGE_SIZE) }))
    }

    fn put_back(&mut self, pages: Pages<Self>) {
        // Memory that was just taken can always be put back.
        let _ = self.take_back(pages.range());
    }

    fn available(&self) -> u64 {
        Self::available(self)
    }
}

/// A run of guest RAM that is contiguous in both spaces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Block {
    /// Its address in the guest.
    pub gpa: Gpa,
    /// Its address in the machine.
    pub hpa: Hpa,
    /// Bytes.
    pub length: u64,
}

/// A guest's RAM.
#[derive(Debug)]
pub struct Found<P> {
    /// Where it is.
    pub blocks: Vec<Block>,
    /// What of it is from the pool.
    pub pages: Vec<Pages<P>>,
}

/// The guest's window to configuration space, chosen from these (segment, first bus, last bus, base).
/// A window above 4 GiB would overlap the guest's RAM or BARs; then the guest has none.
pub fn low_window(windows: impl IntoIterator<Item = (u16, u8, u8, Hpa)>) -> Option<Ecam> {
    let low = |(segment, first, last, base): (u16, u8, u8, Hpa)| {
        let ecam = Ecam { base: Gpa::new(base.as_u64()), buses: u16::from(last) + 1 };
        ((segment, first) == (0, 0) && ecam.range().end() <= 1 << 32).then_some(ecam)
    };
    windows.into_iter().find_map(low)
}

/// The guest's memory map.
#[must_use]
pub fn map(
    guest: &GuestConfig,
    ecam: Option<Ecam>,
    identity_ram: Option<&[GpaRange]>,
) -> MemoryMap {
    match identity_ram {
        Some(runs) => MemoryMap::identity(runs.to_vec(), ecam),
        None => MemoryMap::new(guest.memory, ecam),
    }
}

/// Takes memory for every run of the guest's map.
///
/// # Errors
/// When it is not there; the pool is then as it was.
pub fn find<P: Pool>(
    guest: &GuestConfig,
    map: &MemoryMap,
    identity_ram: Option<&[GpaRange]>,
    pool: &mut P,
) -> Result<Found<P::Of>, Refusal> {
    let free = pool.available();
    let mut ram = Found { blocks: Vec::new(), pages: Vec::new() };
    let found = find_blocks(map, identity_ram.is_some(), pool, &mut ram);
    ram.blocks.retain(|block| block.length > 0);
    if found.is_some() && ram.blocks.len() <= MAX_BLOCKS {
        return Ok(ram);
    }
    ram.pages.into_iter().for_each(|pages| pool.put_back(pages));
    let sentence = format!(
        "memory = {} MiB is not there (in at most {MAX_BLOCKS} pieces): the machine has {} MiB free: give \
         the guests less",
        guest.memory / MIB,
        free / MIB
    );
    Err(Refusal::guest(guest, "memory", sentence))
}

fn find_blocks<P: Pool>(
    map: &MemoryMap,
    identity: bool,
    pool: &mut P,
    ram: &mut Found<P::Of>,
) -> Option<()> {
    const LEGACY: GpaRange = GpaRange { start: Gpa::new(0xa_0000), length: 0x6_0000 };
    for run in map.ram() {
        if !identity {
            find_run(pool, *run, ram)?;
            continue;
        }
        // Identity-mapped except for the legacy area, which comes from elsewhere: the machine's own holds
        // firmware data.
        let (start, end) = (run.start.as_u64(), run.end());
        let legacy_end = LEGACY.end();
        let same = |start: u64, end: u64| Block {
            gpa: Gpa::new(start),
            hpa: Hpa::new(start),
            length: end - start,
        };
        if run.contains(LEGACY) {
            ram.blocks.push(same(start, LEGACY.start.as_u64()));
            find_run(pool, LEGACY, ram)?;
            ram.blocks.push(same(legacy_end, end));
        } else {
            ram.blocks.push(same(start, end));
        }
    }
    Some(())
}

/// Takes memory for a run in few blocks: the whole, or else halves down to 2 MiB.
fn find_run<P: Pool>(pool: &mut P, run: GpaRange, ram: &mut Found<P::Of>) -> Option<()> {
    const GIB: u64 = 1 << 30;
    const MIB_2: u64 = 2 << 20;
    let (mut gpa, mut left) = (run.start, run.length);
    while left > 0 {
        let mut length = left;
        let pages = loop {
            let alignments = [GIB, MIB_2, PAGE_SIZE];
            let mut fitting = alignments.iter().filter(|alignment| **alignment <= length);
            match fitting.find_map(|alignment| pool.take(length, *alignment)) {
                Some(pages) => break pages,
                None if length > MIB_2 => length = (length / 2).next_multiple_of(MIB_2),
                None => return None,
            }
        };
        ram.blocks.push(Block { gpa, hpa: pages.start(), length });
        ram.pages.push(pages);
        gpa = gpa.wrapping_add(length);
        left -= length;
    }
    Some(())
}

/// Takes memory that guests share.
///
/// # Errors
/// When it is not there in one piece.
pub fn share<P: Pool>(region: &SharedConfig, pool: &mut P) -> Result<Pages<P::Of>, Refusal> {
    const LARGE_PAGE: u64 = 2 << 20;
    let free = pool.available();
    pool.take(region.size, region.size.min(LARGE_PAGE)).ok_or_else(|| {
        let sentence = format!(
            "size = {} KiB is not there in one piece: the machine has {} MiB free",
            region.size >> 10,
            free / MIB
        );
        Refusal::shared(region, "size", sentence)
    })
}

/// The RAM of an identity-mapped guest: the machine's own below the guest's size, without the image.
/// `usable` is the machine's RAM in ascending order. `None` if the configuration does not permit an identity-mapped
/// guest without an IOMMU.
pub fn identity(
    config: &Config,
    usable: impl Iterator<Item = HpaRange>,
    image: HpaRange,
) -> Option<Result<Vec<GpaRange>, Refusal>> {
    // `config` lets this pass for a single guest only.
    let guest = config.guests.first().filter(|_| config.unsafe_no_iommu)?;
    let (hole_start, hole_end) =
        (image.start.as_u64(), image.end().as_u64().next_multiple_of(MIB * 2));
    let mut runs = Vec::from([GpaRange::between(0, MIB)]);
    for range in usable {
        let (start, end) = (range.start.as_u64().max(MIB), range.end().as_u64());
        let (start, end) = (start.next_multiple_of(PAGE_SIZE), end.min(guest.memory) & !4095);
        for (start, end) in [(start, end.min(hole_start)), (start.max(hole_end), end)] {
            match runs.last_mut() {
                Some(last) if start < end && last.end() == start => last.length += end - start,
                _ if start < end => runs.push(GpaRange::between(start, end)),
                _ => {}
            }
        }
    }
    let found: u64 = runs.iter().map(|run| run.length).sum();
    if found + 16 * MIB < guest.memory {
        let sentence = format!(
            "memory = {} MiB is not there: the machine has {} MiB below that address",
            guest.memory / MIB,
            found / MIB
        );
        return Some(Err(Refusal::guest(guest, "memory", sentence)));
    }
    Some(Ok(runs))
}
