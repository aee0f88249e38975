//! A POST code on port 0x80 for each step of the boot: all that a machine without a serial line and
//! without a screen can show. The table is in `docs/console.md`.

use core::sync::atomic::{AtomicU8, Ordering};

use arch::machine::Width;
use cpu::instructions::port_write;

/// A step of the boot order; its number is its code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Step {
    /// The image runs, in long mode.
    Entered = 0x01,
    /// What the loader handed over is read.
    Loader = 0x02,
    /// The CPU is looked at.
    Processor = 0x03,
    /// `nexit.toml` is read.
    Configuration = 0x04,
    /// Memory is taken over, the own page table is built.
    Memory = 0x05,
    /// The firmware's tables are read.
    Firmware = 0x06,
    /// The clocks are measured.
    Clocks = 0x07,
    /// The other CPUs are started.
    Processors = 0x08,
    /// PCI is scanned, bus masters are stopped.
    Devices = 0x09,
    /// The IOMMU is switched on.
    Iommu = 0x0a,
    /// The guests are built.
    Guests = 0x0b,
    /// The guests run.
    Running = 0x0c,
}

/// Added where a sentence refused to go on in that step.
const REFUSED: u8 = 0x80;
/// Added where the hypervisor itself failed in that step.
const FAILED: u8 = 0xc0;

static STEP: AtomicU8 = AtomicU8::new(0);

/// Says that this step begins.
pub(crate) fn step(step: Step) {
    STEP.store(step as u8, Ordering::Relaxed);
    show(step as u8);
}

/// Says that the boot was refused.
pub(crate) fn refused() {
    show(STEP.load(Ordering::Relaxed) | REFUSED);
}

/// Says that the hypervisor itself failed.
pub(crate) fn failed() {
    show(STEP.load(Ordering::Relaxed) | FAILED);
}

fn show(code: u8) {
    const POST: u16 = 0x80;
    // SAFETY: the port is for this; nothing else is behind it.
    unsafe { port_write(POST, Width::Byte, code.into()) };
}
