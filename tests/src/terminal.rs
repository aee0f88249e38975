//! A user at a terminal: `nexit run` behind a pseudo-terminal, keys in, screen out.
//!
//! Invariant: nothing here waits for ever. A run has its time limit, and whatever else is silent for too long is ended.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{InputModes, LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::folder::{Turn, build_folder};
use crate::outcome::whole_lines;

/// So long a machine may show nothing: Linux in an emulator in an emulator takes its time.
const SILENT_RUN: Duration = Duration::from_secs(900);
/// The same of a program beside it, such as a gdb, which waits for what was typed if that was misunderstood.
const SILENT_BESIDE: Duration = Duration::from_secs(180);
/// So long a program may take to leave when it is asked to.
const LEAVE: Duration = Duration::from_secs(10);

/// A run of `nexit` at a terminal of its own.
#[derive(Debug)]
pub struct Session {
    nexit: Child,
    terminal: File,
    before: Termios,
    /// How long it may show nothing.
    patience: Duration,
    screen: String,
    /// Where the line begins in which what came last stands.
    newest: usize,
    /// How much of the screen was read.
    read: usize,
    _place: Option<Turn>,
}

fn nexit() -> PathBuf {
    build_folder().join("debug/nexit")
}

/// A character that the hypervisor's marks leave behind on no screen.
fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace(['\r', '\u{1e}'], "")
}

impl Session {
    /// Starts `nexit` with these arguments.
    ///
    /// # Panics
    /// It, or a pseudo-terminal, cannot be had.
    #[must_use]
    pub fn start(arguments: &[&str]) -> Self {
        Self::open(Command::new(nexit()), arguments, Some(Turn::take()), SILENT_RUN)
    }

    /// Starts `nexit` with these arguments at the line of this run, and at another terminal, which controls it: Ctrl-C is a
    /// signal there.
    ///
    /// # Panics
    /// As [`Session::start`]; or the run offers no line.
    #[must_use]
    pub fn beside(&self, command: &[&str], further: &[&str]) -> Self {
        let mut setsid = Command::new("setsid");
        setsid.arg("--ctty").arg(nexit());
        let line = self.line();
        let arguments = [command, &["--line", &line], further].concat();
        Self::open(setsid, &arguments, None, SILENT_BESIDE)
    }

