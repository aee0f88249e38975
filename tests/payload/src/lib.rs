//! What the payload guests share: a console, a verdict line per check, the exit counters, and the way
//! out.
//!
//! A payload is a multiboot kernel in long mode: `boot`'s entry code calls its `kernel_main`.
#![no_std]
#![feature(abi_x86_interrupt)]

use core::fmt::{self, Write};
use core::panic::PanicInfo;

use arch::machine::Width;
use cpu::instructions::{cpuid, port_read, port_write};

/// The console: the guest's COM1.
pub struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        const COM1: u16 = 0x3f8;
        const TRANSMITTER_EMPTY: u32 = 1 << 5;
        for byte in text.bytes() {
            // SAFETY: COM1 is the guest's own.
            while unsafe { port_read(COM1 + 5, Width::Byte) } & TRANSMITTER_EMPTY == 0 {}
            // SAFETY: as above.
            unsafe { port_write(COM1, Width::Byte, u32::from(byte)) };
        }
        Ok(())
    }
}

/// Prints one line, `payload: …`.
#[macro_export]
macro_rules! say {
    ($($argument:tt)*) => {{
        use core::fmt::Write as _;
        let _ = $crate::Console.write_fmt(format_args!(
            "payload: {}\r\n", format_args!($($argument)*)
        ));
    }};
}

/// Reports the verdict of one check.
pub fn verdict(claim: &str, holds: bool, seen: fmt::Arguments<'_>) {
    let word = if holds { "ok" } else { "FAILED" };
    say!("{claim}: {word} ({seen})");
}

/// Index of an exit counter in the CPUID leaves (`docs/guest-interface.md`).
#[derive(Clone, Copy)]
pub enum Counter {
    /// Nested page faults.
    NestedPageFault = 4,
    /// NMIs, the watchdog's on AMD-V.
    Nmi = 6,
    /// External interrupts.
    ExternalInterrupt = 7,
    /// The watchdog's on VT-x.
    PreemptionTimer = 9,
    /// Trapped EOI writes.
    Eoi = 19,
    /// Interrupts that met a gate of the shadow IDT that is not present.
    ShadowGate = 20,
}

const COUNTER_LEAF: u32 = 0x4000_0101;

fn counter_leaf(subleaf: u32) -> u64 {
    let leaf = cpuid(COUNTER_LEAF, subleaf);
    u64::from(leaf.ebx) << 32 | u64::from(leaf.eax)
}

/// Exits of this vCPU for one reason.
#[must_use]
pub fn exits(counter: Counter) -> u64 {
    counter_leaf(counter as u32 + 1)
}

/// All exits of this vCPU.
#[must_use]
pub fn all_exits() -> u64 {
    counter_leaf(0)
}

/// Exits while `work` runs, without the one CPUID exit that reads the counter at the end and without
/// the watchdog's.
pub fn exits_during(work: impl FnOnce()) -> u64 {
    let watchdog = || exits(Counter::Nmi) + exits(Counter::PreemptionTimer);
    let watchdog_before = watchdog();
    let before = all_exits();
    work();
    let after = all_exits();
    // Reading the watchdog's two counters again costs two exits, but behind `after`.
    let ticks = watchdog() - watchdog_before;
    (after - before - 1).saturating_sub(ticks)
}

/// Switches the guest off.
pub fn power_off() -> ! {
    const PM1A_CONTROL: u16 = 0x604;
    const S5: u32 = 5 << 10;
    const SLEEP_ENABLE: u32 = 1 << 13;
    // SAFETY: the port is the guest's own power control.
    unsafe { port_write(PM1A_CONTROL, Width::Word, S5 | SLEEP_ENABLE) };
    cpu::instructions::halt_forever()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    say!("FAILED: {info}");
    power_off()
}
