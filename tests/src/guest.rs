//! The demo's guest as the tests use it: configuration text, and the devices for the emulators.

use std::fmt::Write as _;
use std::path::PathBuf;

use crate::folder::{Folder, project_folder};
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

/// One guest that runs the demo's `init`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Guest {
    /// Its name.
    pub name: &'static str,
    /// Its CPUs, as TOML.
    pub cpus: &'static str,
    /// Its memory.
    pub memory: &'static str,
    /// Its kernel.
    pub kernel: Kernel,
    /// The parts of the demo, and further words for the kernel.
    pub demo: &'static str,
    /// Its devices, as TOML.
    pub devices: &'static str,
    /// `exitless` or `exiting`.
    pub interrupts: &'static str,
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
        let Self { name, cpus, memory, demo, devices, interrupts, .. } = self;
        let folder = self.kernel.folder();
        let folder = folder.display();
        format!(
            "[[guest]]\nname = \"{name}\"\ncpus = {cpus}\nmemory = \"{memory}\"\n\
             kernel = \"{folder}/vmlinuz\"\ninitrd = \"{folder}/initrd.img\"\n\
             cmdline = \"console=ttyS0 panic=-1 demo={demo}\"\ndevices = {devices}\n\
             interrupts = \"{interrupts}\"\n"
        )
    }
}

/// Arguments for an emulator that put devices into its machine.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Devices(Vec<String>);

impl Devices {
    /// None.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// An NVMe controller at 00:04.0 with the demo's file system.
    #[must_use]
    pub fn nvme(mut self) -> Self {
        let disk = Kernel::Stock.folder().join("disk.img");
        let disk = disk.display();
        self.add("-blockdev", &format!("driver=file,node-name=disk,read-only=on,filename={disk}"));
        self.add("-device", "nvme,drive=disk,serial=nexit,addr=4");
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

    /// Bochs: the demo's disk as the first IDE disk.
    #[must_use]
    pub fn ide() -> Self {
        let disk = Kernel::Cloud.folder().join("disk.img");
        let disk = disk.display();
        let geometry = "cylinders=64, heads=16, spt=63";
        Self(vec![format!("ata0-master: type=disk, path=\"{disk}\", mode=flat, {geometry}")])
    }

    fn add(&mut self, option: &str, value: &str) {
        self.0.extend([option.to_owned(), value.to_owned()]);
    }
}

impl Folder {
    /// Runs the configuration `toml` with `options` of `nexit run` and `devices`; the report is in
    /// the outcome.
    ///
    /// # Panics
    /// `nexit` cannot be started.
    #[must_use]
    pub fn run(&self, toml: &str, options: &[&str], devices: &Devices) -> Outcome {
        let config = self.write("config.toml", toml);
        let report = self.path("report.json").display().to_string();
        let mut arguments = vec!["run", "--config", &config, "--report", &report];
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
