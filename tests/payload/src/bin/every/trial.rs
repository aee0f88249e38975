//! One instruction, with registers of our choice, and all that it leaves.

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

use cpu::instructions::cpuid;
use payload::trap::{Faults, LIMIT, Segments, Table};
use x86_64::VirtAddr;
use x86_64::structures::idt::InterruptStackFrame;

/// What an instruction leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Seen {
    /// RAX, RCX, RDX, RBX, RSI, RDI, RBP; addresses less that of the page.
    pub(crate) gpr: [u64; 7],
    pub(crate) flags: u64,
    pub(crate) vector_register: [u64; 2],
    /// The top of the floating-point stack, its control and its status word.
    float: [u64; 3],
    pub(crate) vector: u64,
    error_code: u64,
    /// Of a page fault.
    address: u64,
    /// Where the exception was, less the instruction's place and the page's.
    rip: u64,
}

impl Seen {
    pub(crate) const NONE: u64 = u64::MAX;
}

/// Registers in and out: seven general ones, the flags, XMM0, where to jump and the stack.
#[repr(C, align(16))]
struct Registers {
    gpr: [u64; 7],
    flags: u64,
    vector: [u64; 2],
    code: u64,
    stack: u64,
    float: [u64; 2],
    control: u64,
    status: u64,
}

#[repr(align(4096))]
struct Place<T>(UnsafeCell<T>);
// SAFETY: one CPU uses it.
unsafe impl<T> Sync for Place<T> {}

static REGISTERS: Place<Registers> = Place(UnsafeCell::new(Registers {
    gpr: [0; 7],
    flags: 0,
    vector: [0; 2],
    code: 0,
    stack: 0,
    float: [0; 2],
    control: 0,
    status: 0,
}));
static CODE: Place<[u8; 4096]> = Place(UnsafeCell::new([0x90; 4096]));
static TABLE: Table = Table::new();

static VECTOR: AtomicU64 = AtomicU64::new(Seen::NONE);
static ERROR_CODE: AtomicU64 = AtomicU64::new(0);
static ADDRESS: AtomicU64 = AtomicU64::new(0);
static RIP: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    fn every_run(registers: *mut Registers);
    fn every_resume();
}

// RDI: the registers. R14 keeps them, R15 is where an instruction goes on; it changes neither.
global_asm!(
    "every_run:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov r14, rdi",
    "lea r15, [rip + every_resume]",
    "mov [r14 + 88], rsp",
    "movq mm0, [r14 + 64]",
    "fninit",
    "fld1",
    "movups xmm0, [r14 + 64]",
    "push qword ptr [r14 + 56]",
    "mov rax, [r14]",
    "mov rcx, [r14 + 8]",
    "mov rdx, [r14 + 16]",
    "mov rbx, [r14 + 24]",
    "mov rsi, [r14 + 32]",
    "mov rdi, [r14 + 40]",
    "mov rbp, [r14 + 48]",
    "popfq",
    "jmp [r14 + 80]",
    "every_resume:",
    "mov rsp, [r14 + 88]",
    "pushfq",
    "pop qword ptr [r14 + 56]",
    "mov [r14], rax",
    "mov [r14 + 8], rcx",
    "mov [r14 + 16], rdx",
    "mov [r14 + 24], rbx",
    "mov [r14 + 32], rsi",
    "mov [r14 + 40], rdi",
    "mov [r14 + 48], rbp",
    "movups [r14 + 64], xmm0",
    "fnstcw [r14 + 112]",
    "fnstsw [r14 + 120]",
    "fnclex",
    "fstp tbyte ptr [r14 + 96]",
    "fninit",
    "cld",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
);

/// Notes the fault of an instruction, and goes on after it.
struct Trial;

impl Faults for Trial {
    fn fault(vector: u64, error_code: u64, frame: &mut InterruptStackFrame) {
        let address: u64;
        // SAFETY: a read; segments as they were, whatever the instruction has loaded.
        unsafe {
            asm!("mov {0}, cr2", "mov {1:e}, 16", "mov ds, {1:e}", "mov es, {1:e}", out(reg) address, out(reg) _);
        }
        VECTOR.store(vector, Ordering::Relaxed);
        ERROR_CODE.store(error_code, Ordering::Relaxed);
        ADDRESS.store(if vector == 14 { address } else { 0 }, Ordering::Relaxed);
        RIP.store(frame.instruction_pointer.as_u64(), Ordering::Relaxed);
        let resume = VirtAddr::new(every_resume as *const () as u64);
        // SAFETY: the frame is this handler's own.
        unsafe { frame.as_mut().update(|value| value.instruction_pointer = resume) };
    }
}

