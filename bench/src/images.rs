//! What boots: Debian's kernel, the benchmark's initramfs, and, for KVM, an initramfs with Debian's own
//! QEMU around the same guest. Fetched by the machine's own apt, unpacked, not installed.

use std::fs;
use std::path::{Path, PathBuf};

use nexit::demo::cpio::{self, Entry, Node};
use nexit::demo::modules::Modules;
use nexit::demo::{Flavour, initramfs, kernel};
use nexit::failure::{Failure, OrFailed, Result};
use nexit::tool::Tool;

/// Debian packages whose programs the guest runs.
const PACKAGES: [&str; 2] = ["fio", "rt-tests"];
const TOOLS: [&str; 3] = ["fio", "cyclictest", "hackbench"];
/// The project's own.
const PROGRAMS: [&str; 6] = ["exits", "iobench", "marker", "measure", "netbench", "procbench"];
/// Names of busybox that the demo does not use.
const APPLETS: [&str; 3] = ["taskset", "true", "sed"];
/// Where the dynamic linker looks without being told.
const LIBRARIES: &str = "lib/x86_64-linux-gnu";
const BUSYBOX: &str = "/bin/busybox";
const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// Firmware of the inner QEMU: file, and the packages' folders.
const FIRMWARE: [&str; 3] = ["bios-256k.bin", "linuxboot_dma.bin", "kvmvapic.bin"];
const FIRMWARE_FOLDERS: [&str; 2] = ["/usr/share/seabios", "/usr/share/qemu"];
/// Bytes that `netbench stream` fetches at a time.
const PAYLOAD_BYTES: usize = 4 << 20;

/// What boots.
#[derive(Debug)]
pub(crate) struct Images {
    /// Debian's kernel, stock.
    pub(crate) kernel: PathBuf,
    /// The benchmark's initramfs.
    pub(crate) initrd: PathBuf,
    /// The initramfs around the inner QEMU.
    pub(crate) kvm: Option<PathBuf>,
    /// What the network sends.
    pub(crate) payload: PathBuf,
    /// The kernel's version.
    pub(crate) version: String,
}

/// Makes everything below `folder`; what was fetched stays there for the next time.
pub(crate) fn build(folder: &Path, programs: &Path, with_kvm: bool) -> Result<Images> {
    let cache = folder.join("cache");
    fs::create_dir_all(&cache).or_failed("create", &cache)?;
    let kernel = kernel::fetch(Flavour::Stock, &cache)?;
    let modules = Modules::find(&kernel.modules)?;
    let image = folder.join("vmlinuz");
    fs::copy(&kernel.image, &image).or_failed("write", &image)?;
    let initrd = folder.join("initrd.img");
    let entries = guest(&modules, &cache, programs)?;
    fs::write(&initrd, cpio::archive(&entries)).or_failed("write", &initrd)?;
    let payload = folder.join("payload.bin");
    fs::write(&payload, vec![b'x'; PAYLOAD_BYTES]).or_failed("write", &payload)?;
    let kvm = if with_kvm {
        let path = folder.join("kvm.img");
        let entries = outer(&modules, &image, &initrd)?;
        fs::write(&path, cpio::archive(&entries)).or_failed("write", &path)?;
        Some(path)
    } else {
        None
    };
    let version = kernel.modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Images { kernel: image, initrd, kvm, payload, version })
}

/// The benchmark's guest.
fn guest(modules: &Modules, cache: &Path, programs: &Path) -> Result<Vec<Entry>> {
    let mut archive = Archive::new("bench/guest/init")?;
    for name in PROGRAMS {
        archive.program(&format!("bin/{name}"), &programs.join(name))?;
    }
    let tools = unpacked(cache)?;
    for name in TOOLS {
        archive.linked(&format!("bin/{name}"), &tools.join("usr/bin").join(name), &tools)?;
    }
    for (part, drivers) in
        [("nvme", ["nvme"].as_slice()), ("e1000e", &["e1000e"]), ("igb", &["igb"])]
    {
        initramfs::add_part(&mut archive.0, modules, part, drivers)?;
    }
    Ok(archive.0)
}

/// The guest without the tools that need libraries, for Bochs.
pub(crate) fn small_guest(modules: &Modules, programs: &Path) -> Result<Vec<Entry>> {
    let mut archive = Archive::new("bench/guest/init")?;
    for name in PROGRAMS {
        archive.program(&format!("bin/{name}"), &programs.join(name))?;
    }
    for (part, drivers) in [("ide", ["ata_piix", "sd_mod"].as_slice()), ("nvme", &["nvme"])] {
        initramfs::add_part(&mut archive.0, modules, part, drivers)?;
    }
    Ok(archive.0)
}

