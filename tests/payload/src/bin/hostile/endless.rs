//! Exceptions whose delivery raises them again, for ever: a CPU that lets nothing in between never comes back to its host
//! (CVE-2015-8104, CVE-2015-5307). The guest's other CPU goes on, and ends it.

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;

use arch::Hpa;
use arch::msr;
use cpu::instructions::write_msr;
use payload::{power_off, say};

use crate::trap;

/// A page below 1 MiB for the second CPU's program.
const PROGRAM: u64 = 0x9000;
/// A byte of it that is not 0 once the first CPU is about to raise its exception: a busy host may stop that one before.
const BEGINS: u64 = 0x9ff0;
const STARTUP: u64 = 6 << 8;

// Programs for a CPU that starts in real mode. Each lies at PROGRAM.
//
// `endless_power_off`: waits until the first CPU begins, and a while longer, then switches the guest off.
//
// `endless_alignment`: 32-bit protected mode, CR0.AM, then CPL 3 with EFLAGS.AC and a stack that is not aligned. Its
// handler of #AC has CPL 3, too, so that nothing changes the stack.
global_asm!(
    ".code16",
    "endless_power_off:",
    "xor ax, ax",
    "mov ds, ax",
    "2: cmp byte ptr [{begins}], 0",
    "je 2b",
    "mov ecx, 3000000",
    "2: dec ecx",
    "jnz 2b",
    "mov dx, 0x604",
    "mov ax, 0x3400",
    "out dx, ax",
    "3: hlt",
    "jmp 3b",
    "endless_power_off_end:",
    "endless_alignment:",
    "cli",
    "xor ax, ax",
    "mov ds, ax",
    ".byte 0x66, 0x0f, 0x01, 0x16", // LGDT, 32-bit, at an address of 16 bits
    ".short 0x9000 + (endless_gdtr - endless_alignment)",
    ".byte 0x66, 0x0f, 0x01, 0x1e", // LIDT
    ".short 0x9000 + (endless_idtr - endless_alignment)",
    "mov eax, 0x00040011", // AM, ET, PE
    "mov cr0, eax",
    ".byte 0x66, 0xea", // a far jump to 32 bits
    ".long 0x9000 + (endless_protected - endless_alignment)",
    ".short 8",
    ".code32",
    "endless_protected:",
    "mov ax, 0x10",
    "mov ss, ax",
    "mov esp, 0x9f00",
    "push 0x23",
    "push 0x9f02",
    "push 0x40002", // AC
    "push 0x1b",
    ".byte 0x68", // PUSH
    ".long 0x9000 + (endless_program - endless_alignment)",
    "iretd",
    "endless_program:",
    "mov eax, [esp]",
    "endless_handler:",
    "jmp endless_handler",
    ".balign 8",
    "endless_gdt:",
    ".quad 0",
    ".quad 0x00cf9b000000ffff", // 0x08: code, CPL 0
    ".quad 0x00cf93000000ffff", // 0x10: data
    ".quad 0x00cffb000000ffff", // 0x18: code, CPL 3
    ".quad 0x00cff3000000ffff", // 0x20: data
    "endless_gdtr:",
    ".short 5 * 8 - 1",
    ".long 0x9000 + (endless_gdt - endless_alignment)",
    "endless_idtr:",
    ".short 18 * 8 - 1",
    ".long 0x9000 + (endless_idt - endless_alignment)",
    ".balign 8",
    "endless_idt:",
    ".fill 17, 8, 0",
    // A gate of 32 bits to selector 0x1B.
    ".short 0x9000 + (endless_handler - endless_alignment)",
    ".short 0x1b, 0xee00, 0",
    "endless_alignment_end:",
    ".code64",
    begins = const BEGINS,
);

unsafe extern "C" {
    static endless_power_off: u8;
    static endless_power_off_end: u8;
    static endless_alignment: u8;
    static endless_alignment_end: u8;
}

