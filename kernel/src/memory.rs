//! Physical memory: who has which frame, and the hypervisor's own page table.
//!
//! Invariant: the hypervisor runs on an identity map in which nothing is both writable and
//! executable, only the image's text is executable, and no stack can run into its neighbour.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use arch::address::{HpaRange, PAGE_SIZE};
use arch::{Hpa, PageSize};
use arrayvec::ArrayVec;
use boot::{BootInfo, MemoryKind};
use cpu::instructions::cpuid;
use cpu::physical;
use mem::frames::NotTaken;
use mem::{Access, Flush, FrameAllocator, HostFormat, MapError, MemoryType, Table, TableMemory};
use spin::Mutex;

use crate::console::logln;
use crate::refusal::{Refusal, refuse};

static FRAMES: Mutex<Option<FrameAllocator>> = Mutex::new(None);
static HOST_TABLE: Mutex<Option<Table<HostFormat>>> = Mutex::new(None);
/// Those of the other processors.
static STACKS: Mutex<Vec<HpaRange>> = Mutex::new(Vec::new());
/// The code that only the boot needs is no longer there.
static INIT_IS_FREE: AtomicBool = AtomicBool::new(false);

const FOUR_GIB: u64 = 1 << 32;

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
    pub(crate) fn allocate(self, bytes: u64, alignment: u64) -> Option<Hpa> {
        FRAMES.lock().as_mut()?.allocate(bytes, alignment, self.limit)
    }

    /// Gives memory back; its content stays in it.
    pub(crate) fn free(self, start: Hpa, bytes: u64) {
        let range = HpaRange { start, length: bytes.next_multiple_of(PAGE_SIZE) };
        Self::give(range, FrameAllocator::free);
    }

    /// Takes contiguous memory for others than the hypervisor; its content is whatever was there.
    pub(crate) fn lend(self, bytes: u64, alignment: u64) -> Option<Hpa> {
        FRAMES.lock().as_mut()?.lend(bytes, alignment)
    }

    /// Gives memory back that was lent; its content stays in it.
    pub(crate) fn take_back(self, range: HpaRange) {
        Self::give(range, FrameAllocator::take_back);
    }

    fn give(range: HpaRange, how: fn(&mut FrameAllocator, HpaRange) -> Result<(), NotTaken>) {
        if let Some(Err(error)) = FRAMES.lock().as_mut().map(|frames| how(frames, range)) {
            logln!("{error}");
        }
    }

    /// Bytes that nobody has.
    pub(crate) fn available(self) -> u64 {
        FRAMES.lock().as_ref().map_or(0, FrameAllocator::available)
    }

    /// Bytes that the hypervisor itself has, the image included.
    pub(crate) fn own(self) -> u64 {
        let image = image::whole().length - image::init().length;
        image + FRAMES.lock().as_ref().map_or(0, FrameAllocator::own)
    }

    /// What is free, as it is now.
    pub(crate) fn snapshot(self) -> Option<FrameAllocator> {
        FRAMES.lock().clone()
    }

    /// A zeroed 4 KiB frame.
    pub(crate) fn frame(mut self) -> Result<Hpa, Refusal> {
        self.allocate_table().ok_or_else(out_of_memory)
    }

    /// Zeroed contiguous frames.
    pub(crate) fn frames(mut self, bytes: u64) -> Result<Hpa, Refusal> {
        self.allocate_contiguous(bytes).ok_or_else(out_of_memory)
    }
}

impl plan::memory::Pool for Memory {
    fn take(&mut self, bytes: u64, alignment: u64) -> Option<Hpa> {
        self.lend(bytes, alignment)
    }

    fn put_back(&mut self, range: HpaRange) {
        self.take_back(range);
    }

    fn available(&self) -> u64 {
        Self::available(*self)
    }
}

/// The memory that the loader says is usable, or that of it which lies in `within`.
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

/// A stack of `bytes` with an unmapped page below it; its top.
pub(crate) fn stack(memory: Memory, bytes: u64) -> Result<u64, Refusal> {
    let guard = memory.allocate(bytes + PAGE_SIZE, PAGE_SIZE).ok_or_else(out_of_memory)?;
    // No other CPU has touched that page yet, and this one never does again.
    with_own_table(|table| table.unmap(&mut { memory }, guard.as_u64(), PAGE_SIZE))?
        .nothing_cached();
    let stack = HpaRange { start: guard.wrapping_add(PAGE_SIZE), length: bytes };
    STACKS.lock().push(stack);
    Ok(stack.end().as_u64())
}

