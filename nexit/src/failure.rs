//! How a command can end badly, and the exit status that says so.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

/// Why the command failed. The text is one sentence for the user.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failure {
    /// A guest or the hypervisor failed, or a tool that was called did.
    Failed(String),
    /// Bad configuration or usage: nothing was started.
    Usage(String),
    /// The run took longer than `--timeout`.
    TimedOut(String),
}

/// What every step of the tool returns.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// The documented exit status.
    #[must_use]
    pub const fn status(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::TimedOut(_) => 124,
        }
    }

    /// The exit status as the process returns it.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.status())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(text) | Self::Usage(text) | Self::TimedOut(text) => f.write_str(text),
        }
    }
}

/// Turns an I/O error into a sentence with the file and what was to be done with it.
pub trait OrFailed<T> {
    /// `Failed("cannot WHAT PATH: …")`
    ///
    /// # Errors
    /// That one.
    fn or_failed(self, what: &str, path: &Path) -> Result<T>;
}

impl<T> OrFailed<T> for std::io::Result<T> {
    fn or_failed(self, what: &str, path: &Path) -> Result<T> {
        self.map_err(|error| Failure::Failed(format!("cannot {what} {}: {error}", path.display())))
    }
}
