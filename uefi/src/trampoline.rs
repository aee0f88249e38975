//! The last steps: out of long mode, the image's bytes to their place, the jump.
//!
//! Invariant: the page that this runs from, what it copies and the information lie outside the
//! image's range and below 4 GiB; it uses no stack and no page tables, so it may overwrite the
//! firmware's and this loader's own.

use crate::error::LoadError;
use crate::pages::Pages;
use boot::multiboot2::MAGIC;
use core::arch::{asm, global_asm};
use core::convert::Infallible;
use core::ops::Range;
use uefi::boot::MemoryType;
use uefi_loader::elf::Image;

// Entered in compatibility mode with flat segments to load from selector 16, EDX = the list: per
// segment destination, source, bytes, zeroes behind; then 0, the entry, the information, the magic.
// Ends in the "I386 machine state" of the Multiboot2 Specification. Position-independent.
global_asm!(
    ".section .text.trampoline, \"xr\"",
    ".code32",
    "trampoline_start:",
    "mov eax, 16",
    "mov ds, eax",
    "mov es, eax",
    "mov fs, eax",
    "mov gs, eax",
    "mov ss, eax",
    "mov eax, cr0",
    "and eax, 0x7fffffff",
    "mov cr0, eax",
    "cld",
    "2: mov edi, [edx]",
    "test edi, edi",
    "jz 3f",
    "mov esi, [edx + 4]",
    "mov ecx, [edx + 8]",
    "rep movsb",
    "mov ecx, [edx + 12]",
    "xor eax, eax",
    "rep stosb",
    "add edx, 16",
    "jmp 2b",
    "3: mov ebx, [edx + 8]",
    "mov eax, [edx + 12]",
    "jmp dword ptr [edx + 4]",
    "trampoline_end:",
    ".code64",
);

unsafe extern "C" {
    static trampoline_start: u8;
    static trampoline_end: u8;
}

/// Flat segments: null, 32-bit code, data.
static GDT: [u64; 3] = [0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// Where in the page the copy of the GDT and the list lie; the code is shorter than that.
const GDT_OFFSET: usize = 0x400;
const LIST_OFFSET: usize = 0x800;

/// The page, ready to run.
pub(crate) struct Trampoline(Pages);

impl Trampoline {
    /// Prepares the way to `image`, whose file is `staged`, with multiboot2 information at
    /// `information`.
    pub(crate) fn new(
        image: &Image,
        staged: &Pages,
        information: u32,
        avoid: &Range<u64>,
    ) -> Result<Self, LoadError> {
        let mut page = Pages::allocate(4096, MemoryType::LOADER_CODE, avoid)?;
        let copies = image.segments.iter().map(|segment| {
            let source = staged.address() + segment.offset;
            let zeroes = segment.memory_size - segment.file_size;
            [segment.address, source, segment.file_size, zeroes]
        });
        let list = copies.chain([[0, image.entry, information, MAGIC]]);
        let gdt = GDT.iter().flat_map(|descriptor| descriptor.to_le_bytes());
        let bytes = page.bytes_mut();
        place(bytes, 0, code().iter().copied());
        place(bytes, GDT_OFFSET, gdt);
        place(bytes, LIST_OFFSET, list.flatten().flat_map(u32::to_le_bytes));
        Ok(Self(page))
    }

    /// Enters the image.
    ///
    /// # Safety
    /// Boot services must be over, and nothing that is still needed may lie in the image's range.
    pub(crate) unsafe fn enter(&self) -> Result<Infallible, LoadError> {
        let page = u64::from(self.0.address());
        let mut gdtr = [0u8; 10];
        place(&mut gdtr, 0, 23u16.to_le_bytes().into_iter());
        place(&mut gdtr, 2, (page + GDT_OFFSET as u64).to_le_bytes().into_iter());
        // SAFETY: the page holds the code, a GDT whose selector 8 is 32-bit code, and the list;
        // the firmware maps it onto itself, executable. It does not come back.
        unsafe {
            asm!(
                "cli",
                "lgdt [{gdtr}]",
                "push 8",
                "push {page}",
                "retfq",
                gdtr = in(reg) &gdtr,
                page = in(reg) page,
                in("rdx") page + LIST_OFFSET as u64,
                options(noreturn)
            )
        }
    }
}

/// The instructions above.
fn code() -> &'static [u8] {
    let (start, end) = (&raw const trampoline_start, &raw const trampoline_end);
    // SAFETY: the two symbols enclose the code above, which is part of this program.
    unsafe { core::slice::from_raw_parts(start, end.addr() - start.addr()) }
}

fn place(bytes: &mut [u8], offset: usize, values: impl Iterator<Item = u8>) {
    for (to, from) in bytes.iter_mut().skip(offset).zip(values) {
        *to = from;
    }
}
