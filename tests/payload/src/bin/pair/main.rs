//! One line for each fact that only two CPUs can show: how the second one starts, interprocessor interrupts, memory that
//! both use, local APICs in different modes. Runs on the bare machine and as a guest, and must print the same lines:
//! `tests/src/fidelity.rs` compares them (`docs/fidelity.md`).
//!
//! A group is a module and a call in `kernel_main`.
#![no_std]
#![no_main]

mod capture;
mod identity;
mod ipi;
mod local;
mod memory;
mod other;
mod start;
mod state;
mod trap;
mod waiting;

use core::sync::atomic::Ordering;

use arch::machine::Width;
use cpu::instructions::port_write;
pub(crate) use payload::fact;
use payload::{power_off, say};

#[unsafe(no_mangle)]
extern "C" fn kernel_main(magic: u32, info: u64) -> ! {
    // SAFETY: they are what this function was called with.
    let loaded = unsafe { payload::loaded(magic, info) };
    let shared = loaded.is_some_and(|loaded| loaded.command_line == "shared");
    trap::SHARED.store(shared || payload::is_kvms_guest(), Ordering::SeqCst);
    // On a bare machine nobody may have set the line up: 8 bits, no parity.
    // SAFETY: COM1's line control register.
    unsafe { port_write(0x3fb, Width::Byte, 3) };
    for port in [0x21, 0xa1] {
        // SAFETY: masks both 8259s, whose vectors are those of exceptions.
        unsafe { port_write(port, Width::Byte, 0xff) };
    }
    trap::prepare(0);
    // In xAPIC mode, as after a reset.
    local::enter_xapic_mode();
    other::prepare();
    start::all();
    ipi::all();
    waiting::all();
    identity::all();
    memory::all();
    identity::mixed();
    local::enter_x2apic_mode();
    ipi::all();
    waiting::all();
    identity::all();
    start::in_x2apic_mode();
    other::stop();
    say!("done");
    power_off()
}
