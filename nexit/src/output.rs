//! Where an image or a dump goes: looked at before any work, so that what cannot be written is known at once.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

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

/// Whether an image of `bytes` bytes can be written there.
pub(crate) fn check_file(output: &Path, bytes: u64) -> Result<()> {
    check_kind(output, "write the image to a file, and copy that with dd")?;
    check_place(&parent(output), bytes)
}

/// What is there is a regular file, or nothing.
fn check_kind(output: &Path, advice: &str) -> Result<()> {
    let shown = output.display();
    match fs::metadata(output) {
        Ok(found) if found.is_dir() => {
            Err(Failure::Usage(format!("{shown} is a folder: name the file that is to be written")))
        }
        Ok(found) if !found.is_file() => {
            Err(Failure::Usage(format!("{shown} is not a regular file: {advice}")))
        }
        _ => Ok(()),
    }
}

/// A file that has its name only when it is complete. Until then what had that name is unchanged.
#[derive(Debug)]
pub(crate) struct Whole {
    file: NamedTempFile,
    path: PathBuf,
}

impl Whole {
    /// Whether it can be written there. How much room it takes is not known yet.
    pub(crate) fn check(path: &Path) -> Result<()> {
        check_kind(path, "name a file")?;
        // Renaming would replace a file that its owner has write-protected.
        if path.exists() {
            let refused = |error| format!("cannot write {}: {error}", path.display());
            File::options().write(true).open(path).map_err(|it| Failure::Usage(refused(it)))?;
        }
        check_place(&parent(path), 0)
    }

    /// An empty one. It goes if it is not completed.
    pub(crate) fn begin(path: &Path) -> Result<Self> {
        // What a link leads to is replaced, and not the link.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let mut builder = tempfile::Builder::new();
        // As for any other file, of which the umask takes its part.
        builder.prefix(".nexit-").permissions(Permissions::from_mode(0o666));
        let file = builder.tempfile_in(parent(&path)).or_failed("write", &path)?;
        Ok(Self { file, path })
    }

    pub(crate) fn file(&self) -> &File {
        self.file.as_file()
    }

    /// Where it will be.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its name.
    pub(crate) fn complete(self) -> Result<()> {
        let renamed = self.file.persist(&self.path).map_err(|error| error.error);
        renamed.map(drop).or_failed("write", &self.path)
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
    fn a_file_has_its_name_when_it_is_complete_and_the_older_one_until_then() {
        use std::io::Write as _;
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        let names = || fs::read_dir(scratch.path()).unwrap().count();
        fs::write(at("dump"), "older").unwrap();
        std::os::unix::fs::symlink("dump", at("link")).unwrap();
        assert!(sentence(Whole::check(scratch.path())).contains("is a folder"));
        assert!(sentence(Whole::check(Path::new("/dev/null"))).contains("not a regular file"));
        assert!(sentence(Whole::check(&at("no/such"))).contains("there is no folder"));
        for name in ["dump", "link", "new"] {
            Whole::check(&at(name)).unwrap();
        }
        let whole = Whole::begin(&at("link")).unwrap();
        whole.file().write_all(b"newer").unwrap();
        drop(whole);
        assert_eq!((fs::read(at("dump")).unwrap(), names()), (b"older".to_vec(), 2));
        let whole = Whole::begin(&at("link")).unwrap();
        whole.file().write_all(b"newer").unwrap();
        whole.complete().unwrap();
        assert_eq!((fs::read(at("dump")).unwrap(), names()), (b"newer".to_vec(), 2));
        assert!(at("link").is_symlink());
        fs::write(at("usual"), "").unwrap();
        let mode = |name| fs::metadata(at(name)).unwrap().permissions().mode();
        assert_eq!(mode("dump"), mode("usual"), "by the umask");
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
