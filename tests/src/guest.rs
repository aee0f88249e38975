//! The demo's guest as the tests use it: configuration text, and the devices for the emulators.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::folder::{Folder, build_folder, project_folder};
use crate::outcome::Outcome;

/// Which kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kernel {
    /// Debian's own, for QEMU.
    Stock,
    /// Debian's cloud kernel, which unpacks itself quickly, for Bochs.
    Cloud,
}

impl Kernel {
    /// The folder that `make demo` filled.
    #[must_use]
    pub fn folder(self) -> PathBuf {
        let name = match self {
            Self::Stock => "stock",
            Self::Cloud => "cloud",
        };
        let guest = std::env::var("NEXIT_GUEST").map(PathBuf::from);
        guest.unwrap_or_else(|_| project_folder().join("target/guest")).join(name)
    }
}

impl Kernel {
    /// Its bzImage.
    ///
    /// # Panics
    /// There is none: `make demo` fetches it.
    #[must_use]
    pub fn image(self) -> Vec<u8> {
        read(&self.folder().join("vmlinuz"))
    }
}

fn read(path: &Path) -> Vec<u8> {
    let contents = std::fs::read(path);
    assert!(contents.is_ok(), "cannot read {}: {:?}", path.display(), contents.err());
    contents.unwrap_or_default()
}

/// One guest that runs the demo's `init`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Guest {
    pub name: &'static str,
    /// Its CPUs, as TOML.
    pub cpus: &'static str,
    pub memory: &'static str,
    pub kernel: Kernel,
    /// The parts of the demo, and further words for the kernel.
    pub demo: &'static str,
    /// Its devices, as TOML.
    pub devices: &'static str,
    /// `exitless` or `exiting`.
    pub interrupts: &'static str,
    /// `stop`, so that a reboot ends the run, or `restart`.
    pub on_reboot: &'static str,
}

impl Guest {
    /// A guest on CPU 0 of QEMU that runs these parts.
    #[must_use]
    pub const fn on_qemu(demo: &'static str, devices: &'static str) -> Self {
        Self {
            name: "linux",
            cpus: "[0]",
            memory: "512M",
            kernel: Kernel::Stock,
            demo,
            devices,
            interrupts: "exitless",
            on_reboot: "stop",
        }
    }

    /// The only guest on Bochs, with the IDE controller.
    #[must_use]
    pub const fn on_bochs(demo: &'static str) -> Self {
        Self { memory: "256M", kernel: Kernel::Cloud, ..Self::on_qemu(demo, "[\"00:01.1\"]") }
    }

    /// Its part of the configuration.
    #[must_use]
    pub fn toml(&self) -> String {
        let Self { name, cpus, memory, demo, devices, interrupts, on_reboot, .. } = self;
        let folder = self.kernel.folder();
        let folder = folder.display();
        format!(
            "[[guest]]\nname = \"{name}\"\ncpus = {cpus}\nmemory = \"{memory}\"\n\
             kernel = \"{folder}/vmlinuz\"\ninitrd = \"{folder}/initrd.img\"\n\
             cmdline = \"console=ttyS0 panic=-1 demo={demo}\"\ndevices = {devices}\n\
             interrupts = \"{interrupts}\"\non_reboot = \"{on_reboot}\"\n"
        )
    }
}

/// The first one or two CPUs, as TOML.
pub(crate) const fn first_cpus(count: u32) -> &'static str {
    if count == 1 { "[0]" } else { "[0, 1]" }
}

/// A small guest of `tests/payload`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Payload<'a> {
    /// Its program, and its name.
    pub program: &'a str,
    /// Its CPUs, as TOML.
    pub cpus: &'a str,
    pub command_line: &'a str,
    pub memory: &'a str,
    /// `stop`, so that a reboot ends the run, or `restart`.
    pub on_reboot: &'a str,
    /// Further lines of its configuration.
    pub further: &'a str,
}

impl<'a> Payload<'a> {
    /// On CPU 0, without devices.
    #[must_use]
    pub const fn new(program: &'a str) -> Self {
        Self {
            program,
            cpus: "[0]",
            command_line: "",
            memory: "64M",
            on_reboot: "stop",
            further: "",
        }
    }

    /// The program's file, which `make payloads` builds.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        build_folder().join("x86_64-hypervisor/release").join(self.program)
    }

    /// The program.
    ///
    /// # Panics
    /// There is none: `make payloads` builds it.
    #[must_use]
    pub fn image(&self) -> Vec<u8> {
        read(&self.path())
    }

    /// Its part of the configuration.
    #[must_use]
    pub fn toml(&self) -> String {
        let Self { program, cpus, command_line, memory, on_reboot, further } = self;
        let path = self.path();
        let path = path.display();
        format!(
            "[[guest]]\nname = \"{program}\"\ncpus = {cpus}\nmemory = \"{memory}\"\nkernel = \"{path}\"\n\
             cmdline = \"{command_line}\"\non_reboot = \"{on_reboot}\"\n{further}\n"
        )
    }
}

