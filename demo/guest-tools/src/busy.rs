//! Busy instructions, where the TSC counts instructions (Bochs with one CPU): those that were executed, less
//! those of a thread that runs only while nobody else does. So no CPU halts in between, whose time the
//! TSC would count too.

use core::arch::asm;
use core::arch::x86_64::_rdtsc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Instructions of [`fill`]'s loop.
const LOOP: u64 = 2;
/// Linux' system call `sched_setscheduler` on x86-64, and the policy that never takes a CPU from anyone.
const SCHED_SETSCHEDULER: u64 = 144;
const SCHED_IDLE: u64 = 5;

/// The thread that fills the gaps. It ends with the process.
#[derive(Debug)]
pub struct Busy {
    turns: Arc<AtomicU64>,
    start: u64,
    turns_then: u64,
}

impl Busy {
    /// Begins to count, if the environment asks for it by `BUSY`.
    #[must_use]
    pub fn start() -> Option<Self> {
        std::env::var_os("BUSY")?;
        let turns = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&turns);
        std::thread::spawn(move || fill(&counter));
        // Its start is not the work's: it must have run.
        while turns.load(Ordering::Relaxed) == 0 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let turns_then = turns.load(Ordering::Relaxed);
        Some(Self { turns, start: tsc(), turns_then })
    }

    /// Busy instructions since.
    #[must_use]
    pub fn so_far(&self) -> u64 {
        let all = tsc() - self.start;
        let turns = self.turns.load(Ordering::Relaxed) - self.turns_then;
        all.saturating_sub(turns * LOOP)
    }
}

/// Counts its turns for ever, behind every other thread.
fn fill(turns: &AtomicU64) {
    let parameter = 0_u32;
    // SAFETY: the call reads four bytes; the kernel changes RCX and R11 besides RAX.
    unsafe {
        asm!("syscall", inout("rax") SCHED_SETSCHEDULER => _, in("rdi") 0, in("rsi") SCHED_IDLE,
            in("rdx") &raw const parameter, out("rcx") _, out("r11") _);
    }
    // SAFETY: the counter lives as long as the caller's share in it: for ever.
    unsafe {
        asm!("2:", "inc qword ptr [{turns}]", "jmp 2b", turns = in(reg) turns.as_ptr(),
            options(noreturn));
    }
}

fn tsc() -> u64 {
    // SAFETY: every x86-64 CPU has it.
    unsafe { _rdtsc() }
}
