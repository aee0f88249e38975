//! The inner system: busybox, KVM's modules of Debian's cloud kernel, and this machine's QEMU with its
//! libraries and firmware, as the first part of an initramfs. It is packed once and kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::demo::cpio::{self, Entry, Node};
use crate::demo::initramfs;
use crate::demo::kernel::{self, Flavour, Kernel};
use crate::demo::modules::Modules;
use crate::failure::{Failure, OrFailed, Result};
use crate::tool::Tool;

use super::lz4;

/// First program of the inner system.
const INIT: &str = include_str!("init");
const BUSYBOX: &str = "/bin/busybox";
/// What init calls of it beside the skeleton's applets.
const APPLETS: &[&str] = &["dd", "mkfifo"];
/// The program of the inner system that runs Nexit.
pub(super) const QEMU: &str = "qemu-system-x86_64";
/// Folder of QEMU's firmware in the inner system, without a leading slash.
pub(super) const FIRMWARE_FOLDER: &str = "usr/share/qemu";
/// What QEMU loads by name: the BIOS, and what starts a multiboot kernel.
const FIRMWARE: &[&str] = &["bios-256k.bin", "kvmvapic.bin", "multiboot_dma.bin"];
/// The ROMs of the devices that the demo's guest has drivers for, where they are installed.
const ROMS: &[&str] = &["efi-e1000.rom", "efi-e1000e.rom", "efi-virtio.rom"];
/// Libraries lie here: the C library's loader looks there by itself.
const LIBRARIES: &str = "lib/x86_64-linux-gnu";

/// The inner system, ready for a job.
#[derive(Debug)]
pub(super) struct System {
    /// The bzImage.
    pub(super) kernel: PathBuf,
    /// Its part of the initramfs, packed.
    pub(super) packed: PathBuf,
    /// Bytes of that part, unpacked.
    pub(super) bytes: u64,
    /// What QEMU calls itself.
    pub(super) qemu: String,
}

/// Makes it below `target`, unless it is there and nothing that it was made of has changed.
///
/// # Errors
/// A package is missing, or a tool failed.
pub(super) fn build(target: &Path) -> Result<System> {
    let kernels = target.join("guest/kernels");
    let cache = target.join("nested");
    for folder in [&kernels, &cache] {
        fs::create_dir_all(folder).or_failed("create", folder)?;
    }
    let kernel = kernel::fetch(Flavour::Cloud, &kernels)?;
    let version = Tool::new(QEMU).arg("--version").output()?;
    let qemu = version.lines().next().unwrap_or_default().to_owned();
    let sources = sources(&kernel)?;
    let recipe = recipe(&sources)?;
    let (packed, note) = (cache.join("system.lz4"), cache.join("system.recipe"));
    if fs::read_to_string(&note).ok().as_deref() != Some(&recipe) || !packed.is_file() {
        println!("nexit: packing the inner system");
        let archive = cpio::archive(&entries(&kernel, &sources)?);
        lz4::pack(&archive, &packed)?;
        fs::write(&note, &recipe).or_failed("write", &note)?;
    }
    let bytes = sources.iter().filter_map(|(_, path)| Some(fs::metadata(path).ok()?.len())).sum();
    Ok(System { kernel: kernel.image, packed, bytes, qemu })
}

/// The files that are copied as they are: path inside, file here.
fn sources(kernel: &Kernel) -> Result<Vec<(String, PathBuf)>> {
    let program = program(QEMU)?;
    let mut sources = vec![("bin/busybox".to_owned(), PathBuf::from(BUSYBOX))];
    let list = Tool::new("ldd").arg(&program).output()?;
    for library in libraries(&list)? {
        let name = library.file_name().unwrap_or_default().to_string_lossy();
        let folder = if name.starts_with("ld-linux") { "lib64" } else { LIBRARIES };
        sources.push((format!("{folder}/{name}"), library));
    }
    sources.push((format!("bin/{QEMU}"), program));
    let folders = Tool::new(QEMU).args(["-L", "help"]).output()?;
    let find = |name: &&str| {
        let mut paths = folders.lines().map(|folder| Path::new(folder).join(name));
        Some(((*name).to_owned(), paths.find(|path| path.is_file())?))
    };
    for name in FIRMWARE {
        if find(name).is_none() {
            let text =
                format!("QEMU's firmware {name} is not installed: `make setup` installs QEMU");
            return Err(Failure::Failed(text));
        }
    }
    let firmware = FIRMWARE.iter().chain(ROMS).filter_map(find);
    sources.extend(firmware.map(|(name, path)| (format!("{FIRMWARE_FOLDER}/{name}"), path)));
    // Not copied as it is: named so that a new kernel makes a new system.
    sources.push((String::new(), kernel.image.clone()));
    Ok(sources)
}

