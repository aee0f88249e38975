//! A CPU of the guest: its tables, and a trial on it. Whatever a trial does ends in an exception or an interrupt, whose
//! handler drops everything and goes on behind the trial.

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

use arch::msr;
use payload::trap::{CODE_SEGMENT, INTERRUPT_GATE, LIMIT, Segments, Table};
use payload::{power_off, say};

pub(crate) const TIMER: u8 = 0x70;

/// What a trial begins with. The order is that of the assembly.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    /// RAX, RCX, RDX, RBX, RBP, RSI, R8 to R15, RDI.
    pub(crate) registers: [u64; 15],
    pub(crate) rip: u64,
    pub(crate) cs: u64,
    pub(crate) flags: u64,
    pub(crate) rsp: u64,
    pub(crate) ss: u64,
}

/// What the handlers know of a CPU. The order is that of the assembly.
#[repr(C)]
pub(crate) struct Trial {
    /// Where its stack is during a trial.
    stack: AtomicU64,
    /// 1 during a trial.
    runs: AtomicU64,
    /// The vector that ended the last one.
    pub(crate) vector: AtomicU64,
}

const fn idle() -> Trial {
    Trial { stack: AtomicU64::new(0), runs: AtomicU64::new(0), vector: AtomicU64::new(0) }
}
static FIRST: Trial = idle();
static SECOND: Trial = idle();

pub(crate) fn trial(cpu: usize) -> &'static Trial {
    if cpu == 0 { &FIRST } else { &SECOND }
}

// One entry of 16 bytes for each vector, of each CPU. An error code under the vector disturbs nobody.
macro_rules! handlers {
    ($entries:literal, $outside:literal, $trial:path, $cpu:literal) => {
        global_asm!(
            ".balign 16",
            concat!($entries, ":"),
            ".set fuzz_vector, 0",
            ".rept 256",
            ".balign 16",
            ".byte 0x68", // PUSH
            ".long fuzz_vector",
            concat!("jmp ", $entries, "_common"),
            ".set fuzz_vector, fuzz_vector + 1",
            ".endr",
            concat!($entries, "_common:"),
            "cmp qword ptr [rip + {trial} + 8], 0",
            concat!("je ", $outside),
            "pop qword ptr [rip + {trial} + 16]",
            // Vectors from 32 on have an end.
            "cmp qword ptr [rip + {trial} + 16], 32",
            "jb 2f",
            "mov ecx, 0x80b",
            "xor eax, eax",
            "xor edx, edx",
            "wrmsr",
            "2:",
            "mov rsp, [rip + {trial}]",
            // IRET alone lets the next NMI in.
            "mov rax, rsp",
            "push 0x10",
            "push rax",
            "push 2",
            "push 8",
            "lea rax, [rip + fuzz_over]",
            "push rax",
            "mov qword ptr [rip + {trial} + 8], 0",
            "iretq",
            concat!($outside, ":"),
            // #DB and NMI outside a trial are left of the last one, or came too late.
            "cmp qword ptr [rsp], 2",
            "ja 3f",
            "cmp qword ptr [rsp], 0",
            "je 3f",
            "add rsp, 8",
            "iretq",
            "3:",
            concat!("mov edi, ", $cpu),
            "mov rsi, [rsp]",
            "mov rdx, [rsp + 8]",
            "mov rcx, [rsp + 16]",
            "mov r8, [rsp + 24]",
            "and rsp, -16",
            "call {lost}",
            "ud2",
            trial = sym $trial,
            lost = sym lost,
        );
    };
}
handlers!("fuzz_entries_0", "fuzz_outside_0", FIRST, "0");
handlers!("fuzz_entries_1", "fuzz_outside_1", SECOND, "1");

// RDI: a `Start`, RSI: the CPU's `Trial`.
global_asm!(
    "fuzz_begin:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [rsi], rsp",
    "mov qword ptr [rsi + 8], 1",
    "push [rdi + 152]",
    "push [rdi + 144]",
    "push [rdi + 136]",
    "push [rdi + 128]",
    "push [rdi + 120]",
    "mov rax, [rdi]",
    "mov rcx, [rdi + 8]",
    "mov rdx, [rdi + 16]",
    "mov rbx, [rdi + 24]",
    "mov rbp, [rdi + 32]",
    "mov rsi, [rdi + 40]",
    "mov r8, [rdi + 48]",
    "mov r9, [rdi + 56]",
    "mov r10, [rdi + 64]",
    "mov r11, [rdi + 72]",
    "mov r12, [rdi + 80]",
    "mov r13, [rdi + 88]",
    "mov r14, [rdi + 96]",
    "mov r15, [rdi + 104]",
    "mov rdi, [rdi + 112]",
    "iretq",
    "fuzz_over:",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "cld",
    "ret",
);

