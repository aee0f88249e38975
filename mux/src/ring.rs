//! The last lines of the log, in memory: for who comes when they are gone from the line.

use core::fmt;

use crate::MARK;

/// Bytes that a [`Ring`] keeps.
pub const RING_BYTES: usize = 16 << 10;

/// The log's last [`RING_BYTES`] bytes. It takes what goes out on the line, and keeps text alone.
#[derive(Debug)]
pub struct Ring {
    bytes: [u8; RING_BYTES],
    /// Bytes ever kept; the next one goes to this place, modulo the size.
    count: usize,
    /// The last byte kept ended a line, or nothing was kept.
    at_start: bool,
}

impl Ring {
    /// An empty one.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: [0; RING_BYTES], count: 0, at_start: true }
    }

    /// Takes a byte of the log. Marks and carriage returns are not kept, and no empty lines: the end of a
    /// guest's line that the log cuts into comes as one.
    pub fn push(&mut self, byte: u8) {
        if matches!(byte, MARK | b'\r') || (byte == b'\n' && self.at_start) {
            return;
        }
        if let Some(place) = self.bytes.get_mut(self.count % RING_BYTES) {
            *place = byte;
        }
        self.count += 1;
        self.at_start = byte == b'\n';
    }

    /// The lines that are there in whole, the oldest first.
    pub fn lines(&self) -> impl Iterator<Item = RingLine<'_>> {
        let (mut new, before) = self.bytes.split_at(self.count % RING_BYTES);
        let mut old: &[u8] = &[];
        if self.count >= RING_BYTES {
            // The oldest line has lost its beginning, as a rule: what is kept begins behind its end.
            let first_end = |bytes: &[u8]| bytes.iter().position(|byte| *byte == b'\n');
            match first_end(before) {
                Some(end) => old = before.get(end + 1..).unwrap_or_default(),
                None => {
                    let end = first_end(new).map_or(new.len(), |end| end + 1);
                    new = new.get(end..).unwrap_or_default();
                }
            }
        }
        core::iter::from_fn(move || {
            let line = if let Some(end) = old.iter().position(|byte| *byte == b'\n') {
                let (line, rest) = old.split_at(end);
                old = rest.get(1..).unwrap_or_default();
                RingLine(line, &[])
            } else {
                let end = new.iter().position(|byte| *byte == b'\n')?;
                let (line, rest) = new.split_at(end);
                new = rest.get(1..).unwrap_or_default();
                RingLine(core::mem::take(&mut old), line)
            };
            Some(line)
        })
    }
}

impl Default for Ring {
    fn default() -> Self {
        Self::new()
    }
}

/// A line, in the two parts into which the ring's end may cut it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingLine<'a>(&'a [u8], &'a [u8]);

impl fmt::Display for RingLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks().chain(self.1.utf8_chunks()) {
            f.write_str(chunk.valid())?;
            if !chunk.invalid().is_empty() {
                f.write_str("?")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(ring: &Ring) -> Vec<String> {
        ring.lines().map(|line| line.to_string()).collect()
    }

    fn add(ring: &mut Ring, text: &str) {
        text.bytes().for_each(|byte| ring.push(byte));
    }

    #[test]
    fn marks_and_the_ends_of_others_lines_are_not_kept() {
        let mut ring = Ring::new();
        add(&mut ring, "\x1enexit: one\r\n\r\n\x1enexit: two\r\nnot yet");
        assert_eq!(lines(&ring), ["nexit: one", "nexit: two"]);
    }

    proptest! {
        #[test]
        fn the_last_lines_are_kept_whole_and_in_order(
            lengths in proptest::collection::vec(1usize..600, 0..120),
        ) {
            let mut ring = Ring::new();
            let all: Vec<String> =
                lengths.iter().enumerate().map(|(i, n)| format!("{i} {}", "x".repeat(*n))).collect();
            all.iter().for_each(|line| add(&mut ring, &format!("{line}\r\n")));
            let kept = lines(&ring);
            prop_assert_eq!(&kept[..], &all[all.len() - kept.len()..]);
            // No more than one line that would still fit is missing.
            let bytes: usize = kept.iter().map(|line| line.len() + 1).sum();
            let next = all.len().checked_sub(kept.len() + 1).map_or(0, |i| all[i].len() + 1);
            prop_assert!(kept.len() == all.len() || bytes + next + 1 > RING_BYTES);
        }
    }
}
