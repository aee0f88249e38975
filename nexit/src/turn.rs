//! Who may start Bochs: one at a time on the whole machine.
//!
//! Bochs' display without a screen (`rfb`) listens on the first free one of fifty ports. Two that look
//! for it at once bind the same port; each `listen` then fails for the other's sake, and what follows is
//! tried with a socket that is bound already, in vain: Bochs panics ("RFB could not bind any port").

use std::fs::{self, File};
use std::path::Path;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

/// Every Bochs reads it, so it is there, and anyone may lock it.
const LOCKED: &str = "/usr/share/bochs/BIOS-bochs-latest";
/// What Bochs' log says when it has its port.
const LISTENS: &str = "listening for connections on port";
/// What it says when it gives up.
const GIVES_UP: &str = "could not bind any port";
/// How often it is started in the hope of a port that others have given back: the ports are not Nexit's
/// alone.
pub(crate) const TRIES: usize = 5;
/// How long to wait for one.
pub(crate) const PAUSE: Duration = Duration::from_secs(1);
/// How long to wait for a neighbour, and for one's own port. After that, go on without the turn: without the
/// turn it most likely works as well.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often to look.
const TICK: Duration = Duration::from_millis(10);

/// The right to start, until dropped. Empty where the lock is not to be had.
#[derive(Debug)]
pub(crate) struct Turn {
    _lock: Option<File>,
}

/// Waits for it, for a while.
pub(crate) fn take() -> Turn {
    Turn { _lock: lock(Path::new(LOCKED), PATIENCE) }
}

fn lock(path: &Path, patience: Duration) -> Option<File> {
    File::open(path).ok().filter(|file| within(patience, || file.try_lock().is_ok()))
}

impl Turn {
    /// Waits until `child`, by its `log`, has its port or has died. False if it died for want of one.
    pub(crate) fn has_port(&self, log: &Path, child: &mut Child) -> bool {
        let says =
            |text: &str| String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).contains(text);
        let mut died = false;
        within(PATIENCE, || {
            died = matches!(child.try_wait(), Ok(Some(_)));
            died || says(LISTENS)
        });
        !(died && says(GIVES_UP))
    }
}

/// Whether `done` came true in time.
fn within(time: Duration, mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if done() {
            return true;
        }
        if start.elapsed() >= time {
            return false;
        }
        thread::sleep(TICK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_waits_until_the_first_is_done() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let first = lock(file.path(), Duration::ZERO);
        assert!(first.is_some());
        assert!(lock(file.path(), Duration::ZERO).is_none());
        drop(first);
        assert!(lock(file.path(), Duration::ZERO).is_some());
    }

    #[test]
    fn without_the_file_there_is_no_waiting() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(lock(&folder.path().join("none"), Duration::MAX).is_none());
    }
}
