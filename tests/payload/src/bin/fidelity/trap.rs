//! Whatever is raised, caught: a table of 256 gates, and a piece of code run so that an exception ends it.

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::fmt;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

pub(crate) use payload::trap::Frame;
use payload::trap::{INTERRUPT_GATE, LIMIT, Table};

payload::stubs!("fidelity", trapped);

// RDI = code, RSI = its argument; an exception in it comes back by `fidelity_resume`.
global_asm!(
    "fidelity_run:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "pushfq",
    "mov [rip + {stack}], rsp",
    "mov rax, rdi",
    "mov rdi, rsi",
    "call rax",
    "fidelity_resume:",
    "mov rsp, [rip + {stack}]",
    "popfq",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    stack = sym STACK,
);

unsafe extern "C" {
    fn fidelity_run(code: u64, argument: u64);
    fn fidelity_resume();
    fn fidelity_stubs();
}

#[repr(align(4096))]
pub(crate) struct Place<T>(pub(crate) UnsafeCell<T>);
// SAFETY: one CPU uses it.
unsafe impl<T> Sync for Place<T> {}

static STACK: AtomicU64 = AtomicU64::new(0);
static CODE: Place<[u8; 4096]> = Place(UnsafeCell::new([0xcc; 4096]));
static TABLE: Table = Table::new();
static SEEN: Place<Option<Seen>> = Place(UnsafeCell::new(None));

/// The vectors from 32 on that have come, in their order.
static CAME: [AtomicU64; 32] = [const { AtomicU64::new(0) }; 32];
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// What ended a piece of code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Seen {
    vector: u64,
    error: u64,
    rflags: u64,
    offset: u64,
}

/// As a fact says it.
pub(crate) struct Told(pub(crate) Option<Seen>);

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const RESUME: u64 = 1 << 16;
        let Some(Seen { vector, error, rflags, offset }) = self.0 else {
            return f.write_str("nothing");
        };
        write!(f, "#{vector}({error:#x}) RF={} at {offset:#x}", u8::from(rflags & RESUME != 0))
    }
}

extern "C" fn trapped(frame: &mut Frame) {
    match frame.vector {
        2 => crate::nmi::came(frame),
        32.. => {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            if let Some(place) = CAME.get(count) {
                place.store(frame.vector, Ordering::Relaxed);
            }
            crate::local::came(frame.vector as u8);
        }
        _ => {
            let offset = frame.rip.wrapping_sub(CODE.0.get() as u64);
            // Elsewhere than in the code of a trial: a compiler decides where.
            let offset = if offset < 4096 { offset } else { 0xffff };
            let Frame { vector, error, rflags, .. } = *frame;
            // SAFETY: one CPU, and nobody reads it now.
            unsafe { *SEEN.0.get() = Some(Seen { vector, error, rflags, offset }) };
            frame.go_on(fidelity_resume as *const (), STACK.load(Ordering::Relaxed));
        }
    }
}

/// Sets a gate of the table: type 14 and the rest as the flags say.
pub(crate) fn set_gate(vector: u8, selector: u64, flags: u64) {
    let address = fidelity_stubs as *const () as u64 + 16 * u64::from(vector);
    TABLE.set_gate(vector, address, selector, flags);
}

/// The same, with the stub of another vector: what comes is told of as that.
pub(crate) fn set_gate_of(vector: u8, other: u8) {
    let address = fidelity_stubs as *const () as u64 + 16 * u64::from(other);
    TABLE.set_gate(vector, address, 8, GATE);
}

/// An interrupt gate, present.
pub(crate) const GATE: u64 = INTERRUPT_GATE;

/// Loads the table with this limit.
pub(crate) fn load(limit: u16) {
    TABLE.load(limit);
}

pub(crate) fn prepare() {
    for vector in 0..=255 {
        set_gate(vector, 8, GATE);
    }
    load(LIMIT);
}

/// Runs `code`; what ended it, if it did not end by itself. Interrupts are as they were.
pub(crate) fn run(code: extern "C" fn(u64), argument: u64) -> Option<Seen> {
    at(code as *const () as u64, argument)
}

/// Runs these bytes, and a RET behind them, with RDI = `argument`.
pub(crate) fn bytes(code: &[u8], argument: u64) -> Option<Seen> {
    let place = CODE.0.get().cast::<u8>();
    for (index, byte) in code.iter().chain(&[0xc3]).enumerate() {
        // SAFETY: nothing runs there now.
        unsafe { place.wrapping_add(index).write_volatile(*byte) };
    }
    at(place as u64, argument)
}

/// Where [`bytes`] runs them.
pub(crate) fn code() -> u64 {
    CODE.0.get() as u64
}

fn at(code: u64, argument: u64) -> Option<Seen> {
    // SAFETY: one CPU, and no trial is on.
    unsafe { *SEEN.0.get() = None };
    // SAFETY: whatever the code does leads back.
    unsafe { fidelity_run(code, argument) };
    // SAFETY: written by the handler of this trial at most.
    unsafe { SEEN.0.get().read_volatile() }
}

/// Vectors that have come since the last call.
pub(crate) struct Came([u8; 32], usize);

impl Came {
    pub(crate) const fn any(&self) -> bool {
        self.1 != 0
    }
}

pub(crate) fn take_came() -> Came {
    let count = COUNT.swap(0, Ordering::Relaxed);
    Came(core::array::from_fn(|index| CAME[index].load(Ordering::Relaxed) as u8), count.min(32))
}

pub(crate) fn any_came() -> bool {
    count() != 0
}

pub(crate) fn count() -> usize {
    COUNT.load(Ordering::Relaxed)
}

impl fmt::Display for Came {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.1 == 0 {
            return f.write_str("none");
        }
        for vector in &self.0[..self.1] {
            write!(f, "{vector:02x} ")?;
        }
        Ok(())
    }
}

/// Long enough for whatever is on its way.
pub(crate) fn wait() {
    for _ in 0..2000 {
        core::hint::spin_loop();
    }
}

/// With interrupts on for a while: what comes.
pub(crate) fn listen() -> Came {
    // SAFETY: the table has a gate for each vector.
    unsafe { asm!("sti") };
    wait();
    // SAFETY: nothing waits for interrupts but this.
    unsafe { asm!("cli") };
    take_came()
}
