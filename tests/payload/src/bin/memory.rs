//! A guest that looks at all of its RAM, above 4 GiB too: it is fresh, each page is a page of its own, and it keeps
//! what is written.
//!
//! Its loader's page table shows the first 4 GiB. This builds one that shows all of the memory map.
#![no_std]
#![no_main]

use core::arch::asm;

use arch::address::{HpaRange, PAGE_SIZE};
use arch::{Hpa, PageSize};
use boot::{BootInfo, MemoryKind};
use cpu::physical::pointer;
use mem::{Added, HostFormat, MapError, MemoryType, Pages, Rights, Table, TableMemory, Word};
use payload::{loaded, power_off, say, verdict};

/// One word of memory is looked at in each of these, and the last one of each region.
const STRIDE: u64 = 2 << 20;
const FOUR_GIB: u64 = 1 << 32;
/// Where the page tables go: behind the image, where no loader puts anything in a guest of 64 MiB or more.
const TABLES: Hpa = Hpa::new(0x200_0000);
const TABLES_END: Hpa = Hpa::new(0x280_0000);

/// Where the next page for a table is.
struct Next(Hpa);

impl TableMemory for Next {
    type Pool = Self;

    fn read(&self, at: Word<'_, Self>) -> u64 {
        // SAFETY: of a page that this handed out, below 4 GiB and so mapped.
        unsafe { pointer::<u64>(at.address()).read_volatile() }
    }

    fn write(&mut self, at: Word<'_, Self>, value: u64) {
        // SAFETY: as for `read`.
        unsafe { pointer::<u64>(at.address()).write_volatile(value) };
    }

    fn allocate_contiguous(&mut self, bytes: u64) -> Option<Pages<Self>> {
        let range = HpaRange { start: self.0, length: bytes.next_multiple_of(PAGE_SIZE) };
        self.0 = range.end();
        // The RAM of a guest is zero when the guest starts.
        (self.0 <= TABLES_END).then(|| Pages::of(self, range))
    }

    fn free(&mut self, _: Pages<Self>) {}
}

/// Maps all that the memory map calls usable, the first 4 GiB whatever they are.
fn show_everything(info: &BootInfo<'_>) -> Result<(), MapError> {
    let mut pages = Next(TABLES);
    let mut table = Table::new(HostFormat { largest: PageSize::Size2M }, &mut pages)?;
    let low = HpaRange { start: Hpa::new(0), length: FOUR_GIB };
    let high = usable(info).filter(|range| range.end().as_u64() > FOUR_GIB);
    for range in core::iter::once(low).chain(high) {
        let (at, length) = (range.start, range.length);
        table
            .map(&mut pages, at.as_u64(), at, length, Rights::ALL, MemoryType::WriteBack)
            .map(Added::nothing_cached)?;
    }
    // SAFETY: the table shows what the loader's did, at the same place.
    unsafe { asm!("mov cr3, {}", in(reg) table.root().as_u64(), options(nostack)) };
    Ok(())
}

fn usable(info: &BootInfo<'_>) -> impl Iterator<Item = HpaRange> {
    let regions = info.memory.iter().filter(|region| region.kind == MemoryKind::Usable);
    regions.map(|region| region.range)
}

/// The words to look at: none that the loader or this program uses.
fn places(info: &BootInfo<'_>) -> impl Iterator<Item = Hpa> {
    const OWN: u64 = TABLES_END.as_u64();
    usable(info)
        .flat_map(move |range| {
            let (start, last) =
                (range.start.as_u64().max(OWN), range.end().as_u64().saturating_sub(8));
            let steps = (start.next_multiple_of(STRIDE)..last).step_by(STRIDE as usize);
            steps.chain((last > start).then_some(last)).map(Hpa::new)
        })
        .filter(|at| {
            let word = HpaRange { start: *at, length: 8 };
            !info.occupied().any(|taken| taken.overlaps(word))
        })
}

/// What is written at `at`: no two places have the same.
const fn mark(at: Hpa) -> u64 {
    at.as_u64() ^ 0x6d65_6d6f_7279_0000
}

fn look_at_everything(info: &BootInfo<'_>) {
    let (mut fresh, mut kept, mut all, mut above) = (0, 0, 0, 0);
    for at in places(info) {
        // SAFETY: RAM of the guest that nobody uses.
        fresh += u64::from(unsafe { pointer::<u64>(at).read_volatile() } == 0);
        // SAFETY: as above.
        unsafe { pointer::<u64>(at).write_volatile(mark(at)) };
        all += 1;
        above += u64::from(at.as_u64() >= FOUR_GIB);
    }
    for at in places(info) {
        // SAFETY: as above.
        kept += u64::from(unsafe { pointer::<u64>(at).read_volatile() } == mark(at));
    }
    let seen = format_args!("{fresh} of {all} words, {above} of them above 4 GiB");
    verdict("its memory is fresh", fresh == all && all > 0, seen);
    verdict("each page of it is its own", kept == all, format_args!("{kept} of {all} words"));
}

#[unsafe(no_mangle)]
extern "C" fn kernel_main(magic: u32, info: u64) -> ! {
    // SAFETY: these are the arguments of `kernel_main`.
    let Some(info) = (unsafe { loaded(magic, info) }) else { power_off() };
    for range in usable(&info) {
        say!("RAM from {} to {}", range.start, range.end());
    }
    match show_everything(&info) {
        Ok(()) => look_at_everything(&info),
        Err(error) => say!("FAILED: {error}"),
    }
    say!("done");
    power_off()
}