/// The stack that `pointer` points into. Takes no lock that the CPU that calls may hold for ever.
pub(crate) fn stack_of(pointer: u64) -> Option<HpaRange> {
    let holds = |stack: &HpaRange| (stack.start.as_u64()..stack.end().as_u64()).contains(&pointer);
    let others = STACKS.try_lock();
    let others = others.iter().flat_map(|stacks| stacks.iter().copied());
    others.chain([image::boot_stack()]).find(holds)
}

fn with_own_table<T>(
    work: impl FnOnce(&mut Table<HostFormat>) -> Result<T, MapError>,
) -> Result<T, Refusal> {
    let mut table = HOST_TABLE.lock();
    Ok(work(table.as_mut().ok_or_else(out_of_memory)?)?)
}

/// Makes pages executable and read-only.
pub(crate) fn make_executable(memory: Memory, range: HpaRange) -> Result<(), Refusal> {
    with_own_table(|table| protect(table, memory, range, Access::READ_EXECUTE))
}

/// Makes pages plain data again.
pub(crate) fn make_writable(memory: Memory, range: HpaRange) -> Result<(), Refusal> {
    with_own_table(|table| protect(table, memory, range, Access::READ_WRITE))?;
    // The others have not touched these pages since they left them.
    drop_translations();
    Ok(())
}

/// Makes the code that only the boot needs free memory. The other processors drop what they have cached of it before
/// their next job ([`drop_translations`]).
///
/// # Safety
/// Nothing of it runs any more, and no other processor has a job.
pub(crate) unsafe fn free_init() {
    let memory = Memory::handle();
    let range = image::init();
    INIT_IS_FREE.store(true, Ordering::Release);
    match make_writable(memory, range) {
        Ok(()) => {
            if let Some(frames) = FRAMES.lock().as_mut() {
                frames.add(&[range], &[]);
            }
            logln!(
                "{} KiB of code that only the boot needs are free memory now",
                range.length >> 10
            );
        }
        Err(refusal) => logln!("the code that only the boot needs stays in memory: {refusal}"),
    }
}

/// The hypervisor's code, as far as it is still there.
pub(crate) fn code() -> HpaRange {
    let (init, text) = (image::init(), image::text());
    if INIT_IS_FREE.load(Ordering::Acquire) {
        return text;
    }
    HpaRange { start: init.start, length: text.end().as_u64() - init.start.as_u64() }
}

/// Drops the translations that this CPU has cached.
pub(crate) fn drop_translations() {
    // SAFETY: the table in use, again; none of its pages is global.
    unsafe { load_cr3(root()) };
}

/// A copy of the root table below 4 GiB, where a processor that leaves real mode can load it.
pub(crate) fn copy_root_below_4_gib(memory: Memory) -> Result<Hpa, Refusal> {
    let memory = memory.below(Hpa::new(FOUR_GIB));
    let copy = memory.allocate(PAGE_SIZE, PAGE_SIZE).ok_or_else(out_of_memory)?;
    // SAFETY: the root is a page of the pool's, identity-mapped.
    let from = unsafe { physical::bytes(root(), PAGE_SIZE as usize) };
    // SAFETY: fresh memory of the pool.
    unsafe { physical::bytes_mut(copy, PAGE_SIZE as usize) }.copy_from_slice(from);
    Ok(copy)
}

/// Switches the CPU that calls to the hypervisor's page table.
pub(crate) fn use_own_table() -> Result<(), Refusal> {
    prepare_paging()?;
    // SAFETY: the table maps the image and every stack where the start page's table does.
    unsafe { load_cr3(root()) };
    Ok(())
}

/// The sentence for an empty pool.
pub(crate) fn out_of_memory() -> Refusal {
    refuse!("no memory is left for the hypervisor's tables: give the guests less")
}

impl TableMemory for Memory {
    fn read(&self, at: Hpa) -> u64 {
        // SAFETY: tables are frames of this pool, identity-mapped; entries are aligned.
        unsafe { physical::pointer::<u64>(at).read_volatile() }
    }

    fn write(&mut self, at: Hpa, value: u64) {
        // SAFETY: as for `read`.
        unsafe { physical::pointer::<u64>(at).write_volatile(value) };
    }

    fn allocate_contiguous(&mut self, bytes: u64) -> Option<Hpa> {
        let at = Self::allocate(*self, bytes, bytes.next_power_of_two().max(PAGE_SIZE))?;
        // SAFETY: the pool has just given this memory to us alone.
        unsafe { physical::bytes_mut(at, bytes as usize) }.fill(0);
        Some(at)
    }

