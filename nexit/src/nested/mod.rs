//! Nested KVM on a machine without VT-x: Bochs, which emulates it, runs Linux with KVM, that runs QEMU (VT-d,
//! NVMe, network cards), and that runs Nexit.
//!
//! The inner Linux is one initramfs: a part that stays the same (`system`), and the job, which is QEMU's
//! command line and the files that it names (`luggage`). QEMU has Linux's serial line for its console, and
//! Bochs' serial line is Linux's: to the rest of this program a run looks like any other in Bochs.

mod disc;
mod luggage;
mod lz4;
mod system;

use std::fs;
use std::path::{Path, PathBuf};

use crate::cli::{Accel, Boot, Iommu};
use crate::demo::cpio::{self, Entry, Node};
use crate::failure::{Failure, OrFailed, Result};
use crate::machine::{Machine, Start};
use crate::qemu;
use crate::scenario::{BootFile, IMAGE_NAME};
use crate::size;

use luggage::{FOLDER, Luggage};
use system::{FIRMWARE_FOLDER, QEMU, System};

/// Instructions per virtual second of Bochs. With fewer the inner Linux' timers leave no time to anything
/// else; with more each byte on a serial line takes tens of thousands of instructions.
pub(crate) const INSTRUCTIONS_PER_SECOND: u32 = 200_000_000;
/// Memory of the inner Linux: Bochs 3.0 panics if it must hold more than this on the host.
const MEMORY: u64 = 2 << 30;
/// What the inner Linux and QEMU take of it for themselves.
const OWN_MEMORY: u64 = 256 << 20;

/// How Nexit starts in the inner QEMU.
pub(crate) enum From {
    /// By QEMU's `-kernel`: the image.
    Kernel(PathBuf),
    /// By the BIOS: the ISO.
    Bios(PathBuf),
}

/// How `--boot` can be had here.
///
/// # Errors
/// UEFI.
pub(crate) fn check_boot(boot: Option<Boot>) -> Result<Boot> {
    match boot {
        None | Some(Boot::Kernel) => Ok(Boot::Kernel),
        Some(Boot::Iso) => Ok(Boot::Iso),
        Some(Boot::Uefi) => Err(Failure::Usage(
            "--boot uefi: in nested KVM the firmware takes longer than anybody waits (it writes its flash \
             byte by byte, an exit each); choose kernel or iso"
                .to_owned(),
        )),
    }
}

/// Bochs: the one that the user has given, or version 3 in one of `places`. The installed one may be 2.7, where
/// nobody has tried this.
///
/// # Errors
/// It is in none.
pub(crate) fn bochs(given: Option<&str>, places: &[PathBuf]) -> Result<String> {
    let found = places.iter().find(|place| place.is_file());
    let found = given.map(str::to_owned).or_else(|| found.map(|place| place.display().to_string()));
    found.ok_or_else(|| {
        let text = "nested KVM needs Bochs 3, which is not in target/bochs3: `make setup` unpacks it, \
                    --bochs names another";
        Failure::Usage(text.to_owned())
    })
}

/// The machine for Bochs, which boots the inner Linux, that runs `inner` from what `from` and `files` say.
/// Its disc, which is returned too, is made in `folder`; what is kept between runs lies below `target`.
///
/// # Errors
/// A file is missing, memory is too small for all of it, or a tool failed.
pub(crate) fn machine(
    inner: &Machine,
    from: &From,
    files: &[BootFile],
    folder: &Path,
    target: &Path,
) -> Result<(Machine, PathBuf)> {
    let mut luggage = Luggage::default();
    let start = start(from, files, &mut luggage);
    let extra = luggage.pack(&inner.extra)?;
    let inner = Machine { accel: Accel::Kvm, start, extra, ..inner.clone() };
    let script = script(&qemu::arguments(&inner)?);
    let system = system::build(target)?;
    check_memory(&system, &luggage, inner.memory)?;
    let job = cpio::archive(&job(&system, &luggage, script)?);
    let iso = folder.join("nested.iso");
    disc::build(&system, &job, folder, &iso)?;
    eprintln!("nexit: Bochs first boots Linux with KVM: the next line takes about a minute");
    let outer = Machine {
        cpus: 1,
        memory: MEMORY,
        accel: Accel::Tcg,
        iommu: Iommu::None,
        start: Start::Bios { iso: iso.clone() },
        extra: Vec::new(),
    };
    Ok((outer, iso))
}

fn start(from: &From, files: &[BootFile], luggage: &mut Luggage) -> Start {
    match from {
        From::Kernel(image) => Start::Kernel {
            image: luggage.take(image, Some(IMAGE_NAME)).into(),
            modules: files
                .iter()
                .map(|file| luggage.take(&file.path, Some(&file.name)).into())
                .collect(),
        },
        From::Bios(iso) => Start::Bios { iso: luggage.take(iso, Some("nexit.iso")).into() },
    }
}

