//! Every form of MOV, and its like, that a compiler or a kernel uses on the page.

use core::arch::asm;

use payload::verdict;

use crate::local::{EOI, LDR, Local, PAGE, VERSION};

/// The register that the forms try: it holds what is written to its top byte, and does nothing.
const AT: u64 = PAGE + LDR as u64;

/// Runs one instruction.
macro_rules! run {
    ($($operand:tt)*) => {
        // SAFETY: each reads or writes the guest's own local APIC, or a variable.
        unsafe { asm!($($operand)*) }
    };
}

pub(crate) fn every_form_of_store_writes() {
    let forms: [(u32, &dyn Fn()); 14] = [
        (0x0100_0000, &|| run!("mov dword ptr [{}], 0x01000000", in(reg) AT)),
        (0x0200_0000, &|| run!("mov [{}], {:e}", in(reg) AT, in(reg) 0x0200_0000)),
        (0x0300_0000, &|| run!("mov [{}], r15d", in(reg) AT, in("r15") 0x0300_0000)),
        (0x0400_0000, &|| run!(".byte 0xa3", ".quad {}", const AT, in("eax") 0x0400_0000)),
        (0x0500_0000, &|| run!("xchg [{}], {:e}", in(reg) AT, inout(reg) 0x0500_0000_u32 => _)),
        (0x0600_0000, &|| {
            run!("mov dword ptr [{} + 4 * {} - 8], 0x06000000", in(reg) AT, in(reg) 2_u64);
        }),
        (0x0e00_0000, &|| run!("or dword ptr [{}], 0x08000000", in(reg) AT)),
        (0x0c00_0000, &|| run!("and dword ptr [{}], 0x0cffffff", in(reg) AT)),
        (0x1c00_0000, &|| run!("bts dword ptr [{}], 28", in(reg) AT)),
        (0x1d00_0000, &|| run!("add [{}], {:e}", in(reg) AT, in(reg) 1 << 24)),
        (0x0800_0000, &|| run!("mov [{}], {}", in(reg) AT, in(reg) 0xffff_0800_0000_u64)),
        (0x0900_0000, &|| run!("stosd", inout("rdi") AT => _, in("eax") 0x0900_0000)),
        // Narrower ones do nothing.
        (0x0900_0000, &|| run!("mov byte ptr [{}], 0x55", in(reg) AT + 3)),
        (0x0900_0000, &|| run!("mov word ptr [{}], 0x5500", in(reg) AT + 2)),
    ];
    let wrong = forms.iter().position(|(expected, write)| {
        write();
        Local(0).read(LDR) != *expected
    });
    let seen = Local(0).read(LDR);
    verdict("every form of store writes", wrong.is_none(), format_args!("{wrong:?}, {seen:#x}"));
}

pub(crate) fn every_form_of_load_reads() {
    const VALUE: u64 = 0x5_0014;
    const FROM: u64 = PAGE + VERSION as u64;
    let (plain, offset, wide, word, byte): (u64, u64, u64, u64, u64);
    let (mut or, mut string, mut equal) = (0_u64, 0_u64, 0_u64);
    run!("mov {:e}, [{}]", out(reg) plain, in(reg) FROM);
    run!(".byte 0xa1", ".quad {}", const FROM, out("rax") offset);
    run!("mov {}, [{}]", out(reg) wide, in(reg) FROM);
    run!("movzx {:e}, word ptr [{}]", out(reg) word, in(reg) FROM);
    run!("movzx {:e}, byte ptr [{}]", out(reg) byte, in(reg) FROM + 2);
    run!("or {:e}, [{}]", inout(reg) or, in(reg) FROM);
    run!("movsd", inout("rsi") FROM => _, inout("rdi") &raw mut string => _);
    run!("cmp dword ptr [{}], 0x50014", "sete {:l}", in(reg) FROM, inout(reg) equal);
    let seen = [plain, offset, wide, word, byte, or, string, equal];
    let expected = [VALUE, VALUE, VALUE, VALUE & 0xffff, VALUE >> 16, VALUE, VALUE, 1];
    verdict("every form of load reads", seen == expected, format_args!("{seen:x?}"));
}

/// What a compiler makes of `*eoi = 0`.
pub(crate) fn end_by_immediate() {
    run!("mov dword ptr [{}], 0", in(reg) PAGE + u64::from(EOI));
}