    #[expect(clippy::expect_used, reason = "only tests call it")]
    fn open(
        mut nexit: Command,
        arguments: &[&str],
        place: Option<Turn>,
        patience: Duration,
    ) -> Self {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&terminal).and_then(|()| unlockpt(&terminal)).expect("a terminal");
        let name = ptsname(&terminal, Vec::new()).expect("a terminal with a name");
        let other = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty());
        let other = File::from(other.expect("the terminal's other side"));
        let size = Winsize { ws_row: 40, ws_col: 140, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&terminal, size).expect("the terminal's size");
        let before = tcgetattr(&terminal).expect("the terminal's modes");
        let side = || other.try_clone().expect("the terminal's other side");
        let nexit = nexit
            .args(arguments)
            .stdin(side())
            .stdout(side())
            .stderr(side())
            .spawn()
            .expect("nexit is built");
        let (terminal, screen) = (File::from(terminal), String::new());
        Self { nexit, terminal, before, patience, screen, newest: 0, read: 0, _place: place }
    }

    /// Types keys.
    ///
    /// # Panics
    /// The terminal is gone.
    pub fn keys(&mut self, keys: &str) {
        let typed = self.terminal.write_all(keys.as_bytes());
        assert!(typed.is_ok(), "cannot type {keys:?}: {typed:?}\n{}", self.screen);
    }

    /// Sends bytes that no keyboard has, as they are.
    ///
    /// # Panics
    /// The terminal is gone.
    pub fn bytes(&mut self, bytes: &[u8]) {
        let sent = self.terminal.write_all(bytes);
        assert!(sent.is_ok(), "cannot send: {sent:?}\n{}", self.screen);
    }

    /// The socket at which the run offers its serial line.
    ///
    /// # Panics
    /// There is no folder for it.
    #[must_use]
    pub fn line(&self) -> String {
        let folder = nexit::attach::folder();
        let place = folder.map(|folder| folder.join(self.nexit.id().to_string()));
        assert!(place.is_ok(), "{place:?}");
        place.unwrap_or_default().display().to_string()
    }

    /// Waits until `text` is on the screen, behind what was waited for before; returns what stands
    /// between. The text may be in a line that others have broken.
    ///
    /// # Panics
    /// The run ends, or is silent for long, without it.
    pub fn see(&mut self, text: &str) -> String {
        self.see_one_of(&[text]).1
    }

    /// The same for whichever of these texts comes first, and its index.
    ///
    /// # Panics
    /// The run ends, or is silent for long, without any of them.
    pub fn see_one_of(&mut self, texts: &[&str]) -> (usize, String) {
        loop {
            let rest = self.screen.get(self.read..).unwrap_or_default();
            let found = texts.iter().enumerate();
            let found =
                found.filter_map(|(index, text)| Some((rest.find(text)?, index, text.len())));
            let broken = || {
                let newest = self.screen.get(self.newest..).filter(|it| it.contains("> "));
                let texts = texts.iter().enumerate().filter(|_| newest.is_some());
                let found = texts.filter_map(|(index, text)| Some((broken(rest, text)?, index, 0)));
                found.min()
            };
            if let Some((at, index, length)) = found.min().or_else(broken) {
                let between = rest.get(..at).unwrap_or_default().to_owned();
                self.read += at + length;
                return (index, between);
            }
            let before = self.screen.len();
            if let Err(why) = self.read_more() {
                panic!("{texts:?} do not appear, and {why}\n{}", self.screen);
            }
            self.newest = self.screen.get(..before).and_then(|it| it.rfind('\n')).unwrap_or(0);
        }
    }

    /// Types a command of the monitor and returns its answer.
    pub fn ask(&mut self, command: &str) -> String {
        self.keys(&format!("{command}\r"));
        self.see(&format!("nexit> {command}\n"));
        let answer = self.see("nexit> ");
        self.read -= "nexit> ".len();
        answer
    }

    /// The screen so far, each line in one piece.
    #[must_use]
    pub fn screen(&self) -> String {
        whole_lines(&self.screen)
    }

    /// Waits for the end; the screen, each line in one piece, and the exit status.
    ///
    /// # Panics
    /// It is silent for long and does not end, or the status cannot be had.
    #[must_use]
    #[expect(clippy::expect_used, reason = "only tests call it")]
    pub fn end(&mut self) -> (String, ExitStatus) {
        let end = loop {
            if let Err(end) = self.read_more() {
                break end;
            }
        };
        assert_eq!(end, CLOSED, "it does not end\n{}", self.screen);
        let status = self.nexit.wait().expect("the exit status");
        (self.screen(), status)
    }

    /// Whether keys go to the program one by one and unchanged, as a machine's terminal needs it.
    #[must_use]
    pub fn is_raw(&self) -> bool {
        let cooked = LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
        let modes = tcgetattr(&self.terminal);
        modes.is_ok_and(|modes| {
            !modes.local_modes.intersects(cooked) && !modes.input_modes.contains(InputModes::ICRNL)
        })
    }

    /// Whether the terminal is as it was before.
    #[must_use]
    pub fn is_as_before(&self) -> bool {
        tcgetattr(&self.terminal).is_ok_and(|modes| {
            (modes.input_modes, modes.output_modes, modes.local_modes)
                == (self.before.input_modes, self.before.output_modes, self.before.local_modes)
        })
    }

    /// Sends a signal to `nexit`.
    pub fn signal(&self, signal: Signal) {
        send(self.nexit.id(), signal);
    }

    /// Kills the only child of `nexit`: an emulator, or gdb.
    ///
    /// # Panics
    /// There is none.
    pub fn kill_child(&self) {
        let child = self.child();
        assert!(child.is_some(), "no child runs\n{}", self.screen);
        send(child.unwrap_or_default(), Signal::KILL);
    }

    fn child(&self) -> Option<u32> {
        let nexit = self.nexit.id();
        let list = std::fs::read_to_string(format!("/proc/{nexit}/task/{nexit}/children"));
        list.ok()?.split_whitespace().next()?.parse().ok()
    }

    /// Shows more, if more comes.
    ///
    /// # Errors
    /// What there is instead.
    fn read_more(&mut self) -> Result<(), &'static str> {
        self.read_within(self.patience)
    }

    fn read_within(&mut self, patience: Duration) -> Result<(), &'static str> {
        let patience = Timespec { tv_sec: patience.as_secs().cast_signed(), tv_nsec: 0 };
        match poll(&mut [PollFd::new(&self.terminal, PollFlags::IN)], Some(&patience)) {
            Ok(0) => return Err("it has been silent for long"),
            // There is something, and be it the end.
            Ok(_) => {}
            // A signal.
            Err(_) => return Ok(()),
        }
        let mut buffer = [0; 4096];
        match self.terminal.read(&mut buffer) {
            Ok(0) | Err(_) => Err(CLOSED),
            Ok(length) => {
                self.screen.push_str(&shown(buffer.get(..length).unwrap_or_default()));
                Ok(())
            }
        }
    }
}

