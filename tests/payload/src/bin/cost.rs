//! What the frequent exits cost, in TSC ticks. On Bochs with one CPU, and in QEMU with
//! `-icount shift=0`, a tick is one instruction, whoever runs it: the figures are exact and the same
//! in each run.
#![no_std]
#![no_main]

use core::arch::asm;

use arch::msr;
use cpu::instructions::{tsc, write_msr};
use payload::{power_off, say};

/// Exits measured at once.
const ROUNDS: u64 = 1000;

/// A vector of no device.
const VECTOR: u32 = 0x61;

/// TSC ticks of a loop that executes `$instruction` with these values in EAX, ECX and EDX.
macro_rules! ticks {
    ($instruction:literal, $eax:expr, $ecx:expr, $edx:expr) => {{
        let start = tsc();
        // SAFETY: the instruction reaches nothing but this CPU's own registers; RBX, which the
        // compiler keeps for itself, is put back.
        unsafe {
            asm!(
                "mov {rbx}, rbx",
                "2:",
                "mov eax, {eax:e}",
                "mov ecx, {ecx:e}",
                "mov edx, {edx:e}",
                $instruction,
                "dec {rounds}",
                "jnz 2b",
                "mov rbx, {rbx}",
                rbx = out(reg) _,
                eax = in(reg) $eax,
                ecx = in(reg) $ecx,
                edx = in(reg) $edx,
                rounds = inout(reg) ROUNDS => _,
                out("rax") _,
                out("rcx") _,
                out("rdx") _,
            );
        }
        tsc() - start
    }};
}

/// Says what one `$instruction` costs beyond itself. The first loop warms up: it grants vectors.
macro_rules! cost {
    ($what:literal, $instruction:literal, $eax:expr, $ecx:expr, $edx:expr) => {{
        let (eax, ecx, edx): (u32, u32, u32) = ($eax, $ecx, $edx);
        let _ = ticks!($instruction, eax, ecx, edx);
        let with = ticks!($instruction, eax, ecx, edx);
        let without = ticks!("", eax, ecx, edx);
        say!("instructions for {}: {}", $what, with.saturating_sub(without) / ROUNDS);
    }};
}

#[unsafe(no_mangle)]
extern "C" fn kernel_main(_: u32, _: u64) -> ! {
    // SAFETY: the guest starts in x2APIC mode; bit 8 enables the APIC. Interrupts stay off.
    unsafe { write_msr(msr::IA32_X2APIC_SIVR, 0x1ff) };
    cost!("CPUID leaf 0", "cpuid", 0, 0, 0);
    cost!("CPUID leaf 1", "cpuid", 1, 0, 0);
    cost!("CPUID leaf 7", "cpuid", 7, 0, 0);
    cost!("CPUID leaf 0x40000000", "cpuid", 0x4000_0000, 0, 0);
    cost!("CPUID leaf 4, subleaf 1", "cpuid", 4, 1, 0);
    cost!("CPUID leaf 0xD", "cpuid", 0xd, 0, 0);
    cost!("CPUID leaf 0x80000008", "cpuid", 0x8000_0008, 0, 0);
    cost!("CPUID leaf 0x40000200", "cpuid", 0x4000_0200, 0, 0);
    cost!("an ICR write to one CPU", "wrmsr", VECTOR, msr::IA32_X2APIC_ICR, 0);
    cost!("a write of the timer's LVT entry", "wrmsr", VECTOR, msr::IA32_X2APIC_LVT_TIMER, 0);
    cost!("a read of IA32_EFER", "rdmsr", 0, msr::IA32_EFER, 0);
    cost!("a read of a port where nothing is", "in al, 0x80", 0, 0, 0);
    cost!("nothing", "nop", 0, 0, 0);
    say!("done");
    power_off()
}
