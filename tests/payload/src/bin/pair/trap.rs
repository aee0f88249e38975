//! Whatever is raised, caught, on each CPU by a table of its own: interrupts and NMIs are written down, an exception ends
//! the piece of code that is tried.

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::fmt;
use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};

use cpu::instructions::cpuid;
use payload::trap::{Frame, INTERRUPT_GATE, LIMIT, Table};

use crate::local;

payload::stubs!("pair", trapped);

// RDI = code, RSI = its argument, RDX: where the stack pointer is kept for an exception, which comes back by `pair_resume`.
global_asm!(
    "pair_run:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "sub rsp, 8",
    "mov [rdx], rsp",
    "mov rax, rdi",
    "mov rdi, rsi",
    "call rax",
    "pair_resume:",
    "add rsp, 8",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
);

unsafe extern "C" {
    fn pair_run(code: u64, argument: u64, stack: *const AtomicU64);
    fn pair_resume();
    fn pair_stubs();
}

pub(crate) struct Place<T>(pub(crate) UnsafeCell<T>);
// SAFETY: who uses it when is said where it is used.
unsafe impl<T> Sync for Place<T> {}

/// Tells of the other CPU that nothing else has come since: the lowest priority that a vector can have here.
pub(crate) const MARKER: u8 = 0x21;
/// Its handler is whichever the trial has put there.
pub(crate) const CHANGED: u8 = 0x61;
/// Drops the translation of [`crate::memory::WINDOW`].
pub(crate) const SHOOT_DOWN: u8 = 0x62;
/// Stays in service, and interrupts off, until [`HOLD`] is 0.
pub(crate) const HOLDS: u8 = 0x63;
pub(crate) const NMI: u8 = 2;

static TABLES: [Table; 2] = [const { Table::new() }; 2];
static TRIALS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
/// What ended a trial: vector, error code, CR2. The vector is 0 if nothing did.
static SEEN: [[AtomicU64; 3]; 2] = [const { [const { AtomicU64::new(0) }; 3] }; 2];
/// What has come on each CPU, in its order, the marker apart.
static CAME: [[AtomicU64; 32]; 2] = [const { [const { AtomicU64::new(0) }; 32] }; 2];
static COUNT: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
static MARKERS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
/// While it is not 0 an NMI's handler does not return, nor that of [`HOLDS`]; with 2 the latter's ends none.
pub(crate) static HOLD: AtomicU64 = AtomicU64::new(0);
/// Such a handler has begun.
pub(crate) static HELD: AtomicU64 = AtomicU64::new(0);

extern "C" fn trapped(frame: &mut Frame) {
    // Whose table it is says nothing: both may use one.
    let cpu = usize::from(crate::other::owns(&raw const *frame as u64));
    let vector = frame.vector as u8;
    if vector == MARKER {
        local::write(local::EOI, 0);
        MARKERS[cpu].fetch_add(1, SeqCst);
    } else if vector == NMI || vector >= 32 {
        if vector == SHOOT_DOWN {
            crate::memory::drop_translation();
        }
        write_down(cpu, vector.into());
        if vector == NMI || vector == HOLDS {
            hold();
        }
        if vector != NMI {
            local::write(local::EOI, 0);
        }
    } else {
        let cr2: u64;
        // SAFETY: a read.
        unsafe { asm!("mov {}, cr2", out(reg) cr2) };
        let stack = TRIALS[cpu].load(SeqCst);
        if stack == 0 {
            payload::say!(
                "FAILED: CPU {cpu}: exception {vector}({:#x}) at {:#x}, CR2 {cr2:#x}",
                frame.error,
                frame.rip
            );
            payload::power_off();
        }
        for (place, value) in SEEN[cpu].iter().zip([frame.vector, frame.error, cr2]) {
            place.store(value, SeqCst);
        }
        frame.go_on(pair_resume as *const (), stack);
    }
}

/// Waits in a handler, and a while longer for what was sent meanwhile.
fn hold() {
    if HOLD.load(SeqCst) == 0 {
        return;
    }
    HELD.fetch_add(1, SeqCst);
    while HOLD.load(SeqCst) != 0 {
        spin();
    }
    pause();
}

