//! The zoo: machines by name (`tests/zoo/machines.toml`), the small guest on each, and the verdict.
//!
//! A test that is about something else names a machine, too: `Machine::named("server")` and
//! [`Machine::run`].

use std::fmt;

use serde::Deserialize;

use crate::emulator::Emulator;
use crate::folder::{Folder, build_folder, project_folder};
use crate::guest::{Devices, Guest, Kernel, Payload};
use crate::outcome::Outcome;

/// The rows, as they stand in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rows {
    machine: Vec<Machine>,
}

/// One machine: what the keys mean stands at the top of `tests/zoo/machines.toml`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// What tests call it.
    pub name: String,
    /// What is special about it.
    pub about: String,
    #[serde(default = "qemu")]
    emulator: String,
    #[serde(default)]
    options: Vec<String>,
    #[serde(default)]
    arguments: Vec<String>,
    #[serde(default)]
    roads: Vec<String>,
    #[serde(default = "little")]
    memory: String,
    #[serde(default = "first")]
    cpus: String,
    device: Option<String>,
    refusal: Option<String>,
    #[serde(default)]
    says: Vec<String>,
    /// It runs in every `make test`, not in `make zoo` alone.
    #[serde(default)]
    pub in_every_test: bool,
}

fn qemu() -> String {
    "qemu".to_owned()
}

fn little() -> String {
    "64M".to_owned()
}

fn first() -> String {
    "[0]".to_owned()
}

/// How a machine boots.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Road {
    /// The emulator loads the image.
    Kernel,
    /// BIOS, and GRUB from the CD.
    Bios,
    /// UEFI, and GRUB from the CD.
    Uefi,
    /// UEFI, and `BOOTX64.EFI` from the CD.
    Native,
}

impl Road {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Kernel, Self::Bios, Self::Uefi, Self::Native];

    const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Bios => "bios",
            Self::Uefi => "uefi",
            Self::Native => "native",
        }
    }

    /// Options of `nexit run` on QEMU.
    const fn options(self) -> &'static [&'static str] {
        match self {
            Self::Kernel => &["--boot", "kernel"],
            Self::Bios => &["--boot", "iso"],
            Self::Uefi => &["--boot", "uefi"],
            Self::Native => &["--boot", "uefi", "--loader", "native"],
        }
    }
}

impl fmt::Display for Road {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// All machines, in the file's order.
///
/// # Panics
/// The file is not as its own head says.
#[must_use]
pub fn machines() -> Vec<Machine> {
    let path = project_folder().join("tests/zoo/machines.toml");
    let text = std::fs::read_to_string(&path).map_err(|error| error.to_string());
    let rows: Result<Rows, String> =
        text.and_then(|text| toml::from_str(&text).map_err(|error| error.to_string()));
    assert!(rows.is_ok(), "{}: {:?}", path.display(), rows.err());
    rows.map(|rows| rows.machine).unwrap_or_default()
}

impl Machine {
    /// The machine of this name.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn named(name: &str) -> Self {
        let found = machines().into_iter().find(|machine| machine.name == name);
        let Some(machine) = found else { panic!("tests/zoo/machines.toml has no machine {name}") };
        machine
    }

    /// Which emulator it is in.
    #[must_use]
    pub fn emulator(&self) -> Emulator {
        match self.emulator.as_str() {
            "bochs" => Emulator::BochsVtd,
            "nested" => Emulator::Nested,
            _ => Emulator::Qemu,
        }
    }

    /// The ways to boot it.
    #[must_use]
    pub fn roads(&self) -> Vec<Road> {
        let wanted =
            |road: &Road| self.roads.iter().any(|name| name == "all" || name == road.name());
        match (self.emulator(), self.roads.is_empty()) {
            (Emulator::Bochs | Emulator::BochsVtd, _) => vec![Road::Bios],
            (Emulator::Qemu | Emulator::Nested, true) => vec![Road::Kernel],
            (Emulator::Qemu | Emulator::Nested, false) => {
                Road::ALL.into_iter().filter(wanted).collect()
            }
        }
    }

