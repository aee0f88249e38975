//! What ends a boot: one sentence that says what is wrong, where, and what to do.

use alloc::string::{String, ToString};
use core::fmt;

/// The platform, a file or the configuration makes it impossible to go on.
pub(crate) struct Refusal(String);

impl Refusal {
    pub(crate) fn new(sentence: impl Into<String>) -> Self {
        Self(sentence.into())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: core::error::Error> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// Builds a [`Refusal`] like `format!`.
macro_rules! refuse {
    ($($argument:tt)*) => { $crate::refusal::Refusal::new(alloc::format!($($argument)*)) };
}
pub(crate) use refuse;
