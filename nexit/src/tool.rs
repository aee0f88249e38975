//! Calls of other programs (`xorriso`, `grub-mkimage`, `apt-get` …), with errors that name the
//! program and carry its own words.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::failure::{Failure, Result};

/// A program to call.
#[derive(Debug)]
pub struct Tool {
    command: Command,
    name: String,
}

impl Tool {
    /// The program `name`, found by `PATH` and in the administrator's folders.
    pub fn new(name: &str) -> Self {
        let mut command = Command::new(name);
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin"));
        command.stdin(Stdio::null());
        Self { command, name: name.to_owned() }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Runs in `folder`.
    #[must_use]
    pub fn within(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Runs it to the end and returns its standard output.
    ///
    /// # Errors
    /// It is missing, or it failed: with its own words.
    pub fn output(mut self) -> Result<String> {
        let output = self.command.output().map_err(|error| {
            let advice = "`make setup` installs what is missing";
            Failure::Failed(format!("cannot run {}: {error} ({advice})", self.name))
        })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let words = String::from_utf8_lossy(&output.stderr);
        Err(Failure::Failed(format!("{} failed ({}): {}", self.name, output.status, words.trim())))
    }

    /// Runs it to the end for its effect.
    ///
    /// # Errors
    /// As [`Tool::output`].
    pub fn run(self) -> Result<()> {
        self.output().map(drop)
    }
}