static STACK: Place<[u8; 16384]> = Place(UnsafeCell::new([0; 16384]));
static SEGMENTS: Segments = Segments::new();

/// Loads a table whose handlers have a stack of their own, and lets vector instructions work.
pub(crate) fn prepare() {
    TABLE.catch::<Trial>();
    // The instruction's own stack may be anywhere.
    (0..32).for_each(|vector| TABLE.use_stack(vector, 1));
    SEGMENTS.load(&[(Segments::IST1, STACK.0.get() as u64 + 16384)]);
    TABLE.load(LIMIT);
    // SAFETY: as above; SSE and x87 instructions work from here on, and their exceptions come.
    unsafe {
        asm!(
            "mov ds, {data:e}", "mov es, {data:e}", "mov ss, {data:e}",
            "mov {other}, cr4", "or {other}, 0x600", "mov cr4, {other}",
            "mov {other}, cr0", "and {other}, ~0xc", "or {other}, 0x22", "mov cr0, {other}",
            data = in(reg) 16, other = out(reg) _
        );
    }
}

/// Switches AVX on; `false` where the CPU has none.
pub(crate) fn extended() -> bool {
    let leaf = cpuid(1, 0);
    let there = leaf.ecx >> 26 & 1 != 0 && leaf.ecx >> 28 & 1 != 0;
    if there {
        // SAFETY: the CPU has XSAVE and AVX.
        unsafe {
            asm!(
                "mov {0}, cr4", "or {0}, 0x40000", "mov cr4, {0}", "xsetbv",
                out(reg) _, in("ecx") 0, in("eax") 7, in("edx") 0
            );
        }
    }
    there
}

/// Runs an instruction with its operand `offset` behind `page`: RBX, RSI, RDI and RBP point there.
pub(crate) fn at_cpl_0(code: &[u8], page: u64, offset: u64) -> Seen {
    const GO_ON: [u8; 3] = [0x41, 0xff, 0xe7]; // jmp r15
    let (operand, place) = (page + offset, CODE.0.get() as u64);
    for (index, byte) in code.iter().chain(&GO_ON).enumerate() {
        // SAFETY: the page of code is the payload's, and nothing runs there now.
        unsafe { CODE.0.get().cast::<u8>().wrapping_add(index).write_volatile(*byte) };
    }
    VECTOR.store(Seen::NONE, Ordering::Relaxed);
    for word in [&ERROR_CODE, &ADDRESS, &RIP] {
        word.store(0, Ordering::Relaxed);
    }
    let registers = REGISTERS.0.get();
    let start = Registers {
        gpr: [0x1234_5678_9abc_de05, 3, 0x80, operand, operand, operand, operand],
        flags: 0x8d7 & !0x10,
        vector: [0x3ff0_0000_3f80_0000, 0x8040_2010_0804_0201],
        code: place,
        stack: 0,
        float: [0; 2],
        control: 0,
        status: 0,
    };
    // SAFETY: nobody else uses the registers.
    unsafe { registers.write_volatile(start) };
    // SAFETY: whatever the instruction does leads back.
    unsafe { every_run(registers) };
    // SAFETY: as for the write.
    let left = unsafe { registers.read_volatile() };
    let near = |value: u64| {
        let distance = value.wrapping_sub(page);
        if distance < 0x1_0000 { distance } else { value }
    };
    let rip = RIP.load(Ordering::Relaxed);
    let rip = if rip.wrapping_sub(place) < 64 { rip - place } else { near(rip) };
    Seen {
        gpr: left.gpr.map(near),
        flags: left.flags,
        vector_register: left.vector,
        float: [left.float[0], left.float[1] & 0xffff, left.control & 0xffff | left.status << 16],
        vector: VECTOR.load(Ordering::Relaxed),
        error_code: ERROR_CODE.load(Ordering::Relaxed),
        address: near(ADDRESS.load(Ordering::Relaxed)),
        rip,
    }
}
