//! Exceptions and interrupts of a payload: an IDT of its own, and handlers that catch every fault.

use core::arch::asm;
use core::cell::UnsafeCell;

use x86_64::VirtAddr;
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::idt::InterruptStackFrame;

/// Type and attributes of a present interrupt gate (SDM "64-Bit Mode IDT").
pub const INTERRUPT_GATE: u64 = 0x8e;
/// The code segment of every payload.
pub const CODE_SEGMENT: u64 = 8;
/// The limit of a whole table.
pub const LIMIT: u16 = 0xfff;

/// What a stub of [`stubs!`](crate::stubs) leaves on the stack.
#[repr(C)]
pub struct Frame {
    /// R15 to R8, RDI, RSI, RBP, RBX, RDX, RCX, RAX.
    pub registers: [u64; 15],
    pub vector: u64,
    /// 0 where the vector has none.
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

impl Frame {
    /// Goes on in the payload's own code, at `rip` with this stack, interrupts off.
    pub fn go_on(&mut self, rip: *const (), rsp: u64) {
        (self.rip, self.cs, self.rflags) = (rip as u64, CODE_SEGMENT, 2);
        (self.rsp, self.ss) = (rsp, 16);
    }
}

/// 256 stubs of 16 bytes at `NAME_stubs`. Each calls an `extern "C" fn(&mut Frame)` and returns to where the frame says
/// then, by IRET.
#[macro_export]
macro_rules! stubs {
    ($name:literal, $caught:path) => {
        core::arch::global_asm!(
            ".balign 16",
            concat!(".global ", $name, "_stubs"),
            concat!($name, "_stubs:"),
            ".set stub_vector, 0",
            ".rept 256",
            ".balign 16",
            ".if (stub_vector != 8) && (stub_vector != 17) && (stub_vector != 21) && ((stub_vector < 10) || (stub_vector > 14))",
            ".byte 0x6a, 0",
            ".endif",
            ".byte 0x68",
            ".long stub_vector",
            concat!("jmp ", $name, "_common"),
            ".set stub_vector, stub_vector + 1",
            ".endr",
            concat!($name, "_common:"),
            "push rax",
            "push rcx",
            "push rdx",
            "push rbx",
            "push rbp",
            "push rsi",
            "push rdi",
            "push r8",
            "push r9",
            "push r10",
            "push r11",
            "push r12",
            "push r13",
            "push r14",
            "push r15",
            "mov rdi, rsp",
            "mov rbx, rsp",
            "and rsp, -16",
            "cld",
            "call {caught}",
            "mov rsp, rbx",
            "pop r15",
            "pop r14",
            "pop r13",
            "pop r12",
            "pop r11",
            "pop r10",
            "pop r9",
            "pop r8",
            "pop rdi",
            "pop rsi",
            "pop rbp",
            "pop rbx",
            "pop rdx",
            "pop rcx",
            "pop rax",
            "add rsp, 16",
            "iretq",
            caught = sym $caught,
        );
    };
}

/// A handler for all faults of a payload.
pub trait Faults {
    /// Handles a fault; `error_code` is 0 if the vector has none.
    fn fault(vector: u64, error_code: u64, frame: &mut InterruptStackFrame);
}

/// An IDT that fills a page.
#[repr(align(4096))]
pub struct Table(UnsafeCell<[[u64; 2]; 256]>);
// SAFETY: gates are only written as whole words, and the CPU that writes them uses the table.
unsafe impl Sync for Table {}

impl Table {
    /// A table without gates.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "for statics")]
    pub const fn new() -> Self {
        Self(UnsafeCell::new([[0; 2]; 256]))
    }

    #[must_use]
    pub fn address(&self) -> u64 {
        self.0.get() as u64
    }

    fn gate(&self, vector: u8) -> *mut [u64; 2] {
        self.0.get().cast::<[u64; 2]>().wrapping_add(vector.into())
    }

    /// Sets an interrupt gate.
    pub fn set(&self, vector: u8, handler: *const ()) {
        self.set_gate(vector, handler as u64, CODE_SEGMENT, INTERRUPT_GATE);
    }

    /// Sets a gate with this selector, type and attributes.
    pub fn set_gate(&self, vector: u8, handler: u64, selector: u64, flags: u64) {
        let low = handler & 0xffff | selector << 16 | flags << 40 | (handler >> 16 & 0xffff) << 48;
        // SAFETY: one of the table's 256 gates.
        unsafe { self.gate(vector).write_volatile([low, handler >> 32]) };
    }

