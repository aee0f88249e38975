//! Delivery in long mode: a piece of code run with any CS, SS, RFLAGS and stack, tables and stacks whose pages can be taken
//! away, and what the handlers of its exceptions and interrupts find.

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use arch::msr::IA32_X2APIC_EOI;
use cpu::instructions::write_msr;
use payload::trap::Frame;

use window::{CODE, GATES, MAIN, Window};

pub(crate) mod window;

/// Selectors.
pub(crate) const CODE_64: u64 = 0x08;
pub(crate) const DATA: u64 = 0x10;
pub(crate) const USER_32: u64 = 0x1b;
pub(crate) const USER_DATA: u64 = 0x23;
pub(crate) const USER_64: u64 = 0x2b;
pub(crate) const CODE_32: u64 = 0x30;
pub(crate) const CONFORMING: u64 = 0x38;
pub(crate) const ABSENT: u64 = 0x50;
/// In the GDT's second page.
pub(crate) const FAR_CODE: u64 = 0x1008;
/// The gate by which a piece of code ends.
const END: u8 = 0xff;
/// What follows SYSCALL and SYSENTER.
const SYSTEM_CALL: u8 = 0xf0;
/// Of a handler's flags what its code does not change: TF, IF, NT, RF, VM, AC.
const KEPT: u64 = 0x7_4300;
pub(crate) const SELF_IPI: u32 = 0x83f;

payload::stubs!("long", caught);

// `long_run`: RDI = RIP, CS, RFLAGS, RSP, SS for IRETQ, RSI = what DS, ES and RAX get.
global_asm!(
    ".global long_resume",
    "long_resume:",
    "mov eax, 16",
    "mov ds, eax",
    "mov es, eax",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    ".global long_run",
    "long_run:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [rip + {stack}], rsp",
    "push qword ptr [rdi + 32]",
    "push qword ptr [rdi + 24]",
    "push qword ptr [rdi + 16]",
    "push qword ptr [rdi + 8]",
    "push qword ptr [rdi]",
    "mov ds, esi",
    "mov es, esi",
    "mov eax, esi",
    "xor ecx, ecx",
    "xor edx, edx",
    "xor edi, edi",
    "iretq",
    // For SYSCALL and SYSENTER: what they leave, as an event.
    ".global long_system_call",
    "long_system_call:",
    "int 0xf0",
    stack = sym STACK,
);

unsafe extern "C" {
    fn long_resume();
    fn long_run(frame: &[u64; 5], data: u64);
    pub(crate) fn long_stubs();
    pub(crate) fn long_system_call();
}

static STACK: AtomicU64 = AtomicU64::new(0);
static RETURNS: AtomicU64 = AtomicU64::new(0);

#[derive(Clone, Copy)]
struct Note {
    vector: u8,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
    /// Where the frame ends.
    at: u64,
    cr2: u64,
    /// CS and flags of the handler.
    own: [u64; 2],
    /// RCX and R11.
    registers: [u64; 2],
}

struct Notes(UnsafeCell<([Note; 8], usize)>);
// SAFETY: one CPU uses it.
unsafe impl Sync for Notes {}
static NOTES: Notes = Notes(UnsafeCell::new(([NOTHING; 8], 0)));
const NOTHING: Note = Note {
    vector: 0,
    error: 0,
    rip: 0,
    cs: 0,
    rflags: 0,
    rsp: 0,
    ss: 0,
    at: 0,
    cr2: 0,
    own: [0; 2],
    registers: [0; 2],
};

/// Writes down what came, and returns to the trial or ends it.
extern "C" fn caught(frame: &mut Frame) {
    let vector = frame.vector as u8;
    let (cs, flags, cr2): (u64, u64, u64);
    // SAFETY: reads.
    unsafe { asm!("mov {:x}, cs", "pushfq", "pop {}", out(reg) cs, out(reg) flags) };
    if cs & 3 == 0 {
        // SAFETY: a read, at CPL 0.
        unsafe { asm!("mov {}, cr2", out(reg) cr2) };
    } else {
        cr2 = 0;
    }
    // SAFETY: one CPU; handlers write here only, and are done before it is read.
    let (notes, count) = unsafe { &mut *NOTES.0.get() };
    if vector != END
        && let Some(note) = notes.get_mut(*count)
    {
        let Frame { error, rip, cs: from, rflags, rsp, ss, .. } = *frame;
        let at = &raw const frame.ss as u64 + 8;
        let own = [cs & 0xffff, flags & KEPT];
        let registers = [frame.registers[13], frame.registers[4]];
        *note = Note { vector, error, rip, cs: from, rflags, rsp, ss, at, cr2, own, registers };
        *count += 1;
    }
    let returns = RETURNS.load(Ordering::Relaxed);
    RETURNS.store(returns.saturating_sub(1), Ordering::Relaxed);
    if cs & 3 != 0 {
        // A conforming handler, from which only a gate leads back.
        // SAFETY: it does not return.
        unsafe { asm!("int 0xff") };
    }
    if returns == 0 || vector == END {
        frame.go_on(long_resume as *const (), STACK.load(Ordering::Relaxed));
    }
}

