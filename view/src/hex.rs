//! Bytes of memory.

use alloc::format;
use alloc::string::String;

use crate::Lines;

/// Bytes in a line.
pub const LINE: usize = 16;

/// Lines of 16 bytes with their addresses, and as ASCII. `None` is a byte that cannot be read.
#[must_use]
pub fn dump(start: u64, bytes: &[Option<u8>]) -> Lines {
    let line = |(index, bytes): (usize, &[Option<u8>])| {
        let mut text = format!("{:016x} ", start.wrapping_add((index * LINE) as u64));
        for (at, byte) in bytes.iter().enumerate() {
            text.push_str(if at == LINE / 2 { "  " } else { " " });
            text.push_str(&byte.map_or_else(|| "--".into(), |byte| format!("{byte:02x}")));
        }
        let missing = LINE - bytes.len();
        text.extend(core::iter::repeat_n(' ', 3 * missing + usize::from(missing >= LINE / 2) + 2));
        text.extend(bytes.iter().map(|byte| byte.map_or(' ', printable)));
        text.truncate(text.trim_end().len());
        text
    };
    bytes.chunks(LINE).enumerate().map(line).collect()
}

const fn printable(byte: u8) -> char {
    if byte.is_ascii_graphic() || byte == b' ' { byte as char } else { '.' }
}

/// Bytes in a row.
#[must_use]
pub fn row(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_bytes_are_a_line_with_their_letters() {
        let bytes: Vec<Option<u8>> = (0x3e..0x50).map(Some).collect();
        assert_eq!(
            dump(0x1000, &bytes),
            [
                "0000000000001000  3e 3f 40 41 42 43 44 45  46 47 48 49 4a 4b 4c 4d  >?@ABCDEFGHIJKLM",
                "0000000000001010  4e 4f                                             NO",
            ]
        );
    }

    #[test]
    fn what_cannot_be_read_and_what_is_no_letter_are_shown_so() {
        let bytes = [Some(b'a'), None, Some(0x1e), Some(0x1b), Some(0xff)];
        let lines = dump(0, &bytes);
        assert!(lines[0].starts_with("0000000000000000  61 -- 1e 1b ff "), "{lines:?}");
        assert!(lines[0].ends_with("  a ..."), "{lines:?}");
        assert!(lines[0].bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        assert_eq!(row(&[0xeb, 0xfe]), "eb fe");
    }
}
