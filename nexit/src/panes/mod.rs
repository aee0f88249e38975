//! `nexit console`: a terminal for a machine's serial line, with a pane for each guest.
//!
//! Path: `line` (bytes come) → `speakers` (whose they are) → `screens` (a terminal for each; `known`: what the hypervisor
//! says of the machine) → `draw`, or `plain` where there are no panes; `logs` beside. Back: `keys` → the line.

use std::io::{self, IsTerminal, Read, Write};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen};

use self::draw::Status;
use self::keys::{Keys, Order};
use self::logs::Logs;
use self::plain::Plain;
use self::screens::Screens;
use self::speakers::Speaker;
use crate::cli::ConsoleArgs;
use crate::failure::{Failure, Result};
use crate::scenario::Scenario;
use crate::terminal;

mod draw;
mod keys;
mod known;
mod line;
mod logs;
mod plain;
mod screens;
mod speakers;

/// How often the screen is drawn at most, and its size looked at.
const FRAME: Duration = Duration::from_millis(50);
/// What is typed to learn the guests' names: the monitor's `guests`, and back.
const ASK_NAMES: &[u8] = b"\x01m\x15guests\r\x01n";

/// Shows what a speaker says; the names are the guests'.
type Show<'a> = dyn FnMut(&[String], Speaker, &[u8]) + 'a;

enum Event {
    Line(line::Event),
    Keys(Vec<u8>),
    /// Standard input has ended: nothing more is typed.
    NoMoreKeys,
    /// The user wants to leave.
    Interrupted,
}

/// Shows the line until the user leaves.
pub(crate) fn run(args: &ConsoleArgs) -> Result<()> {
    let names = match &args.config {
        Some(config) => {
            let scenario = Scenario::load(config, true)?;
            scenario.config.guests.iter().map(|guest| guest.name.clone()).collect()
        }
        None => Vec::new(),
    };
    let logs = args.logs.as_deref().map(Logs::open).transpose()?;
    let (sender, events) = mpsc::channel();
    let interrupt = sender.clone();
    ctrlc::set_handler(move || drop(interrupt.send(Event::Interrupted)))
        .map_err(|error| Failure::Failed(format!("cannot take signals: {error}")))?;
    let description = args.line.line.clone().unwrap_or_else(|| "nexit run".to_owned());
    line::follow(args.line.clone(), sender.clone(), Event::Line)?;
    let terminal = terminal::Terminal::take(io::stdin())?;
    // A terminal that could not be taken belongs to another process.
    if terminal.is_some() || !io::stdin().is_terminal() {
        type_to(sender);
    }
    let mut session = Session {
        panes: Screens::new(&names),
        ask: names.is_empty(),
        keys: Keys::default(),
        writer: None,
        state: description.clone(),
        description,
        zoomed: false,
        logs,
        trouble: None,
    };
    if args.plain || terminal.is_none() || !io::stdout().is_terminal() {
        let coloured = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        session.plain(&events, Plain::new(coloured))
    } else {
        session.split(&events)
    }
}

/// Reads the keyboard, in the background.
fn type_to(sender: Sender<Event>) {
    thread::spawn(move || {
        let mut buffer = [0; 256];
        while let Ok(length @ 1..) = io::stdin().read(&mut buffer) {
            let typed = buffer.get(..length).unwrap_or_default().to_vec();
            if sender.send(Event::Keys(typed)).is_err() {
                return;
            }
        }
        let _ = sender.send(Event::NoMoreKeys);
    });
}

/// One attachment.
struct Session {
    panes: Screens,
    /// Nobody has said who the guests are: the monitor is asked once.
    ask: bool,
    keys: Keys,
    writer: Option<Box<dyn Write + Send>>,
    description: String,
    /// The line, or what is the matter with it.
    state: String,
    zoomed: bool,
    logs: Option<Logs>,
    /// The log files cannot be written.
    trouble: Option<Failure>,
}

/// What an event leads to.
#[derive(PartialEq, Eq)]
enum Next {
    Go,
    Leave,
}

