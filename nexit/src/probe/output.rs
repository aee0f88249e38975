//! The file that is written: whether it can be is known before the work, and it is whole or not there.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use capture::Capture;
use tempfile::NamedTempFile;

use crate::failure::{Failure, Result};

/// A file that can be written.
#[derive(Debug)]
pub(super) struct Output {
    path: PathBuf,
    /// What becomes the file; for what is no plain file (`/dev/stdout`) there is none.
    new: Option<NamedTempFile>,
}

impl Output {
    /// Finds out whether a file can be written.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let refuse = |why: String| {
            Failure::Usage(format!("cannot write {}: {why}; nothing was done", path.display()))
        };
        let new = match path.metadata() {
            Ok(what) if what.is_dir() => {
                return Err(refuse(String::from(
                    "it is a folder: name a file, such as machine.toml",
                )));
            }
            Ok(what) if !what.is_file() => {
                OpenOptions::new()
                    .write(true)
                    .open(path)
                    .map_err(|error| refuse(error.to_string()))?;
                None
            }
            _ => {
                let parent = path.parent().filter(|it| !it.as_os_str().is_empty());
                let folder = parent.unwrap_or(Path::new("."));
                if !folder.is_dir() {
                    return Err(refuse(format!("there is no folder {}", folder.display())));
                }
                let new = tempfile::Builder::new().permissions(readable()).tempfile_in(folder);
                // The kind alone: the whole error names a file that nobody asked for.
                Some(new.map_err(|error| refuse(error.kind().to_string()))?)
            }
        };
        Ok(Self { path: path.to_path_buf(), new })
    }

    pub(super) fn write(self, capture: &Capture) -> Result<PathBuf> {
        let failed =
            |why: String| Failure::Failed(format!("cannot write {}: {why}", self.path.display()));
        let json = self.path.extension().is_some_and(|it| it.eq_ignore_ascii_case("json"));
        let text = if json { capture.to_json() } else { capture.to_toml() };
        let text = text.map_err(|error| failed(error.to_string()))?;
        match self.new {
            None => std::fs::write(&self.path, text).map_err(|error| failed(error.to_string()))?,
            Some(new) => {
                std::fs::write(new.path(), text).map_err(|error| failed(error.to_string()))?;
                new.persist(&self.path).map_err(|error| failed(error.to_string()))?;
            }
        }
        Ok(self.path)
    }
}

/// As files usually are.
fn readable() -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o644)
}