/// What the handler of [`CHANGED`] writes down may be this instead.
fn write_down(cpu: usize, what: u64) {
    let count = COUNT[cpu].load(SeqCst);
    if let Some(place) = CAME[cpu].get(count) {
        place.store(what, SeqCst);
    }
    COUNT[cpu].store(count + 1, SeqCst);
}

/// Has a gate of CPU `cpu`'s table lead to the handler of another vector, `to`, which writes that down.
pub(crate) fn redirect(cpu: usize, vector: u8, to: u8, present: bool) {
    let flags = if present { INTERRUPT_GATE } else { INTERRUPT_GATE & 0x7f };
    let stub = pair_stubs as *const () as u64 + 16 * u64::from(to);
    TABLES[cpu].set_gate(vector, stub, 8, flags);
}

/// Loads the table of the CPU that calls, `cpu`.
pub(crate) fn prepare(cpu: usize) {
    for vector in 0..=255 {
        redirect(cpu, vector, vector, true);
    }
    load(cpu);
}

/// Loads CPU `of`'s table as it is.
pub(crate) fn load(of: usize) {
    TABLES[of].load(LIMIT);
}

/// What ended a piece of code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Seen {
    vector: u64,
    error: u64,
    cr2: u64,
}

impl Seen {
    pub(crate) const NOTHING: Self = Self { vector: 0, error: 0, cr2: 0 };
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.vector {
            0 => f.write_str("nothing"),
            14 => write!(f, "#14({:#x}) CR2={:#x}", self.error, self.cr2),
            _ => write!(f, "#{}({:#x})", self.vector, self.error),
        }
    }
}

/// Runs `code` on the CPU that calls, `cpu`; what ended it, if it did not end by itself: then interrupts are off.
pub(crate) fn run(cpu: usize, code: extern "C" fn(u64), argument: u64) -> Seen {
    let [vector, error, cr2] = &SEEN[cpu];
    vector.store(0, SeqCst);
    // SAFETY: whatever the code does leads back.
    unsafe { pair_run(code as *const () as u64, argument, &raw const TRIALS[cpu]) };
    TRIALS[cpu].store(0, SeqCst);
    Seen { vector: vector.load(SeqCst), error: error.load(SeqCst), cr2: cr2.load(SeqCst) }
}

/// What has come on a CPU since the last call.
pub(crate) struct Came(usize, usize);

impl fmt::Display for Came {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(cpu, count) = *self;
        if count == 0 {
            return f.write_str("none");
        }
        for (index, place) in CAME[cpu][..count.min(32)].iter().enumerate() {
            write!(f, "{}{:02x}", if index == 0 { "" } else { " " }, place.load(SeqCst))?;
        }
        Ok(())
    }
}

pub(crate) fn take_came(cpu: usize) -> Came {
    Came(cpu, COUNT[cpu].swap(0, SeqCst))
}

pub(crate) fn count(cpu: usize) -> usize {
    COUNT[cpu].load(SeqCst)
}

pub(crate) fn markers(cpu: usize) -> u64 {
    MARKERS[cpu].load(SeqCst)
}

/// Both CPUs share one, as in nested KVM.
pub(crate) static SHARED: AtomicBool = AtomicBool::new(false);

/// One turn of a loop that waits for the other CPU. Where they share one, it is CPUID now and then, which exits: Bochs
/// leaves a guest that it has entered with interrupts off alone (B1 in `docs/known-issues.md`), and the other would not run.
pub(crate) fn spin() {
    static TURNS: AtomicU32 = AtomicU32::new(0);
    if SHARED.load(SeqCst) && TURNS.fetch_add(1, SeqCst).is_multiple_of(1024) {
        let _ = cpuid(0, 0);
    }
    spin_loop();
}

/// Long enough for whatever is on its way.
pub(crate) fn pause() {
    for _ in 0..3000 {
        spin();
    }
}

/// Waits until `holds`, for a long while at most.
pub(crate) fn wait_until(holds: impl Fn() -> bool) -> bool {
    const TURNS: u32 = 4_000_000;
    (0..TURNS).any(|_| {
        spin();
        holds()
    })
}

pub(crate) fn interrupts_on() {
    // SAFETY: each table has a gate for each vector.
    unsafe { asm!("sti", "nop") };
}

pub(crate) fn interrupts_off() {
    // SAFETY: nothing waits for interrupts but this payload.
    unsafe { asm!("cli") };
}
