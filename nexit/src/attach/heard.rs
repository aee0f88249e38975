//! What the machine has said lately, for who attaches late. Frames are not kept: an old answer to a debugger would be taken
//! for a new one.

use std::collections::VecDeque;

use mux::MARK;
use mux::frame::Splitter;

/// So many bytes are kept: more than all that a Linux says until its shell.
const MAX_KEPT: usize = 256 << 10;

/// The last bytes of a line.
pub(super) struct Heard {
    splitter: Splitter,
    bytes: VecDeque<u8>,
    /// Older bytes are gone, and the first line may be cut.
    cut: bool,
}

impl Default for Heard {
    fn default() -> Self {
        Self { splitter: Splitter::new(MARK), bytes: VecDeque::new(), cut: false }
    }
}

impl Heard {
    pub(super) fn keep(&mut self, bytes: &[u8]) {
        let Self { splitter, bytes: kept, .. } = self;
        for byte in bytes {
            splitter.push(*byte, &mut |byte| kept.push_back(byte), &mut |_, _| {});
        }
        let over = self.bytes.len().saturating_sub(MAX_KEPT);
        self.bytes.drain(..over);
        self.cut |= over > 0;
    }

    /// The whole lines of them, and the last as far as it goes.
    pub(super) fn lines(&self) -> Vec<u8> {
        let end = self.bytes.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        self.bytes.iter().skip(if self.cut { end } else { 0 }).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use mux::frame::{Channel, Kind, encode};

    use super::*;

    #[test]
    fn the_last_lines_are_kept_whole_and_without_frames() {
        let mut heard = Heard::default();
        heard.keep(b"one\ntw");
        let mut frame = Vec::new();
        let channel = Channel { kind: Kind::Gdb, guest: 0 };
        encode(MARK, channel, b"$OK#9a", &mut |byte| frame.push(byte));
        frame.iter().for_each(|byte| heard.keep(&[*byte]));
        heard.keep(b"o\nthr");
        assert_eq!(heard.lines(), b"one\ntwo\nthr");
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        for _ in 0..MAX_KEPT / 1024 {
            heard.keep(&line);
        }
        heard.keep(b"end\nof");
        let lines = heard.lines();
        assert_eq!(lines.len() % 1024, 6, "no line is cut but the last");
        assert!(lines.len() > MAX_KEPT - 1024 && lines.ends_with(b"\nend\nof"));
    }
}
