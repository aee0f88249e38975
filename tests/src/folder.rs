//! A test's own folder, and the calls of `nexit` from it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Condvar, Mutex, PoisonError};

use crate::outcome::Outcome;

/// The build folder that this program was built in.
///
/// # Panics
/// It is not in one: cargo did not build it.
#[must_use]
pub fn build_folder() -> PathBuf {
    // TARGET/debug/deps/TEST or TARGET/debug/PROGRAM → TARGET
    let program = std::env::current_exe().unwrap_or_default();
    let profile = program.ancestors().skip(1).find(|folder| !folder.ends_with("deps"));
    let folder = profile.and_then(Path::parent);
    assert!(folder.is_some(), "{} is not in a build folder", program.display());
    folder.map(Path::to_path_buf).unwrap_or_default()
}

/// The workspace.
#[must_use]
pub fn project_folder() -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    folder.parent().map(Path::to_path_buf).unwrap_or_default()
}

/// A folder for one test.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// An empty folder of this name.
    ///
    /// # Panics
    /// It cannot be made.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let path = build_folder().join("test-runs").join(name);
        let _ = fs::remove_dir_all(&path);
        let made = fs::create_dir_all(&path);
        assert!(made.is_ok(), "cannot make {}: {made:?}", path.display());
        Self(path)
    }

    /// The path of `name` in it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file and returns its path.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        let written = fs::write(&path, contents);
        assert!(written.is_ok(), "cannot write {}: {written:?}", path.display());
        path.display().to_string()
    }

    /// Writes a program and returns its path.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn program(&self, name: &str, text: &str) -> String {
        let path = self.write(name, text);
        let made = fs::set_permissions(&path, fs::Permissions::from_mode(0o755));
        assert!(made.is_ok(), "cannot make {path} a program: {made:?}");
        path
    }

    /// Calls `nexit` with these arguments and waits for it. Its output is kept in `name`.log.
    ///
    /// # Panics
    /// It cannot be started: `make` builds it.
    #[must_use]
    pub fn nexit(&self, name: &str, arguments: &[&str]) -> Outcome {
        let program = build_folder().join("debug/nexit");
        // What runs no machine waits for none: its caller may have one, and two such callers would wait for each other.
        let runs = matches!(arguments.first(), Some(&("run" | "probe")));
        let _place = runs.then(Turn::take);
        let output = Command::new(&program).args(arguments).stdin(Stdio::null()).output();
        assert!(output.is_ok(), "cannot start {}: {output:?}", program.display());
        let outcome = output.map(|output| Outcome::of(&output)).unwrap_or_default();
        self.write(&format!("{name}.log"), format!("{}\n{}", outcome.output, outcome.errors));
        outcome
    }
}

/// So many emulators run at once: each keeps a CPU busy, and a guest that gets too little of one
/// finds its clocks in disagreement.
const MAX_AT_ONCE: usize = 2;

static RUNNING: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

/// A place among those that run.
#[derive(Debug)]
pub(crate) struct Turn;

impl Turn {
    pub(crate) fn take() -> Self {
        let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = ENDED.wait_while(running, |running| *running >= MAX_AT_ONCE);
        *waited.unwrap_or_else(PoisonError::into_inner) += 1;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ENDED.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_runs_no_machine_waits_for_none() {
        let _all: Vec<Turn> = (0..MAX_AT_ONCE).map(|_| Turn::take()).collect();
        let outcome = Folder::new("folder-turns").nexit("help", &["help"]);
        assert_eq!(outcome.status, Some(0), "{outcome}");
    }
}
