//! `nexit check`: everything that is wrong with a configuration, and with it on a machine, before anything is
//! started. The refusals are `plan`'s, which the hypervisor asks at boot.
//!
//! Exit status: 0 nothing is refused, 1 something is, 2 it could not be checked.

pub(crate) mod facts;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod verdict;

use std::fmt;
use std::path::{Path, PathBuf};

use capture::Capture;
use config::Config;
use plan::{About, Plan, Refusal};
use serde::Serialize;

use crate::cli::CheckArgs;
use crate::failure::{Failure, Result};
use crate::files::Files;
use crate::scenario;
use facts::Facts;
use verdict::{DeviceVerdict, verdicts};

/// All that was found.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Findings {
    pub(crate) refusals: Vec<Finding>,
    pub(crate) remarks: Vec<Finding>,
    /// What could not be checked.
    pub(crate) unknown: Vec<String>,
    pub(crate) devices: Vec<DeviceVerdict>,
}

/// One of them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Finding {
    /// The configuration or the machine file.
    file: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    guest: Option<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    key: &'static str,
    /// What is wrong, where, and what to do.
    pub(crate) sentence: String,
}

/// Checks what `args` name.
pub(crate) fn check(args: &CheckArgs) -> Result<()> {
    let text = scenario::read(&args.config)?;
    let machine = args.machine.as_deref().map(read_machine).transpose()?;
    let machine = machine.as_ref().zip(args.machine.as_deref());
    let findings = find(&args.config, &text, machine);
    if args.json {
        let json = serde_json::to_string_pretty(&findings)
            .map_err(|error| Failure::Failed(format!("cannot write JSON: {error}")))?;
        println!("{json}");
    } else {
        print!("{findings}");
    }
    let count = findings.refusals.len();
    let plural = if count == 1 { "thing is" } else { "things are" };
    match count {
        0 => Ok(()),
        _ => Err(Failure::Failed(format!("{}: {count} {plural} wrong", args.config.display()))),
    }
}

/// The machine file at `path`.
pub(crate) fn read_machine(path: &Path) -> Result<Capture> {
    if path.is_dir() {
        let shown = path.display();
        return Err(Failure::Usage(format!(
            "{shown}: this is a folder: name the machine file in it"
        )));
    }
    Capture::read(path).map_err(|error| Failure::Usage(error.to_string()))
}

/// Everything about the configuration `text` from `path`, and the machine, if there is one.
pub(crate) fn find(path: &Path, text: &str, machine: Option<(&Capture, &Path)>) -> Findings {
    let mut findings = Findings::default();
    let facts = machine.map(|(capture, file)| (capture, file, Facts::new(capture)));
    let config = config::parse(text);
    if let Err(error) = &config {
        findings.refusals.push(Finding {
            file: path.to_path_buf(),
            line: error.line,
            guest: None,
            key: "",
            sentence: error.problem.to_string(),
        });
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    let plan = config.as_ref().ok().map(|config| {
        let (_, names) = scenario::boot_files(config, path, folder);
        let files = Files::find(config, folder);
        let plan = match &facts {
            Some((_, _, facts)) => facts.plan(config, &files),
            None => alone(config, &files),
        };
        let refusals = names.into_iter().chain(plan.refusals).collect();
        Plan { refusals, ..plan }
    });
    let file = facts.as_ref().map_or(path, |(_, file, _)| file);
    let finding = |refusal: &Refusal| Finding::new(path, file, refusal);
    match &plan {
        Some(plan) => {
            findings.refusals.extend(plan.refusals.iter().map(finding));
            findings.remarks.extend(plan.remarks.iter().map(finding));
        }
        // The machine is wrong whatever the file says.
        None => {
            let facts = facts.iter().flat_map(|(_, _, facts)| &facts.refusals);
            findings.refusals.extend(facts.map(finding));
        }
    }
    match facts {
        Some((capture, _, facts)) => {
            let owned = plan.as_ref().map(|plan| plan.functions.as_slice());
            findings.devices = verdicts(capture, &facts, config.as_ref().ok().zip(owned));
            let missing = capture.missing.iter().map(|missing| format!("in the machine file: {missing}"));
            findings.unknown = facts.unknown.into_iter().chain(missing).collect();
        }
        None => findings.unknown.push(
            "whether the machine has what this names: add --machine FILE, which `nexit probe` writes".to_owned(),
        ),
    }
    findings
}

fn alone(config: &Config, files: &Files) -> Plan {
    Plan { refusals: plan::check_alone(config, &|_, path| files.get(path)), ..Plan::default() }
}

impl Finding {
    fn new(config: &Path, machine: &Path, refusal: &Refusal) -> Self {
        let (file, guest) = match &refusal.about {
            About::Machine => (machine, None),
            About::Guest(name) => (config, Some(name.clone())),
            About::Shared(_) => (config, None),
        };
        Self {
            file: file.to_path_buf(),
            line: refusal.line,
            guest,
            key: refusal.key,
            sentence: refusal.words().to_string(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        write!(f, " {}", self.sentence)
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for refusal in &self.refusals {
            writeln!(f, "{refusal}")?;
        }
        for remark in &self.remarks {
            writeln!(f, "remark: {remark}")?;
        }
        for unknown in &self.unknown {
            writeln!(f, "not checked: {unknown}")?;
        }
        if self.refusals.is_empty() {
            writeln!(f, "nothing is refused")?;
        }
        if !self.devices.is_empty() {
            writeln!(f, "\nDevices")?;
        }
        self.devices.iter().try_for_each(|verdict| writeln!(f, "{verdict}"))
    }
}

impl fmt::Display for DeviceVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.at, self.id, self.what)?;
        if let Some(driver) = &self.driver {
            write!(f, " ({driver})")?;
        }
        match (&self.guest, &self.why_not) {
            (Some(guest), None) => write!(f, ": guest {guest}'s")?,
            (Some(guest), Some(why)) => write!(f, ": not for guest {guest}: {why}")?,
            (None, None) => write!(f, ": assignable")?,
            (None, Some(why)) => write!(f, ": not assignable: {why}")?,
        }
        if !self.together_with.is_empty() {
            write!(f, "\n    together with {}", self.together_with.join(", "))?;
        }
        if let Some(interrupts) = &self.interrupts {
            write!(f, "\n    interrupts: {interrupts}")?;
        }
        if let Some(reset) = &self.reset {
            write!(f, "\n    reset: {reset}")?;
        }
        self.notes.iter().try_for_each(|note| write!(f, "\n    {note}"))
    }
}
