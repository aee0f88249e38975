//! One boot on VT-x in Bochs, whose TSC counts instructions. No plugin of it counts: the guest's programs say what
//! they cost (`demo/guest-tools/src/busy.rs`, `tests/payload/src/bin/micro`).

use std::fs::{self, File};
use std::io::Read as _;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nexit::bochs::{INSTRUCTIONS_PER_SECOND, configuration};
use nexit::cli::{Accel, Iommu};
use nexit::demo::cpio;
use nexit::demo::modules::Modules;
use nexit::demo::{Flavour, kernel};
use nexit::failure::{Failure, OrFailed, Result};
use nexit::machine::{Machine, Start};
use nexit::tool::Tool;
use nexit::vtd;

use crate::cli::RunArgs;
use crate::images;
use crate::mode::{GUEST_MEMORY, Mode, absolute};

/// In front of the names of works: a machine of its own.
pub(crate) const PREFIX: &str = "vt-x-";
/// The machines.
pub(crate) const KINDS: [Kind; 2] = [
    Kind {
        name: "bochs",
        iommu: Iommu::None,
        function: "00:01.1",
        works: &["ide", "wake", "process"],
        micro: false,
        bare_words: "",
    },
    // Without DMA remapping, as the bare machine in QEMU is: at its best.
    Kind {
        name: "bochs-vtd",
        iommu: Iommu::VtD,
        function: "00:04.0",
        works: &["nvme"],
        micro: true,
        bare_words: " intel_iommu=off",
    },
];
/// Where the guest runs here.
const MODES: [Mode; 4] = [Mode::Bare, Mode::Exitless, Mode::Exiting, Mode::Posted];
/// As `nexit run`'s default. Linux' clock is right on it.
const MODEL: &str = "corei7_haswell_4770";
const GEOMETRY: &str = "mode=flat, cylinders=64, heads=16, spt=63";
/// The words of every guest's kernel. The last two undo what Linux does on this CPU only under a hypervisor:
/// it trusts the TSC deadline, and takes the CPU for one with the bug "indirect target selection".
const KERNEL_WORDS: &str = "console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check lapic=notscdeadline \
                            indirect_target_selection=off";
/// Of a disk with that geometry.
const DISK_BYTES: u64 = 64 * 16 * 63 * 512;
/// Seconds after which a boot counts as hung.
const PATIENCE: u64 = 900;
/// How long a guest may take to power off once it has said all. In the mode `posted` it may sleep on
/// (`docs/interrupt-modes.md`: Bochs does not wake it).
const POWER_OFF: Duration = Duration::from_secs(30);
/// The guest's last line.
pub(crate) const END: &str = "bench: end status 0";

/// A machine.
#[derive(Debug)]
pub(crate) struct Kind {
    /// In the names of its files.
    pub(crate) name: &'static str,
    iommu: Iommu,
    /// The controller of the guest's disk.
    function: &'static str,
    /// The works of `bench/guest/init` that its devices allow.
    pub(crate) works: &'static [&'static str],
    /// Whether the payload runs here.
    pub(crate) micro: bool,
    /// More words for the kernel of the bare machine.
    bare_words: &'static str,
}

impl Kind {
    /// Bochs' lines for the guest's devices.
    fn devices(&self, disk: &Path) -> [String; 2] {
        let disk = disk.display();
        let disk = match self.iommu {
            Iommu::None => format!("ata0-master: type=disk, path=\"{disk}\", {GEOMETRY}"),
            Iommu::VtD => format!("vtd: nvme=\"4:{disk}\""),
        };
        [disk, "com2: enabled=1, mode=null".to_owned()]
    }

    /// For `--iommu`.
    const fn iommu(&self) -> &'static str {
        match self.iommu {
            Iommu::None => "none",
            Iommu::VtD => "vt-d",
        }
    }

    /// For the configuration.
    const fn trust(&self) -> &'static str {
        match self.iommu {
            Iommu::None => "unsafe_no_iommu = true\n",
            Iommu::VtD => "",
        }
    }
}

/// What boots.
#[derive(Debug)]
pub(crate) struct Images {
    /// Debian's kernel for clouds.
    pub(crate) kernel: PathBuf,
    /// The benchmark's initramfs, without what needs libraries.
    pub(crate) initrd: PathBuf,
    disk: PathBuf,
}

/// The modes of `wanted` that exist here.
pub(crate) fn modes(wanted: &[Mode]) -> Vec<Mode> {
    MODES.into_iter().filter(|mode| wanted.contains(mode)).collect()
}

