//! Errors of the configuration: each is a sentence that gives the place and what to do about it.

use alloc::string::String;
use core::fmt;

use arch::Bdf;

use crate::{FILE_NAME, MEMORY_UNIT, MIN_MEMORY};

/// A problem and its place in the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError {
    /// Line, counted from 1; `None` for the file as a whole.
    pub line: Option<usize>,
    /// What is wrong.
    pub problem: Problem,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{FILE_NAME}, line {line}: {}", self.problem),
            None => write!(f, "{FILE_NAME}: {}", self.problem),
        }
    }
}

impl core::error::Error for ConfigError {}

/// What is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Problem {
    /// The text is not TOML.
    Syntax {
        /// Counted from 1.
        column: usize,
        /// The problem, and the correct form.
        what: String,
    },
    /// The text is TOML that no key takes, or a mistake in such.
    Unread {
        /// Counted from 1.
        column: usize,
        /// The correct text.
        what: String,
    },
    /// There is no `[[guest]]`.
    NoGuest,
    /// A key that does not exist.
    UnknownKey {
        key: String,
        /// The table that it stands in.
        table: &'static str,
        /// The keys that exist there.
        keys: &'static str,
    },
    /// A key without which a table means nothing.
    MissingKey {
        table: &'static str,
        key: &'static str,
        /// An example of a line that would do.
        example: &'static str,
    },
    /// A value of another type.
    WrongType {
        key: &'static str,
        /// What it takes, with an example.
        takes: &'static str,
        /// The type that stands there.
        found: &'static str,
    },
    /// A text or number that the key does not take.
    BadValue {
        key: &'static str,
        /// What it takes, with an example.
        takes: &'static str,
        /// The value that stands there.
        found: String,
    },
    /// `memory` is too small or no multiple of 2 MiB.
    Memory { bytes: u64 },
    /// A list is empty that must not be.
    EmptyList {
        key: &'static str,
        /// An example of a line that would do.
        example: &'static str,
    },
    /// Something that only one guest can own, or a guest only once, stands there twice.
    Twice {
        /// Its kind: `CPU`, `device`, `devices =`, `port`, `interrupt line` …
        what: &'static str,
        /// Which one.
        which: String,
        /// The guest that has it already.
        owner: String,
    },
    /// Two regions of shared memory have one name.
    SharedTwice { name: String },
    /// Memory is shared with a guest that does not exist.
    NoSuchGuest { name: String },
    /// A guest has the UART of the console, its ports or its interrupt line.
    ConsoleTaken {
        /// The UART's first port.
        base: u16,
        /// The guest's name.
        guest: String,
    },
    /// The serial card that `console` names is assigned to a guest.
    ConsoleCardTaken {
        /// The card.
        function: Bdf,
        /// The guest's name.
        guest: String,
    },
    /// `gdb = "console"` with `console = "none"`.
    GdbWithoutConsole {
        /// The guest's name.
        guest: String,
    },
    /// `except` without `devices = "all"`.
    ExceptWithoutAll,
    /// `unsafe_no_iommu` with more than one guest.
    NoIommuForMany,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax { column, what } => {
                write!(f, "this is not TOML: {what} (column {column})")
            }
            Self::Unread { column, what } => {
                write!(f, "such TOML is not read here: {what} (column {column})")
            }
            Self::NoGuest => {
                f.write_str("there is no [[guest]]: add one with name, cpus, memory and kernel")
            }
            Self::UnknownKey { key, table, keys } => {
                write!(f, "unknown key \"{key}\" in {table}: the keys are {keys}")
            }
            Self::MissingKey { table, key, example } => {
                write!(f, "this {table} has no {key}: add a line such as {example}")
            }
            Self::WrongType { key, takes, found } => {
                write!(f, "{key} must be {takes}, not {found}")
            }
            Self::BadValue { key, takes, found } => {
                write!(f, "{key} must be {takes}, not {found:?}")
            }
            Self::Memory { bytes } => write!(
                f,
                "memory must be at least {}M and a multiple of {}M, not {bytes} bytes",
                MIN_MEMORY >> 20,
                MEMORY_UNIT >> 20
            ),
            Self::EmptyList { key, example } => {
                write!(f, "{key} is empty: give at least one, such as {example}")
            }
            Self::Twice { what, which, owner } => {
                write!(
                    f,
                    "{what} {which} already belongs to guest \"{owner}\": give it to one only"
                )
            }
            Self::SharedTwice { name } => {
                write!(f, "there are two [[shared]] \"{name}\": give one of them another name")
            }
            Self::NoSuchGuest { name } => {
                write!(f, "there is no [[guest]] \"{name}\": add it, or share with others")
            }
            Self::ConsoleTaken { base, guest } => write!(
                f,
                "guest \"{guest}\" has the UART at port {base:#x} or its interrupt line, and it is the \
                 console: take it from the guest (uart, io_ports), or write console = \"none\" or \
                 another UART's port at the top of the file"
            ),
            Self::ConsoleCardTaken { function, guest } => write!(
                f,
                "guest \"{guest}\" has the serial card {function}, and it is the console: take it from the \
                 guest (devices, or except where that is \"all\"), or write another console at the top of \
                 the file"
            ),
            Self::GdbWithoutConsole { guest } => write!(
                f,
                "guest \"{guest}\" has gdb = \"console\", and there is none: take console = \"none\" away, or \
                 give gdb a UART, such as \"COM2\""
            ),
            Self::ExceptWithoutAll => f.write_str(
                "except takes functions out of devices = \"all\", which does not stand here: write \
                 it, or remove except",
            ),
            Self::NoIommuForMany => f.write_str(
                "unsafe_no_iommu is for one guest only, as its memory must lie where the devices \
                 see it: remove the other guests or the key",
            ),
        }
    }
}