/// Arguments for an emulator that put devices into its machine.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Devices(Vec<String>);

impl Devices {
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// An NVMe controller at 00:04.0 with the demo's file system.
    #[must_use]
    pub fn nvme(self) -> Self {
        self.nvme_at("addr=4")
    }

    /// The same as the first device on this bus of QEMU's: 00:04.0 on `pcie.0`.
    #[must_use]
    pub fn nvme_on(self, bus: &str) -> Self {
        if bus == "pcie.0" { self.nvme() } else { self.nvme_at(&format!("bus={bus}")) }
    }

    fn nvme_at(mut self, place: &str) -> Self {
        let disk = Kernel::Stock.folder().join("disk.img");
        let disk = disk.display();
        self.add("-blockdev", &format!("driver=file,node-name=disk,read-only=on,filename={disk}"));
        self.add("-device", &format!("nvme,drive=disk,serial=nexit,{place}"));
        self
    }

    /// A network card of this model in slot `address`; port 80 of 10.0.2.100 sends the demo's file.
    #[must_use]
    pub fn network(mut self, model: &str, address: u8) -> Self {
        let payload = Kernel::Stock.folder().join("payload.bin");
        let forward = format!("guestfwd=tcp:10.0.2.100:80-cmd:cat {}", payload.display());
        self.add("-netdev", &format!("user,id=net{address},{forward}"));
        self.add("-device", &format!("{model},netdev=net{address},addr={address}"));
        self
    }

    /// Bochs: a copy of the demo's disk as the first IDE disk. Bochs lets no two runs have one.
    ///
    /// # Panics
    /// It cannot be copied: `make demo` makes it.
    #[must_use]
    pub fn ide(folder: &Folder) -> Self {
        let disk = folder.path("disk.img");
        let copied = std::fs::copy(Kernel::Cloud.folder().join("disk.img"), &disk);
        assert!(copied.is_ok(), "cannot make {}: {copied:?}", disk.display());
        let disk = disk.display();
        let geometry = "cylinders=64, heads=16, spt=63";
        Self(vec![format!("ata0-master: type=disk, path=\"{disk}\", mode=flat, {geometry}")])
    }

    /// Anything else: arguments of QEMU, or lines of Bochs' configuration.
    #[must_use]
    pub fn arguments(arguments: &[&str]) -> Self {
        Self(arguments.iter().map(|&argument| argument.to_owned()).collect())
    }

    /// These, too.
    #[must_use]
    pub fn and(mut self, arguments: &[&str]) -> Self {
        self.0.extend(arguments.iter().map(|&argument| argument.to_owned()));
        self
    }

    /// The arguments.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    fn add(&mut self, option: &str, value: &str) {
        self.0.extend([option.to_owned(), value.to_owned()]);
    }
}

impl Folder {
    /// Runs the configuration `toml` with `options` of `nexit run` and `devices`; the report is in
    /// the outcome. Where QEMU ends by its own assertion, it is run up to three times.
    ///
    /// # Panics
    /// `nexit` cannot be started.
    #[must_use]
    pub fn run(&self, toml: &str, options: &[&str], devices: &Devices) -> Outcome {
        let mut outcome = self.run_once(toml, options, devices);
        for _ in 0..2 {
            if !outcome.is_qemus_own_end() {
                break;
            }
            eprintln!("once more, as QEMU ended by its own assertion:\n{outcome}");
            outcome = self.run_once(toml, options, devices);
        }
        outcome
    }

    fn run_once(&self, toml: &str, options: &[&str], devices: &Devices) -> Outcome {
        let config = self.write("config.toml", toml);
        let report = self.path("report.json").display().to_string();
        let mut arguments = vec!["run", "--unchecked", "--config", &config, "--report", &report];
        arguments.extend(options);
        if !devices.0.is_empty() {
            arguments.push("--");
            arguments.extend(devices.0.iter().map(String::as_str));
        }
        let mut outcome = self.nexit("run", &arguments);
        let text = std::fs::read_to_string(self.path("report.json")).unwrap_or_default();
        outcome.report = serde_json::from_str(&text).unwrap_or_default();
        let mut log = String::new();
        let _ = write!(log, "{outcome}\n--- report:\n{text}");
        self.write("run.log", log);
        outcome
    }
}
