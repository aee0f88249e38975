//! Where an image goes: looked at before any work, so that what cannot be written is known at once.

use std::fs;
use std::path::{Path, PathBuf};

use crate::failure::{Failure, OrFailed as _, Result};
use crate::scenario::BootFile;

/// Room for loaders, scripts and the tables of a file system.
const ROOM: u64 = 16 << 20;

/// Bytes of the hypervisor image and the files.
pub(crate) fn bytes(image: &Path, files: &[BootFile]) -> Result<u64> {
    let paths = std::iter::once(image).chain(files.iter().map(|file| file.path.as_path()));
    let mut sum = 0;
    for path in paths {
        sum += fs::metadata(path).or_failed("read", path)?.len();
    }
    Ok(sum)
}

/// Whether a file of `bytes` bytes can be written there.
pub(crate) fn check_file(output: &Path, bytes: u64) -> Result<()> {
    let shown = output.display();
    match fs::metadata(output) {
        Ok(found) if found.is_dir() => {
            Err(Failure::Usage(format!("{shown} is a folder: name the file that is to be written")))
        }
        Ok(found) if !found.is_file() => Err(Failure::Usage(format!(
            "{shown} is not a regular file: write the image to a file, and copy that with dd"
        ))),
        _ => check_place(&parent(output), bytes),
    }
}

/// A folder with so many bytes can be written there: a new one, or one that is empty.
pub(crate) fn check_folder(output: &Path, bytes: u64) -> Result<()> {
    let shown = output.display();
    if !output.exists() {
        return check_place(&parent(output), bytes);
    }
    if !output.is_dir() {
        return Err(Failure::Usage(format!("{shown} exists and is no folder: name a new one")));
    }
    let mut entries = fs::read_dir(output).or_failed("read", output)?;
    if entries.next().is_some() {
        let advice = "name a new folder, or empty this one";
        return Err(Failure::Usage(format!("the folder {shown} is not empty: {advice}")));
    }
    check_place(output, bytes)
}

fn parent(output: &Path) -> PathBuf {
    let parent = output.parent().filter(|parent| *parent != Path::new(""));
    parent.unwrap_or(Path::new(".")).to_path_buf()
}

fn check_place(folder: &Path, bytes: u64) -> Result<()> {
    let shown = folder.display();
    if !folder.is_dir() {
        return Err(Failure::Usage(format!("there is no folder {shown}: make it first")));
    }
    tempfile::tempfile_in(folder)
        .map_err(|error| Failure::Usage(format!("cannot write to the folder {shown}: {error}")))?;
    // Where nothing is known of the room, writing will show it.
    let free = rustix::fs::statvfs(folder).map(|it| it.f_bavail.saturating_mul(it.f_frsize));
    free.map_or(Ok(()), |free| check_room(folder, free, bytes.saturating_add(ROOM)))
}

fn check_room(folder: &Path, free: u64, needed: u64) -> Result<()> {
    if needed <= free {
        return Ok(());
    }
    Err(Failure::Usage(format!(
        "the folder {} has {} MiB free, and the image takes up to {} MiB: make room",
        folder.display(),
        free >> 20,
        needed.div_ceil(1 << 20)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentence(result: Result<()>) -> String {
        let error = result.unwrap_err();
        assert_eq!(error.status(), 2, "before any work: {error}");
        error.to_string()
    }

    #[test]
    fn a_place_that_cannot_be_written_is_known_before_any_work() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        fs::write(at("file"), "").unwrap();
        fs::create_dir(at("full")).unwrap();
        fs::write(at("full/file"), "").unwrap();
        fs::create_dir(at("empty")).unwrap();
        assert!(sentence(check_file(&at("full"), 0)).contains("full is a folder"));
        assert!(sentence(check_file(Path::new("/dev/null"), 0)).contains("copy that with dd"));
        assert!(sentence(check_file(&at("no/such"), 0)).contains("there is no folder"));
        assert!(sentence(check_folder(&at("file"), 0)).contains("file exists and is no folder"));
        assert!(sentence(check_folder(&at("full"), 0)).contains("full is not empty"));
        assert!(sentence(check_folder(&at("no/such"), 0)).contains("there is no folder"));
        assert!(sentence(check_folder(Path::new("/proc/nexit"), 0)).contains("cannot write to"));
        for good in ["empty", "new"] {
            assert_eq!(check_folder(&at(good), 0), Ok(()), "{good}");
        }
        for good in ["file", "new"] {
            assert_eq!(check_file(&at(good), 0), Ok(()), "{good}");
        }
        assert!(sentence(check_file(&at("new"), u64::MAX)).contains("MiB free, and the image"));
    }

    #[test]
    fn a_disk_without_room_is_named_with_what_is_needed() {
        let at = Path::new("/x");
        assert_eq!(check_room(at, 100 << 20, 100 << 20), Ok(()));
        let text = sentence(check_room(at, 100 << 20, (100 << 20) + 1));
        assert_eq!(
            text,
            "the folder /x has 100 MiB free, and the image takes up to 101 MiB: make room"
        );
    }
}
