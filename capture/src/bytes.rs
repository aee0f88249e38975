//! Bytes as text: rows of an offset and up to 32 bytes. Rows that are all zero are left out, so a last
//! row without bytes says where the end is.

use std::fmt::Write as _;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Bytes of one row.
pub const ROW: usize = 32;
/// No table and no configuration space is longer.
const MAX_BYTES: usize = 16 << 20;

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for (row, bytes) in self.0.chunks(ROW).enumerate() {
            if bytes.iter().any(|byte| *byte != 0) {
                let _ = write!(text, "{:04x} ", row * ROW);
                text.push_str(&hex(bytes));
                text.push('\n');
            }
        }
        let _ = writeln!(text, "{:04x}", self.0.len());
        text
    }

    /// From text.
    ///
    /// # Errors
    /// The row that cannot be read, as a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut bytes: Vec<u8> = Vec::new();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let (offset, digits) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
            let offset = usize::from_str_radix(offset, 16).ok();
            let offset = offset.filter(|it| (bytes.len()..=MAX_BYTES).contains(it));
            let row = unhex(digits.trim());
            let (Some(offset), Some(row)) = (offset, row) else {
                return Err(format!(
                    "\"{line}\" is no row of bytes: an offset behind the last row's and pairs of \
                     hexadecimal digits"
                ));
            };
            bytes.resize(offset, 0);
            bytes.extend(row);
        }
        Ok(Self(bytes))
    }
}

/// Two digits for each byte.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The bytes of two digits each.
#[must_use]
pub fn unhex(digits: &str) -> Option<Vec<u8>> {
    let digits = digits.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let nibble = |digit: u8| char::from(digit).to_digit(16).map(|value| value as u8);
    digits.chunks_exact(2).map(|pair| Some(nibble(pair[0])? << 4 | nibble(pair[1])?)).collect()
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.to_text())
    }
}

impl<'d> Deserialize<'d> for Bytes {
    fn deserialize<D: Deserializer<'d>>(from: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(from)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_come_back_from_their_text(bytes in proptest::collection::vec(prop_oneof![Just(0), any::<u8>()], 0..300)) {
            let bytes = Bytes(bytes);
            prop_assert_eq!(Bytes::parse(&bytes.to_text()), Ok(bytes));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[0-9a-fx \n]{0,60}") {
            let _ = Bytes::parse(&text);
        }
    }

    #[test]
    fn rows_of_zeroes_are_left_out() {
        let mut bytes = vec![0; 4096];
        bytes[0x48] = 7;
        let text = Bytes(bytes).to_text();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.ends_with("\n1000\n"));
    }

    #[test]
    fn a_row_that_is_none_is_named() {
        for text in ["0000 8", "0000 86xx", "zz 00", "0004 00\n0002 00", "ffffffffff 00"] {
            assert!(Bytes::parse(text).unwrap_err().contains("is no row of bytes"), "{text}");
        }
    }
}
