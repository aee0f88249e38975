//! Who speaks: the one serial line, taken apart into what each guest and the hypervisor said (`docs/console.md`, "Output").
//!
//! Invariant: where lines are labelled, a guest's bytes come out complete and in order, whatever others said between them.
//! The one difference is when: the end of a line comes out with the next byte of that guest, because only then is it clear
//! whose line end it was.

use crate::console::{MARK, REPORT_PREFIX};

/// Whose bytes these are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Speaker {
    /// The hypervisor's log, or an answer of the monitor.
    Log,
    /// The monitor's prompt, and what is typed there.
    Prompt,
    /// A line for programs.
    Report,
    /// A guest, in the order of the configuration.
    Guest(usize),
    /// Nobody that is known: a loader, or the only guest, which has no label.
    Unlabelled,
}

/// What lines of the hypervisor's own begin with, behind the mark.
const OWN: [(&str, Speaker); 3] =
    [("nexit: ", Speaker::Log), ("nexit> ", Speaker::Prompt), (REPORT_PREFIX, Speaker::Report)];

/// Where in a line the stream is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// At the beginning; it is not yet clear whose line it is.
    Start,
    Within(Speaker),
    /// Behind a carriage return of a labelled guest: its line end, or its label again.
    Return(usize),
}

/// The line end that a guest's line came with: its own, unless the line turns out to go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct LineEnd(&'static [u8]);

/// Takes the stream apart.
#[derive(Debug)]
pub(super) struct Speakers {
    names: Vec<String>,
    place: Place,
    /// Bytes that may be a label.
    head: Vec<u8>,
    /// Of each guest: the end of its last line, not yet given out.
    held: Vec<Option<LineEnd>>,
}

/// Takes bytes of a speaker.
pub(super) type Sink<'a> = dyn FnMut(Speaker, &[u8]) + 'a;

/// What the beginning of a line says.
enum Head {
    /// It may become more than one thing.
    Open,
    /// So many bytes of it are a label. `resumed`: the speaker's line before goes on.
    Clear { speaker: Speaker, label: usize, resumed: bool },
}

impl Speakers {
    pub(super) const fn new() -> Self {
        Self { names: Vec::new(), place: Place::Start, head: Vec::new(), held: Vec::new() }
    }

    /// From now on these are the guests. What is held of others is lost: their names are.
    pub(super) fn set_names(&mut self, names: &[String]) {
        self.names = names.to_vec();
        self.held.resize(names.len(), None);
    }

    /// Takes bytes of the line.
    pub(super) fn feed(&mut self, bytes: &[u8], sink: &mut Sink<'_>) {
        bytes.iter().for_each(|byte| self.take(*byte, sink));
    }

    /// Gives out what is held: the stream has ended.
    pub(super) fn finish(&mut self, sink: &mut Sink<'_>) {
        let head = std::mem::take(&mut self.head);
        sink(Speaker::Unlabelled, &head);
        if let Place::Return(guest) = self.place {
            sink(Speaker::Guest(guest), b"\r");
        }
        self.place = Place::Start;
        for (guest, held) in self.held.iter_mut().enumerate() {
            if let Some(LineEnd(bytes)) = held.take() {
                sink(Speaker::Guest(guest), bytes);
            }
        }
    }

    fn take(&mut self, byte: u8, sink: &mut Sink<'_>) {
        match self.place {
            // The cursor is at the left edge, as after a line end.
            Place::Start if byte == b'\r' && self.head.is_empty() => {
                sink(Speaker::Unlabelled, &[byte]);
            }
            Place::Start => {
                self.head.push(byte);
                self.begin(sink);
            }
            Place::Return(guest) => self.behind_return(guest, byte, sink),
            Place::Within(Speaker::Guest(guest)) if byte == b'\r' => {
                self.place = Place::Return(guest);
            }
            Place::Within(Speaker::Guest(guest)) if byte == b'\n' => self.hold(guest, b"\n"),
            Place::Within(speaker) => {
                sink(speaker, &[byte]);
                if byte == b'\n' {
                    self.place = Place::Start;
                }
            }
        }
    }

    /// The beginning of a line, as soon as it is clear whose it is.
    fn begin(&mut self, sink: &mut Sink<'_>) {
        let Head::Clear { speaker, label, resumed } = self.head_of(&self.head) else { return };
        let head = std::mem::take(&mut self.head);
        if let Speaker::Guest(guest) = speaker
            && let Some(LineEnd(bytes)) = self.held.get_mut(guest).and_then(Option::take)
            && !resumed
        {
            sink(speaker, bytes);
        }
        self.place = Place::Within(speaker);
        head.iter().skip(label).for_each(|byte| self.take(*byte, sink));
    }

    fn head_of(&self, head: &[u8]) -> Head {
        if let Some(text) = head.strip_prefix(&[MARK]) {
            for (prefix, speaker) in OWN {
                if text.starts_with(prefix.as_bytes()) {
                    // The prompt is shown with its name; a line of the log is one of many.
                    let label = if speaker == Speaker::Prompt { 1 } else { 1 + prefix.len() };
                    return Head::Clear { speaker, label, resumed: false };
                }
            }
            let may_become = OWN.iter().any(|(prefix, _)| prefix.as_bytes().starts_with(text));
            return if may_become { Head::Open } else { clear(Speaker::Log, 1) };
        }
        let mut open = false;
        for (guest, name) in self.names.iter().enumerate() {
            let behind = head.strip_prefix(name.as_bytes());
            if let Some(mark) = behind.filter(|mark| matches!(mark, [b':' | b'>', b' '])) {
                let resumed = mark.starts_with(b">");
                return Head::Clear { speaker: Speaker::Guest(guest), label: head.len(), resumed };
            }
            open |= name.as_bytes().starts_with(head)
                || behind.is_some_and(|mark| matches!(mark, [] | [b':' | b'>']));
        }
        if open { Head::Open } else { clear(Speaker::Unlabelled, 0) }
    }

