//! A file for each speaker, with its bytes as they came.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::speakers::Speaker;
use crate::failure::{OrFailed, Result};

/// The files, in one folder.
#[derive(Debug)]
pub(super) struct Logs {
    folder: PathBuf,
    files: HashMap<PathBuf, File>,
}

impl Logs {
    /// Into `folder`, which is made if it is not there. Files in it are continued.
    ///
    /// # Errors
    /// It cannot be made.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).or_failed("make", folder)?;
        Ok(Self { folder: folder.to_owned(), files: HashMap::new() })
    }

    /// Writes bytes of a speaker.
    ///
    /// # Errors
    /// They cannot be written.
    pub(super) fn write(&mut self, names: &[String], speaker: Speaker, bytes: &[u8]) -> Result<()> {
        let path = self.folder.join(file_name(names, speaker));
        let file = match self.files.entry(path.clone()) {
            std::collections::hash_map::Entry::Occupied(file) => file.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => {
                let file = OpenOptions::new().create(true).append(true).open(&path);
                place.insert(file.or_failed("open", &path)?)
            }
        };
        file.write_all(bytes).or_failed("write", &path)
    }
}

/// `guest-NAME.log`, or a name that no guest's file has. What a file name cannot hold becomes `_`.
fn file_name(names: &[String], speaker: Speaker) -> String {
    match speaker {
        Speaker::Guest(guest) => {
            let name = names.get(guest).map_or("unknown", String::as_str);
            format!("guest-{}.log", name.replace(['/', '\0'], "_"))
        }
        Speaker::Report => "reports.log".to_owned(),
        Speaker::Log | Speaker::Prompt | Speaker::Unlabelled => "nexit.log".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_speaker_has_a_file_and_an_old_one_is_continued() {
        let folder = tempfile::tempdir().unwrap();
        let names = ["a".to_owned(), "../b".to_owned()];
        for _ in 0..2 {
            let mut logs = Logs::open(&folder.path().join("new")).unwrap();
            for (speaker, text) in [
                (Speaker::Guest(0), "one"),
                (Speaker::Guest(1), "two"),
                (Speaker::Log, "x"),
                (Speaker::Guest(0), "+"),
            ] {
                logs.write(&names, speaker, text.as_bytes()).unwrap();
            }
        }
        let read = |name: &str| fs::read_to_string(folder.path().join("new").join(name)).unwrap();
        assert_eq!(read("guest-a.log"), "one+one+");
        assert_eq!(read("guest-.._b.log"), "twotwo");
        assert_eq!(read("nexit.log"), "xx");
    }

    #[test]
    fn a_folder_that_cannot_be_is_a_sentence() {
        let error = Logs::open(Path::new("/dev/null/x")).unwrap_err().to_string();
        assert!(error.starts_with("cannot make /dev/null/x: "), "{error}");
    }
}