    fn give_back(&mut self, page: Hpa) {
        // SAFETY: a frame of this pool, which its owner has just done with.
        unsafe { physical::bytes_mut(page, PAGE_SIZE as usize) }.fill(0);
        self.free(page, PAGE_SIZE);
    }
}

/// Builds the hypervisor's own page table from the memory map and switches to it. Until then only the
/// first 4 GiB are mapped (`boot::entry`), so that the table has to lie there.
pub(crate) fn build_own_tables(memory: Memory, info: &BootInfo<'_>) -> Result<(), Refusal> {
    let mut memory = memory.below(Hpa::new(FOUR_GIB));
    let mut table = Table::new(HostFormat { largest: largest_host_page() }, &mut memory)?;
    map_everything(&mut table, memory, info)?;
    for (range, access) in image::sections() {
        protect(&mut table, memory, range, access)?;
    }
    table.unmap(&mut memory, image::stack_guard().as_u64(), PAGE_SIZE)?.nothing_cached();
    prepare_paging()?;
    // SAFETY: the table maps the image, the stack in use and all RAM where they were mapped before.
    unsafe { load_cr3(table.root()) };
    *HOST_TABLE.lock() = Some(table);
    Ok(())
}

/// The largest page of this CPU's own page tables.
pub(crate) fn largest_host_page() -> PageSize {
    const GIGABYTE_PAGES: u32 = 1 << 26;
    let gigabyte = cpuid(0x8000_0001, 0).edx & GIGABYTE_PAGES != 0;
    if gigabyte { PageSize::Size1G } else { PageSize::Size2M }
}

/// Bits of this CPU's physical addresses.
fn physical_bits() -> u32 {
    const LEAST: u32 = 36;
    (cpuid(0x8000_0008, 0).eax & 0xff).clamp(LEAST, 52)
}

/// Root of the hypervisor's own page table.
pub(crate) fn root() -> Hpa {
    HOST_TABLE.lock().as_ref().map_or(Hpa::new(0), Table::root)
}

/// Maps RAM write-back and everything else uncached; nothing is executable yet.
fn map_everything(
    table: &mut Table<HostFormat>,
    mut memory: Memory,
    info: &BootInfo<'_>,
) -> Result<(), MapError> {
    let mut at = 0;
    let mut map = |start: u64, end: u64, memory_type| -> Result<(), MapError> {
        if start < end {
            let (hpa, length) = (Hpa::new(start), end - start);
            table
                .map(&mut memory, start, hpa, length, Access::READ_WRITE, memory_type)?
                .nothing_cached();
        }
        Ok(())
    };
    for range in ram(info) {
        let start = range.start.page().as_u64().max(at);
        let end = range.end().align_up(PAGE_SIZE).map_or(u64::MAX, Hpa::as_u64);
        map(at.min(FOUR_GIB), start.min(FOUR_GIB), MemoryType::Uncached)?;
        map(start, end.max(start), MemoryType::WriteBack)?;
        at = end.max(at);
    }
    map(at, FOUR_GIB.max(at), MemoryType::Uncached)
}

/// The machine's memory, whoever may use it.
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

fn protect(
    table: &mut Table<HostFormat>,
    mut memory: Memory,
    range: HpaRange,
    access: Access,
) -> Result<(), MapError> {
    let start = range.start.as_u64();
    table
        .replace(&mut memory, start, range.start, range.length, access, MemoryType::WriteBack)
        .map(Flush::nothing_cached)
}

/// Maps device registers, as far as [`build_own_tables`] has not mapped them already.
#[unsafe(link_section = ".text.init")]
pub(crate) fn map_device(mut memory: Memory, range: HpaRange) -> Result<(), Refusal> {
    let start = range.start.page().as_u64();
    let end = range.start.checked_add(range.length);
    let end = end
        .filter(|end| end.as_u64() <= 1 << physical_bits())
        .ok_or_else(|| refuse!("{} is beyond the CPU's physical addresses", range.start))?;
    let end = end.align_up(PAGE_SIZE).ok_or_else(out_of_memory)?.as_u64();
    let (to, length, access) = (Hpa::new(start), end - start, Access::READ_WRITE);
    // The entries were absent, and absent entries are not cached (SDM "Caching Translation Information").
    with_own_table(|table| {
        let kind = MemoryType::Uncached;
        table.map_missing(&mut memory, start, to, length, access, kind)
    })
    .map(Flush::nothing_cached)
}

/// Maps a framebuffer, its writes gathered; `false` where that fails. It stays uncached where there is no memory for
/// small pages: slow, but seen.
pub(crate) fn show(memory: Memory, range: HpaRange) -> bool {
    map_device(memory, range).is_ok() && gather_writes(memory, range, true).is_ok()
}

