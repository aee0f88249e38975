//! One line for each fact of the CPU and its local APIC. Runs on the bare machine and as a guest, and must print the
//! same lines: `tests/src/fidelity.rs` compares them (`docs/fidelity.md`).
//!
//! A group is a module and a call in `kernel_main`.
#![no_std]
#![no_main]

mod apic_base;
mod clocks;
mod debug;
mod exceptions;
mod ipi;
mod local;
mod lvt;
mod nmi;
mod processor;
mod protected;
mod reserved;
mod start;
mod system;
mod tables;
mod tasks;
mod timer;
mod trap;
mod vectors;

use arch::machine::Width;
use cpu::instructions::port_write;
pub(crate) use payload::fact;
use payload::{power_off, say};

#[unsafe(no_mangle)]
extern "C" fn kernel_main(_: u32, _: u64) -> ! {
    // On a bare machine nobody may have set the line up: 8 bits, no parity.
    // SAFETY: COM1's line control register.
    unsafe { port_write(0x3fb, Width::Byte, 3) };
    start::all();
    for port in [0x21, 0xa1] {
        // SAFETY: masks both 8259s, whose vectors are those of exceptions.
        unsafe { port_write(port, Width::Byte, 0xff) };
    }
    trap::prepare();
    clocks::all();
    exceptions::all();
    debug::all();
    tables::all();
    processor::all();
    system::all();
    local::enter_xapic_mode();
    local::registers();
    local::priorities();
    local::step_over_ipi();
    timer::all();
    local::errors();
    nmi::all();
    lvt::all();
    reserved::all();
    ipi::all();
    vectors::all();
    apic_base::in_xapic_mode();
    tasks::all();
    apic_base::to_x2apic_mode();
    local::registers();
    local::msrs();
    local::priorities();
    local::step_over_ipi();
    timer::all();
    local::errors();
    nmi::all();
    lvt::all();
    reserved::all();
    ipi::all();
    vectors::all();
    apic_base::in_x2apic_mode();
    local::off_and_on();
    apic_base::off_and_on();
    say!("done");
    power_off()
}
