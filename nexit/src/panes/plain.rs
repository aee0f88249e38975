//! One stream instead of panes: for a terminal that cannot be split, and for a pipe.

use std::fmt::Write as _;

use super::speakers::Speaker;

/// Colours of labels: cyan, green, yellow, magenta, blue, red (ECMA-48 "SGR - Select Graphic Rendition").
const COLOURS: [u8; 6] = [36, 32, 33, 35, 34, 31];

/// Writes each line with the name of who speaks in front.
#[derive(Debug)]
pub(super) struct Plain {
    coloured: bool,
    /// Whose line is not ended.
    open: Option<Speaker>,
}

impl Plain {
    pub(super) const fn new(coloured: bool) -> Self {
        Self { coloured, open: None }
    }

    /// What to write for bytes of a speaker. `names`: the guests'.
    pub(super) fn text(&mut self, names: &[String], speaker: Speaker, bytes: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        if speaker == Speaker::Report {
            return text;
        }
        for byte in bytes {
            if self.open != Some(speaker) {
                if matches!(byte, b'\r' | b'\n') {
                    // The end of a line that another speaker has ended already.
                    continue;
                }
                if self.open.is_some() {
                    text.extend(b"\r\n");
                }
                text.extend(self.label(names, speaker).bytes());
                self.open = Some(speaker);
            }
            text.push(*byte);
            if *byte == b'\n' {
                self.open = None;
            }
        }
        text
    }

    fn label(&self, names: &[String], speaker: Speaker) -> String {
        let (name, colour) = match speaker {
            Speaker::Guest(guest) => {
                let colour = COLOURS.get(guest % COLOURS.len()).copied().unwrap_or(0);
                (names.get(guest).filter(|_| names.len() > 1).map_or("", String::as_str), colour)
            }
            Speaker::Log => ("nexit", 1),
            Speaker::Prompt | Speaker::Report | Speaker::Unlabelled => ("", 0),
        };
        let mut label = String::new();
        if !name.is_empty() {
            // Writing to a string never fails.
            let _ = if self.coloured {
                write!(label, "\x1b[{colour}m{name}:\x1b[0m ")
            } else {
                write!(label, "{name}: ")
            };
        }
        label
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(coloured: bool, said: &[(Speaker, &str)]) -> String {
        let mut plain = Plain::new(coloured);
        let names = ["a", "b"].map(str::to_owned);
        let piece =
            |(speaker, text): &(Speaker, &str)| plain.text(&names, *speaker, text.as_bytes());
        String::from_utf8(said.iter().flat_map(piece).collect()).unwrap()
    }

    #[test]
    fn each_line_has_one_speaker_and_says_which() {
        use Speaker::{Guest, Log, Prompt, Report};
        let said = [
            (Log, "up\r\n"),
            (Guest(0), "one"),
            (Guest(1), "two\r\n"),
            (Guest(0), " goes on\r\n"),
            (Report, "{}\r\n"),
            (Prompt, "nexit> he"),
        ];
        assert_eq!(text(false, &said), "nexit: up\r\na: one\r\nb: two\r\na:  goes on\r\nnexit> he");
        assert!(text(true, &said).contains("\x1b[36ma:\x1b[0m one"));
    }

    /// A guest's line end comes out with its next line ([`super::super::speakers`]).
    #[test]
    fn a_late_line_end_makes_no_empty_line() {
        use Speaker::{Guest, Log};
        let said = [(Guest(0), "one"), (Log, "x\r\n"), (Guest(0), "\r\n"), (Guest(0), "two")];
        assert_eq!(text(false, &said), "a: one\r\nnexit: x\r\na: two");
    }
}
