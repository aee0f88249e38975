//! The multiplexer: the guests' output by focus, and typed keys.
//!
//! Invariant: the focused guest's output appears at once (so that a prompt shows), the others' line by line; a key goes
//! to one receiver.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::complete::{self, Known};
use crate::debuggers::Debuggers;
use crate::editor::{Edited, Editor};
use crate::frame::{Channel, Kind, encode};
use crate::monitor::{self, Command, Guests};
use crate::queue::Owner;
use crate::wire::Wire;
use crate::{ESCAPE, LOG, MARK, Sink};

/// The keys behind Ctrl-A, for the user. The `x` never arrives here: `nexit run` keeps it.
const KEYS: &str = "Ctrl-A, then 1 to 8: that guest; n: the next guest, or back from the monitor; \
                    m: the monitor; t: a live table of exits, or no more; Ctrl-A: a Ctrl-A; h or ?: this; \
                    x: end `nexit run`";

const BELL: u8 = 0x07;

/// The serial line.
///
/// A `sink` takes each byte that is to be sent, in order.
#[derive(Debug)]
pub struct Mux {
    names: Vec<String>,
    wire: Wire,
    /// The guest that is typed to, now or when the monitor is left.
    guest: usize,
    /// The monitor is typed to.
    in_monitor: bool,
    /// The last key was the escape key.
    escaped: bool,
    editor: Editor,
    /// What Tab knows of PCI functions.
    functions: Vec<String>,
    live: Live,
    debuggers: Debuggers,
}

/// Whether the monitor shows a live table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Live {
    Off,
    /// Until a key is typed: `top`.
    UntilKey,
    /// Until the same key is typed again, whoever is typed to.
    Toggled,
}

/// The request of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Input {
    /// Nothing, or nothing more.
    None,
    /// This byte was typed for the guest of this index.
    ToGuest(usize, u8),
    /// A command, to be answered with [`Mux::log_line`]s and then [`Mux::prompt`].
    Monitor(Command),
}

