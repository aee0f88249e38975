//! CPU modes and the delivery of events, a line for each fact. Runs on the bare machine and as a guest, and must print the
//! same lines: `tests/src/fidelity.rs` compares them (`docs/fidelity.md`).
//!
//! A group is a module and a call in `kernel_main`.
#![no_std]
#![no_main]

mod delivery;
mod events;
mod instructions;
mod long;
mod low;
mod real;
mod sixteen;
mod ticks;
mod virtual_8086;

use arch::machine::Width;
use arch::msr::IA32_APIC_BASE;
use cpu::instructions::{port_write, read_msr, write_msr};
use payload::{power_off, say};

#[unsafe(no_mangle)]
extern "C" fn kernel_main(_: u32, _: u64) -> ! {
    for port in [0x21, 0xa1] {
        // SAFETY: masks both 8259s, whose vectors are those of exceptions.
        unsafe { port_write(port, Width::Byte, 0xff) };
    }
    // On a bare machine nobody may have set the line up: 8 bits, no parity.
    // SAFETY: COM1's line control register.
    unsafe { port_write(0x3fb, Width::Byte, 3) };
    enter_x2apic_mode();
    real::all();
    instructions::all();
    ticks::all();
    sixteen::all();
    virtual_8086::all();
    delivery::all();
    instructions::compatibility();
    events::all();
    say!("done");
    power_off()
}

/// Interrupts are sent by an MSR, in any mode; the local APIC is on.
fn enter_x2apic_mode() {
    const SPURIOUS: u32 = 0x80f;
    const X2APIC: u64 = 3 << 10;
    // SAFETY: every CPU in long mode has it.
    let base = unsafe { read_msr(IA32_APIC_BASE) };
    // SAFETY: x2APIC mode is to be had wherever Nexit runs.
    unsafe { write_msr(IA32_APIC_BASE, base | X2APIC) };
    // SAFETY: the register is there in x2APIC mode.
    unsafe { write_msr(SPURIOUS, 0x1ff) };
}
