//! A configuration as the host sees it: checked, with the files that it names found.
//!
//! Invariant: every file has a name of its own in the image, and a name that all ways of booting can
//! carry.

use std::fs;
use std::path::{Path, PathBuf};

use config::{Config, GuestConfig};
use plan::Refusal;

use crate::failure::{Failure, Result};
use crate::files::Files;

/// Maximum number of boot modules of the hypervisor (`boot::info::MAX_MODULES`).
const MAX_FILES: usize = 64;
/// Name of the hypervisor image among the files of an image.
pub(crate) const IMAGE_NAME: &str = "nexit.elf";

/// A file that goes along as a boot module.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct BootFile {
    /// Its name in the image: the last part of its path.
    pub(crate) name: String,
    /// Its path on this host.
    pub(crate) path: PathBuf,
}

/// A configuration and its files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Scenario {
    /// The parsed configuration.
    pub(crate) config: Config,
    /// The configuration first, then the files that it names, each once.
    pub(crate) files: Vec<BootFile>,
}

/// The text of a configuration.
///
/// # Errors
/// It cannot be read.
pub(crate) fn read(path: &Path) -> Result<String> {
    let shown = path.display();
    if path.is_dir() {
        return Err(Failure::Usage(format!(
            "{shown}: this is a folder: name the configuration in it"
        )));
    }
    let bytes = fs::read(path).map_err(|error| Failure::Usage(format!("{shown}: {error}")))?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Failure::Usage(format!("{shown} is not text: byte {at} is no UTF-8"))
    })
}

impl Scenario {
    /// Reads and checks `path`, and finds the files that it names. Unless `unchecked`, it refuses what the hypervisor would
    /// refuse.
    pub(crate) fn load(path: &Path, unchecked: bool) -> Result<Self> {
        let text = read(path)?;
        let usage =
            |text: &dyn std::fmt::Display| Failure::Usage(format!("{}: {text}", path.display()));
        let config = config::parse(&text).map_err(|error| usage(&error))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let (files, mut refusals) = boot_files(&config, path, folder);
        let found = Files::find(&config, folder);
        let alone = plan::check_alone(&config, &|_, path| found.get(path));
        // Without its files nothing can be started or built at all.
        let counts = |refusal: &Refusal| !unchecked || is_missing(&found, &config, refusal);
        refusals.extend(alone.into_iter().filter(counts));
        if refusals.is_empty() {
            return Ok(Self { config, files });
        }
        let lines: Vec<String> = refusals.iter().map(|refusal| place(path, refusal)).collect();
        Err(Failure::Usage(lines.join("\n")))
    }

    /// One more than the highest CPU that a guest owns.
    pub(crate) fn cpus(&self) -> u32 {
        let all = self.config.guests.iter().flat_map(|guest| &guest.cpus);
        all.max().map_or(1, |highest| highest.saturating_add(1))
    }

    /// Memory of all guests, shared memory included, in bytes.
    pub(crate) fn guest_memory(&self) -> u64 {
        let shared = self.config.shared.iter().map(|region| region.size);
        let memory = self.config.guests.iter().map(|guest| guest.memory);
        memory.chain(shared).fold(0, u64::saturating_add)
    }
}

/// A refusal with its place: `nexit.toml:5: guest a: …`.
pub(crate) fn place(path: &Path, refusal: &Refusal) -> String {
    let line = refusal.line.map_or(String::new(), |line| format!(":{line}"));
    format!("{}{line}: {}", path.display(), refusal.words())
}

/// Whether a file is not there.
fn is_missing(found: &Files, config: &Config, refusal: &Refusal) -> bool {
    matches!(refusal.key, "kernel" | "initrd" | "modules" | "symbols")
        && named(config).any(|(guest, key, _, path)| {
            let about = plan::About::Guest(guest.name.clone());
            refusal.about == about && refusal.key == key && found.get(path).is_err()
        })
}

/// The files that a configuration names: guest, key, index in it, and path.
fn named(config: &Config) -> impl Iterator<Item = (&GuestConfig, &'static str, usize, &str)> {
    config.guests.iter().flat_map(|guest| {
        let kernel = [(guest, "kernel", 0, guest.kernel.as_str())];
        let initrd = guest.initrd.iter().map(move |path| (guest, "initrd", 0, path.as_str()));
        let modules = guest.modules.iter().enumerate();
        let modules = modules.map(move |(index, it)| (guest, "modules", index, it.file.as_str()));
        let symbols = guest.symbols.iter().map(move |path| (guest, "symbols", 0, path.as_str()));
        kernel.into_iter().chain(initrd).chain(modules).chain(symbols)
    })
}

