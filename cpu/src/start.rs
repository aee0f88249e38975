//! Starting the other processors (SDM "Multiple-Processor (MP) Initialization"): INIT, start-up IPI,
//! and the code at which they begin.
//!
//! The code is copied to a page below 1 MiB, whose number the start-up IPI carries. What differs
//! from processor to processor is in the page behind it, so that the code's page can be
//! read-only.

use core::arch::global_asm;
use core::mem::offset_of;

use arch::address::{HpaRange, PAGE_SIZE};
use arch::{ApicId, Hpa, msr};

use crate::instructions::{tsc, write_msr};
use crate::physical;

global_asm!(
    // Real mode, CS = page << 8, IP = 0. Ends in 64-bit mode with RDI = the argument passed to it, on
    // the stack passed to it, at the entry passed to it. EBX = address of the page throughout.
    ".pushsection .rodata.nexit_start, \"a\"",
    ".code16",
    ".global nexit_start_code",
    "nexit_start_code:",
    "    cli",
    "    cld",
    "    mov ax, cs",
    "    mov ds, ax",
    "    xor ebx, ebx",
    "    mov bx, ax",
    "    shl ebx, 4",
    "    lgdt [0x1000 + {gdtr}]",
    "    mov eax, cr0",
    "    or al, 1",
    "    mov cr0, eax",
    "    .byte 0x66, 0xff, 0x2e", // JMP m16:32: the assembler's spelling of it differs by version
    "    .word 0x1000 + {far}",
    ".code32",
    ".global nexit_start_protected",
    "nexit_start_protected:",
    "    mov eax, 16",
    "    mov ds, eax",
    "    mov es, eax",
    "    mov ss, eax",
    "    lea esp, [ebx + 0x1ff0]",
    // Without this NXE is a reserved bit: IA32_MISC_ENABLE bit 34, "XD bit disable", hides it on this CPU too (see
    // `host_state`; the CPU that starts this one has execute disable, so nothing else does).
    "    push ebx",
    "    mov eax, 0x80000001",
    "    cpuid",
    "    pop ebx",
    "    bt edx, 20",
    "    jc 2f",
    "    mov ecx, 0x1a0",
    "    rdmsr",
    "    btr edx, 2",
    "    wrmsr",
    "2:",
    "    push 24",
    "    mov eax, [ebx + 0x1000 + {long}]",
    "    push eax",
    "    mov eax, cr4",
    "    or eax, 0x20", // PAE
    "    mov cr4, eax",
    "    mov eax, [ebx + 0x1000 + {cr3}]",
    "    mov cr3, eax",
    "    mov ecx, 0xc0000080",
    "    rdmsr",
    "    or eax, 0x900", // LME, NXE
    "    wrmsr",
    "    mov eax, 0x80010031", // PG, WP, NE, ET, PE
    "    mov cr0, eax",
    "    retf",
    ".code64",
    ".global nexit_start_long",
    "nexit_start_long:",
    "    mov eax, 16",
    "    mov ds, eax",
    "    mov es, eax",
    "    mov ss, eax",
    "    mov rsp, [rbx + 0x1000 + {stack}]",
    "    mov rdi, [rbx + 0x1000 + {argument}]",
    "    mov rax, [rbx + 0x1000 + {entry}]",
    "    xor ebp, ebp",
    "    call rax",
    "    ud2",
    ".balign 8",
    ".global nexit_start_gdt",
    "nexit_start_gdt:", // null, 32-bit code, data, 64-bit code
    "    .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00af9b000000ffff",
    ".global nexit_start_end",
    "nexit_start_end:",
    ".popsection",
    cr3 = const offset_of!(StartParameters, cr3),
    stack = const offset_of!(StartParameters, stack),
    entry = const offset_of!(StartParameters, entry),
    argument = const offset_of!(StartParameters, argument),
    far = const offset_of!(StartParameters, far_offset),
    long = const offset_of!(StartParameters, long_offset),
    gdtr = const offset_of!(StartParameters, gdt_limit),
);

unsafe extern "C" {
    static nexit_start_code: u8;
    static nexit_start_protected: u8;
    static nexit_start_long: u8;
    static nexit_start_gdt: u8;
    static nexit_start_end: u8;
}