    /// A labelled guest has sent a carriage return.
    fn behind_return(&mut self, guest: usize, byte: u8, sink: &mut Sink<'_>) {
        let label = self.names.get(guest).map(|name| format!("{name}: ")).unwrap_or_default();
        match byte {
            b'\n' if self.head.is_empty() => return self.hold(guest, b"\r\n"),
            b'\r' if self.head.is_empty() => return sink(Speaker::Guest(guest), b"\r"),
            _ => self.head.push(byte),
        }
        let again = self.head == label.as_bytes();
        if !again && label.as_bytes().starts_with(&self.head) {
            return;
        }
        let head = std::mem::take(&mut self.head);
        self.place = Place::Within(Speaker::Guest(guest));
        sink(Speaker::Guest(guest), b"\r");
        if !again {
            head.iter().for_each(|byte| self.take(*byte, sink));
        }
    }

    fn hold(&mut self, guest: usize, end: &'static [u8]) {
        if let Some(held) = self.held.get_mut(guest) {
            *held = Some(LineEnd(end));
        }
        self.place = Place::Start;
    }
}

const fn clear(speaker: Speaker, label: usize) -> Head {
    Head::Clear { speaker, label, resumed: false }
}

#[cfg(test)]
mod tests {
    use mux::Mux;
    use proptest::prelude::*;

    use super::*;

    /// Each speaker's bytes, one after the other.
    fn apart(names: &[&str], wire: &[u8], cut: usize) -> Vec<(Speaker, Vec<u8>)> {
        let mut speakers = Speakers::new();
        speakers.set_names(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        let mut all: Vec<(Speaker, Vec<u8>)> = Vec::new();
        let mut sink = |speaker: Speaker, bytes: &[u8]| {
            if bytes.is_empty() {
                return;
            }
            match all.iter_mut().find(|(other, _)| *other == speaker) {
                Some((_, text)) => text.extend(bytes),
                None => all.push((speaker, bytes.to_vec())),
            }
        };
        wire.chunks(cut).for_each(|piece| speakers.feed(piece, &mut sink));
        speakers.finish(&mut sink);
        all
    }

    fn of(all: &[(Speaker, Vec<u8>)], speaker: Speaker) -> String {
        let bytes = all.iter().find(|(other, _)| *other == speaker).map(|(_, bytes)| bytes.clone());
        String::from_utf8(bytes.unwrap_or_default()).unwrap()
    }

    #[test]
    fn each_line_goes_to_who_has_said_it() {
        let wire = b"Nexit: loading\r\n\x1enexit: up\r\n\x1enexit-report: {}\r\na: one\r\nb: two\r\n\x1enexit> he";
        let all = apart(&["a", "b"], wire, 100);
        assert_eq!(of(&all, Speaker::Unlabelled), "Nexit: loading\r\n");
        assert_eq!(of(&all, Speaker::Log), "up\r\n");
        assert_eq!(of(&all, Speaker::Report), "{}\r\n");
        assert_eq!(of(&all, Speaker::Guest(0)), "one\r\n");
        assert_eq!(of(&all, Speaker::Guest(1)), "two\r\n");
        assert_eq!(of(&all, Speaker::Prompt), "nexit> he");
    }

    #[test]
    fn a_line_that_was_cut_is_whole_again() {
        let wire = b"a: half\r\n\x1enexit: a word\r\na>  and half\r\n";
        assert_eq!(of(&apart(&["a", "b"], wire, 1), Speaker::Guest(0)), "half and half\r\n");
    }

    #[test]
    fn the_only_guest_has_no_label_and_its_colons_mean_nothing() {
        let all = apart(&["a"], b"\r\x1enexit: x\r\nb: y\r\nlogin: ", 2);
        assert_eq!(of(&all, Speaker::Unlabelled), "\rb: y\r\nlogin: ");
        assert_eq!(of(&all, Speaker::Log), "x\r\n");
    }

    #[test]
    fn a_name_that_begins_another_is_no_end() {
        let all = apart(&["a", "a b"], b"a b: x\r\na: y\r\n", 1);
        assert_eq!((of(&all, Speaker::Guest(0)), of(&all, Speaker::Guest(1))).0, "y\r\n");
        assert_eq!(of(&all, Speaker::Guest(1)), "x\r\n");
    }

    proptest! {
        /// The hypervisor's own multiplexer is the other side.
        #[test]
        fn what_guests_say_comes_out_as_they_said_it(
            said in prop::collection::vec((0..3_usize, "[ab:> \r\n]{1,6}|a: |b> |\r\n"), 0..40),
            cut in 1..9_usize,
        ) {
            let (mut mux, mut wire) = (Mux::new(), Vec::new());
            ["a", "b"].into_iter().for_each(|name| mux.add_guest(name.to_owned()));
            let mut expected = [String::new(), String::new()];
            for (who, text) in &said {
                match expected.get_mut(*who) {
                    Some(expected) => {
                        for byte in text.bytes() {
                            mux.guest_output(*who, byte, &mut |byte| wire.push(byte));
                        }
                        expected.push_str(text);
                    }
                    None => mux.log_line(format_args!("a: x"), &mut |byte| wire.push(byte)),
                }
            }
            for (guest, expected) in expected.iter_mut().enumerate() {
                expected.push('\n');
                mux.guest_output(guest, b'\n', &mut |byte| wire.push(byte));
            }
            let all = apart(&["a", "b"], &wire, cut);
            for (guest, expected) in expected.iter().enumerate() {
                prop_assert_eq!(&of(&all, Speaker::Guest(guest)), expected);
            }
        }
    }
}
