//! Files that the user names: what is wrong with them is said before anything is started.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::path::Path;

use plan::File;

use crate::failure::{Failure, Result};
use crate::scenario::BootFile;

/// Loaders put boot modules below 4 GiB, and FAT has no larger files.
const MAX_BYTES: u64 = (4 << 30) - 1;

/// The files that a configuration names, by the path that stands there.
pub(crate) struct Files(BTreeMap<String, std::result::Result<Found, String>>);

/// A file that is there.
struct Found {
    size: usize,
    /// A kernel's only.
    bytes: Vec<u8>,
}

impl Files {
    /// Looks for all of them; `folder` is where relative paths begin.
    pub(crate) fn find(config: &config::Config, folder: &Path) -> Self {
        let mut files = BTreeMap::new();
        for guest in &config.guests {
            // A kernel may be another guest's module: its bytes count.
            files.insert(guest.kernel.clone(), find(&folder.join(&guest.kernel), true));
        }
        for guest in &config.guests {
            let modules = guest.modules.iter().map(|module| &module.file);
            for path in guest.initrd.iter().chain(&guest.symbols).chain(modules) {
                let entry = files.entry(path.clone());
                entry.or_insert_with(|| find(&folder.join(path), false));
            }
        }
        Self(files)
    }

    /// No file is named.
    pub(crate) fn none() -> Self {
        Self(BTreeMap::new())
    }

    /// The sizes of those that are there.
    pub(crate) fn sizes(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.values().filter_map(|found| Some(found.as_ref().ok()?.size as u64))
    }

    /// The file of this path in the configuration, or the end of a sentence that says why there is none.
    pub(crate) fn get(&self, path: &str) -> std::result::Result<File<'_>, String> {
        match self.0.get(path) {
            Some(Ok(found)) => Ok(File { size: found.size, bytes: &found.bytes }),
            Some(Err(why)) => Err(why.clone()),
            None => Err(format!("{path} was not looked for")),
        }
    }
}

fn find(path: &Path, whole: bool) -> std::result::Result<Found, String> {
    let size = size(path)?;
    let bytes =
        if whole { fs::read(path).map_err(|error| unreadable(path, &error))? } else { Vec::new() };
    Ok(Found { size: size as usize, bytes })
}

/// The size of a file that can be read.
fn size(path: &Path) -> std::result::Result<u64, String> {
    let shown = path.display();
    let about = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    if about.is_dir() {
        return Err(format!("{shown} is a folder: name a file in it"));
    }
    if !about.is_file() {
        return Err(format!("{shown} is not a regular file: copy its contents to one"));
    }
    fs::File::open(path).map_err(|error| unreadable(path, &error))?;
    if about.len() > MAX_BYTES {
        let size = about.len() >> 20;
        return Err(format!(
            "{shown} has {size} MiB, and a file may have less than 4096: make it smaller"
        ));
    }
    Ok(about.len())
}

fn unreadable(path: &Path, error: &std::io::Error) -> String {
    let shown = path.display();
    if error.kind() == ErrorKind::NotFound {
        format!("there is no such file: {shown}")
    } else {
        format!("{shown} cannot be read: {error}")
    }
}

/// Whether what `option` names can be written, which is not touched, and is none of the files that are
/// still to be read.
///
/// # Errors
/// Why not.
pub(crate) fn check_writable(option: &str, path: &Path, inputs: &[BootFile]) -> Result<()> {
    let shown = path.display();
    let place = fs::canonicalize(path).ok();
    let same = |input: &&BootFile| place.is_some() && fs::canonicalize(&input.path).ok() == place;
    if let Some(input) = inputs.iter().find(same) {
        let input = &input.name;
        let text =
            format!("{option} {shown}: this is the {input} that is to be read: name another file");
        return Err(Failure::Usage(text));
    }
    if path.is_dir() {
        return Err(Failure::Usage(format!(
            "{option} {shown}: this is a folder: name a file in it"
        )));
    }
    let is_new = !path.exists();
    let opened = OpenOptions::new().append(true).create(true).open(path);
    if is_new && opened.is_ok() {
        let _ = fs::remove_file(path);
    }
    opened
        .map(drop)
        .map_err(|error| Failure::Usage(format!("{option} {shown}: it cannot be written: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_to_read_is_said_in_a_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let large = path.join("large");
        fs::File::create(&large).unwrap().set_len(5 << 30).unwrap();
        let said = |path: &Path| size(path).unwrap_err();
        assert!(said(path).ends_with("is a folder: name a file in it"));
        assert!(said(&path.join("gone")).starts_with("there is no such file: "));
        assert!(said(Path::new("/dev/null")).contains("/dev/null is not a regular file"));
        assert!(said(&large).contains("has 5120 MiB, and a file may have less than 4096"));
        fs::write(path.join("some"), "abc").unwrap();
        assert_eq!(size(&path.join("some")), Ok(3));
    }

    #[test]
    fn what_cannot_be_written_is_known_before_and_nothing_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        assert_eq!(check_writable("--report", &path, &[]), Ok(()));
        assert!(!path.exists());
        fs::write(&path, "old").unwrap();
        assert_eq!(check_writable("--report", &path, &[]), Ok(()));
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        for wrong in [folder.path().to_path_buf(), folder.path().join("no/such/report.json")] {
            let refused = check_writable("--report", &wrong, &[]).unwrap_err();
            assert_eq!(refused.status(), 2);
            assert!(refused.to_string().starts_with("--report "), "{refused}");
        }
        let input = BootFile { name: "vmlinuz".into(), path: path.clone() };
        let other = folder.path().join("../").join(folder.path().file_name().unwrap());
        let refused = check_writable("--output", &other.join("report.json"), &[input]).unwrap_err();
        assert!(
            refused.to_string().contains("this is the vmlinuz that is to be read"),
            "{refused}"
        );
    }
}
