//! Bits in words.

use alloc::string::String;

/// The names of the bits that are set, the highest first, and what has no name as a number.
pub(crate) fn words(value: u64, names: &[(u32, &str)]) -> String {
    let mut text = String::new();
    let mut rest = value;
    for (bit, name) in names.iter().rev() {
        if value >> bit & 1 != 0 {
            rest &= !(1 << bit);
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(name);
        }
    }
    if rest != 0 {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(&alloc::format!("{rest:#x}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_have_their_names_and_what_has_none_stays_a_number() {
        let names = [(0, "CF"), (2, "PF"), (9, "IF")];
        assert_eq!(words(0x205, &names), "IF PF CF");
        assert_eq!(words(0x8005, &names), "PF CF 0x8000");
        assert_eq!(words(0x10, &names), "0x10");
        assert_eq!(words(0, &names), "");
    }
}
