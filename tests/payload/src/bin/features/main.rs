//! One line for each fact of what CPUID announces, of memory and of ports. Runs on the bare machine and as a guest, and
//! must print the same lines: `tests/src/fidelity.rs` compares them (`docs/fidelity.md`).
//!
//! A group is a module and a call in `kernel_main`.
#![no_std]
#![no_main]

mod adjust;
mod chipset;
mod control;
mod hpet;
mod pages;
mod paging;
mod ports;
mod protect;
mod reserved;
mod trial;
mod xsave;

use arch::machine::Width;
use cpu::instructions::port_write;
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
    // SAFETY: pages that nothing may be fetched from.
    unsafe { cpu::instructions::write_msr(arch::msr::IA32_EFER, 0xd00) };
    trial::prepare();
    pages::prepare();
    protect::all();
    xsave::all();
    paging::all();
    ports::all();
    adjust::all();
    hpet::all();
    chipset::all();
    reserved::all();
    say!("done");
    power_off()
}
