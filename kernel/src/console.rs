//! The one serial line: moves its bytes; `mux` decides who speaks on it and who is typed to.
//!
//! Invariant: the line's lock is held for bytes only, never while anything else is locked or done.

use alloc::string::String;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU32, Ordering};

use cpu::serial::Serial;
use mem::Mix;
use mux::{Command, Input, Mux};
use spin::Mutex;

use crate::seat::Seat;

/// Bytes typed for a guest that wait until it takes them; what comes beyond is lost, as on a real
/// line.
const TYPED_AHEAD: usize = 256;
/// So many guests can be typed to.
const MOST_GUESTS: usize = 8;

/// What was typed for one guest.
struct Typed {
    bytes: [u8; TYPED_AHEAD],
    first: usize,
    count: usize,
}

impl Typed {
    const EMPTY: Self = Self { bytes: [0; TYPED_AHEAD], first: 0, count: 0 };

    fn push(&mut self, byte: u8) {
        if self.count < TYPED_AHEAD {
            let at = (self.first + self.count) % TYPED_AHEAD;
            self.bytes[at] = byte;
            self.count += 1;
        }
    }

    fn pop(&mut self) -> Option<u8> {
        self.count = self.count.checked_sub(1)?;
        let byte = self.bytes[self.first];
        self.first = (self.first + 1) % TYPED_AHEAD;
        Some(byte)
    }
}

struct Console {
    serial: Serial,
    mux: Mux,
    typed: [Typed; MOST_GUESTS],
}

static CONSOLE: Mutex<Console> = Mutex::new(Console {
    serial: Serial::absent(),
    mux: Mux::new(),
    typed: [Typed::EMPTY; MOST_GUESTS],
});

/// Bit n: something typed waits for guest n. So a guest that looks for it takes no lock where nothing does.
static WAITING: AtomicU32 = AtomicU32::new(0);

/// Initialises the serial line.
///
/// # Safety
/// Ring 0, once, before anything is logged.
pub(crate) unsafe fn initialise() {
    // SAFETY: the caller vouches that nobody else drives COM1.
    CONSOLE.lock().serial = unsafe { Serial::com1() };
}

/// Says that there will be a guest of this name; the first is typed to.
pub(crate) fn add_guest(name: &str) {
    CONSOLE.lock().mux.add_guest(name.into());
}

/// From now on the UART raises its line when a key comes.
pub(crate) fn interrupt_on_receive() {
    CONSOLE.lock().serial.interrupt_on_receive();
}

fn with_line<T>(work: impl FnOnce(&mut Mux, &mut dyn FnMut(u8)) -> T) -> T {
    let mut console = CONSOLE.lock();
    let Console { serial, mux, .. } = &mut *console;
    work(mux, &mut |byte| serial.send(byte))
}

/// Writes one line of the hypervisor's log.
pub(crate) fn log(line: fmt::Arguments<'_>) {
    with_line(|mux, sink| mux.log_line(line, sink));
}

/// Writes one machine-readable line (see `docs/reports.md`).
pub(crate) fn report(json: fmt::Arguments<'_>) {
    with_line(|mux, sink| mux.report_line(json, sink));
}

/// Reports how guest `index` ended, in the log and for machines.
pub(crate) fn report_guest(index: usize, name: &str, outcome: &str, mix: Mix, seats: &[Seat]) {
    with_line(|mux, sink| mux.flush(index, sink));
    let total: u64 = seats.iter().map(|seat| seat.counters.lock().total()).sum();
    logln!("guest {name}: {outcome} after {total} exits");
    let mut vcpus = String::new();
    for (index, seat) in seats.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        // Writing to a string never fails.
        let _ = write!(vcpus, "{comma}{}", seat.counters.lock().report(seat.number));
    }
    let Mix { size_1g, size_2m, size_4k } = mix;
    report(format_args!(
        "{{\"guest\":{{\"name\":\"{}\",\"outcome\":\"{outcome}\",\"nested_pages\":\
         {{\"1G\":{size_1g},\"2M\":{size_2m},\"4K\":{size_4k}}},\"vcpus\":[{vcpus}]}}}}",
        JsonText(name)
    ));
}

/// Text inside a JSON string; names hold no control characters.
struct JsonText<'a>(&'a str);

impl fmt::Display for JsonText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            if matches!(character, '"' | '\\') {
                f.write_char('\\')?;
            }
            f.write_char(character)?;
        }
        Ok(())
    }
}

/// Writes a byte of a guest's console.
pub(crate) fn guest_byte(guest: usize, byte: u8) {
    with_line(|mux, sink| mux.guest_output(guest, byte, sink));
}

/// Takes what was typed off the line; returns a command for the monitor, if one is complete.
pub(crate) fn listen() -> Option<Command> {
    let mut console = CONSOLE.lock();
    let Console { serial, mux, typed } = &mut *console;
    while let Some(byte) = serial.receive() {
        match mux.typed(byte, &mut |byte| serial.send(byte)) {
            Input::None => {}
            Input::ToGuest(guest, byte) => {
                if let Some(typed) = typed.get_mut(guest) {
                    typed.push(byte);
                    WAITING.fetch_or(1 << guest, Ordering::Release);
                }
            }
            Input::Monitor(command) => return Some(command),
        }
    }
    None
}

/// Lists the monitor's commands.
pub(crate) fn help() {
    with_line(Mux::help);
}

/// Shows the monitor's prompt again.
pub(crate) fn prompt() {
    with_line(Mux::prompt);
}

/// A byte that was typed for a guest.
pub(crate) fn typed_for(guest: usize) -> Option<u8> {
    let own = 1_u32.unbounded_shl(guest as u32);
    if WAITING.load(Ordering::Acquire) & own == 0 {
        return None;
    }
    let mut console = CONSOLE.lock();
    let typed = console.typed.get_mut(guest)?;
    let byte = typed.pop();
    if typed.count == 0 {
        WAITING.fetch_and(!own, Ordering::Release);
    }
    byte
}

/// Whether something typed waits for a guest.
pub(crate) fn has_typed() -> bool {
    WAITING.load(Ordering::Acquire) != 0
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
