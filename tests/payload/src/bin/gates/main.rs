//! The exitless path from a guest's side: gates that are granted and not granted, `INT n`, EOI, IPIs,
//! the APIC timer, HLT, and an IDT that moves and is rewritten while interrupts flow.
//!
//! Each check prints a verdict that holds in both interrupt modes, and what it cost in exits, which
//! differs: the harness knows which cost belongs to which mode.
#![no_std]
#![no_main]
#![feature(abi_x86_interrupt)]

mod arrival;
mod idt;
mod timer;
mod writes;

use arch::msr;
use cpu::instructions::{cpuid, read_msr, write_msr};
use payload::{Counter, exits, exits_during, power_off, say, verdict};
use x86_64::instructions::interrupts;

#[unsafe(no_mangle)]
extern "C" fn kernel_main(_: u32, _: u64) -> ! {
    let signature = cpuid(0x4000_0100, 0);
    verdict(
        "the hypervisor's own leaf is there",
        signature.ebx.to_le_bytes() == *b"Nexi",
        format_args!("{:#x}", signature.ebx),
    );
    // SAFETY: the guest starts in x2APIC mode; bit 8 enables the APIC.
    unsafe { write_msr(msr::IA32_X2APIC_SIVR, 0x1ff) };
    // SAFETY: as above.
    let mode = unsafe { read_msr(msr::IA32_APIC_BASE) };
    verdict("the guest starts in x2APIC mode", mode >> 10 & 3 == 3, format_args!("{mode:#x}"));
    checks();
    for (name, counter) in [
        ("external_interrupt", Counter::ExternalInterrupt),
        ("eoi", Counter::Eoi),
        ("shadow_gate", Counter::ShadowGate),
    ] {
        say!("exits by {name}: {}", exits(counter));
    }
    say!("done");
    power_off()
}

fn checks() {
    idt::load(0);
    let mut loaded = None;
    let spent = exits_during(|| loaded = Some(idt::fill(0)));
    let Some(table) = loaded else { return };
    say!("exits for writing 256 gates before it: {spent}");
    let limit = x86_64::instructions::tables::sidt().limit;
    verdict("SIDT gives what was loaded", limit == 0xfff, format_args!("{limit:#x}"));
    interrupts::enable();
    arrival::first_is_granted();
    arrival::granted_vector_costs("page-aligned");
    arrival::exceptions_cost();
    arrival::software_interrupt_works();
    arrival::own_absent_gate_is_a_fault();
    arrival::closed_gate_of_a_granted_vector_is_a_fault(table);
    arrival::ipis_through_the_icr_arrive();
    writes::rewritten_gate_counts(table);
    timer::one_shot_costs();
    timer::deadline_costs();
    interrupts::disable();
    let table = idt::load(writes::STRADDLING);
    interrupts::enable();
    arrival::granted_vector_costs("straddling two pages in the middle of a gate");
    writes::neighbours_are_written();
    writes::vector_registers_are_stored();
    arrival::every_vector_arrives(table);
    interrupts::disable();
    idt::load(2 * 4096);
    interrupts::enable();
    writes::pages_left_are_given_back();
    timer::watchdog_comes_back();
}
