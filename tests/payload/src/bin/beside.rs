//! A guest that computes, or one that floods its console beside it. The first measures its longest gap between two
//! readings of the TSC, while the second is silent and while it floods; then both flood. On Bochs the TSC counts
//! instructions.
#![no_std]
#![no_main]

use core::fmt::Write as _;

use cpu::instructions::tsc;
use payload::{Console, loaded, power_off, say, watchdog_calls};

/// In Bochs a virtual second.
const SECOND: u64 = 50_000_000;
/// Watchdog calls, one a second, while each gap is looked for.
const CALLS: u64 = 1;
/// So long the flood waits for the first gap to be found, and so long it lasts, from this program's start.
const FLOOD: core::ops::Range<u64> = 2 * SECOND..4 * SECOND;

/// The longest gap between two readings while the watchdog calls, and how many calls there were.
fn longest_gap() -> (u64, u64) {
    let before = watchdog_calls();
    let mut longest = 0;
    loop {
        let start = tsc();
        let mut last = start;
        while last - start < SECOND / 4 {
            let now = tsc();
            longest = longest.max(now - last);
            last = now;
        }
        // Asking is an exit, and no part of a gap.
        let calls = watchdog_calls() - before;
        if calls >= CALLS {
            return (longest, calls);
        }
    }
}

fn compute(start: u64) {
    let (alone, calls_alone) = longest_gap();
    let silent = tsc() - start < FLOOD.start;
    while tsc() - start < FLOOD.start + SECOND / 4 {
        core::hint::spin_loop();
    }
    let (beside, calls_beside) = longest_gap();
    let flooded = tsc() - start < FLOOD.end;
    payload::verdict(
        "the gaps are of the time without the flood and of that with it",
        silent && flooded,
        format_args!("{calls_alone} and {calls_beside} calls of the watchdog"),
    );
    say!("longest gap alone: {alone}");
    say!("longest gap beside the flood: {beside}");
    flood(start);
}

/// Writes numbered lines as long as the flood lasts.
fn flood(start: u64) {
    while tsc() - start < FLOOD.start {
        core::hint::spin_loop();
    }
    let mut lines = 0;
    while tsc() - start < FLOOD.end {
        let _ = write!(Console, "line {lines:05} {:-<60}\r\n", "");
        lines += 1;
    }
    say!("lines of the flood: {lines}");
}

#[unsafe(no_mangle)]
extern "C" fn kernel_main(magic: u32, info: u64) -> ! {
    let start = tsc();
    // SAFETY: they are what this function was called with.
    let loaded = unsafe { loaded(magic, info) };
    match loaded.map(|loaded| loaded.command_line) {
        Some("computes") => compute(start),
        Some("floods") => flood(start),
        other => say!("FAILED: neither computes nor floods: {other:?}"),
    }
    say!("done");
    power_off()
}
