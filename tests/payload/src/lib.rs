//! What the payload guests share: a console, a verdict line per check, the exit counters, and the way
//! out.
//!
//! A payload is a multiboot kernel in long mode: `boot`'s entry code calls its `kernel_main`.
#![no_std]
#![feature(abi_x86_interrupt)]

pub mod controller;
pub mod local_apic;
pub mod pci;
pub mod trap;

use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU64, Ordering};

use arch::machine::Width;
use boot::BootInfo;
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

/// Prints one fact, `payload: fact: … = …`: what it is about; what was seen.
#[macro_export]
macro_rules! fact {
    ($($name:expr),+; $($seen:tt)+) => {
        $crate::say!("fact: {} = {}", format_args!($($name),+), format_args!($($seen)+))
    };
}

/// Reports the verdict of one check.
pub fn verdict(claim: &str, holds: bool, seen: fmt::Arguments<'_>) {
    let word = if holds { "ok" } else { "FAILED" };
    say!("{claim}: {word} ({seen})");
}

/// Index of an exit counter in the CPUID leaves (`docs/guest-interface.md`).
#[derive(Clone, Copy)]
pub enum Counter {
    NestedPageFault = 4,
    /// NMIs, the watchdog's on AMD-V.
    Nmi = 6,
    ExternalInterrupt = 7,
    /// The watchdog's on VT-x.
    PreemptionTimer = 9,
    /// Trapped EOI writes.
    Eoi = 19,
    /// Interrupts that met a gate of the shadow IDT that is not present.
    ShadowGate = 20,
}

const COUNTER_LEAF: u32 = 0x4000_0101;

/// Readings so far; each is an exit.
static READINGS: AtomicU64 = AtomicU64::new(0);

fn counter_leaf(subleaf: u32) -> u64 {
    READINGS.fetch_add(1, Ordering::Relaxed);
    let leaf = cpuid(COUNTER_LEAF, subleaf);
    u64::from(leaf.ebx) << 32 | u64::from(leaf.eax)
}

/// Exits of this vCPU for one reason.
#[must_use]
pub fn exits(counter: Counter) -> u64 {
    counter_leaf(counter as u32 + 1)
}

/// The watchdog's calls.
#[must_use]
pub fn watchdog_calls() -> u64 {
    exits(Counter::Nmi) + exits(Counter::PreemptionTimer)
}

/// All exits of this vCPU up to now but the watchdog's and those of the readings.
fn exits_of_the_guest() -> u64 {
    loop {
        let before = watchdog_calls();
        let all = counter_leaf(0);
        let readings = READINGS.load(Ordering::Relaxed);
        // Otherwise the watchdog called between the readings: nobody knows on which side.
        if watchdog_calls() == before {
            return all - before - readings;
        }
    }
}

/// Exits while `work` runs, but the watchdog's.
pub fn exits_during(work: impl FnOnce()) -> u64 {
    let before = exits_of_the_guest();
    work();
    exits_of_the_guest() - before
}

/// What the loader passed: the command line, the memory map, the modules.
///
/// # Safety
/// `magic` and `info` are what `kernel_main` was called with.
pub unsafe fn loaded(magic: u32, info: u64) -> Option<BootInfo<'static>> {
    // SAFETY: the caller's promise; nothing writes to the loader's memory.
    let info = unsafe { boot::entry::boot_info(magic, info) };
    if let Err(error) = &info {
        say!("FAILED: {error}");
    }
    info.ok()
}

/// Whether this is KVM's own guest, as where `nested` is the bare machine. Nexit has KVM's leaves, too, and its own behind
/// them.
#[must_use]
pub fn is_kvms_guest() -> bool {
    let says = |base, signature: &[u8; 12]| {
        let leaf = cpuid(base, 0);
        [leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes).as_flattened() == signature
    };
    says(0x4000_0000, b"KVMKVMKVM\0\0\0") && !says(0x4000_0100, b"NexitHypervi")
}

/// Switches the guest off.
pub fn power_off() -> ! {
    const PM1A_CONTROL: u16 = 0x604;
    const S5: u32 = 5 << 10;
    const SLEEP_ENABLE: u32 = 1 << 13;
    /// S5's number on a bare q35.
    const Q35_S5: u32 = 0;
    for kind in [S5, Q35_S5] {
        // SAFETY: the port is the guest's own power control.
        unsafe { port_write(PM1A_CONTROL, Width::Word, kind | SLEEP_ENABLE) };
    }
    cpu::instructions::halt_forever()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    say!("FAILED: {info}");
    power_off()
}