    /// Delivers `vector` on this interrupt stack of the TSS.
    pub fn use_stack(&self, vector: u8, stack: u64) {
        let low = self.gate(vector).cast::<u64>();
        // SAFETY: one of the table's 256 gates.
        let gate = unsafe { low.read_volatile() };
        // SAFETY: as above.
        unsafe { low.write_volatile(gate | stack << 32) };
    }

    /// Sets gates that call `F` for every fault.
    pub fn catch<F: Faults>(&self) {
        self.set(0, without_code::<F, 0> as *const ());
        self.set(1, without_code::<F, 1> as *const ());
        self.set(3, without_code::<F, 3> as *const ());
        self.set(6, without_code::<F, 6> as *const ());
        self.set(7, without_code::<F, 7> as *const ());
        self.set(16, without_code::<F, 16> as *const ());
        self.set(19, without_code::<F, 19> as *const ());
        self.set(10, with_code::<F, 10> as *const ());
        self.set(11, with_code::<F, 11> as *const ());
        self.set(12, with_code::<F, 12> as *const ());
        self.set(13, with_code::<F, 13> as *const ());
        self.set(14, with_code::<F, 14> as *const ());
        self.set(17, with_code::<F, 17> as *const ());
    }

    /// Loads it with this limit.
    pub fn load(&self, limit: u16) {
        load(self.address(), limit);
    }
}

/// A GDT with flat segments of CPL 0 and 3 and a TSS, for one CPU.
#[repr(align(4096))]
pub struct Segments {
    table: UnsafeCell<[u64; 7]>,
    task: UnsafeCell<[u8; 104]>,
}
// SAFETY: the CPU that loads it is the only one that writes it.
unsafe impl Sync for Segments {}

impl Segments {
    pub const USER_CODE: u64 = 0x1b;
    pub const USER_DATA: u64 = 0x23;
    /// Where the TSS has the stack of CPL 0, and the first interrupt stacks (SDM "Task Management in 64-bit Mode").
    pub const RSP0: usize = 4;
    pub const IST1: usize = 36;
    pub const IST2: usize = 44;

    /// Without a stack.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "for statics")]
    pub const fn new() -> Self {
        Self { table: UnsafeCell::new([0; 7]), task: UnsafeCell::new([0; 104]) }
    }

    /// Loads the table and the task register. `stacks`: where each is in the TSS, and its end.
    pub fn load(&self, stacks: &[(usize, u64)]) {
        const CODE: u64 = 0x00af_9b00_0000_ffff;
        const DATA: u64 = 0x00cf_9300_0000_ffff;
        const OF_CPL_3: u64 = 3 << 45;
        let task = self.task.get();
        for (which, top) in stacks {
            // SAFETY: one of the TSS's stacks; not in use now.
            unsafe { task.cast::<u64>().wrapping_byte_add(*which).write_unaligned(*top) };
        }
        let at = task as u64;
        let low = 103 | (at & 0xff_ffff) << 16 | 0x89 << 40 | (at >> 24 & 0xff) << 56;
        let table = [0, CODE, DATA, CODE | OF_CPL_3, DATA | OF_CPL_3, low, at >> 32];
        // SAFETY: not in use now.
        unsafe { self.table.get().write_volatile(table) };
        let base = VirtAddr::new(self.table.get() as u64);
        let pointer = DescriptorTablePointer { limit: 55, base };
        // SAFETY: the segments of CPL 0 are where a payload's are; interrupts are off.
        unsafe { x86_64::instructions::tables::lgdt(&pointer) };
        // SAFETY: the TSS is there.
        unsafe { asm!("ltr {0:x}", in(reg) 0x28_u64) };
    }
}

/// Loads the table at `base`.
pub fn load(base: u64, limit: u16) {
    let pointer = DescriptorTablePointer { limit, base: VirtAddr::new(base) };
    // SAFETY: interrupts are off, or the table is the payload's.
    unsafe { x86_64::instructions::tables::lidt(&pointer) };
}

extern "x86-interrupt" fn without_code<F: Faults, const VECTOR: u64>(
    mut frame: InterruptStackFrame,
) {
    F::fault(VECTOR, 0, &mut frame);
}

extern "x86-interrupt" fn with_code<F: Faults, const VECTOR: u64>(
    mut frame: InterruptStackFrame,
    error_code: u64,
) {
    F::fault(VECTOR, error_code, &mut frame);
}
