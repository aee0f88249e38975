//! The second CPU: it is started, does what it is told, and is stopped.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

use arch::Hpa;
use cpu::instructions::{cpuid, tsc};
use cpu::start::StartPage;
use x86_64::instructions::segmentation::{CS, Segment};
use x86_64::instructions::tables::{lgdt, sgdt};
use x86_64::registers::control::Cr3;
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::gdt::SegmentSelector;

use crate::trap::{self, Place, pause, spin, wait_until};
use crate::{capture, local, state};

pub(crate) const START_PAGE: Hpa = Hpa::new(0x1_0000);

pub(crate) const ASSERT: u32 = 1 << 14;
pub(crate) const NMI: u32 = ASSERT | 4 << 8;
pub(crate) const INIT: u32 = ASSERT | 5 << 8;
pub(crate) const START: u32 = ASSERT | 6 << 8 | capture::VECTOR;

/// What it does: a function's address; 0 once it has done so.
static WORK: AtomicU64 = AtomicU64::new(0);
static ARGUMENT: AtomicU64 = AtomicU64::new(0);
static ANSWER: AtomicU64 = AtomicU64::new(0);
/// How often it has come to its loop.
static ENTRIES: AtomicU32 = AtomicU32::new(0);
/// It is at work, or lets interrupts in.
static READY: AtomicU32 = AtomicU32::new(0);
/// It is to let no more in.
static ENOUGH: AtomicU32 = AtomicU32::new(0);

/// CPU 0's GDT: base in 47:0, limit above.
static GDT: AtomicU64 = AtomicU64::new(0);

#[repr(align(16))]
struct Stack(#[expect(dead_code, reason = "it is reached by address")] [u8; 16384]);
// The second CPU alone uses it.
static STACK: Place<Stack> = Place(UnsafeCell::new(Stack([0; 16384])));

extern "C" fn second(_: u64) -> ! {
    // What the start page has not touched.
    state::take();
    let gdt = GDT.load(SeqCst);
    let base = x86_64::VirtAddr::new(gdt & 0xffff_ffff_ffff);
    // SAFETY: the table is CPU 0's, whose entry 1 is a 64-bit code segment.
    unsafe { lgdt(&DescriptorTablePointer { limit: (gdt >> 48) as u16, base }) };
    // SAFETY: as above.
    unsafe { CS::set_reg(SegmentSelector(8)) };
    trap::prepare(1);
    ENTRIES.fetch_add(1, SeqCst);
    loop {
        let work = WORK.load(SeqCst);
        if work == 0 {
            spin();
            continue;
        }
        // SAFETY: `begin` stores such functions only.
        let work: extern "C" fn(u64) -> u64 = unsafe { core::mem::transmute(work) };
        ANSWER.store(work(ARGUMENT.load(SeqCst)), SeqCst);
        WORK.store(0, SeqCst);
    }
}

/// Whether this is on its stack.
pub(crate) fn owns(address: u64) -> bool {
    let stack = STACK.0.get() as u64;
    (stack..stack + size_of::<Stack>() as u64).contains(&address)
}

/// For [`start`].
pub(crate) fn prepare() {
    capture::prepare();
    // SAFETY: low memory that nobody uses once the loader is done.
    let mut page = unsafe { StartPage::new(START_PAGE) };
    let stack = STACK.0.get() as u64 + size_of::<Stack>() as u64;
    page.prepare(Hpa::new(Cr3::read().0.start_address().as_u64()), stack, second, 0);
    let gdt = sgdt();
    GDT.store(gdt.base.as_u64() | u64::from(gdt.limit) << 48, SeqCst);
}

pub(crate) fn is_intel() -> bool {
    cpuid(0, 0).ebx.to_le_bytes() == *b"Genu"
}

/// Time for the CPU to hear what was sent, which nothing tells: an emulator's CPU, which is a thread, may be elsewhere.
pub(crate) fn let_it_hear() {
    // Bochs counts instructions, of which it does not carry out so many in a second.
    let ticks = if is_intel() { 1_000_000 } else { 50_000_000 };
    let start = tsc();
    while tsc() - start < ticks {
        pause();
    }
}

/// INIT, and time for it.
pub(crate) fn stop() {
    local::send(1, INIT);
    let_it_hear();
    WORK.store(0, SeqCst);
    READY.store(0, SeqCst);
}

pub(crate) fn entries() -> u32 {
    ENTRIES.load(SeqCst)
}

/// A start-up IPI to the CPU, which waits for one. Whether it has come to its loop.
pub(crate) fn start() -> bool {
    let before = entries();
    local::send(1, START);
    wait_until(|| entries() != before)
}

/// Has it do something.
pub(crate) fn begin(work: extern "C" fn(u64) -> u64, argument: u64) {
    ARGUMENT.store(argument, SeqCst);
    WORK.store(work as *const () as u64, SeqCst);
}

/// Its answer, once it is done; `!0` if that does not come.
pub(crate) fn end() -> u64 {
    if wait_until(|| WORK.load(SeqCst) == 0) { ANSWER.load(SeqCst) } else { !0 }
}

/// Whether it has done it.
pub(crate) fn done() -> bool {
    WORK.load(SeqCst) == 0
}

/// Has it do something to its end; its answer.
pub(crate) fn run(work: extern "C" fn(u64) -> u64, argument: u64) -> u64 {
    begin(work, argument);
    end()
}

/// To be called by its work: it has come to this point.
pub(crate) fn ready() {
    READY.store(1, SeqCst);
}

/// Waits for that.
pub(crate) fn wait_for_it() -> bool {
    let there = wait_until(|| READY.load(SeqCst) != 0);
    READY.store(0, SeqCst);
    there
}

/// To be called by its work: waits until [`enough`].
pub(crate) fn wait_for_enough() {
    while ENOUGH.swap(0, SeqCst) == 0 {
        spin();
    }
}

pub(crate) fn enough() {
    ENOUGH.store(1, SeqCst);
}

/// Interrupts on until [`enough`].
pub(crate) extern "C" fn listen(_: u64) -> u64 {
    trap::interrupts_on();
    ready();
    wait_for_enough();
    trap::interrupts_off();
    0
}

/// As [`listen`] after interrupts were off for as long.
pub(crate) extern "C" fn listen_later(_: u64) -> u64 {
    ready();
    wait_for_enough();
    listen(0)
}

/// HLT with interrupts on until one has come, and then more of it as long as [`enough`] is not said.
pub(crate) extern "C" fn halt(_: u64) -> u64 {
    ready();
    let mut wakes = 0;
    while ENOUGH.load(SeqCst) == 0 {
        // SAFETY: the next interrupt ends it.
        unsafe { asm!("sti", "hlt", "cli") };
        wakes += 1;
    }
    ENOUGH.store(0, SeqCst);
    wakes
}
