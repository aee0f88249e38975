//! Two CPUs: a message goes to the other one while one is under way.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, Ordering};

use arch::{Hpa, msr};
use cpu::instructions::{cpuid, tsc, write_msr};
use cpu::start::StartPage;
use payload::say;
use x86_64::instructions::interrupts;
use x86_64::registers::control::Cr3;

use crate::delays::{Tally, interrupt_exits};
use crate::interrupts::{FIRST, WAKE, all_taken, load, taken};
use payload::controller::Controller;

const START_PAGE: Hpa = Hpa::new(0x1_0000);
const LONGEST: u32 = 24_000;
const STEP: usize = 93;

/// What CPU 1 does meanwhile.
static WORK: AtomicU32 = AtomicU32::new(SPIN);
const SPIN: u32 = 0;
const EXIT: u32 = 1;
const HALT: u32 = 2;
/// CPU 1 is there.
static ENTERED: AtomicU32 = AtomicU32::new(0);
/// Exits by interrupts that CPU 1 has counted, and whether it is to count.
static COUNTED: AtomicU32 = AtomicU32::new(0);
const COUNT: u32 = 3;

#[repr(align(16))]
struct Stack(UnsafeCell<[u8; 16384]>);
// SAFETY: CPU 1 alone uses it.
unsafe impl Sync for Stack {}
static STACK: Stack = Stack(UnsafeCell::new([0; 16384]));

extern "C" fn second(_: u64) -> ! {
    // The start page's table of segments stays where it is; its 64-bit code segment is loaded already.
    load::<1>();
    interrupts::enable();
    ENTERED.store(1, Ordering::SeqCst);
    loop {
        match WORK.load(Ordering::SeqCst) {
            SPIN => core::hint::spin_loop(),
            EXIT => {
                let _ = cpuid(0, 0);
            }
            COUNT => {
                COUNTED.store(interrupt_exits() as u32, Ordering::SeqCst);
                WORK.store(SPIN, Ordering::SeqCst);
            }
            _ => {
                interrupts::disable();
                if WORK.load(Ordering::SeqCst) == HALT {
                    interrupts::enable_and_hlt();
                }
                interrupts::enable();
            }
        }
    }
}

/// A write of ICR.
fn send(kind: u64) {
    const TO_CPU_1: u64 = 1 << 32;
    const ASSERT: u64 = 1 << 14;
    // SAFETY: the guest's own second CPU.
    unsafe { write_msr(msr::IA32_X2APIC_ICR, TO_CPU_1 | ASSERT | kind) };
}

fn wait_until(holds: impl Fn() -> bool) -> bool {
    const PATIENCE: u64 = 20_000_000;
    let start = tsc();
    while !holds() {
        if tsc() - start > PATIENCE {
            return false;
        }
        core::hint::spin_loop();
    }
    true
}

/// Has CPU 1 do something else, even if it sleeps.
fn order(work: u32) {
    WORK.store(work, Ordering::SeqCst);
    let before = taken(1, WAKE);
    send(u64::from(WAKE));
    wait_until(|| taken(1, WAKE) != before);
}

fn exits_of_both() -> u64 {
    order(COUNT);
    wait_until(|| WORK.load(Ordering::SeqCst) == SPIN);
    u64::from(COUNTED.load(Ordering::SeqCst)) + interrupt_exits()
}

fn bring_up() -> bool {
    const INIT: u64 = 5 << 8;
    const START: u64 = 6 << 8 | START_PAGE.as_u64() >> 12;
    // SAFETY: nothing of the guest is there.
    let mut page = unsafe { StartPage::new(START_PAGE) };
    let stack = STACK.0.get() as u64 + size_of::<Stack>() as u64;
    let root = Hpa::new(Cr3::read().0.start_address().as_u64());
    page.prepare(root, stack, second, 0);
    send(INIT);
    send(START);
    wait_until(|| ENTERED.load(Ordering::SeqCst) != 0)
}

pub(crate) fn every_move(device: Controller) {
    if !bring_up() {
        return say!("FAILED: the second CPU does not start");
    }
    // The first event of each CPU has its shadow IDT put in place, which is an exit of its own.
    for cpu in [1, 0] {
        device.route(0, cpu, FIRST);
        device.send_in(1, 0);
        wait_until(|| taken(cpu as usize, FIRST) != 0);
    }
    let before_all = exits_of_both();
    for (what, work) in [("spins", SPIN), ("exits", EXIT), ("halts", HALT)] {
        order(work);
        for masked in [true, false] {
            let mut tally = Tally::default();
            let mut cpu = 0;
            for ticks in (1..=LONGEST).step_by(STEP) {
                cpu ^= 1;
                let before = all_taken();
                device.send_in(ticks, 0);
                if masked {
                    device.route(0, cpu, FIRST);
                } else {
                    device.change_cpu_in_place(cpu);
                }
                device.finish();
                wait_until(|| all_taken() != before);
                // A second one would be on its way to the other CPU.
                (0..200).for_each(|_| core::hint::spin_loop());
                tally.count(all_taken() - before);
            }
            let how = if masked { "masked" } else { "in place" };
            tally.tell("a message comes once while it moves to the other CPU", how);
            say!("moves while CPU 1 {what}, {how}: {}", tally.sent);
        }
    }
    order(SPIN);
    say!("exits by all moves: {}", exits_of_both() - before_all);
}