/// Debian's kernel for clouds, which unpacks itself quickly, and a small initramfs.
pub(crate) fn images(folder: &Path, programs: &Path) -> Result<Images> {
    let kernel = kernel::fetch(Flavour::Cloud, &folder.join("cache"))?;
    let entries = images::small_guest(&Modules::find(&kernel.modules)?, programs)?;
    let initrd = folder.join("bochs.img");
    fs::write(&initrd, cpio::archive(&entries)).or_failed("write", &initrd)?;
    let disk = folder.join("bochs-disk.img");
    let file = File::create(&disk).or_failed("create", &disk)?;
    file.set_len(DISK_BYTES).or_failed("size", &disk)?;
    Ok(Images { kernel: kernel.image, initrd, disk })
}

/// Boots the payload or, without one, Linux, to the end; returns what it said.
pub(crate) fn boot(
    kind: &Kind,
    args: &RunArgs,
    images: &Images,
    words: &str,
    mode: Mode,
    payload: Option<&Path>,
) -> Result<String> {
    let what = if payload.is_some() { "-micro" } else { "" };
    let log = args.folders.folder.join(format!("{}-{}{what}.log", kind.name, mode.name()));
    let words = format!("{KERNEL_WORDS} {words} disk=any busy=1");
    let console = if mode == Mode::Bare {
        bare(kind, args, images, &(words + kind.bare_words), payload, &log)?
    } else {
        under_nexit(kind, args, images, &words, mode, payload, &log)?
    };
    if console.contains(END) {
        return Ok(console);
    }
    let text = format!("{}, {}: the guest did not come to its end", kind.name, mode.name());
    Err(Failure::Failed(format!("{text}: see {}", log.display())))
}

fn under_nexit(
    kind: &Kind,
    args: &RunArgs,
    images: &Images,
    words: &str,
    mode: Mode,
    payload: Option<&Path>,
    log: &Path,
) -> Result<String> {
    let config = args.folders.folder.join(format!("{}-{}.toml", kind.name, mode.name()));
    let files = match payload {
        Some(payload) => format!("kernel = \"{}\"\nuart = \"COM2\"", absolute(payload)?.display()),
        None => format!(
            "kernel = \"{}\"\ninitrd = \"{}\"",
            absolute(&images.kernel)?.display(),
            absolute(&images.initrd)?.display()
        ),
    };
    let text = format!(
        "{}[[guest]]\nname = \"guest\"\ncpus = [0]\nmemory = \"256M\"\n{files}\ndevices = [\"{}\"]\n\
         cmdline = \"{words}\"\ninterrupts = \"{}\"\non_reboot = \"stop\"\n",
        kind.trust(),
        kind.function,
        mode.name()
    );
    fs::write(&config, text).or_failed("write", &config)?;
    let mut command =
        Command::new(std::env::current_exe().unwrap_or_default().with_file_name("nexit"));
    command.args([
        "run",
        "--emulator",
        "bochs",
        "--iommu",
        kind.iommu(),
        "--timeout",
        &PATIENCE.to_string(),
        "--config",
    ]);
    command.arg(config).arg("--").args(kind.devices(&images.disk)).stdin(Stdio::null());
    let out = File::create(log).or_failed("create", log)?;
    command.stderr(out.try_clone().or_failed("write", log)?).stdout(out);
    let mut child = command
        .spawn()
        .map_err(|error| Failure::Failed(format!("cannot start the emulator: {error}")))?;
    let mut over: Option<Instant> = None;
    while matches!(child.try_wait(), Ok(None)) {
        std::thread::sleep(Duration::from_millis(500));
        if over.is_none() && said(log)?.contains(END) {
            over = Some(Instant::now());
        }
        if over.is_some_and(|over| over.elapsed() > POWER_OFF) {
            println!("nexit-bench: {}, {}: the guest does not power off", kind.name, mode.name());
            // By a signal, so that it takes Bochs along.
            Tool::new("kill").arg(child.id().to_string()).run()?;
            let _ = child.wait();
        }
    }
    said(log)
}

fn said(log: &Path) -> Result<String> {
    let text = fs::read(log).or_failed("read", log)?;
    Ok(String::from_utf8_lossy(&text).replace('\r', ""))
}