unsafe extern "C" {
    fn fuzz_begin(start: *const Start, trial: *const Trial);
    static fuzz_entries_0: [u8; 16];
    static fuzz_entries_1: [u8; 16];
}

/// An exception that no trial raised.
extern "C" fn lost(cpu: u64, vector: u64, first: u64, second: u64, third: u64) -> ! {
    crate::trials::console_back();
    say!(
        "FAILED: CPU {cpu}: exception {vector} outside a trial: stack {first:#x}, {second:#x}, {third:#x}"
    );
    power_off()
}

/// Runs a trial; the vector that ended it.
pub(crate) fn run(cpu: usize, start: &Start) -> u64 {
    let trial = trial(cpu);
    // SAFETY: whatever the trial does ends in a handler that comes back here.
    unsafe { fuzz_begin(start, trial) };
    trial.vector.load(Ordering::Relaxed)
}

#[repr(align(4096))]
struct Place<T>(UnsafeCell<T>);
// SAFETY: each CPU has its own.
unsafe impl<T> Sync for Place<T> {}

/// Two for each CPU, of which one is in use.
static TABLES: [[Table; 2]; 2] = [const { [const { Table::new() }; 2] }; 2];
static STACKS: [Place<[u8; 8192]>; 2] = [const { Place(UnsafeCell::new([0; 8192])) }; 2];
static SEGMENTS: [Segments; 2] = [const { Segments::new() }; 2];

/// The tables of interrupts of a CPU.
pub(crate) fn tables(cpu: usize) -> &'static [Table; 2] {
    TABLES.get(cpu).unwrap_or(&TABLES[0])
}

/// Sets a gate of this type to the vector's own entry.
pub(crate) fn set_gate(cpu: usize, table: &Table, vector: u8, flags: u64) {
    let entries = if cpu == 0 { &raw const fuzz_entries_0 } else { &raw const fuzz_entries_1 };
    let entry = entries.wrapping_add(usize::from(vector));
    table.set_gate(vector, entry as u64, CODE_SEGMENT, flags);
    // The trial's own stack may be anywhere. An NMI comes in an exception's handler, too, whose frame has to stay.
    table.use_stack(vector, if vector == 2 { 2 } else { 1 });
}

/// Makes this CPU's tables and loads them, from whatever segments.
pub(crate) fn prepare(cpu: usize) {
    for (vector, table) in
        (0..=255).flat_map(|vector| tables(cpu).iter().map(move |table| (vector, table)))
    {
        set_gate(cpu, table, vector, INTERRUPT_GATE);
    }
    trial(cpu).runs.store(0, Ordering::Relaxed);
    let (Some(stack), Some(segments)) = (STACKS.get(cpu), SEGMENTS.get(cpu)) else { return };
    let end = stack.0.get() as u64 + 8192;
    segments.load(&[(Segments::IST1, end), (Segments::IST2, end - 4096)]);
    // SAFETY: flat segments of CPL 0, as the code expects them.
    unsafe {
        asm!(
            "push 8", "lea {0}, [rip + 2f]", "push {0}", "retfq", "2:", "mov {0:e}, 16", "mov ss, {0:e}",
            out(reg) _
        );
    }
    let [table, _] = tables(cpu);
    table.load(LIMIT);
}

/// The timer, which ends a trial that has no end.
pub(crate) fn start_timer() {
    const PERIODIC: u64 = 1 << 17;
    let steps = [
        (msr::IA32_X2APIC_SIVR, 0x1ff),
        (msr::IA32_X2APIC_TPR, 0),
        (msr::IA32_X2APIC_DIV_CONF, 0xb),
        (msr::IA32_X2APIC_LVT_TIMER, PERIODIC | u64::from(TIMER)),
        (msr::IA32_X2APIC_INIT_COUNT, 1_000_000),
    ];
    for (register, value) in steps {
        // SAFETY: the guest's own local APIC, in x2APIC mode.
        unsafe { cpu::instructions::write_msr(register, value) };
    }
}
