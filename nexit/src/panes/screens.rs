//! What is shown where: one pane for each guest, one for the hypervisor with its monitor, and the live table.
//!
//! A pane is a terminal of its own: what a guest does to its screen stays in its pane.

use mux::frame::Splitter;
use tui_term::vt100::{Parser, Screen};

use super::known::{Focus, Known, Shown};
use super::speakers::{Speaker, Speakers};
use crate::console::MARK;

/// Lines that a pane keeps for who scrolls back.
const SCROLLBACK: usize = 10_000;
/// A pane's size before it is first drawn, in rows and columns.
const FIRST_SIZE: (u16, u16) = (24, 80);
/// A line of the hypervisor's own that is longer is cut; it sends none.
const LONGEST_LINE: usize = 1 << 16;

/// Bytes that a pane keeps: a terminal of another size is made from them, as a terminal that shrinks forgets its last rows.
const KEPT: usize = 1 << 20;

/// A terminal.
pub(super) struct Pane {
    terminal: Parser,
    /// The last bytes, from the beginning of a line.
    kept: Vec<u8>,
    /// Lines that the user has scrolled back.
    back: usize,
}

impl Pane {
    fn new() -> Self {
        let (rows, columns) = FIRST_SIZE;
        Self { terminal: Parser::new(rows, columns, SCROLLBACK), kept: Vec::new(), back: 0 }
    }

    /// What it shows.
    pub(super) fn screen(&self) -> &Screen {
        self.terminal.screen()
    }

    fn process(&mut self, bytes: &[u8]) {
        self.terminal.process(bytes);
        self.kept.extend(bytes);
        if self.kept.len() > 2 * KEPT {
            let old = self.kept.len() - KEPT;
            let line = self.kept.iter().skip(old).position(|byte| *byte == b'\n');
            self.kept.drain(..old + line.map_or(0, |at| at + 1));
        }
    }

    /// Makes it this large, inside its frame.
    pub(super) fn resize(&mut self, rows: u16, columns: u16) {
        if rows > 0 && columns > 0 && self.screen().size() != (rows, columns) {
            self.terminal = Parser::new(rows, columns, SCROLLBACK);
            self.terminal.process(&self.kept);
            self.terminal.screen_mut().set_scrollback(self.back);
            self.back = self.screen().scrollback();
        }
    }

    /// Scrolls half a page; `forward` at most to the newest line.
    pub(super) fn scroll(&mut self, forward: bool) {
        let half = usize::from(self.screen().size().0 / 2).max(1);
        let wanted =
            if forward { self.back.saturating_sub(half) } else { self.back.saturating_add(half) };
        self.terminal.screen_mut().set_scrollback(wanted);
        self.back = self.screen().scrollback();
    }

    /// Lines between the newest one and the last one that is shown.
    pub(super) const fn back(&self) -> usize {
        self.back
    }
}

/// Bytes of a speaker, for a log file or a plain terminal.
pub(super) type Said<'a> = dyn FnMut(Speaker, &[u8]) + 'a;

/// All of them.
pub(super) struct Screens {
    /// Frames are a debugger's, and none of what anybody says.
    splitter: Splitter,
    speakers: Speakers,
    pub(super) known: Known,
    guests: Vec<Pane>,
    pub(super) hypervisor: Pane,
    /// A line of the hypervisor's log that is not whole yet.
    line: Vec<u8>,
}

impl Screens {
    /// With the guests that the configuration names, or with none: the log will name them.
    pub(super) fn new(names: &[String]) -> Self {
        let mut panes = Self {
            splitter: Splitter::new(MARK),
            speakers: Speakers::new(),
            known: Known::new(names),
            guests: Vec::new(),
            hypervisor: Pane::new(),
            line: Vec::new(),
        };
        panes.take_names();
        panes
    }

    /// The pane of what has the focus.
    pub(super) fn focused(&mut self) -> &mut Pane {
        match self.known.focus {
            Focus::Guest(guest) if guest < self.guests.len() => self.guest(guest),
            Focus::Guest(_) | Focus::Monitor => &mut self.hypervisor,
        }
    }