/// A piece of code, and with what it runs.
pub(crate) struct Trial<'a> {
    pub(crate) code: &'a [u8],
    /// Where it runs: at [`CODE`], or at [`window::LAST`], which has room for one byte.
    pub(crate) at: u64,
    pub(crate) cs: u64,
    pub(crate) ss: u64,
    pub(crate) rflags: u64,
    pub(crate) rsp: u64,
    /// From how many events the handler returns.
    pub(crate) returns: u64,
    /// An interrupt that waits, or 0.
    pub(crate) interrupt: u8,
    /// Pages of the window that are not present.
    pub(crate) absent: &'a [u64],
    /// Gates that are others: vector, selector, attributes, stack.
    pub(crate) gates: &'a [(u8, u64, u64, u64)],
    /// The TSS has this limit.
    pub(crate) task_limit: u64,
    /// Places in the TSS that hold something else.
    pub(crate) task: &'a [(usize, u64)],
}

impl<'a> Trial<'a> {
    /// At CPL 0 in 64-bit mode.
    pub(crate) const fn new(code: &'a [u8]) -> Self {
        Self {
            code,
            at: CODE,
            cs: CODE_64,
            ss: DATA,
            rflags: 2,
            rsp: window::top(MAIN),
            returns: 0,
            interrupt: 0,
            absent: &[],
            gates: &[],
            task_limit: 0x67,
            task: &[],
        }
    }

    /// At CPL 3 in 64-bit mode.
    pub(crate) const fn user(code: &'a [u8]) -> Self {
        Self { cs: USER_64, ss: USER_DATA, ..Self::new(code) }
    }

    pub(crate) fn run(&self) -> Seen {
        let window = Window;
        window.prepare(self);
        window.load_task();
        // SAFETY: no trial is on.
        unsafe { (*NOTES.0.get()).1 = 0 };
        RETURNS.store(self.returns, Ordering::Relaxed);
        if self.interrupt != 0 {
            // SAFETY: interrupts are off until IRETQ.
            unsafe { write_msr(SELF_IPI, self.interrupt.into()) };
        }
        window.show(self.absent, false);
        let data = if self.cs & 3 == 0 { DATA } else { USER_DATA };
        let frame = [self.at, self.cs, self.rflags, self.rsp, self.ss];
        // SAFETY: whatever the code does leads to a stub.
        unsafe { long_run(&frame, data) };
        window.show(self.absent, true);
        if self.interrupt != 0 {
            // SAFETY: it has come, or has been lost.
            unsafe { write_msr(IA32_X2APIC_EOI, 0) };
        }
        Seen(())
    }
}

/// What the last trial's handlers have found.
pub(crate) struct Seen(());

impl Seen {
    /// Vector and place of the first event.
    pub(crate) fn first(&self) -> Option<(u8, u64)> {
        // SAFETY: no trial is on.
        let (notes, count) = unsafe { &*NOTES.0.get() };
        notes.iter().take(*count).next().map(|note| (note.vector, note.rip.wrapping_sub(CODE)))
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: no trial is on.
        let (notes, count) = unsafe { &*NOTES.0.get() };
        if *count == 0 {
            return f.write_str("nothing");
        }
        for note in notes.iter().take(*count) {
            let Note { vector, error, rip, cs, rflags, rsp, ss, at, cr2, own, registers } = note;
            write!(f, "#{vector}")?;
            if matches!(vector, 8 | 10..=14 | 17) {
                write!(f, "({error:x})")?;
            }
            if *vector == 14 {
                write!(f, " of {}", Place(*cr2))?;
            }
            write!(f, " at {cs:x}:{} flags {rflags:x}>{:x} ", Place(*rip), own[1])?;
            write!(f, "{ss:x}:{}, by {:x} on {}; ", Place(*rsp), own[0], Place(*at))?;
            if *vector == SYSTEM_CALL {
                write!(f, "RCX {} R11 {:x}; ", Place(registers[0]), registers[1])?;
            }
        }
        Ok(())
    }
}

/// An address, by what it belongs to.
struct Place(u64);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const PAGE: u64 = 4096;
        let at = self.0;
        if (CODE..CODE + PAGE).contains(&at) {
            return write!(f, "{:x}", at - CODE);
        }
        // A stack's top is the next page's begin.
        let page = at.wrapping_sub(window::BASE).wrapping_sub(1) >> 12;
        if page >= window::PAGES {
            // Where the payload's own code lies, a compiler decides.
            return if at < 1 << 30 { f.write_str("own") } else { write!(f, "{at:x}") };
        }
        match page {
            GATES..=1 => write!(f, "gates+{:x}", at - window::IDT),
            2 | 3 => write!(f, "GDT+{:x}", at - window::GDT),
            4 => write!(f, "TSS+{:x}", at - window::TSS),
            _ => write!(f, "stack{}-{:x}", page - 5, window::top(page - 5) - at),
        }
    }
}
