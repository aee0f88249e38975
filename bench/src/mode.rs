//! One boot of the guest in one mode.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use nexit::cli::{Accel, Iommu};
use nexit::failure::{Failure, OrFailed, Result};
use nexit::machine::{Machine, Start};
use nexit::qemu;
use serde::{Deserialize, Serialize};

use crate::images::Images;

/// Where the guest runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// On the machine itself.
    Bare,
    /// Under Nexit, `interrupts = "exitless"`.
    Exitless,
    /// Under Nexit, `interrupts = "exiting"`.
    Exiting,
    /// Under Nexit, `interrupts = "posted"`: on VT-x only.
    Posted,
    /// Under Debian's KVM and QEMU, with its devices by VFIO.
    Kvm,
}

impl Mode {
    /// All, in the order in which they run.
    pub(crate) const ALL: [Self; 5] =
        [Self::Bare, Self::Exitless, Self::Exiting, Self::Posted, Self::Kvm];

    /// As the command line and the results call it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Exitless => "exitless",
            Self::Exiting => "exiting",
            Self::Posted => "posted",
            Self::Kvm => "kvm",
        }
    }

    /// Seconds after which a boot counts as hung.
    const fn patience(self) -> u64 {
        match self {
            Self::Bare | Self::Exitless => 600,
            Self::Exiting | Self::Posted => 900,
            Self::Kvm => 900,
        }
    }

    /// Seconds without a word after which it does. A guest of KVM in an emulated machine hangs now and then.
    const fn silence(self) -> u64 {
        if matches!(self, Self::Kvm) { 180 } else { self.patience() }
    }
}

/// One boot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Boot<'a> {
    /// What boots.
    pub(crate) images: &'a Images,
    /// QEMU's accelerator.
    pub(crate) accel: Accel,
    /// The counting plugin; without it the guest's programs count.
    pub(crate) plugin: Option<&'a Path>,
    /// `works=… n=…`, for the guest's `init`.
    pub(crate) words: &'a str,
    /// Of these, the seconds of each work in its steady state.
    pub(crate) steady: u32,
    /// Where the guest's handlers lie ([`crate::vectors`]).
    pub(crate) vectors: Option<&'a Path>,
    /// A small guest of `tests/payload` in Linux' place, with one CPU and devices of its own.
    pub(crate) payload: Option<&'a Path>,
    /// Folder for logs.
    pub(crate) folder: &'a Path,
}

/// What a boot left.
#[derive(Debug)]
pub(crate) struct Output {
    /// The serial line.
    pub(crate) console: String,
    /// The plugin's lines, if it counted.
    pub(crate) counts: Option<String>,
}

/// The words of every guest's kernel. One clock for all; no KASLR, so that handlers lie where the plugin is told.
pub(crate) const KERNEL_WORDS: &str =
    "console=ttyS0,115200 quiet panic=-1 nokaslr clocksource=tsc tsc=reliable no_timer_check";
/// The scheduler's clock is the TSC, too, as on the bare machine.
pub(crate) const SAME_CLOCK: &str = " no-kvmclock";
/// The guest's share of the machine, the same on the bare one.
pub(crate) const GUEST_MEMORY: &str = "512M";
/// Slots of the guest's devices.
const DEVICES: [&str; 4] = ["00:04.0", "00:05.0", "00:06.0", "00:07.0"];
/// What interrupts the payload: a message of this, and the line of COM2.
const PAYLOADS_DEVICES: [&str; 4] = ["-device", "edu,addr=4", "-serial", "null"];
/// Where Linux without KASLR maps physical memory (`Documentation/x86/x86_64/mm.rst`).
const LINUX_DIRECT_MAP: &str = "ffff888000000000";

