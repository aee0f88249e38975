//! A few bytes of code with registers of our choice, at CPL 0 or 3, in 64-, 32- or 16-bit code: what ends it, and what it
//! leaves.

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::fmt;

use payload::trap::{LIMIT, Table};
use x86_64::VirtAddr;
use x86_64::structures::DescriptorTablePointer;

use crate::pages;

/// Where code runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    Kernel,
    User,
    /// CPL 3, 32 bits.
    User32,
    /// CPL 0, 16 bits; code begins at offset 0 of its segment.
    Kernel16,
}

impl Mode {
    /// CS, SS, and where the code begins in its segment.
    fn start(self) -> (u64, u64, u64) {
        match self {
            Self::Kernel => (8, 0x10, code()),
            Self::User => (0x23, 0x1b, pages::CODE),
            // Above 4 GiB nothing is reached: its code is mapped below, too.
            Self::User32 => (0x4b, 0x1b, pages::LOW_CODE),
            Self::Kernel16 => (0x50, 0x10, 0),
        }
    }
}

/// The registers before and after. The order is that of the assembly.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Registers {
    pub(crate) rax: u64,
    pub(crate) rcx: u64,
    pub(crate) rdx: u64,
    pub(crate) rbx: u64,
    pub(crate) rsi: u64,
    pub(crate) rdi: u64,
    pub(crate) rbp: u64,
    pub(crate) rip: u64,
    pub(crate) cs: u64,
    pub(crate) flags: u64,
    pub(crate) rsp: u64,
    pub(crate) ss: u64,
    pub(crate) vector: u64,
    pub(crate) error: u64,
    pub(crate) address: u64,
}

#[repr(align(4096))]
pub(crate) struct Place<T>(pub(crate) UnsafeCell<T>);
// SAFETY: one CPU uses it.
unsafe impl<T> Sync for Place<T> {}

impl<T> Place<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    pub(crate) fn address(&self) -> u64 {
        self.0.get() as u64
    }
}

const PAGE: usize = 4096;
/// INT3, which every CPL may: the end of each trial.
const END: u8 = 0xcc;
const BREAKPOINT: u64 = 3;

static CODE: Place<[u8; PAGE]> = Place::new([END; PAGE]);
static TABLE: Table = Table::new();
static STACK: Place<[u8; 4 * PAGE]> = Place::new([0; 4 * PAGE]);
static GDT: Place<[u64; 16]> = Place::new([0; 16]);
/// The TSS, and a bit for each port behind it.
static TASK: Place<[u8; PERMISSIONS + 8193]> = Place::new([0; PERMISSIONS + 8193]);
/// Where the bits for ports begin.
const PERMISSIONS: usize = 104;
const TASK_SELECTOR: u64 = 0x28;
/// The LDT's descriptor.
pub(crate) const LDT_SELECTOR: u64 = 0x38;
/// 16 bytes of data, at [`pages::LOW_TARGET`].
pub(crate) const SHORT_DATA: u64 = 0x58;

static SAVED_STACK: Place<u64> = Place::new(0);
static STATE: Place<u64> = Place::new(0);

unsafe extern "C" {
    fn features_run(registers: *mut Registers);
    fn features_stubs();
}

// RDI: the registers. R14 is the handler's.
global_asm!(
    "features_run:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [rip + {stack}], rsp",
    "mov [rip + {state}], rdi",
    "push [rdi + 88]",
    "push [rdi + 80]",
    "push [rdi + 72]",
    "push [rdi + 64]",
    "push [rdi + 56]",
    "mov rax, [rdi]",
    "mov rcx, [rdi + 8]",
    "mov rdx, [rdi + 16]",
    "mov rbx, [rdi + 24]",
    "mov rsi, [rdi + 32]",
    "mov rbp, [rdi + 48]",
    "mov rdi, [rdi + 40]",
    "iretq",
    ".balign 16",
    "features_stubs:",
    ".set features_vector, 0",
    ".rept 32",
    ".balign 16",
    ".if (features_vector != 8) && (features_vector != 17) && (features_vector != 21) && ((features_vector < 10) || (features_vector > 14))",
    ".byte 0x6a, 0",
    ".endif",
    ".byte 0x6a, features_vector",
    "jmp features_trapped",
    ".set features_vector, features_vector + 1",
    ".endr",
    "features_trapped:",
    "mov r14, [rip + {state}]",
    "mov [r14], rax",
    "mov [r14 + 8], rcx",
    "mov [r14 + 16], rdx",
    "mov [r14 + 24], rbx",
    "mov [r14 + 32], rsi",
    "mov [r14 + 40], rdi",
    "mov [r14 + 48], rbp",
    "pop [r14 + 96]",
    "pop [r14 + 104]",
    "pop [r14 + 56]",
    "pop [r14 + 64]",
    "pop [r14 + 72]",
    "pop [r14 + 80]",
    "pop [r14 + 88]",
    "mov rax, cr2",
    "mov [r14 + 112], rax",
    "mov eax, 0x10",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "mov rsp, [rip + {stack}]",
    "push 2",
    "popfq",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    stack = sym SAVED_STACK,
    state = sym STATE,
);

