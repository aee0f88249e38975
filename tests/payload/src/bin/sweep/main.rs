//! A guest whose device sends a message, copies or writes exactly so many ticks later: what comes at every
//! moment of an exit, of a change of its vector or CPU, of its end. Only the machine of `tests/machines` has such a
//! device.
//!
//! Its command line says what it does: `alone`, `pair`, or a generation that ends: `die=wait`, `die=reset`.
#![no_std]
#![no_main]
#![feature(abi_x86_interrupt)]

mod delays;
mod dying;
mod interrupts;
mod pair;

use payload::{loaded, power_off, say};

use crate::dying::End;
use payload::controller::Controller;

#[unsafe(no_mangle)]
extern "C" fn kernel_main(magic: u32, info: u64) -> ! {
    // SAFETY: they are what this function was called with.
    let loaded = unsafe { loaded(magic, info) };
    let command_line = loaded.map_or("", |loaded| loaded.command_line);
    let Some(device) = Controller::find() else {
        say!("FAILED: no NVMe controller with MSI-X");
        power_off()
    };
    interrupts::load::<0>();
    match command_line {
        "die=wait" => dying::generation(device, End::Wait),
        "die=reset" => dying::generation(device, End::Reset),
        _ => {}
    }
    x86_64::instructions::interrupts::enable();
    if command_line == "pair" {
        pair::every_move(device);
    } else {
        delays::every_delay(device);
        delays::every_change(device);
        delays::forged(device);
    }
    say!("done");
    power_off()
}
