//! The end of the run: the machine is switched off, or the CPU halts.

use arch::machine::Width;
use cpu::instructions::{halt_forever, port_write};

use crate::acpi::SoftOff;
use crate::console;

/// About a second on any machine.
const MOST_POLLS: u32 = 100_000_000;

/// Switches the machine off (ACPI Specification, "Sleep/Wake Control": SLP_TYP and SLP_EN of
/// PM1a_CNT); halts where the firmware did not say how.
pub(crate) fn off(how: Option<SoftOff>) -> ! {
    const SLEEP_ENABLE: u32 = 1 << 13;
    console::drain();
    if let Some(SoftOff { pm1a_control, sleep_type }) = how {
        let value = u32::from(sleep_type & 7) << 10 | SLEEP_ENABLE;
        // SAFETY: the port is the one that the firmware's FADT names for this.
        unsafe { port_write(pm1a_control, Width::Word, value) };
        // The chipset takes its time.
        for _ in 0..MOST_POLLS {
            core::hint::spin_loop();
        }
    }
    console::logln!("the machine can be switched off now");
    console::drain();
    halt_forever()
}

/// Stops with a sentence on the console.
pub(crate) fn refuse(sentence: &dyn core::fmt::Display) -> ! {
    console::logln!("error: {sentence}");
    console::logln!("halted");
    console::drain();
    halt_forever()
}
