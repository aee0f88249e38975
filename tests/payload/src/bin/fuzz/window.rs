//! What a trial may point at: pages of RAM, of devices, and of nothing, side by side far above everything else, so that
//! a displacement or a truncated address does not lead to the payload itself.

use core::arch::asm;
use core::cell::UnsafeCell;

use cpu::instructions::cpuid;

use crate::random::Random;

/// Its low half leads to no memory either.
const WINDOW: u64 = 1 << 39 | 0x4000_0000;
const PAGE: u64 = 4096;

#[repr(align(4096))]
struct Frame(UnsafeCell<[u64; 512]>);
// SAFETY: tables are made before the second CPU runs; the rest belongs to the trials of both.
unsafe impl Sync for Frame {}
impl Frame {
    const fn new() -> Self {
        Self(UnsafeCell::new([0; 512]))
    }
    fn address(&self) -> u64 {
        self.0.get() as u64
    }
    fn set(&self, index: usize, value: u64) {
        // SAFETY: the callers' indices are below 512.
        unsafe { self.0.get().cast::<u64>().wrapping_add(index & 511).write_volatile(value) };
    }
}

static POINTERS: Frame = Frame::new();
static DIRECTORY: Frame = Frame::new();
static PAGES: Frame = Frame::new();
static CODE: [Frame; 2] = [const { Frame::new() }; 2];
static ARENA: [Frame; 4] = [const { Frame::new() }; 4];

const CODE_PAGE: u64 = 0;
/// Where in the page an instruction stands.
const START: usize = 0x800;
const ARENA_PAGE: u64 = 2;
/// Behind the arena and the page that is not mapped.
const FURTHER: u64 = ARENA_PAGE + 5;
/// Where the machine has something, and this guest its own or nothing: the I/O APIC, the page of the local APIC, the
/// HPET, the IOMMU, configuration space, memory of others, ROM, nothing, the end of what can be addressed.
const DEVICES: [u64; 16] = [
    0xfed9_0000,
    0xfed9_1000,
    0xfec0_0000,
    0xfec0_1000,
    0xfee0_0000,
    0xfed0_0000,
    0xe000_0000,
    0xe000_1000,
    0xe00f_f000,
    0x100_0000,
    0x1000_0000,
    0x8000_0000,
    0xe_0000,
    0xa_0000,
    0xffff_f000,
    0,
];
const LENGTH: u64 = FURTHER + DEVICES.len() as u64 + 1;

/// Makes it. Everything in it may be used at CPL 3.
pub(crate) fn make() {
    const OPEN: u64 = 7;
    let last = (1_u64 << (cpuid(0x8000_0008, 0).eax & 0xff)) - PAGE;
    let root: u64;
    // SAFETY: a read.
    unsafe { asm!("mov {}, cr3", out(reg) root) };
    let slot = |at: u64, level: u32| (at >> (12 + 9 * level) & 511) as usize;
    POINTERS.set(slot(WINDOW, 2), DIRECTORY.address() | OPEN);
    DIRECTORY.set(slot(WINDOW, 1), PAGES.address() | OPEN);
    let pages = CODE.iter().chain(&ARENA).map(Frame::address);
    for (index, at) in [0, 1, 2, 3, 4, 5].into_iter().zip(pages) {
        PAGES.set(index, at | OPEN);
    }
    for (index, device) in (FURTHER as usize..).zip(DEVICES) {
        PAGES.set(index, if device == 0 { last } else { device } | OPEN);
    }
    let top = (root & !0xfff) as *mut u64;
    // SAFETY: the payload's own table, mapped onto itself; nothing uses this half of the addresses.
    unsafe { top.wrapping_add(slot(WINDOW, 3)).write_volatile(POINTERS.address() | OPEN) };
}

/// Where a CPU's trial begins: everything in its page but the instruction is INT3.
pub(crate) fn code(cpu: usize, instruction: &[u8]) -> u64 {
    const INT3: u64 = 0xcccc_cccc_cccc_cccc;
    let Some(page) = CODE.get(cpu) else { return 0 };
    // The last instruction, or what it wrote there.
    (0..512).for_each(|index| page.set(index, INT3));
    for (index, byte) in instruction.iter().enumerate() {
        let at = page.0.get().cast::<u8>().wrapping_add(START + index);
        // SAFETY: within the page, which is this CPU's.
        unsafe { at.write_volatile(*byte) };
    }
    WINDOW + (CODE_PAGE + cpu as u64) * PAGE + START as u64
}

/// What stands there, sixteen bytes.
pub(crate) fn now(cpu: usize) -> [u64; 2] {
    let page = &CODE[cpu & 1];
    [0, 1].map(|index| {
        let at = page.0.get().cast::<u64>().wrapping_add(START / 8 + index);
        // SAFETY: within the page.
        unsafe { at.read_volatile() }
    })
}

/// Fills the arena: mostly with what is no address.
pub(crate) fn fill(random: &mut Random) {
    for page in &ARENA {
        (0..512).for_each(|index| page.set(index, random.next() | 1 << 62));
    }
}

/// An address to point at: mostly at a beginning or an end.
pub(crate) fn pointer(random: &mut Random) -> u64 {
    let page = match random.below(3) {
        0 => ARENA_PAGE + random.below(5),
        _ => FURTHER + random.below(LENGTH - FURTHER),
    };
    let offset = match random.below(4) {
        0 => random.one_of(&[0, 4, 8, 0x10, 0x20, 0xb0, 0x80, 0x300, 0x310, 0xf0], 0),
        1 => PAGE - random.below(17),
        2 => random.below(64) * 8,
        _ => random.below(PAGE),
    };
    WINDOW + page * PAGE + offset
}