impl Boot<'_> {
    /// Boots once, to the end.
    pub(crate) fn run(&self, mode: Mode, turn: u32) -> Result<Output> {
        let what = if self.payload.is_some() { "-micro" } else { "" };
        let name = format!("{}{what}-{turn}", mode.name());
        let counts = self.folder.join(format!("{name}.counts"));
        let log = self.folder.join(format!("{name}.log"));
        let mut command = self.command(mode, &counts)?;
        let out = File::create(&log).or_failed("create", &log)?;
        let errors = out.try_clone().or_failed("write", &log)?;
        command.stdin(Stdio::null()).stdout(out).stderr(errors);
        let child = command
            .spawn()
            .map_err(|error| Failure::Failed(format!("cannot start the emulator: {error}")))?;
        wait(child, mode, self.patience(mode), &log)?;
        let console = fs::read(&log).or_failed("read", &log)?;
        let console = String::from_utf8_lossy(&console).replace('\r', "");
        if !console.contains("bench: end status 0") {
            let text = "the guest did not come to its end";
            let last = console.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("nothing");
            return Err(Failure::Failed(format!(
                "{text}: see {}, at its end: {last}",
                log.display()
            )));
        }
        let read = |_| fs::read_to_string(&counts).or_failed("read", &counts);
        let counts = self.plugin.map(read).transpose()?;
        Ok(Output { console, counts })
    }

    fn command(&self, mode: Mode, counts: &Path) -> Result<Command> {
        let mut extra = match self.payload {
            Some(_) => PAYLOADS_DEVICES.map(str::to_owned).to_vec(),
            None => self.devices(),
        };
        if let Some(plugin) = self.plugin {
            extra.extend(["-plugin".to_owned(), self.counting(plugin, mode, counts)]);
        }
        // Under KVM there is no other that a guest could learn its TSC's frequency from in time.
        let clock = if mode == Mode::Kvm { "" } else { SAME_CLOCK };
        let count = if self.plugin.is_none() { " busy=1" } else { "" };
        let words = format!("{KERNEL_WORDS}{clock} {}{count}", self.words);
        match mode {
            Mode::Exitless | Mode::Exiting | Mode::Posted => self.nexit(mode, &words, extra),
            Mode::Bare => {
                // Its own IOMMU would only cost it: the bare machine runs at its best.
                let mut words = format!("{words} mem={GUEST_MEMORY} intel_iommu=off");
                if self.accel == Accel::Kvm {
                    // What KVM offers its guests no bare machine has.
                    words += " nopv";
                }
                let kernel = self.payload.unwrap_or(&self.images.kernel);
                self.machine(kernel, &self.images.initrd, 1 << 30, &words, extra)
            }
            Mode::Kvm => {
                let devices = DEVICES.join(",");
                let words = format!(
                    "console=ttyS0 quiet panic=-1 nokaslr no_timer_check intel_iommu=on \
                     devices={devices} guest={words}"
                );
                let missing = || Failure::Failed("the image for KVM was not built".into());
                let initrd = self.images.kvm.as_deref().ok_or_else(missing)?;
                self.machine(&self.images.kernel, initrd, 3 << 30, &words, extra)
            }
        }
    }

    /// The plugin and its arguments.
    fn counting(&self, plugin: &Path, mode: Mode, counts: &Path) -> String {
        let base =
            if mode == Mode::Kvm { format!(",vmcb={LINUX_DIRECT_MAP}") } else { String::new() };
        let vectors = self.vectors.filter(|_| self.payload.is_none());
        let vectors = vectors.map_or_else(String::new, |at| format!(",vectors={}", at.display()));
        format!("{},out={}{base}{vectors}", plugin.display(), counts.display())
    }

    /// A fast NVMe controller, one that takes 2 ms, two network cards whose network echoes on port 7 and
    /// sends a file on port 80.
    fn devices(&self) -> Vec<String> {
        let payload = self.images.payload.display();
        let network = format!(
            "guestfwd=tcp:10.0.2.100:7-cmd:cat,guestfwd=tcp:10.0.2.100:80-cmd:cat {payload}"
        );
        let disk = "driver=null-co,size=4294967296,read-zeroes=on,node-name";
        [
            "-blockdev",
            &format!("{disk}=fast"),
            "-device",
            "nvme,drive=fast,serial=fast,addr=4",
            "-netdev",
            &format!("user,id=net0,{network}"),
            "-device",
            "e1000e,netdev=net0,addr=5",
            "-netdev",
            &format!("user,id=net1,{network}"),
            "-device",
            "igb,netdev=net1,addr=6",
            "-blockdev",
            &format!("{disk}=slow,latency-ns=2000000"),
            "-device",
            "nvme,drive=slow,serial=slow,addr=7",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    /// A kernel on the machine itself.
    fn machine(
        &self,
        kernel: &Path,
        initrd: &Path,
        memory: u64,
        words: &str,
        mut extra: Vec<String>,
    ) -> Result<Command> {
        extra.extend(["-append".to_owned(), words.to_owned()]);
        let start =
            Start::Kernel { image: kernel.to_path_buf(), modules: vec![initrd.to_path_buf()] };
        let machine = Machine {
            cpus: self.cpus(),
            memory,
            accel: self.accel,
            iommu: Iommu::VtD,
            start,
            extra,
        };
        let mut command = Command::new(qemu::PROGRAM);
        command.args(qemu::arguments(&machine)?);
        Ok(command)
    }

    fn patience(&self, mode: Mode) -> u64 {
        mode.patience() + 12 * u64::from(self.steady)
    }

    /// CPUs of the machine: with a second one that naps, its naps would be counted.
    fn cpus(&self) -> u32 {
        if self.payload.is_some() { 1 } else { 2 }
    }

    /// A guest under Nexit.
    fn nexit(&self, mode: Mode, words: &str, extra: Vec<String>) -> Result<Command> {
        let config = self.folder.join(format!("{}.toml", mode.name()));
        let devices = DEVICES.map(|device| format!("\"{device}\"")).join(", ");
        let files = match self.payload {
            Some(payload) => format!(
                "cpus = [0]\nkernel = \"{}\"\ndevices = [\"00:04.0\"]\nuart = \"COM2\"",
                absolute(payload)?.display()
            ),
            None => format!(
                "cpus = [0, 1]\nkernel = \"{}\"\ninitrd = \"{}\"\ndevices = [{devices}]",
                absolute(&self.images.kernel)?.display(),
                absolute(&self.images.initrd)?.display()
            ),
        };
        let text = format!(
            "[[guest]]\nname = \"guest\"\nmemory = \"{GUEST_MEMORY}\"\n{files}\n\
             cmdline = \"{words}\"\ninterrupts = \"{}\"\non_reboot = \"stop\"\n",
            mode.name()
        );
        fs::write(&config, text).or_failed("write", &config)?;
        let program = std::env::current_exe().unwrap_or_default().with_file_name("nexit");
        let mut command = Command::new(program);
        command
            .args(["run", "--timeout", &self.patience(mode).to_string(), "--config"])
            .arg(config);
        if self.accel == Accel::Kvm {
            command.args(["--accel", "kvm"]);
        }
        command.args(["--cpus", &self.cpus().to_string(), "--"]).args(extra);
        Ok(command)
    }
}

/// A path that holds from any folder.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf> {
    fs::canonicalize(path).or_failed("find", path)
}

/// Waits for the end, and kills what hangs.
fn wait(mut child: Child, mode: Mode, patience: u64, log: &Path) -> Result<()> {
    let start = Instant::now();
    let mut said = (0, start);
    loop {
        match child.try_wait() {
            Ok(Some(_)) => return Ok(()),
            Ok(None) => std::thread::sleep(Duration::from_millis(200)),
            Err(error) => return Err(Failure::Failed(format!("cannot wait: {error}"))),
        }
        let bytes = fs::metadata(log).map_or(0, |log| log.len());
        if bytes != said.0 {
            said = (bytes, Instant::now());
        }
        let late = |since: Instant, seconds| since.elapsed() > Duration::from_secs(seconds);
        if late(start, patience) || late(said.1, mode.silence()) {
            let _ = child.kill();
            let _ = child.wait();
            let text = format!("hung, see {}", log.display());
            return Err(Failure::TimedOut(text));
        }
    }
}