/// Linux with KVM, VFIO and QEMU, and the guest within.
fn outer(modules: &Modules, kernel: &Path, initrd: &Path) -> Result<Vec<Entry>> {
    let mut archive = Archive::new("bench/guest/kvm")?;
    archive.linked("bin/qemu-system-x86_64", Path::new(QEMU), Path::new("/"))?;
    archive.folder("share");
    for name in FIRMWARE {
        let places = FIRMWARE_FOLDERS.map(|folder| Path::new(folder).join(name));
        let [first, ..] = &places;
        let found = places.iter().find(|path| path.is_file()).unwrap_or(first);
        archive.file(&format!("share/{name}"), found, false)?;
    }
    archive.folder("guest");
    archive.file("guest/vmlinuz", kernel, false)?;
    archive.file("guest/initrd.img", initrd, false)?;
    for (part, drivers) in
        [("kvm", ["kvm-amd"].as_slice()), ("vfio", &["vfio-pci", "vfio_iommu_type1"])]
    {
        initramfs::add_part(&mut archive.0, modules, part, drivers)?;
    }
    Ok(archive.0)
}

/// An initramfs in the making.
struct Archive(Vec<Entry>);

impl Archive {
    /// Busybox, and a script as `init`.
    fn new(script: &str) -> Result<Self> {
        let mut archive = Self(initramfs::skeleton());
        for name in APPLETS {
            archive.add(&format!("bin/{name}"), Node::Link("busybox".to_owned()));
        }
        archive.program("bin/busybox", Path::new(BUSYBOX))?;
        archive.program("init", Path::new(script))?;
        archive.folder("lib64");
        archive.folder(LIBRARIES);
        Ok(archive)
    }

    /// What is there already stays.
    fn add(&mut self, path: &str, node: Node) {
        if !self.0.iter().any(|(other, _)| other == path) {
            self.0.push((path.to_owned(), node));
        }
    }

    fn folder(&mut self, path: &str) {
        self.add(path, Node::Folder);
    }

    fn file(&mut self, path: &str, from: &Path, executable: bool) -> Result<()> {
        let contents = fs::read(from).or_failed("read", from)?;
        self.add(path, Node::File(contents, executable));
        Ok(())
    }

    fn program(&mut self, path: &str, from: &Path) -> Result<()> {
        self.file(path, from, true)
    }

    /// A program and the libraries that it is linked with, those below `root` first.
    fn linked(&mut self, path: &str, from: &Path, root: &Path) -> Result<()> {
        self.program(path, from)?;
        let folder = root.join("usr").join(LIBRARIES);
        let search = format!("LD_LIBRARY_PATH={0}:{0}/ceph", folder.display());
        let list = Tool::new("env").arg(search).arg("ldd").arg(from).output()?;
        for (name, library) in libraries(&list)? {
            let folder = if name.starts_with("ld-linux") { "lib64" } else { LIBRARIES };
            self.program(&format!("{folder}/{name}"), Path::new(&library))?;
        }
        Ok(())
    }
}

/// Name and path of each library in the output of `ldd`.
fn libraries(list: &str) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for line in list.lines().map(str::trim) {
        if line.contains("not found") {
            return Err(Failure::Failed(format!("a library is missing: {line}")));
        }
        let path = line.rsplit("=> ").next().unwrap_or(line);
        let path = path.split(" (").next().unwrap_or(path);
        // linux-vdso has no path.
        if let Some((_, name)) = path.rsplit_once('/') {
            found.push((name.to_owned(), path.to_owned()));
        }
    }
    Ok(found)
}

/// The packages and what they need beyond this machine, unpacked in one folder.
fn unpacked(cache: &Path) -> Result<PathBuf> {
    let folder = cache.join("tools");
    if folder.join("usr/bin/fio").is_file() && folder.join("usr/bin/hackbench").is_file() {
        return Ok(folder);
    }
    let partial = cache.join("tools.partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).or_failed("remove", &partial)?;
    }
    fs::create_dir_all(&partial).or_failed("create", &partial)?;
    let plan = Tool::new("apt-get").args(["--simulate", "install"]).args(PACKAGES).output()?;
    let mut names: Vec<&str> = plan
        .lines()
        .filter_map(|line| line.strip_prefix("Inst ")?.split_whitespace().next())
        .collect();
    // Installed ones are not in the plan.
    names.extend(PACKAGES.into_iter().filter(|name| !names.contains(name)).collect::<Vec<_>>());
    println!("nexit-bench: fetching {}", names.join(" "));
    Tool::new("apt-get").args(["--quiet", "download"]).args(names).within(&partial).run()?;
    for entry in fs::read_dir(&partial).or_failed("list", &partial)? {
        let path = entry.or_failed("list", &partial)?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            Tool::new("dpkg-deb").arg("-x").arg(&path).arg(&partial).run()?;
            fs::remove_file(&path).or_failed("remove", &path)?;
        }
    }
    if folder.exists() {
        fs::remove_dir_all(&folder).or_failed("remove", &folder)?;
    }
    fs::rename(&partial, &folder).or_failed("rename", &partial)?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_taken_from_what_the_linker_would_load() {
        let list = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                    \tlibaio.so.1 => /lib/x86_64-linux-gnu/libaio.so.1 (0x00007f01)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f02)\n";
        let found = libraries(list).unwrap();
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["libaio.so.1", "ld-linux-x86-64.so.2"]);
        assert_eq!(found[0].1, "/lib/x86_64-linux-gnu/libaio.so.1");
        assert!(libraries("libx.so => not found").is_err());
    }
}
