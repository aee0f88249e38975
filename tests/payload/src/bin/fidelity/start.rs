//! What a program finds before it has set anything: as hardware and firmware leave it.

use core::arch::asm;

use arch::machine::Width;
use arch::msr::IA32_EFER;
use cpu::instructions::{port_read, read_msr};

use crate::{fact, local};

pub(crate) fn all() {
    let (cr0, cr4): (u64, u64);
    // SAFETY: reads.
    unsafe { asm!("mov {}, cr0", "mov {}, cr4", out(reg) cr0, out(reg) cr4) };
    // SAFETY: every CPU in long mode has it.
    let efer = unsafe { read_msr(IA32_EFER) };
    fact!("start: CR0, CR4 and EFER, in 64-bit mode by then"; "{cr0:#x}, {cr4:#x}, {efer:#x}");
    fact!("start: the local APIC's mode"; "{}", local::mode());
    fact!("start: IA32_APIC_BASE"; "{:#x}", local::base());
    fact!("start: CR8"; "{:#x}", local::cr8());
    for (name, register) in [
        ("TPR", local::TPR),
        ("SVR", 0xf0),
        ("LVT timer", 0x320),
        ("LVT LINT0", 0x350),
        ("LVT LINT1", 0x360),
        ("LVT error", 0x370),
        ("initial count", 0x380),
        ("current count", 0x390),
        ("divide configuration", 0x3e0),
        ("ESR", 0x280),
        ("version", 0x30),
    ] {
        fact!("start: {name}"; "{:#x}", local::read(register));
    }
    for (name, port) in [("first", 0x21), ("second", 0xa1)] {
        // SAFETY: a read of its mask.
        let mask = unsafe { port_read(port, Width::Byte) };
        fact!("start: the {name} 8259's mask"; "{mask:#x}");
    }
}
