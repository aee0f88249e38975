//! Mappings of device registers, framebuffers and the firmware's tables in the hypervisor's page table.

use arch::Hpa;
use arch::address::{HpaRange, PAGE_SIZE};
use boot::BootInfo;
use cpu::physical;
use mem::{Added, MemoryType, Rights};

use super::host_table::{drop_translations, physical_bits, with_own_table};
use super::{FOUR_GIB, Memory, image, out_of_memory};
use crate::refusal::{Refusal, refuse};

/// Maps device registers, as far as [`build_own_tables`] has not mapped them already.
#[unsafe(link_section = ".text.init")]
pub(crate) fn map_device(mut memory: Memory, range: HpaRange) -> Result<(), Refusal> {
    let start = range.start.page().as_u64();
    let end = range.start.checked_add(range.length);
    let end = end
        .filter(|end| end.as_u64() <= 1 << physical_bits())
        .ok_or_else(|| refuse!("{} is beyond the CPU's physical addresses", range.start))?;
    let end = end.align_up(PAGE_SIZE).ok_or_else(out_of_memory)?.as_u64();
    let (to, length, access) = (Hpa::new(start), end - start, Rights::READ_WRITE);
    // The entries were absent, and absent entries are not cached (SDM "Caching Translation Information").
    with_own_table(|table| {
        let kind = MemoryType::Uncached;
        table.map_missing(&mut memory, start, to, length, access, kind)
    })
    .map(Added::nothing_cached)
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
    let (at, access) = (start.as_u64(), Rights::READ_WRITE);
    // Of what is replaced this CPU alone has a translation: no other has shown anything.
    with_own_table(|table| table.replace(&mut memory, at, start, length, access, kind))?
        .done_by(drop_translations);
    Ok(())
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
