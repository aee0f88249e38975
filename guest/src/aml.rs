//! The ACPI Machine Language that a small DSDT needs: names, devices, packages, resource templates.
//!
//! Each function returns the encoding of one term (ACPI Specification, "ACPI Machine Language (AML)
//! Specification" and "Resource Data Types for ACPI").

use alloc::vec::Vec;

use crate::memory_map::GpaRange;

const ROOT: u8 = b'\\';
const NAME_OP: u8 = 0x08;
const SCOPE_OP: u8 = 0x10;
const BUFFER_OP: u8 = 0x11;
const PACKAGE_OP: u8 = 0x12;
const EXT_OP: u8 = 0x5b;
const DEVICE_OP: u8 = 0x82;

/// Joins terms.
pub(crate) fn terms(list: &[Vec<u8>]) -> Vec<u8> {
    list.concat()
}

/// `Name (name, value)`.
pub(crate) fn name(name: &[u8; 4], value: &[u8]) -> Vec<u8> {
    [&[NAME_OP], &name[..], value].concat()
}

/// `Scope (\name) { body }`.
pub(crate) fn scope(name: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let content = [&[ROOT], &name[..], body].concat();
    [&[SCOPE_OP], &package_length(&content)[..], &content].concat()
}

/// `Device (name) { body }`.
pub(crate) fn device(name: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let content = [&name[..], body].concat();
    [&[EXT_OP, DEVICE_OP], &package_length(&content)[..], &content].concat()
}

/// `Package () { elements }`.
pub(crate) fn package(elements: &[Vec<u8>]) -> Vec<u8> {
    let content = [&[elements.len() as u8], &elements.concat()[..]].concat();
    [&[PACKAGE_OP], &package_length(&content)[..], &content].concat()
}

/// `Package () { integers }`.
pub(crate) fn integers(values: &[u32]) -> Vec<u8> {
    package(&values.iter().map(|value| integer(*value)).collect::<Vec<_>>())
}

/// An integer constant in its shortest form.
pub(crate) fn integer(value: u32) -> Vec<u8> {
    match value {
        0 | 1 => Vec::from([value as u8]),
        2..=0xff => Vec::from([0x0a, value as u8]),
        0x100..=0xffff => [&[0x0b], &(value as u16).to_le_bytes()[..]].concat(),
        _ => [&[0x0c], &value.to_le_bytes()[..]].concat(),
    }
}

/// `EisaId ("PNPxxxx")`: three letters of five bits, four hexadecimal digits, big-endian.
pub(crate) fn pnp_id(product: u16) -> Vec<u8> {
    let letter = |c: u8| u32::from(c - b'@');
    let manufacturer = letter(b'P') << 26 | letter(b'N') << 21 | letter(b'P') << 16;
    integer((manufacturer | u32::from(product)).swap_bytes())
}

/// `ResourceTemplate () { descriptors }`.
pub(crate) fn resources(descriptors: &[Vec<u8>]) -> Vec<u8> {
    // The end tag's checksum 0 means "not computed".
    let bytes = [&descriptors.concat()[..], &[0x79, 0]].concat();
    let content = [&integer(bytes.len() as u32)[..], &bytes].concat();
    [&[BUFFER_OP], &package_length(&content)[..], &content].concat()
}

/// `IO (Decode16, first, first, 1, length)`.
pub(crate) fn io(first: u16, length: u8) -> Vec<u8> {
    let [low, high] = first.to_le_bytes();
    Vec::from([0x47, 1, low, high, low, high, 1, length])
}

/// `IRQNoFlags () { irq }`: edge-triggered, active high, exclusive.
pub(crate) fn irq(irq: u8) -> Vec<u8> {
    let [low, high] = (1u16 << (irq & 15)).to_le_bytes();
    Vec::from([0x22, low, high])
}

/// What an address-space descriptor is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Space {
    /// Memory, read-write, not cacheable.
    Memory,
    /// I/O ports, the entire range.
    Io,
    /// Bus numbers.
    Bus,
}

impl Space {
    /// Resource type and type-specific flags.
    const fn encoding(self) -> [u8; 2] {
        match self {
            Self::Memory => [0, 1],
            Self::Io => [1, 3],
            Self::Bus => [2, 0],
        }
    }
}

/// Minimum and maximum are fixed …
const FIXED: u8 = 0x0c;
/// … and the device uses the range itself instead of handing it on.
const CONSUMER: u8 = 1;

/// `WordIO` or `WordBusNumber`, produced by a bridge: `first` to `last`.
pub(crate) fn word_space(space: Space, first: u16, last: u16) -> Vec<u8> {
    let [kind, flags] = space.encoding();
    // The length of a whole 64 Ki space does not fit and is never asked for.
    let length = (last - first).wrapping_add(1);
    let numbers = [0, first, last, 0, length].map(u16::to_le_bytes).concat();
    [&[0x88, 0x0d, 0, kind, FIXED, flags], &numbers[..]].concat()
}

/// `QWordMemory`, produced by a bridge or, with `consumer`, taken by a device.
pub(crate) fn memory(range: GpaRange, consumer: bool) -> Vec<u8> {
    let [kind, flags] = Space::Memory.encoding();
    let general = if consumer { FIXED | CONSUMER } else { FIXED };
    let numbers =
        [0, range.start.as_u64(), range.end() - 1, 0, range.length].map(u64::to_le_bytes).concat();
    [&[0x8a, 0x2b, 0, kind, general, flags], &numbers[..]].concat()
}

/// PkgLength counts itself: one byte up to 63, else two to four.
fn package_length(content: &[u8]) -> Vec<u8> {
    let length = content.len();
    if length + 1 < 1 << 6 {
        return Vec::from([(length + 1) as u8]);
    }
    let bytes = if length + 2 < 1 << 12 {
        1
    } else if length + 3 < 1 << 20 {
        2
    } else {
        3
    };
    let total = length + 1 + bytes;
    let mut encoded = Vec::from([(bytes << 6 | total & 0x0f) as u8]);
    encoded.extend((0..bytes).map(|index| (total >> (4 + 8 * index)) as u8));
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn identifiers_are_compressed_as_iasl_does() {
        assert_eq!(pnp_id(0x0a08), [0x0c, 0x41, 0xd0, 0x0a, 0x08]);
        assert_eq!(pnp_id(0x0501), [0x0c, 0x41, 0xd0, 0x05, 0x01]);
    }

    #[test]
    fn integers_take_their_shortest_form() {
        assert_eq!(integer(1), [1]);
        assert_eq!(integer(5), [0x0a, 5]);
        assert_eq!(integer(0x1234), [0x0b, 0x34, 0x12]);
        assert_eq!(integer(0x1_0000), [0x0c, 0, 0, 1, 0]);
    }

    proptest! {
        #[test]
        fn a_package_length_counts_itself(length in 0usize..70_000) {
            let encoded = package_length(&vec![0; length]);
            let lead = usize::from(encoded[0]);
            let more = lead >> 6;
            prop_assert_eq!(encoded.len(), 1 + more);
            let mut total = if more == 0 { lead & 0x3f } else { lead & 0x0f };
            for (index, byte) in encoded[1..].iter().enumerate() {
                total |= usize::from(*byte) << (4 + 8 * index);
            }
            prop_assert_eq!(total, length + encoded.len());
        }
    }
}
