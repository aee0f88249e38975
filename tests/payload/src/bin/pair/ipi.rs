//! Interprocessor interrupts of every kind to CPUs that run and let them in (SDM "Interrupt Command Register (ICR)",
//! "Determining IPI Destination").

use core::sync::atomic::Ordering::SeqCst;

use crate::other::{self, ASSERT, NMI};
use crate::trap::{self, HELD, HOLD, HOLDS, MARKER, pause, wait_until};
use crate::{fact, local};

pub(crate) const FIXED: u32 = ASSERT | 0x51;
const LOWEST: u32 = 1 << 8;
const LOGICAL: u32 = 1 << 11;
const SELF: u32 = 1 << 18;
const ALL: u32 = 2 << 18;
const OTHERS: u32 = 3 << 18;

/// Lets both CPUs take what `work` sends until `expected` have come, and for a while after. What has come on each.
pub(crate) fn arrivals(expected: usize, work: impl FnOnce()) -> [trap::Came; 2] {
    other::begin(other::listen, 0);
    other::wait_for_it();
    trap::interrupts_on();
    work();
    wait_until(|| trap::count(0) + trap::count(1) >= expected);
    mark();
    trap::interrupts_off();
    other::enough();
    other::end();
    [trap::take_came(0), trap::take_came(1)]
}

/// Waits until all fixed interrupts that were sent have come to both CPUs, and a while longer.
pub(crate) fn mark() {
    (0..2).for_each(mark_one);
}

fn told(name: &str, expected: usize, to: u32, how: u32) {
    let mode = local::mode();
    let [own, others] = arrivals(expected, || local::send(to, how));
    fact!("ipi: {mode}: {name}"; "{own}; {others}");
}

pub(crate) fn all() {
    other::run(take_mode, u64::from(local::in_x2apic_mode()));
    let mode = local::mode();
    let _ = local::errors();
    told("to CPU 1", 1, 1, FIXED);
    told("to CPU 0", 1, 0, FIXED);
    told("to CPU 5, which is not there", 0, 5, FIXED);
    fact!("ipi: {mode}: ESR after that"; "{:#x}", local::errors());
    let broadcast = if local::in_x2apic_mode() { u32::MAX } else { 0xff };
    told("broadcast", 2, broadcast, FIXED);
    told("self", 1, 5, SELF | FIXED);
    told("all", 2, 5, ALL | FIXED);
    told("all but self", 1, 5, OTHERS | FIXED);
    if local::in_x2apic_mode() {
        told("to the byte of ones", 0, 0xff, FIXED);
        for set in [1, 2, 3, 0xffff, 0x1_0003, u32::MAX] {
            let expected = if set >> 16 == 1 { 0 } else { (set & 3).count_ones() as usize };
            told_logical("logical", expected, set);
        }
    } else {
        flat_and_cluster();
    }
    lowest_priority("lowest priority, physical, to CPU 1", 1, 0);
    told("level, assert", 1, 1, 1 << 15 | FIXED);
    told("fixed without the level bit", 1, 1, 0x51);
    nmis();
    priorities();
}

extern "C" fn take_mode(x2apic: u64) -> u64 {
    if x2apic != 0 {
        local::enter_x2apic_mode()
    } else {
        local::enter_xapic_mode()
    }
    0
}

fn told_logical(name: &str, expected: usize, set: u32) {
    let mode = local::mode();
    let [own, others] = arrivals(expected, || local::send(set, LOGICAL | FIXED));
    fact!("ipi: {mode}: {name} {set:#x}"; "{own}; {others}");
}

/// The sum: who takes it, the system says.
fn lowest_priority(name: &str, to: u32, logical: u32) {
    let mode = local::mode();
    other::begin(other::listen, 0);
    other::wait_for_it();
    trap::interrupts_on();
    local::send(to, LOWEST | logical | FIXED);
    wait_until(|| trap::count(0) + trap::count(1) >= 1);
    mark();
    trap::interrupts_off();
    other::enough();
    other::end();
    let sum = trap::count(0) + trap::count(1);
    let _ = [trap::take_came(0), trap::take_came(1)];
    fact!("ipi: {mode}: {name}: how many take it"; "{sum}");
}

extern "C" fn take_logical(both: u64) -> u64 {
    local::write(local::DFR, (both >> 32) as u32);
    local::write(local::LDR, (both as u32) << 24);
    0
}

fn flat_and_cluster() {
    let take = |dfr: u32, own: u64, other: u64| {
        take_logical(u64::from(dfr) << 32 | own);
        other::run(take_logical, u64::from(dfr) << 32 | other);
    };
    take(u32::MAX, 0x10, 0x80);
    for (set, expected) in [(0x10, 1), (0x80, 1), (0x90, 2), (0x6f, 0), (0xff, 2), (0, 0)] {
        told_logical("flat", expected, set);
    }
    lowest_priority("flat, lowest priority 0x90", 0x90, LOGICAL);
    take(u32::MAX, 0x30, 0x30);
    told_logical("flat, both the same", 2, 0x20);
    take(0x0fff_ffff, 0x11, 0x22);
    for (set, expected) in [(0x11, 1), (0x22, 1), (0x21, 0), (0x13, 1), (0xf3, 2), (0xf2, 1)] {
        told_logical("cluster", expected, set);
    }
    take(u32::MAX, 1, 2);
}

