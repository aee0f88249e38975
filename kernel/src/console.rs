//! The console: moves the bytes of the one serial line (`mux` decides who speaks on it and who is typed
//! to), keeps the log in memory, and shows it on the screen.
//!
//! Invariant: the line's lock is held for bytes only, never while anything else is locked or done.

use alloc::string::String;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU32, Ordering};

use arch::Bdf;
use arch::address::HpaRange;
use arch::uart::UartPlace;
use boot::Framebuffer;
use mem::Mix;
use mux::line::Line;
use mux::uart::Registers;
use mux::{Command, Input, Mux, Ring};
use spin::Mutex;

pub(crate) use self::place::{configure, find_card, follow_firmware, initialise};
use crate::display::{self, Display};
use crate::seat::Seat;

mod place;

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
    line: Option<Line<Uart>>,
    /// Where its UART is.
    place: Option<UartPlace>,
    /// The PCI function that its UART is on.
    card: Option<Bdf>,
    mux: Mux,
    log: Ring,
    display: Option<Display>,
    typed: [Typed; MOST_GUESTS],
}

static CONSOLE: Mutex<Console> = Mutex::new(Console {
    line: None,
    place: None,
    card: None,
    mux: Mux::new(),
    log: Ring::new(),
    display: None,
    typed: [Typed::EMPTY; MOST_GUESTS],
});

/// Bit n: something typed waits for guest n. So a guest that looks for it takes no lock where nothing does.
static WAITING: AtomicU32 = AtomicU32::new(0);

/// A UART's registers.
pub(crate) struct Uart(pub(crate) UartPlace);

impl Registers for Uart {
    fn read(&mut self, offset: u16) -> u8 {
        // SAFETY: where PCs have UARTs, or where the configuration, the firmware or a card's BAR says that
        // one is; memory there was mapped uncached.
        unsafe { cpu::serial::read(self.0, offset) }
    }

    fn write(&mut self, offset: u16, value: u8) {
        // SAFETY: as for `read`.
        unsafe { cpu::serial::write(self.0, offset, value) };
    }
}

/// Goes on at another UART, or at none.
///
/// # Safety
/// Nobody else drives it.
unsafe fn move_to(place: Option<UartPlace>, divisor: Option<u16>, card: Option<Bdf>) {
    let mut console = CONSOLE.lock();
    console.line = place.map(|place| Line::new(Uart(place), divisor));
    console.place = place;
    console.card = card;
}

/// Where the console's UART is.
pub(crate) fn uart() -> Option<UartPlace> {
    CONSOLE.lock().place
}

/// The PCI function that the console's UART is on.
pub(crate) fn card() -> Option<Bdf> {
    CONSOLE.lock().card
}

/// Leaves the card's UART to the guest that has the card now.
pub(crate) fn leave_card() {
    drain();
    // SAFETY: nothing is driven any more.
    unsafe { move_to(None, None, None) };
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

/// Goes on to show the log, now in the hypervisor's own page table, where `map` maps the screen.
pub(crate) fn map_screen(map: impl FnOnce(HpaRange) -> bool) {
    // Taken out, as mapping may log.
    let display = CONSOLE.lock().display.take();
    let display = display.filter(|display| map(display.range()));
    CONSOLE.lock().display = display;
}

/// Shows nothing more on the screen, which `leave` may then map otherwise.
pub(crate) fn leave_screen(leave: impl FnOnce(HpaRange)) {
    // Taken out, as for mapping.
    let display = CONSOLE.lock().display.take();
    if let Some(display) = display {
        leave(display.range());
    }
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
    if let Some(line) = &mut CONSOLE.lock().line {
        line.interrupt_on_receive();
    }
}

/// Where the line's bytes go; nowhere without a UART.
fn sink(line: &mut Option<Line<Uart>>) -> impl FnMut(u8) + '_ {
    move |byte| {
        if let Some(line) = line {
            line.send(byte);
        }
    }
}

fn with_line<T>(work: impl FnOnce(&mut Mux, &mut dyn FnMut(u8)) -> T) -> T {
    let mut console = CONSOLE.lock();
    let Console { line, mux, .. } = &mut *console;
    work(mux, &mut sink(line))
}

/// Writes one line of the hypervisor's log: on the serial line, in memory and on the screen.
pub(crate) fn log(text: fmt::Arguments<'_>) {
    let mut console = CONSOLE.lock();
    let Console { line, mux, log, display, .. } = &mut *console;
    let mut send = sink(line);
    mux.log_line(text, &mut |byte| {
        send(byte);
        log.push(byte);
        if let Some(display) = display {
            display.put(byte);
        }
    });
}

/// Writes the lines that are kept in memory on the serial line.
pub(crate) fn show_log() {
    let mut console = CONSOLE.lock();
    let Console { line, mux, log, .. } = &mut *console;
    let mut send = sink(line);
    for line in log.lines() {
        mux.log_line(format_args!("| {line}"), &mut send);
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
    let Console { line, mux, typed, .. } = &mut *console;
    while let Some(byte) = line.as_mut().and_then(Line::receive) {
        match mux.typed(byte, &mut sink(line)) {
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
    if let Some(line) = &mut CONSOLE.lock().line {
        line.drain();
    }
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
        CONSOLE.lock().display = None;
    }
}

/// Logs a line: `logln!("CPU {n}: …")`.
macro_rules! logln {
    ($($argument:tt)*) => { $crate::console::log(format_args!($($argument)*)) };
}
pub(crate) use logln;
