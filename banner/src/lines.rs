//! Lines of a log from which a program makes a description of the machine again.
//!
//! `probe 12 3fa9: pci 00:04.0 1000`: the line's number, a sum over its text, and the text. Whoever reads
//! them notices lines that were lost or garbled, and picks them out of whatever else is in the log.

use core::fmt::{self, Write as _};

/// Bytes of one line of hexadecimal digits.
pub const BYTES_OF_LINE: usize = 64;

/// Writes the lines.
#[derive(Debug)]
pub struct Lines<F> {
    count: u32,
    length: usize,
    write: F,
}

impl<F: FnMut(fmt::Arguments<'_>)> Lines<F> {
    /// Begins. `write` takes a line.
    pub const fn new(write: F) -> Self {
        Self { count: 0, length: 0, write }
    }

    /// One line.
    pub fn line(&mut self, text: fmt::Arguments<'_>) {
        self.count += 1;
        let mut sum = Sum(0);
        let mut counted = Counted { sum: &mut sum, length: &mut self.length };
        // A sum takes every text.
        let _ = counted.write_fmt(text);
        (self.write)(format_args!("probe {} {:04x}: {text}", self.count, sum.0));
    }

    /// Bytes of text written, without line numbers and checksums.
    #[must_use]
    pub const fn length(&self) -> usize {
        self.length
    }

    /// Bytes, the words `what` and the offset in front of each line. Lines that are all zero are left out,
    /// and zeroes at the end of a line.
    pub fn bytes(&mut self, what: fmt::Arguments<'_>, bytes: &[u8]) {
        for (index, chunk) in bytes.chunks(BYTES_OF_LINE).enumerate() {
            let end = chunk.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            if let Some(digits @ [_, ..]) = chunk.get(..end) {
                self.line(format_args!("{what} {:x} {}", index * BYTES_OF_LINE, Hex(digits)));
            }
        }
    }

    /// The last line: its number is how many there are.
    pub fn end(mut self) {
        self.line(format_args!("end"));
    }
}

/// Two digits for each byte.
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A sum in which the order of the bytes counts (Fletcher's, of 16 bits).
struct Sum(u16);

impl fmt::Write for Sum {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            let low = ((self.0 & 0xff) + u16::from(byte)) % 255;
            let high = ((self.0 >> 8) + low) % 255;
            self.0 = high << 8 | low;
        }
        Ok(())
    }
}

/// A sum, and the length of what went into it.
struct Counted<'a> {
    sum: &'a mut Sum,
    length: &'a mut usize,
}

impl fmt::Write for Counted<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        *self.length += text.len();
        self.sum.write_str(text)
    }
}

/// The sum over a line's text.
#[must_use]
pub fn sum(text: &str) -> u16 {
    let mut sum = Sum(0);
    // A sum takes every text.
    let _ = sum.write_str(text);
    sum.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_numbered_and_zeroes_are_left_out() {
        let mut written = Vec::new();
        let mut lines = Lines::new(|line: fmt::Arguments<'_>| written.push(line.to_string()));
        let mut bytes = [0; 4096];
        (bytes[0x41], bytes[0xfff]) = (0xab, 1);
        lines.bytes(format_args!("c {}", "00:04.0"), &bytes);
        assert_eq!(lines.length(), "c 00:04.0 40 00ab".len() + "c 00:04.0 fc0 ".len() + 128);
        lines.end();
        let text = "c 00:04.0 40 00ab";
        assert_eq!(written[0], format!("probe 1 {:04x}: {text}", sum(text)));
        assert!(written[1].contains(": c 00:04.0 fc0 0000"), "{}", written[1]);
        assert!(written[2].starts_with("probe 3 ") && written[2].ends_with(": end"));
        assert_eq!(written.len(), 3);
    }

    #[test]
    fn a_letter_that_changes_or_moves_changes_the_sum() {
        let sums = ["c 00:04.0 40", "c 00:04.0 41", "c 00:40.0 40", "c 00:04.0 4"].map(sum);
        let differ = (1..4).all(|index| !sums[..index].contains(&sums[index]));
        assert!(differ, "{sums:x?}");
    }
}
