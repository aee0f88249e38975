//! Physical memory: the free frames (here), the hypervisor's page table (`host_table`), device mappings in it
//! (`devices`), and the image's own sections (`image`).

mod devices;
mod host_table;
pub(crate) mod image;

use arch::Hpa;
use arch::address::{HpaRange, PAGE_SIZE};
use arrayvec::ArrayVec;
use boot::{BootInfo, MemoryKind};
use cpu::physical;
use mem::frames::NotTaken;
use mem::{FrameAllocator, Pages, TableMemory, Word};
use spin::Mutex;

use crate::console::logln;
use crate::refusal::{Refusal, refuse};

pub(crate) use devices::{firmware_bytes, map_device, show, show_no_more};
pub(crate) use host_table::{
    build_own_tables, code, copy_root_below_4_gib, drop_translations, free_init, largest_host_page,
    make_executable, make_writable, stack, stack_of, use_own_table,
};

static FRAMES: Mutex<Option<FrameAllocator>> = Mutex::new(None);

const FOUR_GIB: u64 = 1 << 32;

/// Memory that the hypervisor itself uses. Only this module has one to show, so that it alone makes `Pages<Own>`.
#[derive(Debug)]
pub(crate) struct Own(());

/// Memory that others use: guests' RAM, shared memory, files.
#[derive(Debug)]
pub(crate) struct Lent(());

/// The machine's free memory. All copies are the same memory; a copy may be confined to what lies below
/// some address ([`Memory::below`]).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    limit: Option<Hpa>,
}

impl Memory {
    /// Takes over the memory that the loader says is usable and that nothing lies in; `spared` is
    /// left out too.
    pub(crate) fn take_over(info: &BootInfo<'_>, spared: HpaRange) -> Self {
        let mut occupied = occupied(info);
        occupied.push(spared);
        *FRAMES.lock() = Some(FrameAllocator::new(&usable(info, None), &occupied));
        Self::handle()
    }

    /// Adds what [`Memory::take_over`] left out.
    pub(crate) fn add(self, info: &BootInfo<'_>, spared: HpaRange) {
        if let Some(frames) = FRAMES.lock().as_mut() {
            frames.add(&usable(info, Some(spared)), &occupied(info));
        }
    }

    /// The machine's free memory, once it has been taken over.
    pub(crate) fn handle() -> Self {
        Self { limit: None }
    }

    /// The part of it that lies wholly below `limit`.
    const fn below(self, limit: Hpa) -> Self {
        Self { limit: Some(limit) }
    }

    /// Takes contiguous memory; its content is whatever was there.
    pub(crate) fn allocate(self, bytes: u64, alignment: u64) -> Option<Pages<Own>> {
        let start = FRAMES.lock().as_mut()?.allocate(bytes, alignment, self.limit)?;
        Some(Pages::of(&Own(()), whole_pages(start, bytes)))
    }

    /// Takes contiguous memory for others than the hypervisor; its content is whatever was there.
    pub(crate) fn lend(self, bytes: u64, alignment: u64) -> Option<Pages<Lent>> {
        let start = FRAMES.lock().as_mut()?.lend(bytes, alignment)?;
        Some(Pages::of(&Lent(()), whole_pages(start, bytes)))
    }

    /// Frees memory that was lent; its content is not cleared.
    pub(crate) fn take_back(self, pages: Pages<Lent>) {
        Self::give(pages.range(), FrameAllocator::take_back);
    }

    #[inline(never)]
    fn give(range: HpaRange, how: fn(&mut FrameAllocator, HpaRange) -> Result<(), NotTaken>) {
        if let Some(Err(error)) = FRAMES.lock().as_mut().map(|frames| how(frames, range)) {
            logln!("{error}");
        }
    }

    /// Bytes that are free.
    pub(crate) fn available(self) -> u64 {
        FRAMES.lock().as_ref().map_or(0, FrameAllocator::available)
    }

    /// Bytes that the hypervisor itself has, the image included.
    pub(crate) fn own(self) -> u64 {
        let image = image::whole().length - image::init().length;
        image + FRAMES.lock().as_ref().map_or(0, FrameAllocator::own)
    }

    /// A copy of the free ranges.
    pub(crate) fn snapshot(self) -> Option<FrameAllocator> {
        FRAMES.lock().clone()
    }

