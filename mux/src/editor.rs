//! The line that is being typed at the monitor's prompt, and those that were typed before.
//!
//! Invariant: a line holds printable ASCII only, so it cannot leave its line on the screen, and is valid
//! UTF-8.

use crate::{LONGEST_COMMAND, Sink};

const BACKSPACE: u8 = 0x08;
const BELL: u8 = 0x07;
const CTRL_C: u8 = 0x03;
const CTRL_N: u8 = 0x0e;
const CTRL_P: u8 = 0x10;
const CTRL_U: u8 = 0x15;
const DELETE: u8 = 0x7f;
const ESC: u8 = 0x1b;
const TAB: u8 = b'\t';

/// So many lines are remembered.
const MAX_KEPT: usize = 8;

/// A line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Typing {
    bytes: [u8; LONGEST_COMMAND],
    length: usize,
}

impl Typing {
    const EMPTY: Self = Self { bytes: [0; LONGEST_COMMAND], length: 0 };

    /// What it says.
    pub(crate) fn text(&self) -> &str {
        let bytes = self.bytes.get(..self.length).unwrap_or_default();
        core::str::from_utf8(bytes).unwrap_or_default()
    }
}

/// How far a key of several bytes has come (ECMA-48 "Control sequences": ESC [ and a letter).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sequence {
    None,
    Escape,
    Bracket,
}

/// The line so far.
#[derive(Debug)]
pub(crate) struct Editor {
    line: Typing,
    sequence: Sequence,
    /// The lines before, the last in front; behind them empty ones.
    kept: [Typing; MAX_KEPT],
    /// Which of them is shown, counted from 1; 0: the one that is new.
    shown: usize,
}

/// What a key did to the line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Edited {
    /// It changed, or not; typing goes on.
    Open,
    /// Enter: the line is to be carried out.
    Entered,
    /// Ctrl-C: the line was thrown away.
    Abandoned,
    /// Tab: the word is to be completed.
    Tab,
}

impl Editor {
    pub(crate) const fn new() -> Self {
        let kept = [Typing::EMPTY; MAX_KEPT];
        Self { line: Typing::EMPTY, sequence: Sequence::None, kept, shown: 0 }
    }

    /// What has been typed.
    pub(crate) fn text(&self) -> &str {
        self.line.text()
    }

    /// The line so far.
    pub(crate) const fn typing(&self) -> &Typing {
        &self.line
    }

    /// The line as it is, which is remembered; the next one begins empty.
    pub(crate) fn take(&mut self) -> Typing {
        let line = core::mem::replace(&mut self.line, Typing::EMPTY);
        self.shown = 0;
        if line.length > 0 && self.kept.first() != Some(&line) {
            self.kept.rotate_right(1);
            if let Some(first) = self.kept.first_mut() {
                *first = line;
            }
        }
        line
    }

    /// Takes a key and echoes it.
    pub(crate) fn key(&mut self, byte: u8, sink: &mut Sink<'_>) -> Edited {
        match (core::mem::replace(&mut self.sequence, Sequence::None), byte) {
            (Sequence::Escape, b'[' | b'O') => self.sequence = Sequence::Bracket,
            (Sequence::Bracket, b'A') | (_, CTRL_P) => self.show(self.shown + 1, sink),
            (Sequence::Bracket, b'B') | (_, CTRL_N) => {
                self.show(self.shown.saturating_sub(1), sink);
            }
            // Parameters of a key that means nothing here.
            (Sequence::Bracket, b'0'..=b'?') => self.sequence = Sequence::Bracket,
            (Sequence::Bracket, b'@'..=b'~') => {}
            (_, ESC) => self.sequence = Sequence::Escape,
            (_, TAB) => return Edited::Tab,
            (_, b'\r' | b'\n') => return Edited::Entered,
            (_, CTRL_C) => {
                b"^C".iter().for_each(|byte| sink(*byte));
                (self.line, self.shown) = (Typing::EMPTY, 0);
                return Edited::Abandoned;
            }
            (_, BACKSPACE | DELETE) => self.erase(1, sink),
            (_, CTRL_U) => self.erase(self.line.length, sink),
            (_, b' '..=b'~') => self.put(byte, sink),
            _ => {}
        }
        Edited::Open
    }

    /// Puts text behind the line, as if it was typed.
    pub(crate) fn insert(&mut self, text: &str, sink: &mut Sink<'_>) {
        text.bytes().filter(|byte| matches!(byte, b' '..=b'~')).for_each(|it| self.put(it, sink));
    }

