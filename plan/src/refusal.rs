//! One sentence that says what is wrong, where, and what to do.

use alloc::string::{String, ToString};
use core::fmt;

use config::{FILE_NAME, GuestConfig, SharedConfig};

/// What a refusal is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum About {
    /// The machine, whatever the configuration says.
    Machine,
    /// The guest of this name.
    Guest(String),
    /// The shared memory of this name.
    Shared(String),
}

/// Why a guest cannot be started on the machine, or no guest can.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// What it is about.
    pub about: About,
    /// The key that is to be changed; empty where none is.
    pub key: &'static str,
    /// Its line in the file.
    pub line: Option<usize>,
    sentence: String,
}

impl Refusal {
    /// The machine cannot be used.
    #[must_use]
    pub fn machine(sentence: impl ToString) -> Self {
        Self { about: About::Machine, key: "", line: None, sentence: sentence.to_string() }
    }

    /// A guest's `key` is wrong.
    #[must_use]
    pub fn guest(guest: &GuestConfig, key: &'static str, sentence: impl ToString) -> Self {
        let about = About::Guest(guest.name.clone());
        Self { about, key, line: guest.places.line(key), sentence: sentence.to_string() }
    }

    /// An entry of a guest's list `key` is wrong.
    #[must_use]
    pub fn entry(
        guest: &GuestConfig,
        (key, index): (&'static str, usize),
        sentence: impl ToString,
    ) -> Self {
        Self { line: guest.places.entry(key, index), ..Self::guest(guest, key, sentence) }
    }

    /// A `key` of shared memory is wrong.
    #[must_use]
    pub fn shared(region: &SharedConfig, key: &'static str, sentence: impl ToString) -> Self {
        let about = About::Shared(region.name.clone());
        Self { about, key, line: region.places.line(key), sentence: sentence.to_string() }
    }

    /// The sentence without the file's name and line.
    #[must_use]
    pub fn words(&self) -> impl fmt::Display {
        Words(self)
    }
}

struct Words<'a>(&'a Refusal);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.about {
            About::Machine => {}
            About::Guest(name) => write!(f, "guest {name}: ")?,
            About::Shared(name) => write!(f, "shared {name}: ")?,
        }
        f.write_str(&self.0.sentence)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.line, &self.about) {
            (Some(line), _) => write!(f, "{FILE_NAME}, line {line}: ")?,
            (None, About::Machine) => {}
            (None, _) => write!(f, "{FILE_NAME}: ")?,
        }
        self.words().fmt(f)
    }
}

impl core::error::Error for Refusal {}