/// On the machine itself, by GRUB.
fn bare(
    kind: &Kind,
    args: &RunArgs,
    images: &Images,
    words: &str,
    payload: Option<&Path>,
    log: &Path,
) -> Result<String> {
    let program = vtd::program(None, Some(kind.iommu))?.program;
    let folder = args.folders.folder.join(format!("{}-bare", kind.name));
    let grub = folder.join("tree/boot/grub");
    fs::create_dir_all(&grub).or_failed("create", &grub)?;
    let mut menu = String::new();
    let put = |name: &str, from: &Path| fs::copy(from, grub.join(name)).or_failed("copy", from);
    if let Some(payload) = payload {
        put("micro", payload)?;
        menu += "multiboot2 /boot/grub/micro\nboot\n";
    } else {
        put("vmlinuz", &images.kernel)?;
        put("initrd", &images.initrd)?;
        menu += &format!(
            "linux /boot/grub/vmlinuz {words} mem={GUEST_MEMORY}\ninitrd /boot/grub/initrd\nboot\n"
        );
    }
    let file = grub.join("grub.cfg");
    fs::write(&file, menu).or_failed("write", &file)?;
    let iso = folder.join("bare.iso");
    let tool = Tool::new("grub-mkrescue").args(["-d", "/usr/lib/grub/i386-pc", "-o"]);
    tool.arg(&iso).arg(folder.join("tree")).run()?;
    let start = Start::Bios { iso: iso.clone() };
    let machine = Machine {
        cpus: 1,
        memory: 1 << 30,
        accel: Accel::Tcg,
        iommu: kind.iommu,
        start,
        extra: kind.devices(&images.disk).to_vec(),
    };
    let refused = |error| Failure::Failed(format!("cannot listen for Bochs' serial line: {error}"));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(refused)?;
    let serial = listener.local_addr().map_err(refused)?;
    let text = configuration(&machine, MODEL, INSTRUCTIONS_PER_SECOND, &iso, serial);
    let file = folder.join("bochsrc");
    let own_log = folder.join("bochs.log");
    fs::write(&file, format!("log: \"{}\"\n{text}", own_log.display()))
        .or_failed("write", &file)?;
    let commands = folder.join("commands");
    fs::write(&commands, "c\n").or_failed("write", &commands)?;
    let _ = fs::remove_file(images.disk.with_extension("img.lock"));
    let mut command = Command::new(&program);
    command.arg("-q");
    let help = Command::new(&program).arg("--help").output();
    // A build with the debugger stops at its prompt: this tells it to go on.
    if help.is_ok_and(|output| String::from_utf8_lossy(&output.stderr).contains("-rc ")) {
        command.arg("-rc").arg(&commands);
    }
    command.arg("-f").arg(&file);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut child =
        child.map_err(|error| Failure::Failed(format!("cannot start Bochs: {error}")))?;
    let console = listen(&listener, &mut child);
    let _ = child.kill();
    let _ = child.wait();
    let _ = fs::remove_file(images.disk.with_extension("img.lock"));
    let console = console?;
    fs::write(log, &console).or_failed("write", log)?;
    Ok(console)
}

/// What comes over the line, up to the guest's last one.
fn listen(listener: &TcpListener, child: &mut Child) -> Result<String> {
    let failed = |error| Failure::Failed(format!("Bochs' serial line: {error}"));
    let end = Instant::now() + Duration::from_secs(PATIENCE);
    listener.set_nonblocking(true).map_err(failed)?;
    let mut line = loop {
        match listener.accept() {
            Ok((line, _)) => break line,
            Err(_) if Instant::now() < end && matches!(child.try_wait(), Ok(None)) => {
                std::thread::sleep(Duration::from_millis(100));
            }
            Err(error) => return Err(failed(error)),
        }
    };
    line.set_nonblocking(false).map_err(failed)?;
    line.set_read_timeout(Some(Duration::from_secs(PATIENCE))).map_err(failed)?;
    let mut console = Vec::new();
    let mut bytes = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&console).replace('\r', "");
        if text.contains(END) || Instant::now() > end {
            return Ok(text);
        }
        match line.read(&mut bytes) {
            Ok(count) if count > 0 => {
                console.extend_from_slice(bytes.get(..count).unwrap_or_default());
            }
            _ => return Ok(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_machines_measure_the_same() {
        let works: Vec<&str> = KINDS.iter().flat_map(|kind| kind.works).copied().collect();
        let different: std::collections::BTreeSet<&str> = works.iter().copied().collect();
        // They would be taken for repetitions.
        assert_eq!(works.len(), different.len(), "{works:?}");
        assert_eq!(KINDS.iter().filter(|kind| kind.micro).count(), 1);
    }

    #[test]
    fn the_guest_gets_the_controller_of_the_disk() {
        let [ide, nvme] = KINDS.map(|kind| (kind.devices(Path::new("/d/a.img")), kind.function));
        // The first channel of the IDE controller of the i440FX, which Bochs emulates, is of function 1.
        assert!(ide.0[0].starts_with("ata0-master: type=disk, path=\"/d/a.img\", "), "{ide:?}");
        assert_eq!(ide.1, "00:01.1");
        assert_eq!((nvme.0[0].as_str(), nvme.1), ("vtd: nvme=\"4:/d/a.img\"", "00:04.0"));
    }
}