/// The configuration and the files that it names, with their names in the image; and the problems with those names.
pub(crate) fn boot_files(
    config: &Config,
    path: &Path,
    folder: &Path,
) -> (Vec<BootFile>, Vec<Refusal>) {
    let mut files = vec![BootFile { name: config::FILE_NAME.to_owned(), path: path.to_path_buf() }];
    let mut refusals = Vec::new();
    for (guest, key, index, named) in named(config) {
        let mut refuse = |sentence| refusals.push(Refusal::entry(guest, (key, index), sentence));
        let name = match image_name(named) {
            Ok(name) => name,
            Err(why) => {
                refuse(why);
                continue;
            }
        };
        let file = BootFile { name, path: folder.join(named) };
        match files.iter().find(|other| other.name.eq_ignore_ascii_case(&file.name)) {
            Some(other) if other.path == file.path => {}
            Some(other) => refuse(clash(&file, other)),
            None => files.push(file),
        }
    }
    // More than these the hypervisor does not take (`boot::info`), the configuration among them.
    if files.len() > MAX_FILES {
        let (count, most) = (files.len(), MAX_FILES);
        let sentence =
            format!("the configuration and its files are {count}, and {most} can be: name fewer");
        refusals.push(Refusal::machine(sentence));
    }
    (files, refusals)
}

fn clash(file: &BootFile, other: &BootFile) -> String {
    format!(
        "{} and {} would both be called {} in the image: rename one of them",
        other.path.display(),
        file.path.display(),
        file.name
    )
}

/// The last part of a path, checked against what GRUB, QEMU and FAT can carry.
fn image_name(path: &str) -> std::result::Result<String, String> {
    let name = path.rsplit('/').next().unwrap_or_default();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+~".contains(&byte);
    if name.is_empty() || name.starts_with('.') || !name.bytes().all(plain) {
        return Err(format!(
            "the file name \"{path}\" cannot be used: its last part may have letters, digits \
             and ._-+~ (no comma, no space)"
        ));
    }
    if name.eq_ignore_ascii_case(IMAGE_NAME) {
        return Err(format!("the name {IMAGE_NAME} is the hypervisor's own: rename {path}"));
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(name: &str, cpu: u32, kernel: &str, initrd: &str) -> String {
        format!(
            "[[guest]]\nname = \"{name}\"\ncpus = [{cpu}]\nmemory = \"512M\"\n\
             kernel = \"{kernel}\"\ninitrd = \"{initrd}\"\n"
        )
    }

    fn files(text: &str) -> std::result::Result<Vec<BootFile>, String> {
        let config = config::parse(text).unwrap();
        let (files, refusals) = boot_files(&config, Path::new("d/x.toml"), Path::new("d"));
        match refusals.first() {
            None => Ok(files),
            Some(refusal) => Err(place(Path::new("d/x.toml"), refusal)),
        }
    }

    #[test]
    fn names_are_relative_to_the_configuration_and_stored_by_their_last_part() {
        let files = files(&guest("a", 0, "../guest/vmlinuz", "/boot/initrd.img")).unwrap();
        let expected = [
            ("nexit.toml", "d/x.toml"),
            ("vmlinuz", "d/../guest/vmlinuz"),
            ("initrd.img", "/boot/initrd.img"),
        ];
        let seen: Vec<_> =
            files.iter().map(|file| (file.name.as_str(), file.path.to_str().unwrap())).collect();
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_file_that_two_guests_share_goes_along_once() {
        let text = guest("a", 0, "vmlinuz", "i") + &guest("b", 1, "vmlinuz", "j");
        assert_eq!(files(&text).unwrap().len(), 4);
    }

    #[test]
    fn modules_go_along_without_their_words_each_file_once() {
        let modules = "modules = [\"m/shell quiet x=1\", \"i\", \"m/shell\"]\n";
        let files = files(&(guest("a", 0, "k", "i") + modules)).unwrap();
        let names: Vec<_> = files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, ["nexit.toml", "k", "i", "shell"]);
        assert_eq!(files[3].path, Path::new("d/m/shell"));
    }

    #[test]
    fn two_files_with_one_name_are_refused() {
        let text = guest("a", 0, "x/vmlinuz", "i") + &guest("b", 1, "y/VMLINUZ", "i");
        let error = files(&text).unwrap_err();
        assert_eq!(
            error,
            "d/x.toml:11: guest b: d/x/vmlinuz and d/y/VMLINUZ would both be called VMLINUZ in the image: rename one \
             of them"
        );
        assert!(files(&guest("a", 0, "other/nexit.toml", "i")).is_err());
    }

    #[test]
    fn names_that_a_loader_would_split_are_refused() {
        for name in ["a,b", "a b", "dir/", ".hidden", "nexit.elf", "ä"] {
            assert!(image_name(name).is_err(), "{name}");
        }
        assert_eq!(image_name("x/vmlinuz-6.1.0-56-amd64").unwrap(), "vmlinuz-6.1.0-56-amd64");
    }

    #[test]
    fn the_machine_needs_the_highest_cpu_and_all_guests_memory() {
        let text = guest("a", 3, "k", "i") + &guest("b", 1, "k", "i");
        let config = config::parse(&text).unwrap();
        let scenario = Scenario { config, files: Vec::new() };
        assert_eq!((scenario.cpus(), scenario.guest_memory()), (4, 1 << 30));
    }
}
