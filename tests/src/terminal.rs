//! A user at a terminal: `nexit run` behind a pseudo-terminal, keys in, screen out.

use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{InputModes, LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::folder::{Turn, build_folder};
use crate::outcome::whole_lines;

/// A run of `nexit` at a terminal of its own.
#[derive(Debug)]
pub struct Session {
    nexit: Child,
    terminal: File,
    before: Termios,
    screen: String,
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
        Self::open(Command::new(nexit()), arguments, Some(Turn::take()))
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
        Self::open(setsid, &[command, &["--line", &self.line()], further].concat(), None)
    }

    #[expect(clippy::expect_used, reason = "only tests call it")]
    fn open(mut nexit: Command, arguments: &[&str], place: Option<Turn>) -> Self {
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
        Self { nexit, terminal, before, screen, read: 0, _place: place }
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
    /// between.
    ///
    /// # Panics
    /// The run ends without it.
    pub fn see(&mut self, text: &str) -> String {
        self.see_one_of(&[text]).1
    }

    /// The same for whichever of these texts comes first, and its index.
    ///
    /// # Panics
    /// The run ends without any of them.
    pub fn see_one_of(&mut self, texts: &[&str]) -> (usize, String) {
        loop {
            let rest = self.screen.get(self.read..).unwrap_or_default();
            let found = texts.iter().enumerate();
            let found =
                found.filter_map(|(index, text)| Some((rest.find(text)?, index, text.len())));
            if let Some((at, index, length)) = found.min() {
                let between = rest.get(..at).unwrap_or_default().to_owned();
                self.read += at + length;
                return (index, between);
            }
            assert!(self.read_more(), "{texts:?} do not appear\n{}", self.screen);
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
    /// The status cannot be had.
    #[must_use]
    #[expect(clippy::expect_used, reason = "only tests call it")]
    pub fn end(&mut self) -> (String, ExitStatus) {
        while self.read_more() {}
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
        let nexit = self.nexit.id();
        let list = std::fs::read_to_string(format!("/proc/{nexit}/task/{nexit}/children"));
        let child = list.ok().and_then(|list| list.split_whitespace().next()?.parse().ok());
        assert!(child.is_some(), "no child runs\n{}", self.screen);
        send(child.unwrap_or_default(), Signal::KILL);
    }

    /// `false` once the program has closed the terminal.
    fn read_more(&mut self) -> bool {
        let mut buffer = [0; 4096];
        match self.terminal.read(&mut buffer) {
            Ok(0) | Err(_) => false,
            Ok(length) => {
                self.screen.push_str(&shown(buffer.get(..length).unwrap_or_default()));
                true
            }
        }
    }
}

fn send(process: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(process).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

impl Drop for Session {
    /// A test that fails leaves no emulator behind.
    fn drop(&mut self) {
        self.signal(Signal::TERM);
        while self.read_more() {}
        let _ = self.nexit.wait();
    }
}