/// The end of a program that has closed its terminal.
const CLOSED: &str = "it has ended";

/// Where a text ends that stands in a guest's line which others have broken: its beginning behind `NAME: `, its rest behind
/// `NAME> ` (`docs/console.md`).
fn broken(console: &str, text: &str) -> Option<usize> {
    let mut lines: HashMap<&str, String> = HashMap::new();
    let mut at = 0;
    for line in console.split_inclusive('\n') {
        at += line.len();
        let line = line.trim_end_matches('\n');
        if let Some((name, rest)) = line.split_once("> ")
            && let Some(whole) = lines.get_mut(name).filter(|_| name != "nexit")
        {
            let before = whole.len();
            whole.push_str(rest);
            let end = whole.find(text).map_or(0, |start| start + text.len());
            if end > before {
                return Some(at - console_end(console, at) - (whole.len() - end));
            }
        } else if let Some((name, rest)) = line.split_once(": ") {
            lines.insert(name, rest.to_owned());
        }
    }
    None
}

/// How long the end of the line is that ends here.
fn console_end(console: &str, at: usize) -> usize {
    usize::from(console.get(..at).is_some_and(|text| text.ends_with('\n')))
}

fn send(process: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(process).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

impl Drop for Session {
    /// A test that fails leaves no emulator behind, nor a gdb that waits for its user.
    fn drop(&mut self) {
        self.signal(Signal::TERM);
        let asked = Instant::now();
        while self.read_within(Duration::from_secs(1)) != Err(CLOSED) && asked.elapsed() < LEAVE {}
        if !matches!(self.nexit.try_wait(), Ok(Some(_))) && asked.elapsed() >= LEAVE {
            if let Some(child) = self.child() {
                send(child, Signal::KILL);
            }
            let _ = self.nexit.kill();
        }
        let _ = self.nexit.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_seen_in_a_line_that_others_have_broken() {
        let console = "a: payload: coun\nb: x> y\nnexit> b\na> ting it\nb: end\n";
        let end = broken(console, "counting").unwrap();
        assert_eq!(&console[end..], " it\nb: end\n");
        assert_eq!(broken(console, "payload: c"), None, "that is in one piece");
        assert_eq!(broken("a: coun\na> t\na> ", "count"), Some(12));
        assert_eq!(broken("a: coun\nb> ting\n", "counting"), None);
    }

    /// What gdb does at a terminal where nobody types.
    #[test]
    fn a_program_that_waits_for_ever_is_ended() {
        let mut cat = Command::new("cat");
        cat.env("LC_ALL", "C");
        let mut session = Session::open(cat, &[], None, Duration::from_secs(1));
        session.keys("a key\n");
        session.see("a key");
        let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| session.see("x")));
        let why = failed.unwrap_err();
        assert!(why.downcast_ref::<String>().unwrap().contains("it has been silent"), "{why:?}");
    }
}
