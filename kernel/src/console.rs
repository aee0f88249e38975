//! The console: moves the bytes of the one serial line (`mux` decides who speaks on it and who is typed
//! to), keeps the log in memory, and shows it on the screen.
//!
//! Invariant: the line's lock is held for bytes only, never while anything else is locked or done.

use alloc::string::String;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU32, Ordering};

use arch::machine::Width;
use boot::Framebuffer;
use cpu::instructions::{port_read, port_write};
use cpu::serial::Serial;
use mem::Mix;
use mux::uart::{self, Registers};
use mux::{Command, Input, Mux, Ring};
use spin::Mutex;

use crate::display::{self, Display};
use crate::memory::Memory;
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
    /// The UART's first port.
    base: Option<u16>,
    mux: Mux,
    log: Ring,
    display: Option<Display>,
    typed: [Typed; MOST_GUESTS],
}

static CONSOLE: Mutex<Console> = Mutex::new(Console {
    serial: Serial::absent(),
    base: None,
    mux: Mux::new(),
    log: Ring::new(),
    display: None,
    typed: [Typed::EMPTY; MOST_GUESTS],
});

/// Bit n: something typed waits for guest n. So a guest that looks for it takes no lock where nothing does.
static WAITING: AtomicU32 = AtomicU32::new(0);

/// The ports from this one on.
struct Ports(u16);

impl Registers for Ports {
    fn read(&mut self, offset: u16) -> u8 {
        // SAFETY: where PCs have UARTs, or where the configuration says that one is.
        unsafe { port_read(self.0 + offset, Width::Byte) as u8 }
    }

    fn write(&mut self, offset: u16, value: u8) {
        // SAFETY: as for `read`.
        unsafe { port_write(self.0 + offset, Width::Byte, value.into()) };
    }
}

fn answers(base: u16) -> bool {
    uart::answers(&mut Ports(base))
}

/// Looks for the UART that has the serial line.
///
/// # Safety
/// Ring 0, once, before anything is logged.
pub(crate) unsafe fn initialise() {
    // The firmware's own word (SPCR) would go in here; its table is read later than the first line
    // of the log is written.
    let base = uart::find(None, answers);
    // SAFETY: the caller vouches that nobody else drives it.
    unsafe { move_to(base) };
}

/// Goes on at another UART, or at none.
///
/// # Safety
/// Nobody else drives it.
unsafe fn move_to(base: Option<u16>) {
    let mut console = CONSOLE.lock();
    // SAFETY: the caller vouches for it.
    console.serial = base.map_or(Serial::absent(), |base| unsafe { Serial::at(base) });
    console.base = base;
}

/// Does what the configuration says of the console; the log so far is repeated where it goes on.
pub(crate) fn configure(wanted: Option<config::Console>) {
    let found = uart();
    let base = match wanted {
        None => return say_where(),
        Some(config::Console::None) => {
            logln!("nexit.toml: console = \"none\": the serial line falls silent here");
            None
        }
        Some(config::Console::Port(base)) if Some(base) == found || answers(base) => Some(base),
        Some(config::Console::Port(base)) => {
            logln!("nexit.toml: console: no UART answers at port {base:#x}: the console stays");
            return say_where();
        }
    };
    if base != found {
        if let Some(base) = base {
            logln!("console: goes on at {}, port {base:#x}", uart::name(base));
        }
        drain();
        // SAFETY: one answers there, and no guest has it: `config` has seen to that.
        unsafe { move_to(base) };
        if base.is_some() {
            show_log();
        }
    }
    say_where();
}

fn say_where() {
    match uart() {
        Some(base) => logln!("console: {} at port {base:#x}", uart::name(base)),
        None => logln!("console: no UART: there are no keys and no monitor"),
    }
}

/// The first port of the console's UART.
pub(crate) fn uart() -> Option<u16> {
    CONSOLE.lock().base
}

/// From now on the log is shown on the screen too, with what it has so far.
///
/// # Safety
/// As [`Display::new`].
pub(crate) unsafe fn show_on(framebuffer: Option<Result<Framebuffer, &'static str>>) {
    match framebuffer {
        None => {}
        Some(Err(why)) => logln!("no text on the screen: the loader's framebuffer {why}"),
        Some(Ok(framebuffer)) => {
            // SAFETY: the caller vouches for it.
            let display = unsafe { Display::new(&framebuffer) };
            if display.is_none() {
                let start = framebuffer.start;
                logln!("no text on the screen: the framebuffer at {start} has no room or no place");
            }
            let mut console = CONSOLE.lock();
            let Console { log, display: shown, .. } = &mut *console;
            *shown = display;
            let Some(shown) = shown else { return };
            for line in log.lines() {
                // The bytes of a line go to the screen without fail.
                let _ = writeln!(Shown(shown), "{line}");
            }
        }
    }
}

struct Shown<'a>(&'a mut Display);

impl Write for Shown<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| self.0.put(byte));
        Ok(())
    }
}

/// Goes on to show the log, now in the hypervisor's own page table.
pub(crate) fn map_screen(memory: Memory) {
    // Taken out, as mapping may log.
    let display = CONSOLE.lock().display.take();
    let display = display.filter(|display| display.map(memory));
    CONSOLE.lock().display = display;
}

/// Shows nothing more on the screen.
pub(crate) fn leave_screen() {
    CONSOLE.lock().display = None;
}

/// Whether the log is shown on the screen.
pub(crate) fn on_screen() -> bool {
    CONSOLE.lock().display.is_some()
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

/// Writes one line of the hypervisor's log: on the serial line, in memory and on the screen.
pub(crate) fn log(line: fmt::Arguments<'_>) {
    let mut console = CONSOLE.lock();
    let Console { serial, mux, log, display, .. } = &mut *console;
    mux.log_line(line, &mut |byte| {
        serial.send(byte);
        log.push(byte);
        if let Some(display) = display {
            display.put(byte);
        }
    });
}

/// Writes the lines that are kept in memory on the serial line.
pub(crate) fn show_log() {
    let mut console = CONSOLE.lock();
    let Console { serial, mux, log, .. } = &mut *console;
    for line in log.lines() {
        mux.log_line(format_args!("| {line}"), &mut |byte| serial.send(byte));
    }
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
    let Console { serial, mux, typed, .. } = &mut *console;
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
    if display::failed() {
        // What is said about that must not fail again.
        leave_screen();
    }
}

/// Logs a line: `logln!("CPU {n}: …")`.
macro_rules! logln {
    ($($argument:tt)*) => { $crate::console::log(format_args!($($argument)*)) };
}
pub(crate) use logln;