/// What the code reads.
#[repr(C)]
struct StartParameters {
    cr3: u64,
    stack: u64,
    entry: u64,
    argument: u64,
    long_offset: u32,
    far_offset: u32,
    far_selector: [u16; 2],
    gdt_limit: u16,
    gdt_base: [u16; 2],
}

/// Two pages below 1 MiB: the code, and its parameters.
#[derive(Debug)]
pub struct StartPage {
    page: Hpa,
}

impl StartPage {
    /// Bytes that it takes.
    pub const BYTES: u64 = 2 * PAGE_SIZE;

    /// Copies the code to `page`. Its parameters are in the page behind.
    ///
    /// # Safety
    /// `page` and the one behind it are free RAM below 1 MiB, identity-mapped and writable.
    #[must_use]
    pub unsafe fn new(page: Hpa) -> Self {
        let start = &raw const nexit_start_code;
        let length = &raw const nexit_start_end as usize - start as usize;
        // SAFETY: the linker put the code there; the caller vouches for the page.
        unsafe { core::ptr::copy_nonoverlapping(start, physical::pointer(page), length) };
        Self { page }
    }

    /// The page of the code, to be made executable.
    #[must_use]
    pub fn code(&self) -> HpaRange {
        HpaRange { start: self.page, length: PAGE_SIZE }
    }

    /// Says where the next processor goes on: in 64-bit mode, on `stack`, under the page table
    /// `root` (below 4 GiB).
    pub fn prepare(
        &mut self,
        root: Hpa,
        stack: u64,
        entry: extern "C" fn(u64) -> !,
        argument: u64,
    ) {
        const CODE_32: u16 = 8;
        const GDT_LIMIT: u16 = 4 * 8 - 1;
        let moved = |place: *const u8| {
            let offset = place as u64 - &raw const nexit_start_code as u64;
            (self.page.as_u64() + offset) as u32
        };
        let gdt = moved(&raw const nexit_start_gdt);
        let parameters = StartParameters {
            cr3: root.as_u64(),
            stack,
            entry: entry as usize as u64,
            argument,
            long_offset: moved(&raw const nexit_start_long),
            far_offset: moved(&raw const nexit_start_protected),
            far_selector: [CODE_32, 0],
            gdt_limit: GDT_LIMIT,
            gdt_base: [gdt as u16, (gdt >> 16) as u16],
        };
        let at = physical::pointer::<StartParameters>(self.page.wrapping_add(PAGE_SIZE));
        // SAFETY: `new`'s caller vouched for the page, and no processor reads it now.
        unsafe { at.write(parameters) };
    }

    /// Sends INIT and two start-up IPIs to a processor (SDM "MP Initialization Protocol Algorithm
    /// for Intel 64 Processors").
    ///
    /// # Safety
    /// This CPU is in x2APIC mode; the processor is not in use; [`Self::prepare`] was called for it;
    /// the page is executable.
    pub unsafe fn start(&self, processor: ApicId, tsc_khz: u64) {
        const STARTUP: u64 = 0x4600;
        let startup = STARTUP | self.page.as_u64() >> 12;
        for (command, wait_us) in [(INIT, INIT_US), (startup, 200), (startup, 200)] {
            // SAFETY: the caller vouches for x2APIC mode and for the processor.
            unsafe { send(processor, command) };
            wait(tsc_khz, wait_us);
        }
    }

    /// Has a processor wait for a start-up IPI again, whatever it does.
    ///
    /// # Safety
    /// This CPU is in x2APIC mode; nobody needs what the processor is at.
    pub unsafe fn stop(&self, processor: ApicId, tsc_khz: u64) {
        // SAFETY: the caller vouches for x2APIC mode and for the processor.
        unsafe { send(processor, INIT) };
        wait(tsc_khz, INIT_US);
    }
}

const INIT: u64 = 0x4500;
/// How long a processor may take for an INIT.
const INIT_US: u64 = 10_000;

/// # Safety
/// This CPU is in x2APIC mode; the command is one for that processor.
unsafe fn send(to: ApicId, command: u64) {
    // SAFETY: the caller vouches for both.
    unsafe { write_msr(msr::IA32_X2APIC_ICR, u64::from(to.0) << 32 | command) };
}

/// Waits for `microseconds`.
pub fn wait(tsc_khz: u64, microseconds: u64) {
    let start = tsc();
    while tsc().wrapping_sub(start) < tsc_khz * microseconds / 1000 {
        core::hint::spin_loop();
    }
}