    /// A guest's pane; the hypervisor's if there is none of this number.
    pub(super) fn guest(&mut self, guest: usize) -> &mut Pane {
        match self.guests.get_mut(guest) {
            Some(pane) => pane,
            None => &mut self.hypervisor,
        }
    }

    /// Takes bytes of the serial line, and tells `said` whose they are.
    pub(super) fn feed(&mut self, bytes: &[u8], said: &mut Said<'_>) {
        let mut text = Vec::with_capacity(bytes.len());
        for byte in bytes {
            self.splitter.push(*byte, &mut |byte| text.push(byte), &mut |_, _| ());
        }
        // Guests become known within the bytes: each byte is taken with what was known before it.
        for byte in &text {
            let mut pieces = Vec::new();
            let mut sink = |speaker, bytes: &[u8]| pieces.push((speaker, bytes.to_vec()));
            self.speakers.feed(&[*byte], &mut sink);
            for (speaker, bytes) in pieces {
                self.show(speaker, &bytes, said);
            }
        }
    }

    /// The line is gone: what was held back is shown.
    pub(super) fn finish(&mut self, said: &mut Said<'_>) {
        let mut pieces = Vec::new();
        self.speakers.finish(&mut |speaker, bytes: &[u8]| pieces.push((speaker, bytes.to_vec())));
        for (speaker, bytes) in pieces {
            self.show(speaker, &bytes, said);
        }
    }

    fn show(&mut self, speaker: Speaker, bytes: &[u8], said: &mut Said<'_>) {
        // The only guest has no label. Before the hypervisor runs, a loader speaks.
        let only = speaker == Speaker::Unlabelled && self.guests.len() == 1;
        let speaker = if only { Speaker::Guest(0) } else { speaker };
        match speaker {
            Speaker::Guest(guest) => self.guest(guest).process(bytes),
            Speaker::Prompt => {
                self.known.prompt();
                self.hypervisor.process(bytes);
            }
            Speaker::Unlabelled => self.hypervisor.process(bytes),
            Speaker::Log => return self.log(bytes, said),
            Speaker::Report => {}
        }
        said(speaker, bytes);
    }