/// Loads tables with segments for every [`Mode`], whose handlers have a stack of their own.
pub(crate) fn prepare() {
    for vector in 0..32 {
        let stub = features_stubs as *const () as u64 + 16 * u64::from(vector);
        let flags = if u64::from(vector) == BREAKPOINT { 0xee } else { 0x8e };
        TABLE.set_gate(vector, stub, 8, flags);
        TABLE.use_stack(vector, 1);
    }
    TABLE.load(LIMIT);
    let task = TASK.address();
    // SAFETY: IST1 of a TSS that is not loaded yet.
    unsafe { (task as *mut u64).wrapping_byte_add(36).write_unaligned(STACK.address() + 16384) };
    permit(true, PERMISSIONS as u16);
    let system = |base: u64, limit: u64, kind: u64| {
        [limit | (base & 0xff_ffff) << 16 | kind << 40 | (base >> 24 & 0xff) << 56, base >> 32]
    };
    let [task_low, task_high] = system(task, (PERMISSIONS + 8192) as u64, 0x89);
    let [ldt_low, ldt_high] = system(pages::at(pages::LDT), 15, 0x82);
    let code16 = 0x0000_9b00_0000_ffff | (code() & 0xff_ffff) << 16;
    let gdt = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        task_low,
        task_high,
        ldt_low,
        ldt_high,
        0x00cf_fb00_0000_ffff,
        code16,
        0xd040_f300_2000_000f,
        0,
        0,
        0,
        0,
    ];
    // SAFETY: not loaded yet.
    unsafe { GDT.0.get().write_volatile(gdt) };
    let pointer = DescriptorTablePointer { limit: 127, base: VirtAddr::new(GDT.address()) };
    // SAFETY: the selectors are those that are in use; interrupts are off.
    unsafe { x86_64::instructions::tables::lgdt(&pointer) };
    // SAFETY: as above.
    unsafe {
        asm!("mov ds, {0:e}", "mov es, {0:e}", "mov ss, {0:e}", "ltr {1:x}", in(reg) 16, in(reg) TASK_SELECTOR);
    }
}

/// Permits every port to CPL 3, or none; the bits begin at `offset` of the TSS.
pub(crate) fn permit(all: bool, offset: u16) {
    let task = TASK.0.get().cast::<u8>();
    // SAFETY: the TSS's bytes; the CPU reads them when CPL 3 uses a port.
    unsafe { task.wrapping_add(102).cast::<u16>().write_volatile(offset) };
    let bits = task.wrapping_add(PERMISSIONS);
    // SAFETY: as above.
    unsafe { bits.write_bytes(if all { 0 } else { 0xff }, 8192) };
    // SAFETY: the byte of ones behind the bits.
    unsafe { bits.wrapping_add(8192).write_volatile(0xff) };
}

/// Permits one port or forbids it.
pub(crate) fn permit_port(port: u16, allow: bool) {
    let byte = TASK.0.get().cast::<u8>().wrapping_add(PERMISSIONS + usize::from(port / 8));
    // SAFETY: one of the bits behind the TSS.
    let old = unsafe { byte.read_volatile() };
    let bit = 1 << (port % 8);
    // SAFETY: as above.
    unsafe { byte.write_volatile(if allow { old & !bit } else { old | bit }) };
}

/// Where the code is for CPL 0.
pub(crate) fn code() -> u64 {
    CODE.address()
}

/// Runs `code` in `mode`; RIP, the segments and, where they are 0, the flags and the stack are set here.
pub(crate) fn run(mode: Mode, code: &[u8], registers: Registers) -> Outcome {
    let place = CODE.0.get().cast::<u8>();
    for index in 0..64 {
        let byte = code.get(index).copied().unwrap_or(END);
        // SAFETY: nothing runs there now.
        unsafe { place.wrapping_add(index).write_volatile(byte) };
    }
    let (cs, ss, rip) = mode.start();
    let stack = match mode {
        Mode::Kernel | Mode::Kernel16 => STACK.address() + 8192,
        Mode::User => pages::at(pages::STACK) + 2048,
        Mode::User32 => pages::LOW_STACK + 2048,
    };
    let rsp = if registers.rsp == 0 { stack } else { registers.rsp };
    let mut registers = Registers { rip, cs, ss, rsp, flags: registers.flags | 2, ..registers };
    // SAFETY: whatever the code does leads back, as the stub of an exception does.
    unsafe { features_run(&raw mut registers) };
    Outcome { after: registers, start: rip }
}

/// At CPL 0 with RDI = `argument`.
pub(crate) fn kernel(code: &[u8], argument: u64) -> Outcome {
    run(Mode::Kernel, code, Registers { rdi: argument, ..Registers::default() })
}

/// At CPL 3 with RDI = `argument`.
pub(crate) fn user(code: &[u8], argument: u64) -> Outcome {
    run(Mode::User, code, Registers { rdi: argument, ..Registers::default() })
}

/// What a trial came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    pub(crate) after: Registers,
    start: u64,
}

impl Outcome {
    /// It came to its end.
    pub(crate) const fn fine(&self) -> bool {
        self.after.vector == BREAKPOINT
    }
}

/// As a fact says it: `fine`, or vector, error code, and for page faults what CR2 says.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const RESUME: u64 = 1 << 16;
        const PAGE_FAULT: u64 = 14;
        let after = &self.after;
        if self.fine() {
            return f.write_str("fine");
        }
        write!(f, "#{}({:#x})", after.vector, after.error)?;
        if after.vector == PAGE_FAULT {
            write!(f, " CR2={:#x}", after.address)?;
        }
        let offset = after.rip.wrapping_sub(self.start);
        match offset {
            0 => {}
            1..4096 => write!(f, " +{offset}")?,
            _ => write!(f, " elsewhere")?,
        }
        if after.flags & RESUME == 0 { f.write_str(" RF=0") } else { Ok(()) }
    }
}
