//! The notations inside values: sizes, port ranges, numbers.

use arch::msr::PortRange;

use crate::IntxConfig;

/// Bytes of a size such as `512M`; `None` where it is none or does not fit.
pub(crate) fn size(text: &str) -> Option<u64> {
    let unit = *text.as_bytes().last()?;
    let shift = match unit {
        b'K' => 10,
        b'M' => 20,
        b'G' => 30,
        _ => return None,
    };
    decimal(text.strip_suffix(char::from(unit))?)?.checked_mul(1 << shift)
}

/// Ports of `0xf4` or `0x3f0-0x3f7`.
pub(crate) fn ports(text: &str) -> Option<PortRange> {
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    (first <= last).then_some(PortRange { first, last })
}

fn port(text: &str) -> Option<u16> {
    match text.trim().strip_prefix("0x") {
        Some(digits) if digits.bytes().all(|b| b.is_ascii_hexdigit()) => {
            u16::from_str_radix(digits, 16).ok()
        }
        Some(_) => None,
        None => decimal(text.trim())?.try_into().ok(),
    }
}

fn decimal(digits: &str) -> Option<u64> {
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// Function and line of `00:05.0=21`.
pub(crate) fn intx(text: &str) -> Option<IntxConfig> {
    let (function, gsi) = text.split_once('=')?;
    let gsi: u32 = decimal(gsi.trim())?.try_into().ok()?;
    let pci = matches!(gsi, 5 | 9..=11 | 16..);
    pci.then_some(IntxConfig { function: function.trim().parse().ok()?, gsi })
}
