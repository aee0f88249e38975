//! Page tables of the payload's own, with all memory for CPL 3, too, and a window of single pages: the IDT's two, the
//! GDT's two, the TSS's, and ten stacks.

use core::arch::asm;
use core::cell::UnsafeCell;

use x86_64::VirtAddr;
use x86_64::structures::DescriptorTablePointer;

use super::{CODE_64, Trial, long_stubs};

pub(crate) const BASE: u64 = 1 << 39;
const PAGE: u64 = 4096;
pub(crate) const PAGES: u64 = 15;
/// Pages of the window. The IDT begins in the middle of its first.
pub(crate) const GATES: u64 = 0;
pub(crate) const IDT_SECOND: u64 = 1;
pub(crate) const FAR_DESCRIPTORS: u64 = 3;
pub(crate) const TASK_PAGE: u64 = 4;
pub(crate) const IDT: u64 = BASE + PAGE / 2;
pub(crate) const GDT: u64 = BASE + 2 * PAGE;
pub(crate) const TSS: u64 = BASE + 4 * PAGE;
const FIRST_STACK: u64 = 5;
/// Stacks: RSP0, one of each IST, the code's own.
pub(crate) const RSP0: u64 = 0;
pub(crate) const MAIN: u64 = 8;
/// Where the code lies: low, for all code segments.
pub(crate) const CODE: u64 = 0x4_0000;

/// The last byte below 4 GiB, and where that is: low memory is mapped there, too.
pub(crate) const LAST: u64 = 0xffff_ffff;
const LAST_BYTE: *mut u8 = 0x1f_ffff as *mut u8;

/// The TSS's selector.
const TASK: u16 = 0x40;
const FOR_USERS: u64 = 0x7;
const LARGE: u64 = 0x87;

/// Where the stack begins: at the end of its page.
pub(crate) const fn top(stack: u64) -> u64 {
    BASE + (FIRST_STACK + stack + 1) * PAGE
}

/// The page of a stack.
pub(crate) const fn page(stack: u64) -> u64 {
    FIRST_STACK + stack
}

type Table = [u64; 512];

#[repr(C, align(4096))]
struct Memory {
    pml4: Table,
    low: Table,
    directories: [Table; 4],
    high: Table,
    high_directory: Table,
    window: Table,
    pages: [Table; PAGES as usize],
}

struct Static(UnsafeCell<Memory>);
// SAFETY: one CPU uses it.
unsafe impl Sync for Static {}
static MEMORY: Static = Static(UnsafeCell::new(Memory {
    pml4: [0; 512],
    low: [0; 512],
    directories: [[0; 512]; 4],
    high: [0; 512],
    high_directory: [0; 512],
    window: [0; 512],
    pages: [[0; 512]; PAGES as usize],
}));

/// The window, in use.
pub(crate) struct Window;

fn memory() -> *mut Memory {
    MEMORY.0.get()
}

fn set(place: *mut u64, value: u64) {
    // SAFETY: of `MEMORY`. What is so already is not written: each write to a table may exit.
    if unsafe { place.read_volatile() } != value {
        // SAFETY: as above.
        unsafe { place.write_volatile(value) };
    }
}

/// The word at this address of the window.
fn word(at: u64) -> *mut u64 {
    // SAFETY: a place in `MEMORY`; nothing is read.
    let pages = unsafe { &raw mut (*memory()).pages }.cast::<u64>();
    pages.wrapping_add(((at - BASE) / 8) as usize)
}

impl Window {
    /// Loads page tables, GDT, IDT and TSS, for good.
    pub(crate) fn enter() {
        let at = memory();
        // SAFETY: nothing uses them yet.
        let memory = unsafe { &mut *at };
        let link = |table: &Table| core::ptr::from_ref(table) as u64 | FOR_USERS;
        (memory.pml4[0], memory.pml4[1]) = (link(&memory.low), link(&memory.high));
        for (gib, directory) in memory.directories.iter_mut().enumerate() {
            memory.low[gib] = core::ptr::from_ref(directory) as u64 | FOR_USERS;
            for (index, entry) in directory.iter_mut().enumerate() {
                *entry = ((512 * gib + index) as u64) << 21 | LARGE;
            }
        }
        memory.directories[3][511] = LARGE;
        memory.high[0] = core::ptr::from_ref(&memory.high_directory) as u64 | FOR_USERS;
        memory.high_directory[0] = core::ptr::from_ref(&memory.window) as u64 | FOR_USERS;
        for (entry, page) in memory.window.iter_mut().zip(&memory.pages) {
            *entry = core::ptr::from_ref(page) as u64 | FOR_USERS;
        }
        let root = core::ptr::from_ref(&memory.pml4) as u64;
        // SAFETY: they map all memory as before.
        unsafe { asm!("mov cr3, {}", in(reg) root) };
        let window = Self;
        window.prepare(&Trial::new(&[]));
        let gdt = DescriptorTablePointer { limit: 0x100f, base: VirtAddr::new(GDT) };
        // SAFETY: its code and data segments are those of before.
        unsafe { x86_64::instructions::tables::lgdt(&gdt) };
        payload::trap::load(IDT, 0xfff);
    }

