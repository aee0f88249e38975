//! The APIC timer, HLT, and the watchdog.

use arch::msr;
use cpu::instructions::{cpuid, tsc, write_msr};
use payload::{Counter, exits, exits_during, say, verdict, watchdog_calls};
use x86_64::instructions::interrupts;

use crate::idt::{TIMER_VECTOR, taken};

/// Arms a timer, sleeps, and is woken by it; a hundred times.
fn sleep_a_hundred_times(kind: &str, arm: impl Fn()) {
    let mut seen = 0;
    let spent = exits_during(|| {
        seen = taken(|| {
            for _ in 0..100 {
                interrupts::disable();
                arm();
                // Interrupts on and HLT in one go, so that the wake-up is not lost.
                interrupts::enable_and_hlt();
            }
        });
    });
    verdict("a halted CPU wakes for each timer interrupt", seen == 100, format_args!("{seen}"));
    say!("exits for 100 {kind} timers armed, slept for and ended: {spent}");
}

pub(crate) fn one_shot_costs() {
    const DIVIDE_BY_1: u64 = 0xb;
    // SAFETY: the guest's own timer.
    unsafe { write_msr(msr::IA32_X2APIC_DIV_CONF, DIVIDE_BY_1) };
    // SAFETY: as above; one-shot, not masked.
    unsafe { write_msr(msr::IA32_X2APIC_LVT_TIMER, u64::from(TIMER_VECTOR)) };
    sleep_a_hundred_times("one-shot", || {
        // SAFETY: as above.
        unsafe { write_msr(msr::IA32_X2APIC_INIT_COUNT, 10_000) };
    });
}

pub(crate) fn deadline_costs() {
    const TSC_DEADLINE: u32 = 1 << 24;
    const DEADLINE_MODE: u64 = 2 << 17;
    if cpuid(1, 0).ecx & TSC_DEADLINE == 0 {
        return say!("this CPU has no TSC-deadline timer");
    }
    // SAFETY: the guest's own timer, in a mode that the CPU has.
    unsafe { write_msr(msr::IA32_X2APIC_LVT_TIMER, DEADLINE_MODE | u64::from(TIMER_VECTOR)) };
    sleep_a_hundred_times("deadline", || {
        // SAFETY: as above.
        unsafe { write_msr(msr::IA32_TSC_DEADLINE, tsc() + 10_000) };
    });
}

/// The TSC's frequency where CPUID tells it (SDM "Time Stamp Counter and Nominal Core Crystal Clock
/// Information Leaf"), or more than any CPU's.
fn ticks_a_second() -> u64 {
    let leaf = cpuid(0x15, 0);
    match u64::from(leaf.eax) {
        0 => 5_000_000_000,
        denominator => u64::from(leaf.ecx) * u64::from(leaf.ebx) / denominator,
    }
}

/// With interrupts off nothing but the watchdog can take the CPU from the guest.
pub(crate) fn watchdog_comes_back() {
    let max_ticks = 20 * ticks_a_second();
    interrupts::disable();
    let before = watchdog_calls();
    let start = tsc();
    // The readings exit, too: the watchdog must not start again at each.
    while watchdog_calls() == before && tsc() - start < max_ticks {
        for _ in 0..100_000 {
            core::hint::spin_loop();
        }
    }
    let calls = watchdog_calls() - before;
    interrupts::enable();
    verdict(
        "the watchdog calls the host back while the guest has interrupts off",
        calls > 0,
        format_args!("{calls} calls"),
    );
    say!("nmi exits: {}", exits(Counter::Nmi));
    say!("preemption_timer exits: {}", exits(Counter::PreemptionTimer));
}
