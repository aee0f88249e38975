//! Little-endian fields at offsets: reading from an image that may end anywhere, writing into a
//! block that is large enough.

use super::LoadError;

/// The bytes from `offset` on, `length` of them.
pub(super) fn bytes<'a>(
    image: &'a [u8],
    what: &'static str,
    offset: usize,
    length: usize,
) -> Result<&'a [u8], LoadError> {
    let end = offset.checked_add(length);
    end.and_then(|end| image.get(offset..end)).ok_or(LoadError::Truncated {
        what,
        promised: (offset as u64).saturating_add(length as u64),
        found: image.len() as u64,
    })
}

/// A field of `N` bytes.
fn array<const N: usize>(image: &[u8], offset: usize) -> Result<[u8; N], LoadError> {
    let field = bytes(image, "headers", offset, N)?;
    Ok(field.first_chunk().copied().unwrap_or([0; N]))
}

pub(super) fn u8_at(image: &[u8], offset: usize) -> Result<u8, LoadError> {
    array(image, offset).map(u8::from_le_bytes)
}

pub(super) fn u16_at(image: &[u8], offset: usize) -> Result<u16, LoadError> {
    array(image, offset).map(u16::from_le_bytes)
}

pub(super) fn u32_at(image: &[u8], offset: usize) -> Result<u32, LoadError> {
    array(image, offset).map(u32::from_le_bytes)
}

pub(super) fn u64_at(image: &[u8], offset: usize) -> Result<u64, LoadError> {
    array(image, offset).map(u64::from_le_bytes)
}

/// Writes `field` at `offset`; what does not fit is left out.
pub(crate) fn put(block: &mut [u8], offset: usize, field: &[u8]) {
    for (to, from) in block.iter_mut().skip(offset).zip(field) {
        *to = *from;
    }
}