/// Gathers a framebuffer's writes no longer: a guest that has the device decides on that for itself.
pub(crate) fn show_no_more(memory: Memory, range: HpaRange) {
    // What fails leaves a mapping that nobody uses.
    let _ = gather_writes(memory, range, false);
}

/// Gathers writes to the whole pages of a mapped range before they go out (write combining), or not.
fn gather_writes(mut memory: Memory, range: HpaRange, gathered: bool) -> Result<(), Refusal> {
    let start = range.start.align_up(PAGE_SIZE).ok_or_else(out_of_memory)?;
    let end = range.end().page().as_u64();
    let Some(length) = end.checked_sub(start.as_u64()).filter(|length| *length > 0) else {
        return Ok(());
    };
    let kind = if gathered { MemoryType::WriteCombining } else { MemoryType::Uncached };
    let (at, access) = (start.as_u64(), Access::READ_WRITE);
    with_own_table(|table| {
        let Flush { .. } = table.replace(&mut memory, at, start, length, access, kind)?;
        // Of what is replaced this CPU alone has a translation: no other has shown anything.
        // SAFETY: the table that is in use already; loading it again drops its cached translations.
        unsafe { load_cr3(table.root()) };
        Ok(())
    })
}

/// Bytes that the firmware's tables claim, mapped where that is needed: below 4 GiB everything is, and
/// above what the loader's memory map names. `None` for what is no memory, and for the image.
pub(crate) fn firmware_bytes(
    memory: Memory,
    info: &BootInfo<'_>,
    start: Hpa,
    length: usize,
) -> Option<&'static [u8]> {
    let range = HpaRange { start, length: length as u64 };
    let end = start.checked_add(range.length)?;
    if start.as_u64() == 0 || range.overlaps(image::whole()) {
        return None;
    }
    if end.as_u64() > FOUR_GIB {
        let mut regions = info.memory.iter().map(|region| region.range);
        regions.find(|region| region.start <= start && end <= region.end())?;
        map_device(memory, range).ok()?;
    }
    // SAFETY: not null and mapped. Firmware does not change its tables; if it did, every byte is a claim.
    Some(unsafe { physical::bytes(start, length) })
}

/// Lets the CPU that calls use the hypervisor's page tables.
fn prepare_paging() -> Result<(), Refusal> {
    // SAFETY: ring 0, and the handlers are installed; the loader's and the start page's tables use PAT entry 0 alone
    // for what the hypervisor touches before it has its own.
    unsafe { cpu::host_state::prepare_paging() }
        .map_err(|_| plan::platform::no_execute_disable().into())
}

unsafe fn load_cr3(root: Hpa) {
    // SAFETY: the caller vouches for the table.
    unsafe { core::arch::asm!("mov cr3, {}", in(reg) root.as_u64(), options(nostack)) };
}

/// The image's sections, by the linker's symbols.
pub(crate) mod image {
    use super::{Access, Hpa, HpaRange};

    unsafe extern "C" {
        static __image_start: u8;
        static __image_end: u8;
        static __init_start: u8;
        static __init_end: u8;
        static __text_start: u8;
        static __text_end: u8;
        static __rodata_start: u8;
        static __rodata_end: u8;
        static __stack_guard: u8;
        static __stack_bottom: u8;
        static __stack_top: u8;
    }

    fn range(start: *const u8, end: *const u8) -> HpaRange {
        let start = Hpa::new(start as u64);
        HpaRange { start, length: end as u64 - start.as_u64() }
    }

    /// The whole image in memory.
    pub(crate) fn whole() -> HpaRange {
        range(&raw const __image_start, &raw const __image_end)
    }

    /// Code that stays.
    pub(super) fn text() -> HpaRange {
        range(&raw const __text_start, &raw const __text_end)
    }

    /// The boot processor's stack.
    pub(super) fn boot_stack() -> HpaRange {
        range(&raw const __stack_bottom, &raw const __stack_top)
    }

    /// What is not plain data.
    pub(super) fn sections() -> [(HpaRange, Access); 3] {
        [
            (init(), Access::READ_EXECUTE),
            (text(), Access::READ_EXECUTE),
            (range(&raw const __rodata_start, &raw const __rodata_end), Access::READ),
        ]
    }

    /// Code that runs only until the guests do.
    pub(crate) fn init() -> HpaRange {
        range(&raw const __init_start, &raw const __init_end)
    }

    /// The page below the boot stack.
    pub(super) fn stack_guard() -> Hpa {
        Hpa::new(&raw const __stack_guard as u64)
    }
}