    /// The hypervisor's log comes line by line: it may be a row of the table.
    fn log(&mut self, bytes: &[u8], said: &mut Said<'_>) {
        for byte in bytes {
            self.line.push(*byte);
            if *byte != b'\n' && self.line.len() < LONGEST_LINE {
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let text = String::from_utf8_lossy(&line);
            if self.known.line(text.trim_end()) == Shown::InTheLog {
                self.hypervisor.process(&line);
            }
            said(Speaker::Log, &line);
            self.take_names();
        }
    }

    fn take_names(&mut self) {
        let count = self.known.guests.len();
        if self.guests.len() > count {
            // The machine has begun anew.
            self.guests.clear();
        }
        if self.guests.len() != count {
            self.guests.resize_with(count, Pane::new);
            self.speakers.set_names(&self.known.names());
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use mux::frame::{Channel, Kind, encode};

    use super::*;

    pub(in crate::panes) const BOOT: &str = "\x1enexit: Nexit 0.1.0\r\n\
        \x1enexit: guest linux: nested table 0 x 1G, 1 x 2M, 0 x 4K\r\n\
        \x1enexit: guest rt: nested table 0 x 1G, 1 x 2M, 0 x 4K\r\n\
        \x1enexit: guest linux: entering\r\n\x1enexit: guest rt: entering\r\n";

    pub(in crate::panes) fn fed(text: &str) -> (Screens, Vec<(Speaker, String)>) {
        let (mut panes, mut said) = (Screens::new(&[]), Vec::<(Speaker, String)>::new());
        panes.feed(text.as_bytes(), &mut |speaker, bytes| {
            let text = String::from_utf8_lossy(bytes);
            match said.last_mut() {
                Some((last, before)) if *last == speaker => before.push_str(&text),
                _ => said.push((speaker, text.into_owned())),
            }
        });
        (panes, said)
    }

    #[test]
    fn each_guest_has_the_screen_that_it_makes() {
        let text = "linux: one\r\nrt: \x1b[2Jclean\r\n\x1enexit: a word\r\nlinux: two\r\nlinux: # ";
        let (mut panes, said) = fed(&(BOOT.to_owned() + text));
        assert_eq!(panes.guest(0).screen().contents(), "one\ntwo\n# ");
        assert!(panes.guest(1).screen().contents().ends_with("clean"));
        assert!(panes.hypervisor.screen().contents().ends_with("a word"));
        assert!(said.contains(&(Speaker::Guest(0), "\r\ntwo\r\n# ".into())), "{said:?}");
        panes.known.focus = Focus::Guest(1);
        assert!(panes.focused().screen().contents().ends_with("clean"));
    }

    #[test]
    fn one_guest_alone_has_all_that_is_not_the_hypervisors() {
        let boot =
            BOOT.lines().filter(|line| !line.contains(" rt")).map(|line| format!("{line}\r\n"));
        let text = "Nexit: loading\r\n".to_owned() + &boot.collect::<String>() + "login: a: b\r\n";
        let (mut panes, _) = fed(&text);
        assert_eq!(panes.guest(0).screen().contents(), "login: a: b");
        assert!(panes.hypervisor.screen().contents().starts_with("Nexit: loading\nNexit 0"));
    }

    #[test]
    fn a_machine_that_begins_anew_begins_with_its_own_guests() {
        let other = BOOT.replace("guest rt", "guest other");
        let (mut panes, _) = fed(&(BOOT.to_owned() + "rt: x\r\n" + &other + "other: y\r\n"));
        assert_eq!(panes.known.names(), ["linux", "other"]);
        assert_eq!(panes.guest(1).screen().contents(), "y");
    }

    #[test]
    fn what_has_scrolled_away_comes_back() {
        let lines: String = (0..100).map(|line| format!("linux: {line}\r\n")).collect();
        let (mut panes, _) = fed(&(BOOT.to_owned() + &lines));
        let pane = panes.guest(0);
        pane.resize(10, 80);
        for _ in 0..3 {
            pane.scroll(false);
        }
        assert_eq!(pane.back(), 15);
        assert!(pane.screen().contents().starts_with("75\n"), "{}", pane.screen().contents());
        for _ in 0..4 {
            pane.scroll(true);
        }
        assert_eq!(pane.back(), 0);
        for _ in 0..100 {
            pane.scroll(false);
        }
        assert!(pane.screen().contents().starts_with("0\n"));
    }

    #[test]
    fn a_pane_of_another_size_has_lost_nothing() {
        let mut pane = Pane::new();
        (0..200_000).for_each(|line| pane.process(format!("line {line}\r\n").as_bytes()));
        assert!(pane.kept.len() <= 2 * KEPT && pane.kept.starts_with(b"line "));
        for (rows, first) in [(5, "line 199996\n"), (12, "line 199989\n"), (3, "line 199998\n")] {
            pane.resize(rows, 40);
            assert!(pane.screen().contents().starts_with(first), "{}", pane.screen().contents());
        }
    }

    #[test]
    fn a_debuggers_frames_are_no_part_of_what_a_guest_says() {
        let channel = Channel { kind: Kind::Gdb, guest: 0 };
        let (mut screens, _) = fed(BOOT);
        screens.feed(b"linux: he", &mut |_, _| ());
        let mut bytes = Vec::new();
        encode(MARK, channel, b"$g#67", &mut |byte| bytes.push(byte));
        screens.feed(&[bytes.as_slice(), b"llo"].concat(), &mut |_, _| ());
        assert_eq!(screens.guest(0).screen().contents(), "hello");
    }

    #[test]
    fn reports_are_no_part_of_the_screen() {
        let (panes, said) = fed("\x1enexit-report: {}\r\n");
        assert_eq!(panes.hypervisor.screen().contents(), "");
        assert_eq!(said, [(Speaker::Report, "{}\r\n".into())]);
    }
}