    fn put(&mut self, byte: u8, sink: &mut Sink<'_>) {
        match self.line.bytes.get_mut(self.line.length) {
            Some(place) => {
                *place = byte;
                self.line.length += 1;
                sink(byte);
            }
            None => sink(BELL),
        }
    }

    /// Shows a line from before in place of this one.
    fn show(&mut self, which: usize, sink: &mut Sink<'_>) {
        let line = match which.checked_sub(1) {
            None => Some(Typing::EMPTY),
            Some(index) => self.kept.get(index).copied().filter(|line| line.length > 0),
        };
        let Some(line) = line else { return sink(BELL) };
        self.shown = which;
        self.erase(self.line.length, sink);
        self.insert(line.text(), sink);
    }

    fn erase(&mut self, count: usize, sink: &mut Sink<'_>) {
        let count = count.min(self.line.length);
        self.line.length -= count;
        for _ in 0..count {
            [BACKSPACE, b' ', BACKSPACE].into_iter().for_each(&mut *sink);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn type_on(editor: &mut Editor, keys: &[u8]) -> (Vec<u8>, Vec<Edited>) {
        let mut echo = Vec::new();
        let edited = keys.iter().map(|key| editor.key(*key, &mut |b| echo.push(b))).collect();
        (echo, edited)
    }

    fn edit(keys: &[u8]) -> (Editor, Vec<u8>, Vec<Edited>) {
        let mut editor = Editor::new();
        let (echo, edited) = type_on(&mut editor, keys);
        (editor, echo, edited)
    }

    #[test]
    fn what_is_erased_is_erased_on_the_screen_as_well() {
        let (editor, echo, _) = edit(b"\x7fab\x7fc\x08d");
        assert_eq!(editor.text(), "ad");
        assert_eq!(echo, b"ab\x08 \x08c\x08 \x08d");
        let (editor, echo, _) = edit(b"ab\x15c");
        assert_eq!(editor.text(), "c");
        assert_eq!(echo, b"ab\x08 \x08\x08 \x08c");
    }

    #[test]
    fn enter_ends_the_line_and_ctrl_c_throws_it_away() {
        let (mut editor, _, edited) = edit(b"irqs\r");
        assert_eq!(edited.last(), Some(&Edited::Entered));
        assert_eq!(editor.take().text(), "irqs");
        assert_eq!(editor.text(), "");
        let (editor, echo, edited) = edit(b"irqs\x03");
        assert_eq!(edited.last(), Some(&Edited::Abandoned));
        assert_eq!((editor.text(), echo.as_slice()), ("", &b"irqs^C"[..]));
    }

    #[test]
    fn a_full_line_rings_and_what_is_not_printable_is_no_part_of_it() {
        let (editor, echo, _) = edit(&[b'x'; LONGEST_COMMAND + 1]);
        assert_eq!(editor.text().len(), LONGEST_COMMAND);
        assert_eq!(echo.last(), Some(&BELL));
        assert_eq!(edit(b"\xc3\xa4\0\x1e").0.text(), "");
    }

    #[test]
    fn the_arrows_bring_the_lines_before_and_the_new_one_back() {
        let mut editor = Editor::new();
        for line in ["irqs", "exits", "exits"] {
            type_on(&mut editor, line.as_bytes());
            editor.take();
        }
        type_on(&mut editor, b"he");
        let (echo, _) = type_on(&mut editor, b"\x1b[A");
        assert_eq!((editor.text(), echo.as_slice()), ("exits", &b"\x08 \x08\x08 \x08exits"[..]));
        type_on(&mut editor, b"\x1b[A");
        assert_eq!(editor.text(), "irqs", "the same line twice is kept once");
        let (echo, _) = type_on(&mut editor, b"\x10");
        assert_eq!((editor.text(), echo.as_slice()), ("irqs", &[BELL][..]), "there are no more");
        type_on(&mut editor, b"\x1bOB");
        assert_eq!(editor.text(), "exits");
        type_on(&mut editor, b"\x0e");
        assert_eq!(editor.text(), "");
    }

    #[test]
    fn keys_that_mean_nothing_leave_nothing_behind() {
        // Left, delete, F5, and an escape key alone.
        assert_eq!(edit(b"\x1b[D\x1b[3~\x1b[15~a").0.text(), "a");
        assert_eq!(edit(b"\x1bx").0.text(), "x");
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        let mut editor = Editor::new();
        for number in 0..12 {
            type_on(&mut editor, format!("regs {number}").as_bytes());
            editor.take();
        }
        for _ in 0..20 {
            type_on(&mut editor, b"\x1b[A");
        }
        assert_eq!(editor.text(), "regs 4");
    }
}
