//! The local APIC's timer: once, periodic, and with a deadline of the TSC.

use core::arch::asm;

use arch::msr::IA32_TSC_DEADLINE;
use cpu::instructions::{cpuid, read_msr, tsc, write_msr};

use crate::fact;
use crate::local::{self, set_cr8, write};
use crate::trap::{self, Came, Told};

const ENTRY: u16 = 0x320;
const INITIAL_COUNT: u16 = 0x380;
const CURRENT_COUNT: u16 = 0x390;
const DIVIDE: u16 = 0x3e0;
const MASKED: u32 = 1 << 16;
const PERIODIC: u32 = 1 << 17;
const DEADLINE: u32 = 1 << 18;
const VECTOR: u32 = 0x41;
/// Counts between two ticks: nested in KVM they are nanoseconds, in which a machine that is emulated has executed little.
const PERIOD: u32 = 5_000_000;
/// A deadline that nobody waits for.
const FAR: u64 = 1 << 44;

/// With interrupts on for a longer while: what comes.
fn listen() -> Came {
    // SAFETY: the handlers take whatever comes.
    unsafe { asm!("sti") };
    for _ in 0..200 {
        trap::wait();
    }
    // SAFETY: as above.
    unsafe { asm!("cli") };
    trap::take_came()
}

/// Waits, with interrupts on, until `count` have come.
fn wait_for(count: usize) -> bool {
    let enough = |_| {
        // SAFETY: as for `listen`.
        unsafe { asm!("sti", "nop", "nop", "cli") };
        trap::count() >= count
    };
    (0..20_000_000).any(enough)
}

fn start(entry: u32, count: u32) {
    write(DIVIDE, 0xb);
    write(ENTRY, entry);
    write(INITIAL_COUNT, count);
}

fn once(entry: u32) -> Came {
    start(entry, 1000);
    listen()
}

pub(crate) fn all() {
    let mode = local::mode();
    fact!("timer: {mode}: once"; "{}", once(VECTOR));
    fact!("timer: {mode}: masked"; "{}", once(MASKED | VECTOR));
    set_cr8(4);
    fact!("timer: {mode}: at CR8 = 4"; "{}", once(VECTOR));
    set_cr8(3);
    fact!("timer: {mode}: at CR8 = 3"; "{}", trap::listen());
    set_cr8(0);
    fact!("timer: {mode}: current count after its end"; "{:#x}", local::read(CURRENT_COUNT));
    periodic(mode);
    deadline(mode);
    start(MASKED, 0);
}

fn periodic(mode: &str) {
    start(PERIODIC | VECTOR, PERIOD);
    fact!("timer: {mode}: periodic, three ticks come"; "{}", wait_for(3));
    fact!("timer: {mode}: periodic, it counts again"; "{}", local::read(CURRENT_COUNT) != 0);
    fact!("timer: {mode}: periodic, initial count"; "{}", local::read(INITIAL_COUNT));
    write(INITIAL_COUNT, 0);
    let _ = trap::listen();
    fact!("timer: {mode}: periodic, none after a count of 0"; "{}", listen());
    fact!("timer: {mode}: periodic, current count then"; "{:#x}", local::read(CURRENT_COUNT));
    start(PERIODIC | MASKED | VECTOR, PERIOD);
    fact!("timer: {mode}: periodic and masked"; "{}", listen());
    // The next end of the count, not one that is over.
    write(ENTRY, PERIODIC | VECTOR);
    fact!("timer: {mode}: periodic, not masked any more"; "{}", wait_for(1));
    start(MASKED, 0);
    let _ = trap::listen();
}

fn deadline(mode: &str) {
    // SAFETY: `shown` says that there is one.
    let armed = || unsafe { read_msr(IA32_TSC_DEADLINE) };
    // SAFETY: as above.
    let arm = |deadline| unsafe { write_msr(IA32_TSC_DEADLINE, deadline) };
    let shown = cpuid(1, 0).ecx >> 24 & 1 != 0;
    fact!("timer: {mode}: CPUID shows deadlines"; "{shown}");
    if !shown {
        return;
    }
    arm(tsc() + FAR);
    fact!("timer: {mode}: a deadline in another of its modes"; "{:#x}", armed());
    // The entry is written by the time that the MSR is (SDM "TSC-Deadline Mode").
    let enter = || {
        write(ENTRY, DEADLINE | VECTOR);
        // SAFETY: it orders, and does nothing else.
        unsafe { asm!("mfence") };
    };
    enter();
    fact!("timer: {mode}: its entry with deadlines"; "{:#x}", local::read(ENTRY));
    write(INITIAL_COUNT, 1000);
    let counts = [INITIAL_COUNT, CURRENT_COUNT].map(local::read);
    fact!("timer: {mode}: counts with deadlines"; "{counts:x?}, {}", listen());
    arm(1);
    fact!("timer: {mode}: a deadline in the past"; "{}", listen());
    fact!("timer: {mode}: a deadline in the past, the MSR is 0 then"; "{}", armed() == 0);
    let soon = tsc() + 2_000_000;
    arm(soon);
    fact!("timer: {mode}: a deadline that comes"; "{}, {}", wait_for(1), tsc() >= soon);
    fact!("timer: {mode}: a deadline that comes, which"; "{}", trap::take_came());
    fact!("timer: {mode}: a deadline that comes, the MSR is 0 then"; "{}", armed() == 0);
    let far = tsc() + FAR;
    arm(far);
    fact!("timer: {mode}: a far deadline is kept"; "{}, {}", armed() == far, listen());
    arm(0);
    fact!("timer: {mode}: disarmed by 0"; "{:#x}, {}", armed(), listen());
    arm(far);
    write(ENTRY, VECTOR);
    let other = armed();
    enter();
    fact!("timer: {mode}: disarmed by another mode"; "{}, {}", other == 0, armed() == 0);
    write(ENTRY, MASKED | DEADLINE | VECTOR);
    arm(1);
    fact!("timer: {mode}: a deadline in the past, masked"; "{}", listen());
    fact!("timer: {mode}: a deadline in the past, masked, the MSR is 0 then"; "{}", armed() == 0);
    fact!("timer: {mode}: its entry with both other modes"; "{}", Told(trap::run(entry_of_both, 0)));
    arm(0);
}

/// The reserved mode.
extern "C" fn entry_of_both(_: u64) {
    write(ENTRY, MASKED | PERIODIC | DEADLINE | VECTOR);
}
