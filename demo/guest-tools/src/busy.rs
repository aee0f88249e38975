//! Busy time in ticks of the TSC: all that passed, less what threads used up that run only while nobody else
//! does, one on each CPU that the caller may use. So no CPU halts in between, whose time the TSC would count
//! too. In Bochs with one CPU a tick is an instruction.

use core::arch::asm;
use core::arch::x86_64::_rdtsc;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Linux' system call `sched_setscheduler` on x86-64, and the policy that never takes a CPU from anyone.
const SCHED_SETSCHEDULER: u64 = 144;
const SCHED_IDLE: u64 = 5;
/// A turn of [`fill`] that takes this many times the usual was interrupted. A CPU at its lowest frequency stays
/// below, any interrupt's handler is above.
const INTERRUPTED: u64 = 8;
/// Turns from which the usual one is learned.
const LEARNED: usize = 1001;

/// What the thread of a CPU has used up, in ticks. Nobody else's memory lies beside it: its turns would slow down.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Filled(AtomicU64);

/// The threads that fill the gaps. They end with the process.
#[derive(Debug)]
pub struct Busy {
    cpus: Vec<Arc<Filled>>,
    start: u64,
    filled_then: u64,
}

impl Busy {
    /// Begins to count, if the environment asks for it by `BUSY`.
    ///
    /// # Errors
    /// The CPUs are not known.
    pub fn start() -> io::Result<Option<Self>> {
        if std::env::var_os("BUSY").is_none() {
            return Ok(None);
        }
        let allowed = sched_getaffinity(None)?;
        let cpus = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
        let cpus: Vec<Arc<Filled>> = cpus.map(begin).collect();
        let mut busy = Self { cpus, start: 0, filled_then: 0 };
        (busy.start, busy.filled_then) = (tsc(), busy.filled());
        Ok(Some(busy))
    }

    /// Ticks since, of all these CPUs together.
    #[must_use]
    pub fn so_far(&self) -> u64 {
        let all = (tsc() - self.start) * self.cpus.len() as u64;
        all.saturating_sub(self.filled() - self.filled_then)
    }

    fn filled(&self) -> u64 {
        self.cpus.iter().map(|cpu| cpu.0.load(Ordering::Relaxed)).sum()
    }
}

/// Starts a CPU's thread, and waits until it knows itself: its start is not the work's.
fn begin(cpu: usize) -> Arc<Filled> {
    let filled = Arc::new(Filled::default());
    let ours = Arc::clone(&filled);
    thread::spawn(move || fill(cpu, &ours.0));
    while filled.0.load(Ordering::Relaxed) == 0 {
        thread::sleep(Duration::from_millis(1));
    }
    filled
}

/// Adds up its turns for ever, behind every other thread.
fn fill(cpu: usize, filled: &AtomicU64) {
    let mut only = CpuSet::new();
    only.set(cpu);
    // It is one of the CPUs that the caller may use.
    let _ = sched_setaffinity(None, &only);
    let parameter = 0_u32;
    // SAFETY: the call reads four bytes; the kernel changes RCX and R11 besides RAX.
    unsafe {
        asm!("syscall", inout("rax") SCHED_SETSCHEDULER => _, in("rdi") 0, in("rsi") SCHED_IDLE,
            in("rdx") &raw const parameter, out("rcx") _, out("r11") _);
    }
    let mut last = tsc();
    let mut turn = || {
        let now = tsc();
        let passed = now.wrapping_sub(last);
        last = now;
        passed
    };
    let mut first = [0; LEARNED];
    first.fill_with(&mut turn);
    let limit = limit(&mut first);
    let mut idle = 0;
    loop {
        let passed = turn();
        if passed < limit {
            idle += passed;
            filled.store(idle, Ordering::Relaxed);
        }
    }
}

/// From where on a turn was interrupted, by the median of some: the least says nothing, as some CPUs' TSC goes
/// in steps that are as long as a turn.
fn limit(turns: &mut [u64; LEARNED]) -> u64 {
    let (_, median, _) = turns.select_nth_unstable(LEARNED / 2);
    INTERRUPTED * *median
}

fn tsc() -> u64 {
    // SAFETY: every x86-64 CPU has it.
    unsafe { _rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_in_which_somebody_else_ran_is_told_by_the_usual_one() {
        let mut turns = [26; LEARNED];
        turns[..5].copy_from_slice(&[1, 1, 52, 4000, 6_000_000]);
        assert_eq!(limit(&mut turns), 8 * 26);
    }
}