    /// A zeroed 4 KiB frame.
    pub(crate) fn frame(mut self) -> Result<Pages<Own>, Refusal> {
        self.allocate_table().ok_or_else(out_of_memory)
    }

    /// Zeroed contiguous frames.
    pub(crate) fn frames(mut self, bytes: u64) -> Result<Pages<Own>, Refusal> {
        self.allocate_contiguous(bytes).ok_or_else(out_of_memory)
    }
}

impl plan::memory::Pool for Memory {
    type Of = Lent;

    fn take(&mut self, bytes: u64, alignment: u64) -> Option<Pages<Lent>> {
        self.lend(bytes, alignment)
    }

    fn put_back(&mut self, pages: Pages<Lent>) {
        self.take_back(pages);
    }

    fn available(&self) -> u64 {
        Self::available(*self)
    }
}

/// What the allocator takes for so many bytes.
const fn whole_pages(start: Hpa, bytes: u64) -> HpaRange {
    HpaRange { start, length: bytes.next_multiple_of(PAGE_SIZE) }
}

/// The memory that the loader reports as usable; only the part in `within`, if given.
fn usable(info: &BootInfo<'_>, within: Option<HpaRange>) -> ArrayVec<HpaRange, 256> {
    let regions = info.memory.iter().filter(|region| region.kind == MemoryKind::Usable);
    let within = within.unwrap_or(HpaRange { start: Hpa::new(0), length: u64::MAX });
    let ranges = regions.filter_map(|region| {
        let start = region.range.start.max(within.start);
        let end = region.range.end().min(within.end());
        let length = end.as_u64().checked_sub(start.as_u64())?;
        (length > 0).then_some(HpaRange { start, length })
    });
    ranges.take(256).collect()
}

/// What lies in it and stays.
fn occupied(info: &BootInfo<'_>) -> ArrayVec<HpaRange, 256> {
    let mut occupied: ArrayVec<HpaRange, 256> = info.occupied().take(253).collect();
    occupied.push(image::whole());
    // The first MiB belongs to the firmware's tables and to the start of other CPUs.
    occupied.push(HpaRange { start: Hpa::new(0), length: 1 << 20 });
    occupied
}

/// All of the machine's memory.
pub(crate) fn ram(info: &BootInfo<'_>) -> impl Iterator<Item = HpaRange> {
    let is_memory = |kind| {
        matches!(kind, MemoryKind::Usable | MemoryKind::AcpiReclaimable | MemoryKind::AcpiNvs)
    };
    info.memory.iter().filter(move |region| is_memory(region.kind)).map(|region| region.range)
}

/// Whether a part of the range is RAM, where no device's registers can be.
pub(crate) fn is_ram(info: &BootInfo<'_>, range: HpaRange) -> bool {
    ram(info).any(|ram| ram.overlaps(range))
}

/// The sentence for an empty pool.
pub(crate) fn out_of_memory() -> Refusal {
    refuse!("no memory is left for the hypervisor's tables: give the guests less")
}

impl TableMemory for Memory {
    type Pool = Own;

    fn read(&self, at: Word<'_, Own>) -> u64 {
        // SAFETY: a word of pages that this pool handed out and somebody holds: aligned, and identity-mapped.
        unsafe { physical::pointer::<u64>(at.address()).read_volatile() }
    }

    fn write(&mut self, at: Word<'_, Own>, value: u64) {
        // SAFETY: as for `read`.
        unsafe { physical::pointer::<u64>(at.address()).write_volatile(value) };
    }

    fn allocate_contiguous(&mut self, bytes: u64) -> Option<Pages<Own>> {
        let pages = self.allocate(bytes, bytes.next_power_of_two().max(PAGE_SIZE))?;
        clear(&pages);
        Some(pages)
    }

    #[inline(never)]
    fn free(&mut self, pages: Pages<Own>) {
        clear(&pages);
        Self::give(pages.range(), FrameAllocator::free);
    }
}

/// Fills pages that are just taken, or just about to be free, with zeros.
fn clear(pages: &Pages<Own>) {
    let HpaRange { start, length } = pages.range();
    // SAFETY: memory of the pool that its only holder does not use now.
    unsafe { physical::bytes_mut(start, length as usize) }.fill(0);
}
