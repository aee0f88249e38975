//! The one thing that is read out of AML: the package `\_S5`.
//!
//! Nothing is interpreted: the bytes of the name and the package are searched for (ACPI
//! Specification, "\_Sx (System States)" and "AML Byte Stream Byte Values").

/// SLP_TYPa and SLP_TYPb of the soft-off state, if this definition block names them.
pub(crate) fn soft_off_types(aml: &[u8]) -> Option<(u8, u8)> {
    let mut from = 0;
    loop {
        let rest = aml.get(from..)?;
        let at = rest.windows(5).position(|window| window == b"_S5_\x12")?;
        if let Some(types) = named(rest, at) {
            return Some(types);
        }
        from += at + 5;
    }
}

/// The package behind the name at `at`, if a NameOp is before it.
fn named(aml: &[u8], at: usize) -> Option<(u8, u8)> {
    const NAME: u8 = 0x08;
    const ROOT: u8 = b'\\';
    let is_name = matches!(aml.get(..at)?, [.., NAME] | [.., NAME, ROOT]);
    let package = aml.get(at + 5..).filter(|_| is_name)?;
    // The upper two bits of the length's first byte say how many more it has.
    let length_bytes = usize::from(package.first()? >> 6) + 1;
    let count = *package.get(length_bytes)?;
    let (first, rest) = constant(package.get(length_bytes + 1..)?)?;
    let second = constant(rest).filter(|_| count >= 2).map_or(first, |(second, _)| second);
    Some((first, second))
}

/// A small constant and what is behind it.
fn constant(aml: &[u8]) -> Option<(u8, &[u8])> {
    const BYTE: u8 = 0x0a;
    const WORD: u8 = 0x0b;
    const DWORD: u8 = 0x0c;
    let (value, rest) = match aml {
        [value @ (0 | 1), rest @ ..] | [BYTE, value, rest @ ..] => (*value, rest),
        [WORD, value, 0, rest @ ..] | [DWORD, value, 0, 0, 0, rest @ ..] => (*value, rest),
        _ => return None,
    };
    // SLP_TYP has three bits.
    (value < 8).then_some((value, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_found_in_every_way_that_constants_are_written() {
        type Found = Option<(u8, u8)>;
        let cases: [(&[u8], Found); 10] = [
            (b"\x08_S5_\x12\x06\x04\x0a\x05\x00\x00\x00", Some((5, 0))),
            (b"\x08\\_S5_\x12\x06\x02\x01\x00", Some((1, 0))),
            (b"\x08_S5_\x12\x0a\x04\x0a\x07\x0a\x06\x00\x00", Some((7, 6))),
            (b"\x08_S5_\x12\x45\x00\x04\x0b\x05\x00\x0c\x04\0\0\0", Some((5, 4))),
            (b"\x08_S5_\x12\x04\x01\x0a\x05", Some((5, 5))),
            // No name, too big a value, another thing, cut off; and one that is whole behind such.
            (b"_S5_\x12\x06\x04\x0a\x05\x00\x00\x00", None),
            (b"\x08_S5_\x12\x06\x04\x0a\x08\x00\x00\x00", None),
            (b"\x08_S5_\x12\x06\x04\x0d\x05", None),
            (b"\x08_S5_\x12\x06\x04\x0a", None),
            (b"\x08_S5_\x12\x06\x04\x0d\x08_S5_\x12\x06\x04\x0a\x03\x00", Some((3, 0))),
        ];
        for (aml, expected) in cases {
            assert_eq!(soft_off_types(aml), expected, "{aml:x?}");
        }
    }
}