fn nmis() {
    told("NMI to CPU 1", 1, 1, NMI);
    told("NMI to CPU 0", 1, 0, NMI);
    told("NMI, all but self", 1, 0, OTHERS | NMI);
    told("NMI to CPU 5, which is not there", 0, 5, NMI);
    told("NMI with a vector", 1, 1, NMI | 0x51);
    let mode = local::mode();
    // Three come while one is served: one of them waits, and no more.
    HOLD.store(1, SeqCst);
    HELD.store(0, SeqCst);
    let [own, others] = arrivals(2, || {
        local::send(1, NMI);
        wait_until(|| HELD.load(SeqCst) != 0);
        for _ in 0..3 {
            local::send(1, NMI);
            pause();
        }
        local::send(1, FIXED);
        pause();
        HOLD.store(0, SeqCst);
        wait_until(|| trap::count(1) >= 3);
    });
    fact!("ipi: {mode}: three NMIs and 0x51 while one is served"; "{own}; {others}");
    HOLD.store(1, SeqCst);
    HELD.store(0, SeqCst);
    let [own, others] = arrivals(3, || {
        local::send(1, ASSERT | u32::from(HOLDS));
        wait_until(|| HELD.load(SeqCst) != 0);
        local::send(1, FIXED);
        local::send(1, ASSERT | 0x71);
        local::send(1, ASSERT | u32::from(HOLDS));
        pause();
        HOLD.store(0, SeqCst);
        wait_until(|| trap::count(1) >= 4);
    });
    fact!("ipi: {mode}: 0x51, 0x71 and 0x63 while 0x63 is served, IF = 0"; "{own}; {others}");
}

/// To a CPU with interrupts off, or with a priority.
fn priorities() {
    let mode = local::mode();
    // All of them are in its IRR before it lets them in.
    let later = |vectors: &[u8]| {
        other::begin(other::listen_later, 0);
        other::wait_for_it();
        for vector in vectors {
            local::send(1, ASSERT | u32::from(*vector));
        }
        (0..3).for_each(|_| pause());
        other::enough();
        other::wait_for_it();
        wait_until(|| trap::count(1) >= 1);
        mark_other();
        other::enough();
        other::end();
        trap::take_came(1)
    };
    fact!("ipi: {mode}: 0x51 to a CPU with IF = 0"; "{}", later(&[0x51]));
    fact!("ipi: {mode}: 0x51, 0x71, 0x51, 0x69, 0x52 to a CPU with IF = 0"; "{}", later(&[0x51, 0x71, 0x51, 0x69, 0x52]));
    other::run(set_priority, 0x60);
    fact!("ipi: {mode}: 0x51, 0x6f and 0x71 to a CPU with TPR = 0x60"; "{}", {
        other::begin(other::listen, 0);
        other::wait_for_it();
        for vector in [0x51, 0x6f, 0x71] {
            local::send(1, ASSERT | vector);
        }
        wait_until(|| trap::count(1) >= 1);
        (0..3).for_each(|_| pause());
        other::enough();
        other::end();
        trap::take_came(1)
    });
    fact!("ipi: {mode}: its IRR has 0x51, 0x6f and 0x71"; "{:#x}", other::run(waiting, 0));
    other::begin(listen_with_priority, 0);
    other::wait_for_it();
    wait_until(|| trap::count(1) >= 2);
    mark_other();
    other::enough();
    other::end();
    fact!("ipi: {mode}: they come with TPR = 0"; "{}", trap::take_came(1));
}

/// As [`mark`], of CPU 1 alone.
pub(crate) fn mark_other() {
    mark_one(1);
}

/// As [`mark`], of CPU 0 alone.
pub(crate) fn mark_own() {
    mark_one(0);
}

fn mark_one(cpu: usize) {
    let before = trap::markers(cpu);
    local::send(cpu as u32, ASSERT | u32::from(MARKER));
    wait_until(|| trap::markers(cpu) != before);
    pause();
}

extern "C" fn set_priority(value: u64) -> u64 {
    local::write(local::TPR, value as u32);
    0
}

extern "C" fn listen_with_priority(value: u64) -> u64 {
    set_priority(value);
    other::listen(0)
}

/// Which of three vectors wait.
extern "C" fn waiting(_: u64) -> u64 {
    [0x51, 0x6f, 0x71]
        .iter()
        .fold(0, |all, vector| all << 1 | u64::from(local::bit(local::IRR, *vector)))
}