/// Starts the second CPU with a program.
fn start(program: *const u8, end: *const u8) {
    let bytes = end as usize - program as usize;
    let place = cpu::physical::pointer::<u8>(Hpa::new(PROGRAM));
    for index in 0..bytes {
        // SAFETY: one of the program's own bytes.
        let byte = unsafe { program.wrapping_add(index).read() };
        // SAFETY: low memory that nobody uses once the loader is done.
        unsafe { place.wrapping_add(index).write_volatile(byte) };
    }
    let begins = cpu::physical::pointer::<u8>(Hpa::new(BEGINS));
    // SAFETY: behind the program.
    unsafe { begins.write_volatile(0) };
    // SAFETY: the guest's own local APIC, in x2APIC mode.
    unsafe { write_msr(msr::IA32_X2APIC_ICR, 1 << 32 | STARTUP | PROGRAM >> 12) };
}

/// The second CPU raises #AC for ever.
pub(crate) fn alignment() -> ! {
    say!("alignment begins");
    start(&raw const endless_alignment, &raw const endless_alignment_end);
    (0..1_000_000).for_each(|_| core::hint::spin_loop());
    power_off()
}

#[repr(align(4096))]
struct Place<T>(UnsafeCell<T>);
// SAFETY: one CPU uses it.
unsafe impl<T> Sync for Place<T> {}

/// The stack of #DB, whose delivery writes to its last quadword.
static STACK: Place<[u64; 512]> = Place(UnsafeCell::new([0; 512]));
/// SDM "Task Management in 64-bit Mode": the first interrupt stack is at offset 36.
static TASK: Place<[u32; 26]> = Place(UnsafeCell::new([0; 26]));
static GDT: Place<[u64; 5]> = Place(UnsafeCell::new([0; 5]));

/// This CPU raises #DB for ever: a data breakpoint on the stack on which #DB is delivered.
pub(crate) fn debug() -> ! {
    say!("debug begins");
    start(&raw const endless_power_off, &raw const endless_power_off_end);
    let top = STACK.0.get() as u64 + 4096;
    let task = TASK.0.get() as u64;
    let limit = size_of::<[u32; 26]>() as u64 - 1;
    let descriptor = limit | (task & 0xff_ffff) << 16 | 0x89 << 40 | (task >> 24 & 0xff) << 56;
    let table = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, descriptor, task >> 32];
    // SAFETY: nobody uses it yet.
    unsafe { GDT.0.get().write(table) };
    let fields = TASK.0.get().cast::<u32>();
    for (index, value) in [(9, top as u32), (10, (top >> 32) as u32), (25, 104 << 16)] {
        // SAFETY: one of its 26 words, and nobody uses it yet.
        unsafe { fields.wrapping_add(index).write_volatile(value) };
    }
    trap::load();
    trap::use_stack(1, 1);
    let pointer = x86_64::structures::DescriptorTablePointer {
        limit: 5 * 8 - 1,
        base: x86_64::VirtAddr::new(GDT.0.get() as u64),
    };
    // DR0: a write of 8 bytes (SDM "Debug Control Register (DR7)").
    const WRITE_OF_8_BYTES: u64 = 0x400 | 1 | 0b1001 << 16;
    // SAFETY: the table is there, and its segments are those that are in use.
    unsafe { x86_64::instructions::tables::lgdt(&pointer) };
    // SAFETY: as in `start`; the other CPU waits for it.
    unsafe { cpu::physical::pointer::<u8>(Hpa::new(BEGINS)).write_volatile(1) };
    // SAFETY: the task's segment is there; what comes of it is this guest's end.
    unsafe {
        asm!(
            "ltr {task:x}", "mov dr0, {at}", "mov dr7, {control}", "mov qword ptr [{at}], 0",
            "2: jmp 2b", task = in(reg) 0x18_u64, at = in(reg) top - 8,
            control = in(reg) WRITE_OF_8_BYTES, options(noreturn)
        )
    }
}
