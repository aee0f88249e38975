//! From a device's write to the first instruction of its interrupt's handler: a message (MSI) of QEMU's
//! device `edu`, one (MSI-X) of the controller of `tests/machines`, and the line of the second UART. Each is left out where the machine does not have it.

use core::arch::{asm, naked_asm};
use core::hint::{black_box, spin_loop};
use core::sync::atomic::{AtomicU64, Ordering};

use arch::machine::Width;
use arch::{Hpa, Vector};
use cpu::instructions::{port_read, port_write, tsc};
use cpu::physical::mmio_write;
use payload::controller::Controller;
use payload::pci::{bar, capability, config_read, config_write};
use payload::say;
use x86_64::structures::idt::InterruptStackFrame;

use crate::{IO_APIC, ROUNDS, end_of_interrupt, exits, print};

/// The vector of both.
pub(crate) const VECTOR: Vector = Vector(0x62);
/// How long to wait for one: far more than any takes.
const PATIENCE: u32 = 1 << 24;

/// The TSC at the handler; 0 while it has not come.
static CAME: AtomicU64 = AtomicU64::new(0);
/// This CPU's exits there.
static EXITS: AtomicU64 = AtomicU64::new(0);

/// Its first instruction closes window 2.
#[unsafe(naked)]
pub(crate) extern "C" fn handler() {
    naked_asm!(".byte 0x0f, 0x1f, 0x80, 0x82, 0x78, 0x65, 0x6e", "jmp {}", sym came);
}

extern "x86-interrupt" fn came(_: InterruptStackFrame) {
    let now = tsc();
    EXITS.store(exits(), Ordering::Relaxed);
    CAME.store(now, Ordering::Relaxed);
    end_of_interrupt();
}

/// One interrupt: ticks of the TSC to its handler, and exits. `None` if it does not come.
fn once(open_window: impl Fn(), write: &impl Fn()) -> Option<(u64, u64)> {
    CAME.store(0, Ordering::Relaxed);
    let before = exits();
    let start = tsc();
    open_window();
    write();
    for _ in 0..PATIENCE {
        let now = CAME.load(Ordering::Relaxed);
        if now != 0 {
            // Less the two CPUIDs by which the handler asks.
            return Some((now - start, EXITS.load(Ordering::Relaxed).saturating_sub(before + 2)));
        }
        spin_loop();
    }
    None
}

/// Has the device interrupt once to grant the vector, then again and again; `ready` comes before each.
fn measure(name: &str, ready: impl Fn(), write: impl Fn()) {
    // SAFETY: a NOP: window 1 opens.
    unsafe { asm!(".byte 0x0f, 0x1f, 0x80, 0x01, 0x78, 0x65, 0x6e") };
    ready();
    let mut sum = once(|| {}, &write).map(|_| (0, 0));
    for _ in 0..ROUNDS {
        ready();
        // SAFETY: a NOP: window 2 opens.
        let open = || unsafe { asm!(".byte 0x0f, 0x1f, 0x80, 0x02, 0x78, 0x65, 0x6e") };
        let Some((ticks, exits)) = sum else { break };
        sum = once(open, &write).map(|(more, out)| (ticks + more, exits + out));
    }
    // SAFETY: a NOP: window 1 closes.
    unsafe { asm!(".byte 0x0f, 0x1f, 0x80, 0x81, 0x78, 0x65, 0x6e") };
    match sum {
        Some((ticks, exits)) => print(name, ticks, exits),
        None => say!("bench: micro-{name} status no interrupt"),
    }
}

/// A message: MSI in QEMU, MSI-X in Bochs.
pub(crate) fn message(me: u32) {
    edu();
    if let Some(controller) = Controller::find() {
        controller.route(0, me, VECTOR.0);
        controller.send_in(1, 0);
        let ready = || {
            let _ = controller.finish();
        };
        measure("message-to-handler", ready, || controller.send_again_in(1));
    }
}

/// By `edu` (QEMU, "EDU device"): what is written at 0x60 it raises.
fn edu() {
    const EDU: u32 = 0x11e8_1234;
    const MSI: u32 = 5;
    let Some(device) = (0..32).find(|device| config_read(*device, 0) == EDU) else { return };
    let Some(msi) = capability(device, MSI) else { return };
    config_write(device, 4, config_read(device, 4) | 6);
    // 64 bits of address, then the data (PCI Local Bus 3.0, "MSI Capability Structure").
    for (offset, value) in [(4, 0xfee0_0000), (8, 0), (12, u32::from(VECTOR.0))] {
        config_write(device, msi + offset, value);
    }
    const ENABLE: u32 = 1 << 16;
    config_write(device, msi, config_read(device, msi) | ENABLE);
    let raise = Hpa::new(bar(device, 0) + 0x60);
    // SAFETY: the guest's own device.
    measure("message-to-handler", || {}, || unsafe { mmio_write(raise, Width::Dword, 1) });
}

/// A line, by COM2, whose transmitter is empty: its interrupt comes as soon as it is enabled.
pub(crate) fn line() {
    const COM2: u16 = 0x2f8;
    const IRQ: u32 = 3;
    let [enable, identification, modem, scratch] = [1, 2, 4, 7].map(|register| COM2 + register);
    // SAFETY: the UART is the guest's, or nothing is there.
    let write = |port, value| unsafe { port_write(port, Width::Byte, value) };
    // SAFETY: as above.
    let read = |port| unsafe { port_read(port, Width::Byte) };
    write(scratch, 0x5a);
    if read(scratch) != 0x5a {
        return;
    }
    // Edge, active high, to this CPU; the high half first (82093AA, "I/O Redirection Table").
    for (register, value) in [(0x11 + 2 * IRQ, 0), (0x10 + 2 * IRQ, u64::from(VECTOR.0))] {
        for (offset, value) in [(0, u64::from(register)), (0x10, value)] {
            // SAFETY: the guest's own I/O APIC.
            unsafe { mmio_write(Hpa::new(IO_APIC + offset), Width::Dword, value) };
        }
    }
    const DTR_RTS_OUT2: u32 = 0xb;
    const TRANSMITTER_EMPTY: u32 = 2;
    write(modem, DTR_RTS_OUT2);
    let ready = || {
        write(enable, 0);
        black_box(read(identification));
    };
    measure("line-to-handler", ready, || write(enable, TRANSMITTER_EMPTY));
    write(enable, 0);
}