/// An inner Linux without memory would end QEMU in the middle of the run.
fn check_memory(system: &System, luggage: &Luggage, machine: u64) -> Result<()> {
    let sizes = luggage.files().map(|(_, path)| fs::metadata(path).map_or(0, |data| data.len()));
    let files = sizes.sum::<u64>() + system.bytes;
    if machine.saturating_add(files) <= MEMORY - OWN_MEMORY {
        return Ok(());
    }
    Err(Failure::Usage(format!(
        "the machine would have {} MiB of memory, and its files, which lie in memory too, take {} MiB; \
         nested KVM has {} MiB for both: give the guests less, or --memory",
        size::mebibytes(machine),
        size::mebibytes(files),
        size::mebibytes(MEMORY - OWN_MEMORY)
    )))
}

/// What starts QEMU, for the inner system's shell.
fn script(arguments: &[String]) -> String {
    let words: Vec<String> = arguments.iter().map(|word| quoted(word)).collect();
    format!("exec {QEMU} -L /{FIRMWARE_FOLDER} {}\n", words.join(" "))
}

/// A word that the shell takes as it is.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

fn job(system: &System, luggage: &Luggage, script: String) -> Result<Vec<Entry>> {
    let mut entries = vec![
        (FOLDER.to_owned(), Node::Folder),
        (format!("{FOLDER}/run"), Node::File(script.into(), false)),
        (format!("{FOLDER}/qemu"), Node::File(format!("{}\n", system.qemu).into(), false)),
    ];
    for (name, path) in luggage.files() {
        let contents = fs::read(path).or_failed("read", path)?;
        entries.push((format!("{FOLDER}/{name}"), Node::File(contents, false)));
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system() -> System {
        System {
            kernel: PathBuf::new(),
            packed: PathBuf::new(),
            bytes: 60 << 20,
            qemu: "QEMU emulator version 10".to_owned(),
        }
    }

    #[test]
    fn the_shell_gets_every_word_as_it_was() {
        let words = ["-device", "nvme,addr=4", "it's", "a b", "$x"].map(str::to_owned);
        let script = script(&words);
        assert_eq!(
            script,
            "exec qemu-system-x86_64 -L /usr/share/qemu '-device' 'nvme,addr=4' 'it'\\''s' 'a b' '$x'\n"
        );
        let shell = std::process::Command::new("sh")
            .args(["-c", &script.replace("exec qemu-system-x86_64", "printf '%s\\n'")])
            .output()
            .unwrap();
        let printed = String::from_utf8(shell.stdout).unwrap();
        assert!(printed.ends_with("-device\nnvme,addr=4\nit's\na b\n$x\n"), "{printed}");
    }

    #[test]
    fn modules_keep_the_names_that_the_hypervisor_looks_for() {
        let mut luggage = Luggage::default();
        let file =
            |name: &str| BootFile { name: name.to_owned(), path: format!("/x/{name}-1").into() };
        let from = From::Kernel(PathBuf::from("/x/kernel"));
        let start = start(&from, &[file("nexit.toml"), file("vmlinuz")], &mut luggage);
        let modules = ["/job/nexit.toml", "/job/vmlinuz"].map(PathBuf::from).to_vec();
        let image = PathBuf::from(format!("/job/{IMAGE_NAME}"));
        assert_eq!(start, Start::Kernel { image, modules });
        let entries = luggage.files().map(|(name, _)| name.to_owned()).collect::<Vec<_>>();
        assert_eq!(entries, [IMAGE_NAME, "nexit.toml", "vmlinuz"]);
    }

    #[test]
    fn a_machine_that_the_inner_linux_cannot_hold_is_refused() {
        let luggage = Luggage::default();
        assert_eq!(check_memory(&system(), &luggage, 1 << 30), Ok(()));
        let error = check_memory(&system(), &luggage, 2 << 30).unwrap_err();
        assert_eq!(error.status(), 2);
        assert!(error.to_string().contains("2048 MiB of memory"), "{error}");
    }

    #[test]
    fn bochs_is_the_one_that_is_given_or_version_3() {
        let folder = tempfile::tempdir().unwrap();
        let places = ["none", "bochs"].map(|name| folder.path().join(name));
        assert_eq!(bochs(Some("/opt/bochs"), &places), Ok("/opt/bochs".to_owned()));
        let error = bochs(None, &places).unwrap_err();
        assert!(error.to_string().contains("`make setup` unpacks it"), "{error}");
        let [_, place] = &places;
        fs::write(place, "").unwrap();
        assert_eq!(bochs(None, &places), Ok(place.display().to_string()));
    }

    #[test]
    fn uefi_is_refused_and_the_default_is_the_quickest() {
        assert_eq!(check_boot(None), Ok(Boot::Kernel));
        assert_eq!(check_boot(Some(Boot::Iso)), Ok(Boot::Iso));
        assert_eq!(check_boot(Some(Boot::Uefi)).unwrap_err().status(), 2);
    }
}
