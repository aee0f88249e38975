//! The one serial line: the hypervisor's log, and the guests' consoles.
//!
//! Invariant: a line of the hypervisor begins with [`MARK`] and `nexit: ` and begins a line, whatever
//! a guest has left on the current one. No guest can send the mark, so none can speak in the
//! hypervisor's name.

use core::fmt::{self, Write};

use cpu::serial::Serial;
use spin::Mutex;

use crate::seat::Seat;

/// ASCII's record separator, which terminals do not show.
const MARK: u8 = 0x1e;

/// The line and where on it we are.
struct Console {
    serial: Serial,
    at_line_start: bool,
}

static CONSOLE: Mutex<Console> =
    Mutex::new(Console { serial: Serial::absent(), at_line_start: true });

impl Console {
    fn put(&mut self, byte: u8) {
        self.serial.send(byte);
        if byte != b'\r' {
            self.at_line_start = byte == b'\n';
        }
    }
}

impl Console {
    /// Begins a line of the hypervisor's own.
    fn begin_own_line(&mut self) {
        if !self.at_line_start {
            self.put(b'\r');
            self.put(b'\n');
        }
        self.put(MARK);
    }
}

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.put(b'\r');
            }
            self.put(byte);
        }
        Ok(())
    }
}

/// Initialises the serial line.
///
/// # Safety
/// Ring 0, once, before anything is logged.
pub(crate) unsafe fn initialise() {
    // SAFETY: the caller vouches that nobody else drives COM1.
    CONSOLE.lock().serial = unsafe { Serial::com1() };
}

/// Writes one line of the hypervisor's log.
pub(crate) fn log(line: fmt::Arguments<'_>) {
    let mut console = CONSOLE.lock();
    console.begin_own_line();
    // Writing to the line never fails.
    let _ = console.write_fmt(format_args!("nexit: {line}\n"));
}

/// Writes one machine-readable line (see `docs/reports.md`).
pub(crate) fn report(json: fmt::Arguments<'_>) {
    let mut console = CONSOLE.lock();
    console.begin_own_line();
    let _ = console.write_fmt(format_args!("nexit-report: {json}\n"));
}

/// Reports how a guest ended, in the log and for machines.
pub(crate) fn report_guest(name: &str, outcome: &str, seats: &[Seat]) {
    let total: u64 = seats.iter().map(|seat| seat.counters.lock().total()).sum();
    logln!("guest {name}: {outcome} after {total} exits");
    let mut console = CONSOLE.lock();
    console.begin_own_line();
    let name = name.escape_default();
    // Writing to the line never fails.
    let _ = write!(
        console,
        "nexit-report: {{\"guest\":{{\"name\":\"{name}\",\"outcome\":\"{outcome}\",\"vcpus\":["
    );
    for (index, seat) in seats.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let _ = write!(console, "{comma}{}", seat.counters.lock().report(seat.number));
    }
    let _ = console.write_str("]}}\n");
}

/// Writes a byte of a guest's console.
pub(crate) fn guest_byte(byte: u8) {
    CONSOLE.lock().put(if byte == MARK { b'?' } else { byte });
}

/// A byte that was typed.
pub(crate) fn typed() -> Option<u8> {
    CONSOLE.lock().serial.receive()
}

/// Waits until the last byte is out.
pub(crate) fn drain() {
    CONSOLE.lock().serial.drain();
}

/// Breaks the console's lock: only for a CPU that will never go on, so that its last words are seen
/// even if it held the lock.
///
/// # Safety
/// No other CPU writes any more, or garbled output is acceptable.
pub(crate) unsafe fn break_lock() {
    // SAFETY: the caller accepts whatever interleaving this makes.
    unsafe { CONSOLE.force_unlock() };
}

/// Logs a line: `logln!("CPU {n}: …")`.
macro_rules! logln {
    ($($argument:tt)*) => { $crate::console::log(format_args!($($argument)*)) };
}
pub(crate) use logln;
