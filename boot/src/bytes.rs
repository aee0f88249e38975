//! Strings out of bytes that somebody else wrote; numbers are [`arch::bytes`]'.
//!
//! Invariant: nothing is read past the end of the slice.
#![forbid(unsafe_code)]

pub use arch::bytes::{u16_at, u32_at, u64_at};

/// The text before the first NUL; `None` when there is no NUL or the text is not UTF-8.
#[must_use]
pub fn text(bytes: &[u8]) -> Option<&str> {
    let length = bytes.iter().position(|byte| *byte == 0)?;
    core::str::from_utf8(bytes.get(..length)?).ok()
}
