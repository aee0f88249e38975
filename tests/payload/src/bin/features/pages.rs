//! A tree of page tables of its own, from 512 GiB on, for the trials' accesses: one way down, with pages of every size.

use core::arch::asm;

use crate::trial::{self, Place};

/// Where the tree begins: entry 1 of the PML4.
pub(crate) const BASE: u64 = 1 << 39;
/// The code of the trials, for CPL 3.
pub(crate) const CODE: u64 = BASE;
/// The pages behind it.
pub(crate) const STACK: usize = 1;
pub(crate) const TARGET: usize = 2;
/// Behind the target, and never there.
pub(crate) const HOLE: usize = 3;
pub(crate) const LDT: usize = 4;
pub(crate) const OTHER: usize = 5;
pub(crate) const REGISTERS: usize = 6;
/// A page of 2 MiB, and one of 1 GiB, both of the first GiB of memory.
pub(crate) const LARGE: u64 = BASE + (2 << 20);
pub(crate) const HUGE: u64 = BASE + (1 << 30);
/// The trials' code and stack once more for 32-bit code, where neither memory nor a device is.
pub(crate) const LOW_CODE: u64 = 0xd000_0000;
pub(crate) const LOW_STACK: u64 = LOW_CODE + 0x1000;
pub(crate) const LOW_TARGET: u64 = LOW_CODE + 0x2000;

pub(crate) const PRESENT: u64 = 1;
pub(crate) const WRITE: u64 = 2;
pub(crate) const USER: u64 = 4;
pub(crate) const ACCESSED: u64 = 0x20;
pub(crate) const DIRTY: u64 = 0x40;
pub(crate) const SIZE: u64 = 0x80;
pub(crate) const GLOBAL: u64 = 0x100;
pub(crate) const NO_EXECUTE: u64 = 1 << 63;
pub(crate) const ALL: u64 = PRESENT | WRITE | USER;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The tables: entries of the PML4, its pointers, a directory and pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Level {
    Pml4e,
    Pdpte,
    Pde,
    Pte,
}

impl Level {
    pub(crate) const EVERY: [(Self, &'static str); 4] =
        [(Self::Pml4e, "PML4E"), (Self::Pdpte, "PDPTE"), (Self::Pde, "PDE"), (Self::Pte, "PTE")];
}

type Entries = [u64; 512];
static POINTERS: Place<Entries> = Place::new([0; 512]);
static DIRECTORY: Place<Entries> = Place::new([0; 512]);
static PAGES: Place<Entries> = Place::new([0; 512]);
static LOW_PAGES: Place<Entries> = Place::new([0; 512]);
static DATA: Place<[[u8; 4096]; 8]> = Place::new([[0; 4096]; 8]);

/// The address of a page of the tree.
pub(crate) const fn at(page: usize) -> u64 {
    BASE + 4096 * page as u64
}

/// What is behind a page, as memory.
pub(crate) fn data(page: usize) -> *mut u8 {
    DATA.0.get().cast::<u8>().wrapping_add(4096 * page)
}

pub(crate) fn cr3() -> u64 {
    let value;
    // SAFETY: a read.
    unsafe { asm!("mov {}, cr3", out(reg) value) };
    value
}

/// The entry that leads to the tree's small pages at `level`; of the PTEs that of [`TARGET`].
pub(crate) fn entry(level: Level) -> *mut u64 {
    match level {
        Level::Pml4e => ((cr3() & ADDRESS) as *mut u64).wrapping_add(1),
        Level::Pdpte => POINTERS.0.get().cast(),
        Level::Pde => DIRECTORY.0.get().cast(),
        Level::Pte => page_entry(TARGET),
    }
}

pub(crate) fn page_entry(page: usize) -> *mut u64 {
    PAGES.0.get().cast::<u64>().wrapping_add(page)
}

/// The entry of [`LARGE`], and that of [`HUGE`].
pub(crate) fn large_entry() -> *mut u64 {
    DIRECTORY.0.get().cast::<u64>().wrapping_add(1)
}

pub(crate) fn huge_entry() -> *mut u64 {
    POINTERS.0.get().cast::<u64>().wrapping_add(1)
}

pub(crate) fn read(entry: *mut u64) -> u64 {
    // SAFETY: an entry of these tables.
    unsafe { entry.read_volatile() }
}

/// Writes an entry and drops what the TLB has, global pages aside.
pub(crate) fn write(entry: *mut u64, value: u64) {
    // SAFETY: the CPU's own walk apart, only the trials look there.
    unsafe { entry.write_volatile(value) };
    flush();
}

pub(crate) fn flush() {
    // SAFETY: the tables stay the same.
    unsafe { asm!("mov {0}, cr3", "mov cr3, {0}", out(reg) _) };
}

/// Maps `page` of the tree to the data of its number.
pub(crate) fn map(page: usize, flags: u64) {
    map_to(page, data(page) as u64, flags);
}

pub(crate) fn map_to(page: usize, to: u64, flags: u64) {
    write(page_entry(page), to | flags);
}

/// Everything there for CPL 3, pages of other sizes aside.
pub(crate) fn prepare() {
    write(entry(Level::Pml4e), POINTERS.address() | ALL);
    write(entry(Level::Pdpte), DIRECTORY.address() | ALL);
    write(entry(Level::Pde), PAGES.address() | ALL);
    map_to(0, trial::code(), ALL);
    for page in [STACK, TARGET, LDT, OTHER] {
        map(page, ALL);
    }
    map_to(REGISTERS, 0xfec0_0000, ALL);
    // 2 MiB of the first 4 GiB, which the loader's tables map by large pages.
    let low = ((read(pml4_entry(0)) & ADDRESS) as *mut u64).wrapping_add(3);
    write(pml4_entry(0), read(pml4_entry(0)) | USER);
    write(low, read(low) | USER);
    let directory = ((read(low) & ADDRESS) as *mut u64).wrapping_add(0x80);
    let low_page = |index: usize, to: u64| {
        write(LOW_PAGES.0.get().cast::<u64>().wrapping_add(index), to | ALL);
    };
    low_page(0, trial::code());
    low_page(1, data(STACK) as u64);
    low_page(2, data(TARGET) as u64);
    write(directory, LOW_PAGES.address() | ALL);
}

fn pml4_entry(index: usize) -> *mut u64 {
    ((cr3() & ADDRESS) as *mut u64).wrapping_add(index)
}
