//! The headers that loaders look for, the first instructions, and the way back to what was loaded.
//!
//! Place in the path: loader → `_start` (32-bit, paging off) → `kernel_main(magic, info)` in long
//! mode on the boot stack, with interrupts off and the first 4 GiB mapped onto themselves, all
//! writable and executable: the kernel builds its own tables at once. The linker script owns the
//! symbols `__image_start`, `__load_end`, `__image_end` and `__stack_top`.
#![allow(unsafe_code)]

use crate::{BootError, BootInfo};
use arch::Hpa;
use arch::address::HpaRange;
use core::arch::global_asm;

// Multiboot header (Multiboot Specification, "The layout of Multiboot header"): modules on page
// boundaries, memory map, and the address fields, without which QEMU takes no 64-bit ELF file.
// Multiboot2 header (Multiboot2 Specification, "OS image format"): entry address and module
// alignment; everything else that is needed GRUB passes unasked.
global_asm!(
    ".section .multiboot, \"a\"",
    ".balign 8",
    "multiboot1_header:",
    ".long 0x1badb002, 0x10003, -(0x1badb002 + 0x10003)",
    ".long multiboot1_header, __image_start, __load_end, __image_end, _start",
    ".balign 8",
    "multiboot2_header:",
    ".long 0xe85250d6, 0, multiboot2_end - multiboot2_header",
    ".long -(0xe85250d6 + (multiboot2_end - multiboot2_header))",
    ".short 3, 0",
    ".long 12, _start, 0",
    ".short 6, 0",
    ".long 8",
    ".short 0, 0",
    ".long 8",
    "multiboot2_end:",
);

// `_start`: 32-bit protected mode, flat segments, paging off, EAX = the protocol's number, EBX =
// address of its information structure (both specifications, "I386 machine state"). Calls
// `kernel_main` with EDI = the number and RSI = the address. Nothing is preserved.
global_asm!(
    ".section .text.entry, \"ax\"",
    ".code32",
    ".global _start",
    "_start:",
    "cli",
    "cld",
    "mov esp, offset __stack_top",
    "mov edi, eax",
    "mov esi, ebx",
    // Long mode? (APM volume 3, "CPUID Fn8000_0001_EDX")
    "mov eax, 0x80000000",
    "cpuid",
    "cmp eax, 0x80000001",
    "jb no_long_mode",
    "mov eax, 0x80000001",
    "cpuid",
    "bt edx, 29",
    "jnc no_long_mode",
    // SDM "Initializing IA-32e Mode": PAE, CR3, LME, then paging.
    "mov eax, 0x20",
    "mov cr4, eax",
    "mov eax, offset boot_pml4",
    "mov cr3, eax",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "or eax, 0x100",
    "wrmsr",
    "mov eax, 0x80010031", // PG, WP, NE, ET, PE
    "mov cr0, eax",
    "lgdt [boot_gdtr]",
    "mov eax, offset long_mode",
    "push 8",
    "push eax",
    "retf",
    // The serial line is all that can be had without a driver: initialise it (115200 8N1), speak.
    "no_long_mode:",
    "mov esi, offset uart_setup",
    "2: lodsw",
    "movzx edx, al",
    "mov al, ah",
    "mov dh, 3",
    "out dx, al",
    "cmp esi, offset uart_setup_end",
    "jb 2b",
    "mov esi, offset no_long_mode_sentence",
    "3: mov dx, 0x3fd",
    "4: in al, dx",
    "test al, 0x20",
    "jz 4b",
    "lodsb",
    "mov dx, 0x3f8",
    "out dx, al",
    "cmp esi, offset no_long_mode_sentence_end",
    "jb 3b",
    "5: hlt",
    "jmp 5b",
    ".code64",
    "long_mode:",
    "mov eax, 16",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "xor eax, eax",
    "mov fs, eax",
    "mov gs, eax",
    "mov esp, offset __stack_top",
    "xor ebp, ebp",
    "mov edi, edi",
    "mov esi, esi",
    "call kernel_main",
    "ud2",
);

// The GDT (null, 64-bit code, data) and the page tables, made by the assembler: 2,048 pages of
// 2 MiB, present and writable (SDM "4-Level Paging and 5-Level Paging").
global_asm!(
    ".section .data.boot_tables, \"aw\"",
    ".balign 4096",
    "boot_pml4:",
    ".quad boot_pdpt + 3",
    ".fill 511, 8, 0",
    "boot_pdpt:",
    ".quad boot_pd + 3, boot_pd + 0x1003, boot_pd + 0x2003, boot_pd + 0x3003",
    ".fill 508, 8, 0",
    "boot_pd:",
    ".set boot_page, 0x83",
    ".rept 2048",
    ".quad boot_page",
    ".set boot_page, boot_page + 0x200000",
    ".endr",
    "boot_gdt:",
    ".quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff",
    "boot_gdtr:",
    ".short 23",
    ".long boot_gdt, 0",
    // Low byte of the port, value: interrupts off, divisor 1, 8N1, FIFOs, DTR and RTS.
    "uart_setup:",
    ".byte 0xf9, 0, 0xfb, 0x80, 0xf8, 1, 0xf9, 0, 0xfb, 3, 0xfa, 7, 0xfc, 3",
    "uart_setup_end:",
    "no_long_mode_sentence:",
    // The mark of the hypervisor's own lines is 036 (see the kernel's `console`).
    ".ascii \"\\036nexit: error: this CPU has no 64-bit mode (CPUID 0x80000001 EDX bit 29 is 0): \"",
    ".ascii \"use a 64-bit machine with VT-x or AMD-V\\r\\n\\036nexit: halted\\r\\n\"",
    "no_long_mode_sentence_end:",
);

/// Reads what the loader left in memory.
///
/// # Errors
/// As [`crate::parse`].
///
/// # Safety
/// `magic` and `info` must be what `kernel_main` was called with, the first 4 GiB must be mapped
/// onto themselves, and as long as the result lives nobody may write to the ranges that
/// [`BootInfo::occupied`] names.
pub unsafe fn boot_info(magic: u32, info: u64) -> Result<BootInfo<'static>, BootError> {
    crate::parse(magic, Hpa::new(info), &|range: HpaRange| {
        let end = range.start.as_u64().checked_add(range.length)?;
        let length = usize::try_from(range.length).ok()?;
        if range.start.as_u64() == 0 || end > 1 << 32 {
            return None;
        }
        let start = range.start.as_u64() as *const u8;
        // SAFETY: not null, mapped (below 4 GiB), readable as bytes; the caller keeps writers away.
        Some(unsafe { core::slice::from_raw_parts(start, length) })
    })
}
