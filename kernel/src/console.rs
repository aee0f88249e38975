//! The console: moves the bytes of the one serial line (`mux` decides who speaks on it and who is typed
//! to), keeps the log in memory, and shows it on the screen.
//!
//! Invariant: no lock that a silent guest's CPU takes here is held while a device is waited for. `output` says who
//! waits for the line; keys and the screen have locks of their own.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};

use arch::Bdf;
use arch::uart::UartPlace;
use guest::counters::ExitCounters;
use mem::PageCounts;
use mux::RING_BYTES;
use mux::queue::Owner;
use mux::uart::Registers;

pub(crate) use self::keys::{interrupt_on_receive, poll_input, prompt, take_news, typed_for};
use self::output::{STATE, speak};
pub(crate) use self::output::{break_lock, call_by, drain, pass, send_for, to_debugger};
pub(crate) use self::place::{configure, find_card, follow_firmware, initialise};
pub(crate) use self::screen::{leave_screen, map_screen, on_screen, show_on};

mod keys;
mod output;
mod place;
mod screen;

/// A UART's registers.
pub(crate) struct Uart(pub(crate) UartPlace);

impl Registers for Uart {
    fn read(&mut self, offset: u16) -> u8 {
        // SAFETY: where PCs have UARTs, or where the configuration, the firmware or a card's BAR says that
        // one is; memory there was mapped uncached. Who receives and who sends touch registers of their own.
        unsafe { cpu::serial::read(self.0, offset) }
    }

    fn write(&mut self, offset: u16, value: u8) {
        // SAFETY: as for `read`.
        unsafe { cpu::serial::write(self.0, offset, value) };
    }
}

/// Where the console's UART is.
pub(crate) fn uart() -> Option<UartPlace> {
    STATE.lock().place
}

/// The PCI function that the console's UART is on.
pub(crate) fn card() -> Option<Bdf> {
    STATE.lock().card
}

/// Leaves the card's UART to the guest that has the card now.
pub(crate) fn leave_card() {
    drain();
    // SAFETY: nothing is driven any more.
    unsafe { output::move_to(None, None, None) };
}

/// Says that there will be a guest of this name; the first is typed to.
pub(crate) fn add_guest(name: &str) {
    let mut state = STATE.lock();
    state.mux.add_guest(name.into());
    state.queue.add_guest();
}

/// Says that a gdb of this guest's may come over the line.
pub(crate) fn add_debugger(guest: usize) {
    STATE.lock().mux.add_debugger(guest);
}

/// A byte that has come from a guest's gdb.
pub(crate) fn from_debugger(guest: usize) -> Option<u8> {
    STATE.lock().mux.from_debugger(guest)
}

/// Says that there is this PCI function, for who types its name.
pub(crate) fn add_function(function: Bdf) {
    STATE.lock().mux.add_function(alloc::format!("{function}"));
}

/// Writes a line of the monitor's answer: on the serial line alone.
pub(crate) fn answer(line: &str) {
    let text = format_args!("{line}");
    speak(Owner::Hypervisor, size(text), |mux, sink| mux.log_line(text, sink));
}

/// Writes one line of the hypervisor's log: on the serial line, in memory and on the screen. Who logs sees it out.
pub(crate) fn log(text: fmt::Arguments<'_>) {
    keep(text);
    let size = size(text);
    speak(Owner::Hypervisor, size, |mux, sink| mux.log_line(text, sink));
}

/// Writes a line of the log that is about a guest, on its behalf: a CPU of the guest's sees it out.
pub(crate) fn log_of(guest: usize, text: fmt::Arguments<'_>) {
    keep(text);
    let size = size(text);
    speak(Owner::Guest(guest), size, |mux, sink| mux.log_line(text, sink));
}

/// Writes a line of the log that a guest has caused, on a CPU that may be another's, which does not wait for it. What no
/// guest has caused is logged as ever.
pub(crate) fn log_in_passing(guest: Option<usize>, text: fmt::Arguments<'_>) {
    match guest {
        Some(guest) => {
            keep(text);
            output::leave(guest, size(text), |mux, sink| mux.log_line(text, sink));
        }
        None => log(text),
    }
}

/// Keeps a line of the log in memory and shows it on the screen.
fn keep(text: fmt::Arguments<'_>) {
    let mut state = STATE.lock();
    mux::own_text(mux::LOG, text, &mut |byte| state.log.push(byte));
    drop(state);
    screen::show(text);
}

/// How many bytes a line has.
fn size(text: fmt::Arguments<'_>) -> u64 {
    let mut count = 0;
    mux::own_text(mux::LOG, text, &mut |_| count += 1);
    count
}

/// The lines that are kept in memory.
pub(crate) fn kept_log() -> Vec<String> {
    let mut kept = Vec::with_capacity(RING_BYTES);
    for line in STATE.lock().log.lines() {
        // A vector takes all; it has room for this, so that nothing is allocated while the log is locked.
        let _ = writeln!(Text(&mut kept), "{line}");
    }
    let lines = kept.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| String::from_utf8_lossy(line).into_owned()).collect()
}

/// Writes the lines that are kept in memory on the serial line.
pub(crate) fn show_log() {
    kept_log().iter().for_each(|line| answer(&alloc::format!("| {line}")));
}

/// Text that is written into bytes.
struct Text<'a>(&'a mut Vec<u8>);

impl Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

/// Writes one machine-readable line (see `docs/reports.md`).
pub(crate) fn report(json: fmt::Arguments<'_>) {
    speak(Owner::Hypervisor, size(json), |mux, sink| mux.report_line(json, sink));
}

/// Reports how guest `index` ended, in the log and for machines. `cpus`: the number of each of its CPUs, and its exits.
pub(crate) fn report_guest(
    index: usize,
    name: &str,
    outcome: &str,
    page_counts: PageCounts,
    cpus: &[(u32, ExitCounters)],
) {
    speak(Owner::Guest(index), 0, |mux, sink| mux.flush(index, sink));
    let total: u64 = cpus.iter().map(|(_, exits)| exits.total()).sum();
    logln!("guest {name}: {outcome} after {total} exits");
    let mut vcpus = String::new();
    for (index, (number, exits)) in cpus.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        // Writing to a string never fails.
        let _ = write!(vcpus, "{comma}{}", exits.report(*number));
    }
    let PageCounts { size_1g, size_2m, size_4k } = page_counts;
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
    speak(Owner::Guest(guest), 1, |mux, sink| mux.guest_output(guest, byte, sink));
}

/// Logs a line: `logln!("CPU {n}: …")`.
macro_rules! logln {
    ($($argument:tt)*) => { $crate::console::log(format_args!($($argument)*)) };
}
pub(crate) use logln;
