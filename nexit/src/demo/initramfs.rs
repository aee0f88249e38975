//! What is in the demo's initramfs.

use std::fs;
use std::path::{Path, PathBuf};

use super::cpio::{Entry, Node};
use super::modules::Modules;
use crate::failure::{OrFailed, Result};

/// Statically linked, from Debian's package busybox-static.
const BUSYBOX: &str = "/bin/busybox";

/// The programs of busybox that the scripts call.
const APPLETS: &[&str] = &[
    "cat",
    "cttyhack",
    "cut",
    "dmesg",
    "echo",
    "free",
    "grep",
    "head",
    "insmod",
    "ip",
    "ls",
    "mkdir",
    "mount",
    "nc",
    "nproc",
    "ping",
    "poweroff",
    "ps",
    "readlink",
    "reboot",
    "setsid",
    "sh",
    "sha256sum",
    "sleep",
    "stty",
    "tail",
    "test",
    "top",
    "tr",
    "umount",
    "uname",
    "usleep",
    "wc",
];

/// Parts of the demo and the drivers that each needs.
const PARTS: &[(&str, &[&str])] = &[
    ("ext4", &["ext4"]),
    ("nvme", &["nvme"]),
    ("ide", &["ata_piix", "sd_mod"]),
    ("e1000e", &["e1000e"]),
    ("igb", &["igb"]),
    ("e1000", &["e1000"]),
    ("virtio", &["virtio_pci", "virtio_blk"]),
    ("shared", &["uio_pci_generic"]),
];

/// Programs that the workspace builds for the guest.
const PROGRAMS: &[&str] = &["iobench", "exits", "ring"];

/// All entries, in an order in which they can be unpacked.
pub(crate) fn entries(
    modules: &Modules,
    scripts: &Path,
    programs: &Path,
    payload_checksum: &str,
) -> Result<Vec<Entry>> {
    let mut entries = skeleton();
    let read = |path: &Path| fs::read(path).or_failed("read", path);
    entries.push(("bin/busybox".to_owned(), Node::File(read(Path::new(BUSYBOX))?, true)));
    entries.push(("init".to_owned(), Node::File(read(&scripts.join("init"))?, true)));
    entries.push(("bin/fetch".to_owned(), Node::File(read(&scripts.join("fetch"))?, true)));
    for name in PROGRAMS {
        let contents = read(&programs.join(name))?;
        entries.push((format!("bin/{name}"), Node::File(contents, true)));
    }
    let checksum = format!("{payload_checksum}\n").into_bytes();
    entries.push(("etc/payload.sha256".to_owned(), Node::File(checksum, false)));
    for (part, drivers) in PARTS {
        add_part(&mut entries, modules, part, drivers)?;
    }
    Ok(entries)
}

/// What hackbench, which Debian links dynamically, needs of the machine that makes the image.
const LIBRARIES: &[&str] = &[
    "lib64/ld-linux-x86-64.so.2",
    "lib/x86_64-linux-gnu/libc.so.6",
    "lib/x86_64-linux-gnu/libpthread.so.0",
];

/// The load of interprocessor interrupts, from the unpacked package rt-tests.
pub(super) fn add_hackbench(entries: &mut Vec<Entry>, package: &Path) -> Result<()> {
    let program = package.join("usr/bin/hackbench");
    let mut add = |path: &str, from: &Path| {
        let contents = fs::read(from).or_failed("read", from)?;
        entries.push((path.to_owned(), Node::File(contents, true)));
        Ok(())
    };
    add("bin/hackbench", &program)?;
    LIBRARIES.iter().try_for_each(|path| add(path, &Path::new("/").join(path)))
}

/// Folders, the console (the kernel opens it before `init` can mount anything), and busybox's
/// names.
#[must_use]
pub fn skeleton() -> Vec<Entry> {
    let folders = ["bin", "dev", "etc", "lib", "lib/modules", "mnt", "proc", "sys"];
    let folders = folders.into_iter().chain(["lib64", "lib/x86_64-linux-gnu"]);
    let mut entries: Vec<Entry> = folders.map(|folder| (folder.to_owned(), Node::Folder)).collect();
    entries.push(("dev/console".to_owned(), Node::CharacterDevice(5, 1)));
    let link = |name: &&str| (format!("bin/{name}"), Node::Link("busybox".to_owned()));
    entries.extend(APPLETS.iter().map(link));
    entries
}

/// The modules of all `drivers`; `None` where this kernel lacks one of them.
fn load_order(modules: &Modules, drivers: &[&str]) -> Result<Option<Vec<PathBuf>>> {
    let mut files = Vec::new();
    for driver in drivers {
        let Some(order) = modules.load_order(driver)? else { return Ok(None) };
        files.extend(order.into_iter().filter(|file| !files.contains(file)).collect::<Vec<_>>());
    }
    Ok(Some(files))
}

/// The modules of `drivers` themselves (once), and the list `lib/modules/PART` that `init` loads from.
/// Nothing where this kernel lacks one of the drivers.
///
/// # Errors
/// A module cannot be read.
pub fn add_part(
    entries: &mut Vec<Entry>,
    modules: &Modules,
    part: &str,
    drivers: &[&str],
) -> Result<()> {
    let Some(files) = load_order(modules, drivers)? else { return Ok(()) };
    let mut list = String::new();
    for file in &files {
        // `/proc/modules` spells all names with `_`, and `init` looks there.
        let name = file.file_name().unwrap_or_default().to_string_lossy().replace('-', "_");
        let path = format!("lib/modules/{name}");
        list.push_str(&format!("/{path}\n"));
        if !entries.iter().any(|(other, _)| *other == path) {
            let contents = fs::read(file).or_failed("read", file)?;
            entries.push((path, Node::File(contents, false)));
        }
    }
    entries.push((format!("lib/modules/{part}"), Node::File(list.into_bytes(), false)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_stand_before_what_they_hold() {
        let entries = skeleton();
        for (at, (path, _)) in entries.iter().enumerate() {
            if let Some((parent, _)) = path.rsplit_once('/') {
                let folder = (parent.to_owned(), Node::Folder);
                assert!(entries[..at].contains(&folder), "{path} before {parent}");
            }
        }
    }

    #[test]
    fn the_console_is_there_before_init_runs() {
        let console = ("dev/console".to_owned(), Node::CharacterDevice(5, 1));
        assert!(skeleton().contains(&console));
    }

    #[test]
    fn every_program_that_init_calls_is_linked() {
        let init = include_str!("../../../demo/init");
        for name in ["mount", "insmod", "ping", "poweroff", "sha256sum", "cttyhack", "usleep"] {
            assert!(init.contains(name), "init no longer calls {name}");
            assert!(APPLETS.contains(&name), "{name}");
        }
    }
}
