//! The line that is being typed at the monitor's prompt.
//!
//! Invariant: it holds printable ASCII only, so it cannot leave its line on the screen, and is valid
//! UTF-8.

use crate::{LONGEST_COMMAND, Sink};

const BACKSPACE: u8 = 0x08;
const BELL: u8 = 0x07;
const CTRL_C: u8 = 0x03;
const CTRL_U: u8 = 0x15;
const DELETE: u8 = 0x7f;

/// The line so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Editor {
    line: [u8; LONGEST_COMMAND],
    length: usize,
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
}

impl Editor {
    pub(crate) const fn new() -> Self {
        Self { line: [0; LONGEST_COMMAND], length: 0 }
    }

    /// What has been typed.
    pub(crate) fn text(&self) -> &str {
        let bytes = self.line.get(..self.length).unwrap_or_default();
        core::str::from_utf8(bytes).unwrap_or_default()
    }

    /// The line as it is; the next one begins empty.
    pub(crate) fn take(&mut self) -> Self {
        core::mem::replace(self, Self::new())
    }

    /// Takes a key and echoes it.
    pub(crate) fn key(&mut self, byte: u8, sink: &mut Sink<'_>) -> Edited {
        match byte {
            b'\r' | b'\n' => return Edited::Entered,
            CTRL_C => {
                b"^C".iter().for_each(|byte| sink(*byte));
                self.length = 0;
                return Edited::Abandoned;
            }
            BACKSPACE | DELETE => self.erase(1, sink),
            CTRL_U => self.erase(self.length, sink),
            b' '..=b'~' => match self.line.get_mut(self.length) {
                Some(place) => {
                    *place = byte;
                    self.length += 1;
                    sink(byte);
                }
                None => sink(BELL),
            },
            _ => {}
        }
        Edited::Open
    }

    fn erase(&mut self, count: usize, sink: &mut Sink<'_>) {
        let count = count.min(self.length);
        self.length -= count;
        for _ in 0..count {
            [BACKSPACE, b' ', BACKSPACE].into_iter().for_each(&mut *sink);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edit(keys: &[u8]) -> (Editor, Vec<u8>, Vec<Edited>) {
        let (mut editor, mut echo) = (Editor::new(), Vec::new());
        let edited = keys.iter().map(|key| editor.key(*key, &mut |b| echo.push(b))).collect();
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
        assert_eq!(edit(b"\x1b\xc3\xa4\0\x1e").0.text(), "");
    }
}
