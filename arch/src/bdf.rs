//! A PCI function's address: bus, device, function (segment 0).

use core::fmt;
use core::str::FromStr;

/// Bus, device and function number of a PCI function, as the 16-bit requester identifier
/// (PCI Express Base Specification, "Transaction Descriptor – Transaction ID Field").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bdf(u16);

impl Bdf {
    /// From its parts; `device` is taken modulo 32 and `function` modulo 8.
    #[must_use]
    pub const fn new(bus: u8, device: u8, function: u8) -> Self {
        Self((bus as u16) << 8 | ((device & 31) as u16) << 3 | (function & 7) as u16)
    }

    /// From a requester identifier.
    #[must_use]
    pub const fn from_requester_id(id: u16) -> Self {
        Self(id)
    }

    /// The requester identifier.
    #[must_use]
    pub const fn requester_id(self) -> u16 {
        self.0
    }

    /// Bus number.
    #[must_use]
    pub const fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Device number, 0 to 31.
    #[must_use]
    pub const fn device(self) -> u8 {
        (self.0 >> 3) as u8 & 31
    }

    /// Function number, 0 to 7.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.0 as u8 & 7
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus(), self.device(), self.function())
    }
}

impl fmt::Debug for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not `bus:device.function`, such as `00:1f.2`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotABdf;

impl fmt::Display for NotABdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a PCI function is written bus:device.function in hexadecimal, such as 00:1f.2")
    }
}

impl core::error::Error for NotABdf {}

impl FromStr for Bdf {
    type Err = NotABdf;

    /// Parses `00:1f.2`, with or without the segment `0000:` before it.
    fn from_str(text: &str) -> Result<Self, NotABdf> {
        let text = text.strip_prefix("0000:").unwrap_or(text);
        let (bus, rest) = text.split_once(':').ok_or(NotABdf)?;
        let (device, function) = rest.split_once('.').ok_or(NotABdf)?;
        let number = |digits: &str, most_digits: usize, limit: u8| {
            let plain = digits.bytes().all(|b| b.is_ascii_hexdigit());
            if digits.is_empty() || digits.len() > most_digits || !plain {
                return Err(NotABdf);
            }
            u8::from_str_radix(digits, 16).ok().filter(|n| *n <= limit).ok_or(NotABdf)
        };
        Ok(Self::new(number(bus, 2, 255)?, number(device, 2, 31)?, number(function, 1, 7)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::ToString;

    proptest! {
        #[test]
        fn text_and_requester_id_round_trip(id: u16) {
            let bdf = Bdf::from_requester_id(id);
            prop_assert_eq!(bdf.to_string().parse::<Bdf>(), Ok(bdf));
            prop_assert_eq!(Bdf::new(bdf.bus(), bdf.device(), bdf.function()), bdf);
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in ".{0,12}") {
            let _ = text.parse::<Bdf>();
        }
    }

    #[test]
    fn what_is_no_function_is_refused() {
        for text in ["", "00", "00:20.0", "00:1f.8", "00:1f", "100:00.0", "+0:00.0", "0001:00:00.0"]
        {
            assert_eq!(text.parse::<Bdf>(), Err(NotABdf), "{text}");
        }
    }
}
