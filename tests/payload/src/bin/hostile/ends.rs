//! Attempts that can only end the guest: each is a life of its own.

use core::arch::asm;

use payload::{power_off, say};

use crate::trap;

macro_rules! run {
    ($($operands:tt)*) => {{
        // SAFETY: whatever it does, it does it to this guest, which is at its end.
        unsafe { asm!($($operands)*) }
    }};
}

/// Tries `attempt`; it comes back only if the hypervisor let it live.
pub(crate) fn end(attempt: &str) {
    const NOWHERE: u64 = 0xfed9_0000;
    trap::load();
    crate::cpu_state::enable_vector_registers();
    match attempt {
        "vector-load" => run!("movups xmm0, [{}]", in(reg) NOWHERE, out("xmm0") _),
        "push" => run!("push qword ptr [{}]", "pop rax", in(reg) NOWHERE, out("rax") _),
        "call" => run!("call [{}]", in(reg) NOWHERE),
        "far" => run!("lgdt [{}]", "push 8", "push 0", "retfq", in(reg) NOWHERE),
        "stack" => run!("mov rsp, {}", "int3", in(reg) NOWHERE, options(noreturn)),
        "idt" => {
            trap::point_at(NOWHERE, 0xfff);
            run!("int3");
        }
        "tables" => run!("mov cr3, {}", "mov rax, [0]", in(reg) NOWHERE, options(noreturn)),
        "rom" => run!("jmp {}", in(reg) 0xffff_fff0_u64, options(noreturn)),
        _ => say!("FAILED: no such attempt"),
    }
    trap::point_at(trap::page(), 0xfff);
    say!("{attempt} lived");
    power_off()
}