impl Session {
    /// The whole screen, drawn anew after events.
    fn split(&mut self, events: &Receiver<Event>) -> Result<()> {
        let refused = |error: io::Error| Failure::Failed(format!("cannot draw: {error}"));
        let _screen = Screen::take().map_err(refused)?;
        let mut terminal = Terminal::new(CrosstermBackend::new(io::stdout())).map_err(refused)?;
        loop {
            let status = Status {
                line: &self.state,
                connected: self.writer.is_some() && self.trouble.is_none(),
                zoomed: self.zoomed,
            };
            let panes = &mut self.panes;
            terminal.draw(|frame| draw::draw(frame, panes, &status)).map_err(refused)?;
            let mut next = events.recv_timeout(FRAME * 4);
            // What has come by now is drawn in one go.
            thread::sleep(FRAME);
            loop {
                let event = match next {
                    Ok(event) => event,
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => return self.end(),
                };
                if self.take(event, &mut |_, _, _| ()) == Next::Leave {
                    return self.end();
                }
                next = events.try_recv().map_err(|_| RecvTimeoutError::Timeout);
            }
        }
    }

    /// Lines, as they come.
    fn plain(&mut self, events: &Receiver<Event>, mut plain: Plain) -> Result<()> {
        eprintln!("nexit: {}; Ctrl-A x leaves", self.description);
        while let Ok(event) = events.recv() {
            let lost = if let Event::Line(line::Event::Lost(reason)) = &event {
                Some(reason.clone())
            } else {
                None
            };
            let mut shown = Vec::new();
            let next = self.take(event, &mut |names, speaker, bytes| {
                shown.extend(plain.text(names, speaker, bytes));
            });
            let mut stdout = io::stdout().lock();
            if stdout.write_all(&shown).and_then(|()| stdout.flush()).is_err() {
                // Nobody reads any more.
                break;
            }
            if let Some(reason) = lost {
                eprintln!("\r\nnexit: the line is lost: {reason}; it is tried again");
            }
            if next == Next::Leave {
                break;
            }
        }
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.trouble.take().map_or(Ok(()), Err)
    }

    fn take(&mut self, event: Event, show: &mut Show<'_>) -> Next {
        match event {
            Event::Line(line::Event::Open(writer)) => {
                self.writer = Some(writer);
                self.state.clone_from(&self.description);
                if std::mem::take(&mut self.ask) {
                    self.send(ASK_NAMES);
                }
            }
            Event::Line(line::Event::Bytes(bytes)) => self.said(&bytes, show),
            Event::Line(line::Event::Lost(reason)) => {
                self.writer = None;
                self.state = format!("{}: {reason}; trying again", self.description);
                self.finish(show);
            }
            Event::Keys(typed) => {
                for order in self.keys.feed(&typed) {
                    match order {
                        Order::Leave => {
                            self.finish(show);
                            return Next::Leave;
                        }
                        Order::Zoom => self.zoomed = !self.zoomed,
                        Order::Back => self.panes.focused().scroll(false),
                        Order::Forward => self.panes.focused().scroll(true),
                        Order::Send(bytes) => self.send(&bytes),
                    }
                }
            }
            Event::NoMoreKeys => {}
            Event::Interrupted => {
                self.finish(show);
                return Next::Leave;
            }
        }
        Next::Go
    }

    fn said(&mut self, bytes: &[u8], show: &mut Show<'_>) {
        let mut said = Vec::new();
        self.panes.feed(bytes, &mut |speaker, bytes| said.push((speaker, bytes.to_vec())));
        self.keep(said, show);
    }

    fn finish(&mut self, show: &mut Show<'_>) {
        let mut said = Vec::new();
        self.panes.finish(&mut |speaker, bytes| said.push((speaker, bytes.to_vec())));
        self.keep(said, show);
    }

    fn keep(&mut self, said: Vec<(Speaker, Vec<u8>)>, show: &mut Show<'_>) {
        let names = self.panes.known.names();
        for (speaker, bytes) in said {
            show(&names, speaker, &bytes);
            let Some(logs) = &mut self.logs else { continue };
            if let Err(failure) = logs.write(&names, speaker, &bytes) {
                // Said at once, and as the end's status; what is shown goes on.
                self.state = failure.to_string();
                self.trouble.get_or_insert(failure);
                self.logs = None;
            }
        }
    }

    /// A line that does not take keys is lost soon; the reader says so.
    fn send(&mut self, bytes: &[u8]) {
        if let Some(writer) = &mut self.writer {
            let _ = writer.write_all(bytes).and_then(|()| writer.flush());
        }
    }
}

/// The terminal's other screen, which leaves the user's own as it was.
struct Screen;

impl Screen {
    fn take() -> io::Result<Self> {
        execute!(io::stdout(), EnterAlternateScreen)?;
        Ok(Self)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = execute!(io::stdout(), LeaveAlternateScreen, ratatui::crossterm::cursor::Show);
    }
}
