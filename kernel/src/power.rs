//! The end of the run: the machine is switched off or reset, or the CPU halts.

use arch::machine::Width;
use cpu::instructions::{halt_forever, port_read, port_write};
use cpu::physical::{mmio_read, mmio_write};
use firmware::{Pm1Control, Register, Reset, SoftOff};

use crate::console;

/// About a second on any machine.
const MAX_POLLS: u32 = 100_000_000;

/// Switches the machine off; halts where the firmware did not say how.
pub(crate) fn off(how: Option<SoftOff>) -> ! {
    if how.is_some() {
        console::logln!("the machine is switched off");
    }
    console::drain();
    if let Some(how) = how {
        match how {
            SoftOff::Pm1 { a, b } => pm1(a, b),
            SoftOff::SleepControl { register, sleep_type } => {
                // "Sleep Control and Status Registers": SLP_TYP and SLP_EN, a byte.
                write(register, Width::Byte, u32::from(sleep_type & 7) << 2 | 1 << 5);
            }
        }
        // The chipset takes its time.
        for _ in 0..MAX_POLLS {
            core::hint::spin_loop();
        }
    }
    console::logln!("the machine can be switched off now");
    console::drain();
    halt_forever()
}

/// Resets the machine by these writes, one after the other until it is; returns where none does.
pub(crate) fn reset(ways: &[Reset]) {
    console::logln!("resetting the machine");
    console::drain();
    for Reset { register, value } in ways {
        write(*register, Width::Byte, u32::from(*value));
        // The chipset takes its time.
        for _ in 0..MAX_POLLS / 10 {
            core::hint::spin_loop();
        }
    }
    console::logln!("the machine is not reset: the firmware's FADT names no register that does");
}

/// ACPI Specification, "PM1 Control Registers": first SLP_TYP, then SLP_EN as well; a machine with two
/// such registers is off when both have them. Other bits stay, SCI_EN among them.
fn pm1(a: Pm1Control, b: Option<Pm1Control>) {
    const SLEEP_ENABLE: u32 = 1 << 13;
    const SLEEP_TYPE: u32 = 7 << 10;
    for enable in [0, SLEEP_ENABLE] {
        for Pm1Control { register, sleep_type } in [Some(a), b].into_iter().flatten() {
            let others = read(register, Width::Word) & !(SLEEP_TYPE | SLEEP_ENABLE);
            write(register, Width::Word, others | u32::from(sleep_type & 7) << 10 | enable);
        }
    }
}

fn read(register: Register, width: Width) -> u32 {
    match register {
        // SAFETY: the register is the one that the firmware's FADT names for this.
        Register::Port(port) => unsafe { port_read(port, width) },
        // SAFETY: as above, and the boot order has mapped it.
        Register::Memory(at) => unsafe { mmio_read(at, width) as u32 },
    }
}

fn write(register: Register, width: Width, value: u32) {
    match register {
        // SAFETY: the register is the one that the firmware's FADT names for this.
        Register::Port(port) => unsafe { port_write(port, width, value) },
        // SAFETY: as above, and the boot order has mapped it.
        Register::Memory(at) => unsafe { mmio_write(at, width, u64::from(value)) },
    }
}

/// Stops with a sentence on the console.
pub(crate) fn refuse(sentence: &dyn core::fmt::Display) -> ! {
    crate::post::refused();
    console::logln!("error: {sentence}");
    console::logln!("halted");
    console::drain();
    halt_forever()
}