    /// Puts the code, gates, descriptors and the TSS of `trial` in place.
    pub(super) fn prepare(&self, trial: &Trial<'_>) {
        const BASIC: [u64; 8] = [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_fb00_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            0x00cf_9b00_0000_ffff,
            0x00af_9f00_0000_ffff,
        ];
        const ABSENT: u64 = 0x00af_1b00_0000_ffff;
        for (at, descriptor) in (GDT..).step_by(8).zip(BASIC) {
            set(word(at), descriptor);
        }
        let low =
            trial.task_limit | (TSS & 0xff_ffff) << 16 | 0x89 << 40 | (TSS >> 24 & 0xff) << 56;
        set(word(GDT + u64::from(TASK)), low);
        set(word(GDT + u64::from(TASK) + 8), TSS >> 32);
        set(word(GDT + super::ABSENT), ABSENT);
        set(word(GDT + super::FAR_CODE), BASIC[1]);
        // RSP0 at 4, the ISTs from 0x24 on: halves of words.
        let mut task = [0_u8; 0x68];
        task[4..12].copy_from_slice(&top(RSP0).to_le_bytes());
        for stack in 1..8 {
            let at = 0x1c + 8 * stack as usize;
            task[at..at + 8].copy_from_slice(&top(stack).to_le_bytes());
        }
        for (at, value) in trial.task {
            task[*at..*at + 8].copy_from_slice(&value.to_le_bytes());
        }
        for (at, bytes) in (TSS..).step_by(8).zip(task.as_chunks().0) {
            set(word(at), u64::from_le_bytes(*bytes));
        }
        for vector in 0..=255_u8 {
            let users = matches!(vector, 0x80 | 0xf0 | 0xff);
            let plain = if users { (CODE_64, 0xee, 0) } else { (CODE_64, 0x8e, 0) };
            let own = trial.gates.iter().find(|gate| gate.0 == vector);
            let (selector, flags, stack) = own.map_or(plain, |gate| (gate.1, gate.2, gate.3));
            let stack = if vector == 0xff { 7 } else { stack };
            let handler = long_stubs as *const () as u64 + 16 * u64::from(vector);
            let low = handler & 0xffff | selector << 16 | stack << 32 | flags << 40;
            set(word(IDT + 16 * u64::from(vector)), low | (handler >> 16 & 0xffff) << 48);
            set(word(IDT + 16 * u64::from(vector) + 8), handler >> 32);
        }
        if trial.at == LAST
            && let Some(byte) = trial.code.first()
        {
            // SAFETY: RAM in front of the payload.
            unsafe { LAST_BYTE.write_volatile(*byte) };
        }
        let code = CODE as *mut u8;
        // INT FF behind it.
        for (index, byte) in trial.code.iter().chain(&[0xcd, 0xff]).enumerate() {
            // SAFETY: RAM below 1 MiB that nothing else uses.
            unsafe { code.wrapping_add(index).write_volatile(*byte) };
        }
    }

    /// Loads the TSS, whose descriptor has just been written.
    pub(super) fn load_task(&self) {
        // SAFETY: it is there, and not busy.
        unsafe { asm!("ltr {:x}", in(reg) TASK) };
    }

    /// Has these pages be there, or not.
    pub(super) fn show(&self, pages: &[u64], present: bool) {
        for page in pages {
            // SAFETY: an entry of the window's table; nothing else refers to it now.
            let entry = unsafe { &raw mut (*memory()).window }.cast::<u64>();
            let entry = entry.wrapping_add(*page as usize);
            // SAFETY: as above.
            let before = unsafe { entry.read_volatile() };
            set(entry, before & !1 | u64::from(present));
            let at = BASE + page * PAGE;
            // SAFETY: drops a translation.
            unsafe { asm!("invlpg [{}]", in(reg) at) };
        }
    }
}
