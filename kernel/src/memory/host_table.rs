//! The hypervisor's own page table, and the stacks and code in it.
//!
//! Invariant: the hypervisor runs on an identity map in which nothing is both writable and executable, only the image's
//! text is executable, and no stack can run into its neighbour.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use arch::address::{HpaRange, PAGE_SIZE};
use arch::{Hpa, PageSize};
use boot::BootInfo;
use cpu::instructions::cpuid;
use cpu::physical;
use mem::{Flush, HostFormat, MapError, MemoryType, Rights};
use spin::Mutex;

use super::{FOUR_GIB, FRAMES, Memory, Own, image, out_of_memory, ram};
use crate::console::logln;
use crate::refusal::Refusal;

type Table = mem::Table<HostFormat, Own>;

static HOST_TABLE: Mutex<Option<Table>> = Mutex::new(None);
/// The stacks of all processors but the boot processor.
static STACKS: Mutex<Vec<HpaRange>> = Mutex::new(Vec::new());
/// The code that only the boot needs is no longer there.
static INIT_IS_FREE: AtomicBool = AtomicBool::new(false);

/// Builds the hypervisor's own page table from the memory map and switches to it. Until then only the
/// first 4 GiB are mapped (`boot::entry`), so that the table has to lie there.
pub(crate) fn build_own_tables(memory: Memory, info: &BootInfo<'_>) -> Result<(), Refusal> {
    let mut memory = memory.below(Hpa::new(FOUR_GIB));
    let mut table = Table::new(HostFormat { largest: largest_host_page() }, &mut memory)?;
    map_everything(&mut table, memory, info)?;
    for (range, access) in image::sections() {
        protect(&mut table, memory, range, access)?.not_in_use();
    }
    table.unmap(&mut memory, image::stack_guard().as_u64(), PAGE_SIZE)?.not_in_use();
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
pub(super) fn physical_bits() -> u32 {
    const MIN: u32 = 36;
    (cpuid(0x8000_0008, 0).eax & 0xff).clamp(MIN, 52)
}

/// Root of the hypervisor's own page table.
fn root() -> Hpa {
    HOST_TABLE.lock().as_ref().map_or(Hpa::new(0), Table::root)
}

/// Maps RAM write-back and everything else uncached; nothing is executable yet.
fn map_everything(
    table: &mut Table,
    mut memory: Memory,
    info: &BootInfo<'_>,
) -> Result<(), MapError> {
    let mut at = 0;
    let mut map = |start: u64, end: u64, memory_type| -> Result<(), MapError> {
        if start < end {
            let (hpa, length) = (Hpa::new(start), end - start);
            table
                .map(&mut memory, start, hpa, length, Rights::READ_WRITE, memory_type)?
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

fn protect(
    table: &mut Table,
    mut memory: Memory,
    range: HpaRange,
    access: Rights,
) -> Result<Flush, MapError> {
    let start = range.start.as_u64();
    table.replace(&mut memory, start, range.start, range.length, access, MemoryType::WriteBack)
}

/// A stack of `bytes` with an unmapped page below it; its top.
pub(crate) fn stack(memory: Memory, bytes: u64) -> Result<u64, Refusal> {
    let pages = memory.allocate(bytes + PAGE_SIZE, PAGE_SIZE).ok_or_else(out_of_memory)?;
    let guard = pages.start();
    // No other CPU has touched that page yet.
    with_own_table(|table| table.unmap(&mut { memory }, guard.as_u64(), PAGE_SIZE))?
        .done_by(drop_translations);
    let stack = HpaRange { start: guard.wrapping_add(PAGE_SIZE), length: bytes };
    STACKS.lock().push(stack);
    Ok(stack.end().as_u64())
}

/// The stack that `pointer` points into. Waits for no lock, because the calling CPU may hold it.
pub(crate) fn stack_of(pointer: u64) -> Option<HpaRange> {
    let holds = |stack: &HpaRange| (stack.start.as_u64()..stack.end().as_u64()).contains(&pointer);
    let others = STACKS.try_lock();
    let others = others.iter().flat_map(|stacks| stacks.iter().copied());
    others.chain([image::boot_stack()]).find(holds)
}

pub(super) fn with_own_table<T>(
    work: impl FnOnce(&mut Table) -> Result<T, MapError>,
) -> Result<T, Refusal> {
    let mut table = HOST_TABLE.lock();
    Ok(work(table.as_mut().ok_or_else(out_of_memory)?)?)
}

/// Makes pages executable and read-only.
pub(crate) fn make_executable(memory: Memory, range: HpaRange) -> Result<(), Refusal> {
    // The processors that execute them have not been started.
    with_own_table(|table| protect(table, memory, range, Rights::READ_EXECUTE))?
        .done_by(drop_translations);
    Ok(())
}

/// Makes pages plain data again.
pub(crate) fn make_writable(memory: Memory, range: HpaRange) -> Result<(), Refusal> {
    // The others have not touched these pages since they left them.
    with_own_table(|table| protect(table, memory, range, Rights::READ_WRITE))?
        .done_by(drop_translations);
    Ok(())
}

/// Frees the memory of code that only the boot needs. The other processors drop their cached translations of it before
/// their next job ([`drop_translations`]).
///
/// # Safety
/// This code never runs again, and no other processor has a job.
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
    let copy = memory.allocate(PAGE_SIZE, PAGE_SIZE).ok_or_else(out_of_memory)?.start();
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

/// Lets the CPU that calls use the hypervisor's page tables.
fn prepare_paging() -> Result<(), Refusal> {
    // SAFETY: ring 0, and the handlers are installed; the loader's and the start page's tables use PAT entry 0 alone
    // for what the hypervisor touches before it has its own.
    unsafe { cpu::host_state::prepare_paging() }
        .map_err(|_| plan::platform::no_execute_disable().into())
}

pub(super) unsafe fn load_cr3(root: Hpa) {
    // SAFETY: the caller vouches for the table.
    unsafe { core::arch::asm!("mov cr3, {}", in(reg) root.as_u64(), options(nostack)) };
}
