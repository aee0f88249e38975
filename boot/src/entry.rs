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
// alignment, and a framebuffer of 32 bits a pixel, which is optional (flag 1): without one there is the
// serial line. Everything else that is needed GRUB passes unasked.
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
    ".short 5, 1",
    ".long 20, 0, 0, 32, 0",
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
    // A POST code and the serial line are all that can be had without a driver: COM1 or COM2,
    // whichever keeps a byte in its scratch register. Initialise it (115200 8N1), speak.
    "no_long_mode:",
    "mov al, 0xe1",
    "out 0x80, al",
    "mov bh, 3",
    "2: mov dl, 0xff",
    "mov dh, bh",
    "mov al, 0x5a",
    "out dx, al",
    // Another value on the bus, so that an echo is not taken for a register.
    "xor al, al",
    "out 0xed, al",
    "in al, dx",
    "cmp al, 0x5a",
    "je 3f",
    "dec bh",
    "cmp bh, 2",
    "je 2b",
    "jmp 8f",
    "3: mov esi, offset uart_setup",
    "4: lodsw",
    "mov dl, al",
    "mov dh, bh",
    "mov al, ah",
    "out dx, al",
    "cmp esi, offset uart_setup_end",
    "jb 4b",
    "mov esi, offset no_long_mode_sentence",
    "5: mov dl, 0xfd",
    "mov ecx, 1000000",
    "6: in al, dx",
    "test al, 0x20",
    "jnz 7f",
    "dec ecx",
    "jnz 6b",
    // It takes no more bytes.
    "jmp 8f",
    "7: lodsb",
    "mov dl, 0xf8",
    "out dx, al",
    "cmp esi, offset no_long_mode_sentence_end",
    "jb 5b",
    "8: hlt",
    "jmp 8b",
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
    // For devices above 4 GiB, filled in by `map_device`: two page directories, and a page-directory
    // pointer table where the device lies above 512 GiB.
    ".section .bss.boot_device_tables, \"aw\", @nobits",
    ".balign 4096",
    "boot_device_pd: .skip 8192",
    "boot_device_pdpt: .skip 4096",
);

unsafe extern "C" {
    static mut boot_pml4: [u64; 512];
    static mut boot_pdpt: [u64; 512];
    static mut boot_device_pd: [[u64; 512]; 2];
    static mut boot_device_pdpt: [u64; 512];
}

/// Maps a device onto itself, uncached, in the page tables of the entry; `false` where they have no
/// room for it. One device above 4 GiB at most.
///
/// # Safety
/// Those tables are in use, this is the only CPU, and nothing else is to be had above 4 GiB.
#[must_use]
pub unsafe fn map_device(range: HpaRange) -> bool {
    const FOUR_GIB: u64 = 1 << 32;
    const LINK: u64 = 0x3;
    /// A present and writable page of 2 MiB, PCD and PWT: uncached in the PAT of a reset CPU.
    const PAGE: u64 = 0x9b;
    let (first, last) = (range.start.as_u64(), range.end().as_u64().wrapping_sub(1));
    if last < FOUR_GIB {
        return true;
    }
    let (first_gib, last_gib) = (first >> 30, last >> 30);
    // The lower half of the linear address space; one page-directory pointer table; two directories.
    if first < FOUR_GIB || last >> 47 != 0 || first >> 39 != last >> 39 || last_gib > first_gib + 1
    {
        return false;
    }
    let own = first >> 39 == 0;
    let pdpt = if own { &raw mut boot_pdpt } else { &raw mut boot_device_pdpt }.cast::<u64>();
    for (gib, directory) in (first_gib..=last_gib).zip(0_usize..) {
        let pages = (&raw mut boot_device_pd).cast::<[u64; 512]>().wrapping_add(directory);
        for (index, page) in (0_usize..512).zip((gib << 30..).step_by(2 << 20)) {
            // SAFETY: an entry of a directory that nothing uses yet.
            unsafe { pages.cast::<u64>().wrapping_add(index).write_volatile(page | PAGE) };
        }
        let entry = pdpt.wrapping_add((gib & 0x1ff) as usize);
        // SAFETY: an entry that was absent, and absent entries are not cached.
        unsafe { entry.write_volatile(pages as u64 | LINK) };
    }
    if !own {
        let entry = (&raw mut boot_pml4).cast::<u64>().wrapping_add((first >> 39) as usize);
        // SAFETY: as above.
        unsafe { entry.write_volatile(pdpt as u64 | LINK) };
    }
    true
}

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