    /// Runs `toml` on it, with these devices besides its own, in a folder of this name.
    ///
    /// # Panics
    /// `nexit` cannot be started.
    #[must_use]
    pub fn run(&self, folder: &str, toml: &str, road: Road, devices: &Devices) -> Outcome {
        let bochs = build_folder().join("bochs3/bochs");
        let bochs = bochs.display().to_string();
        let timeout = if self.emulator() == Emulator::Nested { "1800" } else { "240" };
        let mut options = vec!["--emulator", self.emulator.as_str(), "--timeout", timeout];
        match self.emulator() {
            Emulator::Qemu | Emulator::Nested => options.extend(road.options()),
            Emulator::Bochs | Emulator::BochsVtd => {
                options.extend(["--bochs", bochs.as_str()]);
            }
        }
        options.extend(self.options.iter().map(String::as_str));
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        let own: Vec<&str> = devices.iter().collect();
        let devices = Devices::arguments(&arguments).and(&own);
        Folder::new(folder).run(toml, &options, &devices)
    }

    /// Runs the small guest on it.
    #[must_use]
    pub fn run_small_guest(&self, road: Road) -> Outcome {
        let folder = format!("zoo-{}-{road}", self.name);
        let Self { memory, cpus, .. } = self;
        let Some(device) = &self.device else {
            let payload = Payload { cpus, memory, ..Payload::new("memory") };
            return self.run(&folder, &payload.toml(), road, &Devices::none());
        };
        let guest = Guest {
            kernel: Kernel::Cloud,
            memory: "256M",
            ..Guest::on_qemu("nvme reads=200", "[]")
        };
        let toml = guest.toml();
        let toml = toml.replace("devices = []", &format!("devices = [\"{device}\"]"));
        let toml = toml.replace("cpus = [0]", &format!("cpus = {cpus}"));
        // Behind the bridge that the machine's own arguments call `last`, or on the root bus.
        let behind = self.arguments.iter().any(|argument| argument.contains("id=last"));
        self.run(
            &folder,
            &toml,
            road,
            &Devices::none().nvme_on(if behind { "last" } else { "pcie.0" }),
        )
    }

    /// What the small guest's run shows: a few words, or what is wrong.
    ///
    /// # Errors
    /// It did not end as the row says.
    pub fn judge(&self, outcome: &Outcome) -> Result<String, String> {
        let says = self.says.iter().find(|words| !outcome.output.contains(words.as_str()));
        if let Some(words) = says {
            return Err(format!("the log does not say \"{words}\""));
        }
        match &self.refusal {
            Some(words) => refused(outcome, words),
            None => ended(outcome, self.device.is_some()),
        }
    }
}

fn refused(outcome: &Outcome, words: &str) -> Result<String, String> {
    let error = outcome.own_lines().find_map(|line| line.strip_prefix("nexit: error: "));
    match error {
        Some(sentence) if sentence.contains("the hypervisor itself") => Err(sentence.to_owned()),
        Some(sentence) if sentence.contains(words) => Ok(format!("refused: {sentence}")),
        Some(sentence) => Err(format!("another refusal: {sentence}")),
        None => Err("not refused".to_owned()),
    }
}

fn ended(outcome: &Outcome, linux: bool) -> Result<String, String> {
    let name = if linux { "linux" } else { "memory" };
    let last = || {
        let lines = outcome.output.lines().chain(outcome.errors.lines());
        let errors = lines.clone().find(|line| line.contains("error:"));
        errors.or(lines.last()).unwrap_or_default().to_owned()
    };
    if outcome.status != Some(0) || outcome.guest_outcome(name) != Some("poweroff") {
        return Err(format!("status {:?}: {}", outcome.status, last()));
    }
    if let Some(line) = outcome.output.lines().find(|line| line.contains("FAILED")) {
        return Err(line.to_owned());
    }
    if !linux {
        let whole = outcome.payload("done").is_some();
        return if whole {
            Ok("ok".to_owned())
        } else {
            Err("the guest did not finish".to_owned())
        };
    }
    let line = outcome.result("nvme");
    match line.interrupt_exits() {
        0 => Ok(format!("ok, {} interrupts, 0 exits for them", line.get("interrupts"))),
        exits => Err(format!("{exits} exits for interrupts")),
    }
}