impl Mux {
    /// A line without guests: all that is needed to log.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            names: Vec::new(),
            wire: Wire::new(),
            guest: 0,
            in_monitor: false,
            escaped: false,
            editor: Editor::new(),
            functions: Vec::new(),
            live: Live::Off,
            debuggers: Debuggers::new(),
        }
    }

    /// Adds a guest, whose index is the number of those before it. The first one has the focus.
    /// `name` is printable, as the configuration checks.
    pub fn add_guest(&mut self, name: String) {
        self.names.push(name);
        self.wire.add_guest();
    }

    /// Adds a PCI function, which Tab completes.
    pub fn add_function(&mut self, name: String) {
        self.functions.push(name);
    }

    /// A gdb of this guest's may be at the line's other end.
    pub fn add_debugger(&mut self, guest: usize) {
        self.debuggers.add(guest);
    }

    /// A byte that has come from a guest's gdb.
    pub fn from_debugger(&mut self, guest: usize) -> Option<u8> {
        self.debuggers.take(guest)
    }

    /// Sends bytes to a guest's gdb: at most [`crate::frame::MAX_PAYLOAD`].
    pub fn to_debugger(&mut self, guest: usize, bytes: &[u8], sink: &mut Sink<'_>) {
        let Ok(guest) = u8::try_from(guest) else { return };
        encode(MARK, Channel { kind: Kind::Gdb, guest }, bytes, sink);
    }

    /// Takes a byte of a guest's console.
    pub fn guest_output(&mut self, guest: usize, byte: u8, sink: &mut Sink<'_>) {
        let label = label(&self.names, guest);
        if guest == self.guest && !self.in_monitor {
            self.wire.put(guest, label, byte, sink);
        } else {
            self.wire.hold(guest, label, byte, sink);
        }
    }

    /// Writes the held part of a guest's unfinished line: for when it has ended, so that its last output is seen.
    pub fn flush(&mut self, guest: usize, sink: &mut Sink<'_>) {
        self.wire.flush(guest, label(&self.names, guest), sink);
    }

    /// Writes a line of the hypervisor's log.
    pub fn log_line(&mut self, text: fmt::Arguments<'_>, sink: &mut Sink<'_>) {
        self.wire.own_line(LOG, text, sink);
    }

    /// Writes a machine-readable line (see `docs/reports.md`).
    pub fn report_line(&mut self, json: fmt::Arguments<'_>, sink: &mut Sink<'_>) {
        self.wire.own_line("nexit-report: ", json, sink);
    }

    /// Says that bytes found no room on the line.
    pub fn lost(&mut self, owner: Owner, bytes: u64, sink: &mut Sink<'_>) {
        match owner {
            Owner::Hypervisor => self.log_line(
                format_args!("{bytes} bytes of the log lost: the line takes no more"),
                sink,
            ),
            Owner::Guest(guest) => {
                let name = self.names.get(guest).map_or("", String::as_str);
                let text = format_args!("guest {name}: {bytes} bytes lost: the line takes no more");
                self.wire.own_line(LOG, text, sink);
            }
        }
    }

    /// Puts the monitor's prompt on the line, if the monitor is typed to: for when a command has
    /// been answered.
    pub fn prompt(&mut self, sink: &mut Sink<'_>) {
        if self.in_monitor && self.live != Live::UntilKey && !self.wire.has_prompt() {
            self.wire.prompt(sink);
            self.editor.text().bytes().for_each(sink);
        }
    }

    /// Takes a byte that was typed.
    pub fn typed(&mut self, byte: u8, sink: &mut Sink<'_>) -> Input {
        let escaped = core::mem::take(&mut self.escaped);
        if self.debuggers.typed(byte, escaped, &self.names, sink) {
            return Input::None;
        }
        if escaped {
            let input = self.escaped_key(byte, sink);
            // Nobody looks at the live table any more.
            let left = !self.in_monitor && self.live == Live::UntilKey;
            return if left { self.end_top() } else { input };
        }
        if byte == ESCAPE {
            self.escaped = true;
            return Input::None;
        }
        self.key(byte, sink)
    }

    /// A key for the guest or monitor that has the focus.
    fn key(&mut self, byte: u8, sink: &mut Sink<'_>) -> Input {
        if !self.in_monitor {
            let there = self.guest < self.names.len();
            return if there { Input::ToGuest(self.guest, byte) } else { Input::None };
        }
        if self.live == Live::UntilKey {
            return self.end_top();
        }
        self.prompt(sink);
        match self.editor.key(byte, sink) {
            Edited::Open => return Input::None,
            Edited::Tab => self.complete(sink),
            Edited::Abandoned => self.wire.end_line(sink),
            Edited::Entered => {
                self.wire.end_line(sink);
                match monitor::parse(self.editor.take().text(), &self.names) {
                    Ok(Some(command)) => {
                        if command == Command::Top {
                            self.live = Live::UntilKey;
                        }
                        return Input::Monitor(command);
                    }
                    Ok(None) => {}
                    Err(error) => self.wire.own_line(LOG, format_args!("{error}"), sink),
                }
            }
        }
        self.prompt(sink);
        Input::None
    }

    const fn end_top(&mut self) -> Input {
        self.live = Live::Off;
        Input::Monitor(Command::EndTop)
    }

    /// Completes the word that is being typed, as far as there is one way; else says what the ways are.
    fn complete(&mut self, sink: &mut Sink<'_>) {
        let Self { names, functions, editor, wire, .. } = self;
        let line = *editor.typing();
        let known = Known { guests: names.as_slice(), functions: functions.as_slice() };
        let (begun, words) = complete::candidates(line.text(), known);
        let rest = complete::common(words.clone()).get(begun.len()..).unwrap_or_default();
        editor.insert(rest, sink);
        match words.clone().count() {
            0 => sink(BELL),
            1 => editor.insert(" ", sink),
            _ if rest.is_empty() => wire.own_line(LOG, format_args!("{}", Words(words)), sink),
            _ => {}
        }
    }

    /// The key behind the escape key.
    fn escaped_key(&mut self, byte: u8, sink: &mut Sink<'_>) -> Input {
        match byte {
            ESCAPE => return self.key(byte, sink),
            b'1'..=b'8' => self.focus(usize::from(byte - b'1'), sink),
            b'n' if self.in_monitor => self.focus(self.guest, sink),
            b'n' => {
                let next = self.guest.saturating_add(1);
                self.focus(if next < self.names.len() { next } else { 0 }, sink);
            }
            b'm' => self.focus_monitor(sink),
            b't' if self.live == Live::Off => {
                self.live = Live::Toggled;
                return Input::Monitor(Command::Top);
            }
            b't' => return self.end_top(),
            b'h' | b'?' => self.log_line(format_args!("{KEYS}"), sink),
            _ => self.log_line(format_args!("this key means nothing. {KEYS}"), sink),
        }
        self.prompt(sink);
        Input::None
    }

    fn focus(&mut self, guest: usize, sink: &mut Sink<'_>) {
        let number = guest.saturating_add(1);
        let Some(name) = self.names.get(guest) else {
            let guests = Guests(&self.names);
            let text = format_args!("there is no guest {number}: the guests are {guests}");
            return self.wire.own_line(LOG, text, sink);
        };
        self.guest = guest;
        self.in_monitor = false;
        self.wire.own_line(LOG, format_args!("typing to guest {number}, {name}"), sink);
        self.flush(guest, sink);
    }

    fn focus_monitor(&mut self, sink: &mut Sink<'_>) {
        if !self.in_monitor {
            self.in_monitor = true;
            let text = "typing to the monitor: `help` lists its commands, Ctrl-A n goes back";
            self.log_line(format_args!("{text}"), sink);
        }
    }
}

/// Words in a row.
struct Words<I>(I);

impl<'a, I: Iterator<Item = &'a str> + Clone> fmt::Display for Words<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// A line holds no more; what has more in common is to be typed first.
        const MAX_LISTED: usize = 64;
        let mut blank = "";
        for word in self.0.clone().take(MAX_LISTED) {
            write!(f, "{blank}{word}")?;
            blank = " ";
        }
        f.write_str(if self.0.clone().nth(MAX_LISTED).is_some() { " .." } else { "" })
    }
}

impl Default for Mux {
    fn default() -> Self {
        Self::new()
    }
}

/// The label of a guest's lines; none, if it is the only guest.
fn label(names: &[String], guest: usize) -> Option<&str> {
    if names.len() > 1 { names.get(guest).map(String::as_str) } else { None }
}