/// Where the shell would find it.
fn program(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut paths = std::env::split_paths(&path).map(|folder| folder.join(name));
    paths.find(|path| path.is_file()).ok_or_else(|| {
        Failure::Failed(format!("{name} is not installed: `make setup` installs it"))
    })
}

/// The files that `ldd` names: `NAME => PATH (ADDRESS)`, and the loader as `PATH (ADDRESS)`.
fn libraries(ldd: &str) -> Result<Vec<PathBuf>> {
    let mut libraries = Vec::new();
    for line in ldd.lines() {
        if line.contains("not found") {
            let text = format!("a library of QEMU is not installed: {}", line.trim());
            return Err(Failure::Failed(text));
        }
        let path = line.split_whitespace().find(|word| word.starts_with('/'));
        libraries.extend(path.map(PathBuf::from));
    }
    Ok(libraries)
}

/// What the system is made of, told apart by size and time.
fn recipe(sources: &[(String, PathBuf)]) -> Result<String> {
    let mut recipe = INIT.to_owned();
    for (inside, path) in sources {
        let data = fs::metadata(path).or_failed("find", path)?;
        let time = data.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let seconds = time.unwrap_or_default().as_secs();
        recipe.push_str(&format!("{inside} {} {} {seconds}\n", path.display(), data.len()));
    }
    Ok(recipe)
}

fn entries(kernel: &Kernel, sources: &[(String, PathBuf)]) -> Result<Vec<Entry>> {
    let mut entries = initramfs::skeleton();
    let folders = ["tmp", "usr", "usr/share", FIRMWARE_FOLDER];
    entries.extend(folders.map(|folder| (folder.to_owned(), Node::Folder)));
    let applet = |name: &&str| (format!("bin/{name}"), Node::Link("busybox".to_owned()));
    entries.extend(APPLETS.iter().map(applet));
    entries.push(("init".to_owned(), Node::File(INIT.into(), true)));
    for (inside, path) in sources.iter().filter(|(inside, _)| !inside.is_empty()) {
        let contents = fs::read(path).or_failed("read", path)?;
        entries.push((inside.clone(), Node::File(contents, true)));
    }
    let modules = Modules::find(&kernel.modules)?;
    initramfs::add_part(&mut entries, &modules, "kvm", &["kvm_intel"])?;
    if !entries.iter().any(|(path, _)| path == "lib/modules/kvm") {
        let text = "Debian's cloud kernel has no module kvm_intel".to_owned();
        return Err(Failure::Failed(text));
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_read_from_ldds_list() {
        let list = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibz.so.1 => /lib/x/libz.so.1 (0x1)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x2)\n";
        let paths = ["/lib/x/libz.so.1", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(libraries(list).unwrap(), paths);
        let error = libraries("\tlibgone.so.1 => not found\n").unwrap_err();
        assert!(error.to_string().contains("libgone.so.1"), "{error}");
    }

    #[test]
    fn every_program_that_init_calls_is_linked() {
        let skeleton = initramfs::skeleton();
        for name in ["mount", "ip", "insmod", "cat", "uname", "grep", "cut", "tr", "free", "stty"] {
            assert!(INIT.contains(name), "init no longer calls {name}");
            assert!(skeleton.iter().any(|(path, _)| *path == format!("bin/{name}")), "{name}");
        }
        for name in APPLETS {
            assert!(INIT.contains(name), "init no longer calls {name}");
        }
    }

    #[test]
    fn another_file_in_the_place_of_one_makes_another_recipe() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("program");
        let sources = [("bin/program".to_owned(), file.clone())];
        assert!(recipe(&sources).is_err(), "it is not there");
        fs::write(&file, "one").unwrap();
        let before = recipe(&sources).unwrap();
        assert_eq!(recipe(&sources).unwrap(), before);
        fs::write(&file, "another").unwrap();
        assert_ne!(recipe(&sources).unwrap(), before);
    }
}
