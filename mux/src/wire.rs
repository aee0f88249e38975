//! The output half: which speaker owns the current line.
//!
//! Invariant: if the unfinished line belongs to another speaker, it is ended first.
//! When a guest continues a line that was ended this way, its label is `NAME> ` instead of `NAME: `.

use alloc::vec::Vec;
use core::fmt::{self, Write};

use crate::{HELD, MARK, Sink};

/// The writer of the unfinished line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Speaker {
    Guest(usize),
    /// The monitor: its prompt and the typed command.
    Monitor,
    /// The hypervisor's log. Seen only by a caller that cuts into a line of the log, as a CPU that
    /// panics does.
    Log,
}

/// The line, and the guests' part in it.
#[derive(Debug)]
pub(crate) struct Wire {
    speaker: Option<Speaker>,
    /// The last byte was a guest's carriage return: the cursor stands on the label.
    on_label: bool,
    guests: Vec<Guest>,
}

/// The state of one guest's console.
#[derive(Debug)]
struct Guest {
    /// It has sent part of a line, and that part is out.
    unfinished: bool,
    held: [u8; HELD],
    length: usize,
}

impl Wire {
    pub(crate) const fn new() -> Self {
        Self { speaker: None, on_label: false, guests: Vec::new() }
    }

    pub(crate) fn add_guest(&mut self) {
        self.guests.push(Guest { unfinished: false, held: [0; HELD], length: 0 });
    }

    /// Keeps a byte of a guest back until its line is whole or [`HELD`] bytes long.
    pub(crate) fn hold(
        &mut self,
        guest: usize,
        label: Option<&str>,
        byte: u8,
        sink: &mut Sink<'_>,
    ) {
        let Some(console) = self.guests.get_mut(guest) else { return };
        if let Some(place) = console.held.get_mut(console.length) {
            *place = byte;
            console.length += 1;
        }
        if byte == b'\n' || console.length == HELD {
            self.flush(guest, label, sink);
        }
    }

    /// Writes the bytes that were held back of a guest.
    pub(crate) fn flush(&mut self, guest: usize, label: Option<&str>, sink: &mut Sink<'_>) {
        let Some(console) = self.guests.get_mut(guest) else { return };
        let (held, length) = (console.held, core::mem::take(&mut console.length));
        for byte in held.iter().take(length) {
            self.put(guest, label, *byte, sink);
        }
    }

    /// Writes a byte of a guest, after its label if it has one.
    pub(crate) fn put(&mut self, guest: usize, label: Option<&str>, byte: u8, sink: &mut Sink<'_>) {
        let Some(console) = self.guests.get_mut(guest) else { return };
        if label.is_none() && byte == b'\r' && self.speaker.is_none() {
            // Nothing shows, so there is nothing to end when another speaks.
            return sink(byte);
        }
        let resumed = core::mem::replace(&mut console.unfinished, byte != b'\n');
        if self.speaker != Some(Speaker::Guest(guest)) {
            self.end_line(sink);
            begin(label, if resumed { "> " } else { ": " }, sink);
        } else if self.on_label && !matches!(byte, b'\r' | b'\n') {
            begin(label, ": ", sink);
        }
        sink(if byte == MARK { b'?' } else { byte });
        self.on_label = byte == b'\r';
        self.speaker = (byte != b'\n').then_some(Speaker::Guest(guest));
    }

    /// Writes one line of the hypervisor's own, which begins with the mark and `prefix`. A newline
    /// within `text` begins a further marked line, indented, so that `text` cannot pose as a line
    /// of its own; other control characters become `?`.
    pub(crate) fn own_line(&mut self, prefix: &str, text: fmt::Arguments<'_>, sink: &mut Sink<'_>) {
        self.end_line(sink);
        self.speaker = Some(Speaker::Log);
        own_text(prefix, text, sink);
        self.speaker = None;
    }

    /// Whether the monitor's prompt is on the line.
    pub(crate) fn has_prompt(&self) -> bool {
        self.speaker == Some(Speaker::Monitor)
    }

    /// Puts the monitor's prompt on a line of its own.
    pub(crate) fn prompt(&mut self, sink: &mut Sink<'_>) {
        self.end_line(sink);
        self.speaker = Some(Speaker::Monitor);
        begin_own("nexit> ", sink);
    }

    /// Ends the line, if one has begun.
    pub(crate) fn end_line(&mut self, sink: &mut Sink<'_>) {
        if self.speaker.take().is_some() {
            sink(b'\r');
            sink(b'\n');
        }
    }
}

/// A line of the hypervisor's own, as it appears among other speakers' lines, for an output with no other speaker.
pub fn own_text(prefix: &str, text: fmt::Arguments<'_>, sink: &mut Sink<'_>) {
    begin_own(prefix, sink);
    // Neither the line nor the formatting of our own texts fails.
    let _ = OwnText { prefix, newline: false, sink: &mut *sink }.write_fmt(text);
    sink(b'\r');
    sink(b'\n');
}

fn begin(label: Option<&str>, mark: &str, sink: &mut Sink<'_>) {
    if let Some(label) = label {
        label.bytes().chain(mark.bytes()).for_each(sink);
    }
}

fn begin_own(prefix: &str, sink: &mut Sink<'_>) {
    sink(MARK);
    prefix.bytes().for_each(sink);
}

/// The text of an own line on its way out.
struct OwnText<'a, 'b> {
    prefix: &'a str,
    /// A newline was written; it counts once something follows.
    newline: bool,
    sink: &'a mut Sink<'b>,
}

impl Write for OwnText<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if core::mem::replace(&mut self.newline, byte == b'\n') {
                (self.sink)(b'\r');
                (self.sink)(b'\n');
                begin_own(self.prefix, self.sink);
                (self.sink)(b' ');
                (self.sink)(b' ');
            }
            if byte != b'\n' {
                (self.sink)(if byte.is_ascii_control() { b'?' } else { byte });
            }
        }
        Ok(())
    }
}
