//! A guest that tries to reach what is not its own in every way that a CPU has, and the neighbour that
//! watches for what comes through. `victim PASSES` on the command line makes it the neighbour; else
//! the word is the attempt, each of which ends the guest but the first, `all`.
//!
//! A guest that owns a device goes further: see `dma`.
#![no_std]
#![no_main]
#![feature(abi_x86_interrupt)]

mod cpu_state;
mod endless;
mod ends;
mod others;
mod reach;
mod trap;
mod victim;

use payload::{loaded, power_off, say};

#[unsafe(no_mangle)]
extern "C" fn kernel_main(magic: u32, info: u64) -> ! {
    // SAFETY: these are the arguments of `kernel_main`.
    let Some(info) = (unsafe { loaded(magic, info) }) else { power_off() };
    let mut words = info.command_line.split_whitespace();
    let (attempt, number) = (words.next().unwrap_or("all"), words.next());
    say!("{attempt} begins");
    match attempt {
        "victim" => victim::watch(number.and_then(|number| number.parse().ok()).unwrap_or(1)),
        "all" => all(number == Some("two")),
        "debug" => endless::debug(),
        "alignment" => endless::alignment(),
        attempt => ends::end(attempt),
    }
    say!("{attempt} done");
    power_off()
}

fn all(two_cpus: bool) {
    trap::load();
    // SAFETY: the guest's own local APIC, in x2APIC mode.
    unsafe { cpu::instructions::write_msr(arch::msr::IA32_X2APIC_SIVR, 0x1ff) };
    cpu_state::enable_vector_registers();
    cpu_state::msrs();
    cpu_state::instructions();
    cpu_state::control_registers();
    cpu_state::single_steps();
    cpu_state::descriptor_tables();
    reach::addresses();
    reach::ports();
    reach::configuration();
    reach::instruction_bytes();
    reach::device_registers();
    others::interrupts_of_others();
    others::floods();
    if two_cpus {
        others::second_cpu();
    }
    others::leave_exceptions_behind();
}
