//! The serial line of the machine: guests' and hypervisor's output goes on to the user as it comes,
//! the report lines are taken out.
//!
//! The hypervisor opens each line of its own with [`MARK`], a byte that it lets no guest send: only
//! such lines are listened to, so a guest cannot speak in the hypervisor's name.
//!
//! Invariant: no byte waits for the end of its line, unless the line may still turn out to be a
//! report (a prompt without a newline is shown at once).

/// What opens a line that is meant for this program.
pub(crate) const REPORT_PREFIX: &str = "nexit-report: ";
/// The first byte of every line of the hypervisor's own: ASCII's record separator, which terminals
/// do not show.
pub(crate) const MARK: u8 = 0x1e;

/// Splits the byte stream.
#[derive(Debug, Default)]
pub(crate) struct Console {
    /// The line so far.
    line: Vec<u8>,
    /// Bytes of `line` that have been shown.
    shown: usize,
}

/// A line longer than this is no report and no message of ours; it is cut (a guest may send
/// anything).
const LONGEST_LINE: usize = 1 << 16;

impl Console {
    /// Takes `bytes`; returns what to show of them, and calls `line` with every complete line of the
    /// hypervisor's (without its mark and line end).
    pub(crate) fn feed(&mut self, bytes: &[u8], mut line: impl FnMut(&str)) -> Vec<u8> {
        let mut show = Vec::with_capacity(bytes.len());
        for byte in bytes {
            self.line.push(*byte);
            if *byte == b'\n' || self.line.len() >= LONGEST_LINE {
                if let Some(text) = self.text().strip_prefix(&[MARK]) {
                    line(String::from_utf8_lossy(text).trim_end_matches(['\r', '\n']));
                }
                if !self.is_report() {
                    show.extend(self.unshown());
                }
                self.line.clear();
                self.shown = 0;
            } else if !self.may_be_report() {
                show.extend(self.unshown());
                self.shown = self.line.len();
            }
        }
        show
    }

    /// The stream has ended: what is left to show.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        let rest = self.unshown().collect();
        self.line.clear();
        self.shown = 0;
        rest
    }

    fn unshown(&self) -> impl Iterator<Item = u8> {
        self.line.iter().skip(self.shown).copied().filter(|byte| *byte != MARK)
    }

    /// The line without the carriage returns in front of it (a terminal's cursor is at the left
    /// edge after them, as after a newline).
    fn text(&self) -> &[u8] {
        let start = self.line.iter().position(|byte| *byte != b'\r').unwrap_or(self.line.len());
        self.line.get(start..).unwrap_or_default()
    }

    fn is_report(&self) -> bool {
        let unmarked = self.text().strip_prefix(&[MARK]);
        unmarked.is_some_and(|text| text.starts_with(REPORT_PREFIX.as_bytes()))
    }

    fn may_be_report(&self) -> bool {
        let start = match self.text() {
            [] | [MARK] => return true,
            [MARK, start @ ..] => start,
            _ => return false,
        };
        self.is_report() || REPORT_PREFIX.as_bytes().starts_with(start)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn feed(console: &mut Console, text: &str) -> (String, Vec<String>) {
        let mut lines = Vec::new();
        let shown = console.feed(text.as_bytes(), |line| lines.push(line.to_owned()));
        (String::from_utf8(shown).unwrap(), lines)
    }

    #[test]
    fn reports_are_taken_out_and_all_else_stays_as_it_is() {
        let mut console = Console::default();
        let (shown, lines) = feed(&mut console, "a\r\n\x1enexit-report: {}\r\n\x1enexit: b\n");
        assert_eq!(shown, "a\r\nnexit: b\n");
        assert_eq!(lines, ["nexit-report: {}", "nexit: b"]);
    }

    #[test]
    fn a_guest_cannot_speak_in_the_hypervisors_name() {
        let mut console = Console::default();
        let (shown, lines) = feed(&mut console, "nexit-report: {}\nnexit: halted\n");
        assert_eq!(shown, "nexit-report: {}\nnexit: halted\n");
        assert!(lines.is_empty());
    }

    #[test]
    fn a_prompt_is_shown_before_its_line_ends() {
        let mut console = Console::default();
        assert_eq!(feed(&mut console, "/ # ").0, "/ # ");
        assert_eq!(feed(&mut console, "l").0, "l");
        assert_eq!(feed(&mut console, "s\n").0, "s\n");
    }

    #[test]
    fn what_only_begins_like_a_report_is_shown_as_soon_as_that_is_clear() {
        let mut console = Console::default();
        assert_eq!(feed(&mut console, "\x1enexit").0, "");
        assert_eq!(feed(&mut console, ": ").0, "nexit: ");
        assert_eq!(feed(&mut console, "x\n\x1enexit-re").0, "x\n");
        assert_eq!(console.finish(), b"nexit-re");
    }

    #[test]
    fn an_endless_line_does_not_grow_for_ever() {
        let mut console = Console::default();
        let bytes = vec![b'x'; 3 * LONGEST_LINE];
        assert_eq!(console.feed(&bytes, |_| ()).len(), bytes.len());
        assert!(console.line.len() < LONGEST_LINE);
    }

    proptest! {
        #[test]
        fn cutting_the_stream_elsewhere_changes_nothing(
            words in prop::collection::vec("(\x1e|nexit-report: |nexit|\r|\n|x|-| )", 0..40),
            cut in 1..7_usize,
        ) {
            let stream = words.concat();
            let (mut whole, mut pieces) = (Console::default(), Console::default());
            let (mut expected, lines) = feed(&mut whole, &stream);
            expected.push_str(&String::from_utf8(whole.finish()).unwrap());
            let (mut shown, mut seen) = (Vec::new(), Vec::new());
            for piece in stream.as_bytes().chunks(cut) {
                shown.extend(pieces.feed(piece, |line| seen.push(line.to_owned())));
            }
            shown.extend(pieces.finish());
            prop_assert_eq!(String::from_utf8(shown).unwrap(), expected);
            prop_assert_eq!(seen, lines);
        }
    }
}
