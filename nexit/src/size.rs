//! Sizes as people write them: `512M`, `2G`.

/// Bytes of a size such as `512M` or `2G`.
///
/// # Errors
/// A sentence where the text is no size.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        _ => (text, 0),
    };
    let number: Option<u64> = digits.parse().ok();
    let bytes = number.and_then(|number| number.checked_mul(1 << shift));
    match bytes {
        Some(bytes) if bytes >= 1 << 20 => Ok(bytes),
        _ => Err("a size of at least 1M is needed, such as 512M or 2G".to_owned()),
    }
}

/// `bytes` in MiB, rounded up: the unit of both emulators.
#[must_use]
pub(crate) const fn mebibytes(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_nonsense_is_refused() {
        assert_eq!(parse("512M"), Ok(512 << 20));
        assert_eq!(parse("2g"), Ok(2 << 30));
        assert_eq!(parse("1048576"), Ok(1 << 20));
        for nonsense in ["", "M", "-1G", "1T", "99999999999G", "512", "é"] {
            assert!(parse(nonsense).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn mebibytes_round_up() {
        assert_eq!((mebibytes(1 << 20), mebibytes((1 << 20) + 1)), (1, 2));
    }
}
