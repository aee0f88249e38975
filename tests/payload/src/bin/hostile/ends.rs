//! Attempts at what is nowhere: each is a generation of its own, which goes on as on hardware, or ends by the guest's own
//! triple fault.

use core::arch::asm;
use core::sync::atomic::Ordering;

use payload::{power_off, say};

use crate::trap::{self, fault_of};

macro_rules! run {
    ($($operands:tt)*) => {{
        // SAFETY: whatever it does, it does it to this guest, which is at its end.
        unsafe { asm!($($operands)*) }
    }};
}

/// Tries `attempt`; after a triple fault it does not come back.
pub(crate) fn end(attempt: &str) {
    const NOWHERE: u64 = 0xfed9_0000;
    const UD: u32 = 6;
    const PF: u32 = 14;
    trap::load();
    crate::cpu_state::enable_vector_registers();
    let mut expected = trap::NONE;
    let mut seen = trap::NONE;
    match attempt {
        "vector-load" => run!("movups xmm0, [{}]", in(reg) NOWHERE, out("xmm0") _),
        "push" => run!("push qword ptr [{}]", "pop rax", in(reg) NOWHERE, out("rax") _),
        "call" => {
            trap::FAULT.store(trap::NONE, Ordering::Relaxed);
            // It has pushed where it came from.
            run!(
                "mov r10, rsp", "lea r11, [rip + 77f]", "mov [rip + {resume}], r11", "call [rax]",
                "77:", "mov rsp, r10", resume = sym trap::RESUME, in("rax") NOWHERE,
                out("r10") _, out("r11") _
            );
            (expected, seen) = (PF, trap::FAULT.load(Ordering::Relaxed));
        }
        "rom" => (expected, seen) = (UD, fault_of!("jmp rax", in("rax") 0xffff_fff0_u64)),
        "far" => run!("lgdt [{}]", "push 8", "push 0", "retfq", in(reg) NOWHERE),
        "idt" => {
            trap::point_at(NOWHERE, 0xfff);
            run!("int3");
        }
        "tables" => run!("mov cr3, {}", "mov rax, [0]", in(reg) NOWHERE, options(noreturn)),
        _ => say!("FAILED: no such attempt"),
    }
    trap::point_at(trap::page(), 0xfff);
    let word = if seen == expected { "lived" } else { "FAILED" };
    say!("{attempt} {word} (fault {seen})");
    power_off()
}
