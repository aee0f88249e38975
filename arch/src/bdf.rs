//! A PCI function's address: segment, bus, device, function.

use core::fmt;
use core::str::FromStr;

/// Segment, bus, device and function number of a PCI function; the last three are the 16-bit requester
/// identifier (PCI Express Base Specification, "Transaction Descriptor – Transaction ID Field"). Each
/// segment has 256 buses of its own; most machines have segment 0 only.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bdf {
    segment: u16,
    requester: u16,
}

impl Bdf {
    /// In segment 0, from its parts; `device` is taken modulo 32 and `function` modulo 8.
    #[must_use]
    pub const fn new(bus: u8, device: u8, function: u8) -> Self {
        let place = ((device & 31) as u16) << 3 | (function & 7) as u16;
        Self::from_requester_id((bus as u16) << 8 | place)
    }

    /// In segment 0, from a requester identifier.
    #[must_use]
    pub const fn from_requester_id(id: u16) -> Self {
        Self { segment: 0, requester: id }
    }

    /// The same bus, device and function of another segment.
    #[must_use]
    pub const fn in_segment(self, segment: u16) -> Self {
        Self { segment, ..self }
    }

    /// Segment number.
    #[must_use]
    pub const fn segment(self) -> u16 {
        self.segment
    }

    /// The requester identifier.
    #[must_use]
    pub const fn requester_id(self) -> u16 {
        self.requester
    }

    /// Bus number.
    #[must_use]
    pub const fn bus(self) -> u8 {
        (self.requester >> 8) as u8
    }

    /// Device number, 0 to 31.
    #[must_use]
    pub const fn device(self) -> u8 {
        (self.requester >> 3) as u8 & 31
    }

    /// Function number, 0 to 7.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.requester as u8 & 7
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.segment != 0 {
            write!(f, "{:04x}:", self.segment)?;
        }
        write!(f, "{:02x}:{:02x}.{}", self.bus(), self.device(), self.function())
    }
}

impl fmt::Debug for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not `bus:device.function`, such as `00:1f.2`, nor that behind a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotABdf;

impl fmt::Display for NotABdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "a PCI function is written bus:device.function in hexadecimal, such as 00:1f.2, behind \
             its segment if that is not 0, such as 0001:41:00.0",
        )
    }
}

impl core::error::Error for NotABdf {}

impl FromStr for Bdf {
    type Err = NotABdf;

    /// Parses `00:1f.2` (segment 0) and `0001:41:00.0`.
    fn from_str(text: &str) -> Result<Self, NotABdf> {
        let number = |digits: &str, max_digits: usize, limit: u16| {
            let plain = digits.bytes().all(|b| b.is_ascii_hexdigit());
            if digits.is_empty() || digits.len() > max_digits || !plain {
                return Err(NotABdf);
            }
            u16::from_str_radix(digits, 16).ok().filter(|n| *n <= limit).ok_or(NotABdf)
        };
        let (buses, function) = text.split_once('.').ok_or(NotABdf)?;
        let (buses, device) = buses.rsplit_once(':').ok_or(NotABdf)?;
        let (segment, bus) = buses.split_once(':').unwrap_or(("0", buses));
        let byte = |digits, max_digits, limit| Ok(number(digits, max_digits, limit)? as u8);
        let bdf = Self::new(byte(bus, 2, 255)?, byte(device, 2, 31)?, byte(function, 1, 7)?);
        Ok(bdf.in_segment(number(segment, 4, u16::MAX)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::ToString;

    proptest! {
        #[test]
        fn text_and_numbers_round_trip(id: u16, segment: u16) {
            let bdf = Bdf::from_requester_id(id).in_segment(segment);
            prop_assert_eq!(bdf.to_string().parse::<Bdf>(), Ok(bdf));
            let same = Bdf::new(bdf.bus(), bdf.device(), bdf.function());
            prop_assert_eq!((same.in_segment(segment), same.segment()), (bdf, 0));
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in ".{0,12}") {
            let _ = text.parse::<Bdf>();
        }
    }

    #[test]
    fn functions_are_written_as_lspci_writes_them() {
        let at = Bdf::new(0x41, 0, 0);
        let written = |text: &str| text.parse::<Bdf>();
        assert_eq!(written("41:00.0"), Ok(at));
        assert_eq!(written("0000:41:00.0"), Ok(at));
        assert_eq!(written("0001:41:00.0"), Ok(at.in_segment(1)));
        assert_eq!(
            (at.to_string(), at.in_segment(1).to_string()),
            ("41:00.0".into(), "0001:41:00.0".into())
        );
    }

    #[test]
    fn what_is_no_function_is_refused() {
        for text in [
            "",
            "00",
            "00:20.0",
            "00:1f.8",
            "00:1f",
            "100:00.0",
            "+0:00.0",
            "10000:00:00.0",
            ":00:00.0",
            "0:0:00:00.0",
            "00:00.0.0",
        ] {
            assert_eq!(text.parse::<Bdf>(), Err(NotABdf), "{text}");
        }
    }
}
