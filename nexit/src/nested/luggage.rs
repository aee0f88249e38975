//! The files that the inner QEMU is to open, which have to go with it: found in its arguments, and named
//! there as they are called inside. Pure but for the question whether a file is there.

use std::path::{Path, PathBuf};

use crate::failure::{Failure, Result};

/// Folder of the files in the inner system, without a leading slash.
pub(super) const FOLDER: &str = "job";
/// Options whose value names a file to read.
const FILE_KEYS: &[&str] = &["file", "filename", "romfile"];
/// What opens a command in a value of QEMU's user network (`guestfwd=…-cmd:PROGRAM WORDS`).
const COMMAND: &str = "-cmd:";

/// What goes along: name inside, file here.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Luggage(Vec<(String, PathBuf)>);

impl Luggage {
    /// Takes a file along, as `name` or under a name of its own; returns its path inside.
    pub(super) fn take(&mut self, file: &Path, name: Option<&str>) -> String {
        let known = self
            .0
            .iter()
            .find(|(taken, path)| path == file && name.is_none_or(|name| name == taken));
        let inside = match (known, name) {
            (Some((taken, _)), _) => taken.clone(),
            (None, Some(name)) => name.to_owned(),
            (None, None) => format!("file{}", self.0.len()),
        };
        if known.is_none() {
            self.0.push((inside.clone(), file.to_path_buf()));
        }
        format!("/{FOLDER}/{inside}")
    }

    /// The files: name inside, file here.
    pub(super) fn files(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.0.iter().map(|(name, path)| (name.as_str(), path.as_path()))
    }

    /// Takes along what the user's arguments for QEMU name; returns them with the paths inside.
    ///
    /// # Errors
    /// A file that is not there.
    pub(super) fn pack(&mut self, arguments: &[String]) -> Result<Vec<String>> {
        arguments.iter().map(|argument| self.argument(argument)).collect()
    }

    fn argument(&mut self, argument: &str) -> Result<String> {
        let parts: Result<Vec<String>> =
            parts(argument).into_iter().map(|part| self.part(argument, part)).collect();
        Ok(parts?.join(","))
    }

    /// One `KEY=VALUE` of an argument, as it is written there: a comma stands twice.
    fn part(&mut self, argument: &str, part: &str) -> Result<String> {
        if let Some((before, command)) = part.split_once(COMMAND) {
            let words: Result<Vec<String>> = command
                .split(' ')
                .enumerate()
                .map(|(index, word)| self.word(argument, index, word))
                .collect();
            return Ok(format!("{before}{COMMAND}{}", words?.join(" ")));
        }
        // `filename` may stand in a chain: `file.filename`.
        let is_file = |key: &str| FILE_KEYS.contains(&key.rsplit('.').next().unwrap_or(key));
        match part.split_once('=') {
            Some((key, value)) if is_file(key) && !value.is_empty() => {
                Ok(format!("{key}={}", self.found(argument, value)?))
            }
            _ => Ok(part.to_owned()),
        }
    }

    /// A word of a command: the program is busybox's, what looks like a path is a file to read.
    fn word(&mut self, argument: &str, index: usize, word: &str) -> Result<String> {
        if index > 0 && (word.contains('/') || Path::new(word).is_file()) {
            return self.found(argument, word);
        }
        Ok(word.to_owned())
    }

    fn found(&mut self, argument: &str, value: &str) -> Result<String> {
        let path = PathBuf::from(value.replace(",,", ","));
        if path.is_file() {
            return Ok(self.take(&path, None));
        }
        let path = path.display();
        Err(Failure::Usage(format!(
            "{argument}: there is no file {path} to take along: the inner QEMU sees none of this \
             machine's files but those that its arguments name (and no devices)"
        )))
    }
}

/// The parts between single commas.
fn parts(argument: &str) -> Vec<&str> {
    let bytes = argument.as_bytes();
    let (mut parts, mut start, mut at) = (Vec::new(), 0, 0);
    while at < bytes.len() {
        let comma = |at: usize| bytes.get(at) == Some(&b',');
        if comma(at) && comma(at + 1) {
            at += 1;
        } else if comma(at) {
            parts.extend(argument.get(start..at));
            start = at + 1;
        }
        at += 1;
    }
    parts.extend(argument.get(start..));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with these files.
    fn folder(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        folder
    }

    fn packed(arguments: &[String]) -> (Vec<String>, Vec<String>) {
        let mut luggage = Luggage::default();
        let arguments = luggage.pack(arguments).unwrap();
        (arguments, luggage.files().map(|(_, path)| path.display().to_string()).collect())
    }

    #[test]
    fn every_file_that_an_argument_names_goes_along_once() {
        let folder = folder(&["disk.img", "a,b.rom", "payload.bin"]);
        let at = folder.path().display();
        let arguments = [
            "-blockdev".to_owned(),
            format!("driver=file,node-name=disk,read-only=on,filename={at}/disk.img"),
            format!("driver=raw,file.filename={at}/disk.img"),
            format!("e1000e,netdev=net0,romfile={at}/a,,b.rom,addr=5"),
            format!("user,id=net0,guestfwd=tcp:10.0.2.100:80-cmd:cat {at}/payload.bin"),
        ];
        let (arguments, files) = packed(&arguments);
        assert_eq!(
            arguments,
            [
                "-blockdev",
                "driver=file,node-name=disk,read-only=on,filename=/job/file0",
                "driver=raw,file.filename=/job/file0",
                "e1000e,netdev=net0,romfile=/job/file1,addr=5",
                "user,id=net0,guestfwd=tcp:10.0.2.100:80-cmd:cat /job/file2",
            ]
        );
        assert_eq!(
            files,
            ["disk.img", "a,b.rom", "payload.bin"].map(|name| format!("{at}/{name}"))
        );
    }

    #[test]
    fn what_names_no_file_is_left_as_it_is() {
        let arguments =
            ["nvme,drive=disk,serial=a,,b,addr=4", "e1000e,romfile=", "-nodefaults", ""];
        let arguments = arguments.map(str::to_owned);
        let (packed, files) = packed(&arguments);
        assert_eq!(packed, arguments);
        assert!(files.is_empty());
    }

    #[test]
    fn a_file_that_is_not_there_is_refused_by_its_path() {
        for argument in
            ["driver=file,filename=/no/such.img", "user,id=n,guestfwd=tcp:1:2-cmd:cat /no/such.img"]
        {
            let error = Luggage::default().pack(&[argument.to_owned()]).unwrap_err();
            assert_eq!(error.status(), 2);
            assert!(error.to_string().contains("there is no file /no/such.img"), "{error}");
        }
    }

    #[test]
    fn two_files_of_one_name_do_not_meet() {
        let mut luggage = Luggage::default();
        let (one, other) = (Path::new("/a/disk.img"), Path::new("/b/disk.img"));
        assert_ne!(luggage.take(one, None), luggage.take(other, None));
        assert_eq!(luggage.take(Path::new("/k"), Some("vmlinuz")), "/job/vmlinuz");
    }
}
