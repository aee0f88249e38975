//! `nexit probe`: what a machine is, before Nexit is started on it.
//!
//! `sys` and `cpus` read Linux' trees, `acpidump` and `lspci` texts of these programs, `log` what
//! `probe = true` printed: each adds to one [`Capture`]. `summary` says in words what follows from it.

mod acpidump;
mod cpus;
mod log;
mod lspci;
mod output;
mod summary;
mod sys;
mod words;

#[cfg(test)]
mod tests;

use std::fs;
use std::path::Path;

use capture::{Capture, Table};

use crate::cli::ProbeArgs;
use crate::failure::{Failure, OrFailed as _, Result};
use output::Output;
use sys::Trees;

/// No text of `acpidump` or `lspci` and no log is longer.
const MAX_TEXT: u64 = 64 << 20;

/// Carries the command out.
pub(crate) fn run(args: &ProbeArgs) -> Result<()> {
    let output = args.output.as_deref().map(Output::open).transpose()?;
    let capture = match (&args.from, &args.from_log) {
        (Some(folder), _) => from_folder(folder)?,
        (None, Some(log)) => from_log(log)?,
        (None, None) => here(),
    };
    print!("{}", summary::summary(&capture));
    if let Some(output) = output {
        let path = output.write(&capture)?;
        println!("\nnexit: wrote {}", path.display());
    }
    Ok(())
}

/// This machine.
fn here() -> Capture {
    let mut capture = Capture::new("this Linux");
    let trees = Trees { sys: "/sys".into(), proc: "/proc".into(), live: true };
    cpus::read(&trees, &mut capture);
    trees.read(&mut capture);
    capture
}

fn from_log(path: &Path) -> Result<Capture> {
    if path.is_dir() {
        return Err(Failure::Usage(format!(
            "{} is a folder, and --from-log wants the log of a serial line: a folder is for --from",
            path.display()
        )));
    }
    let log = fs::read(path).or_failed("read", path)?;
    log::read(&String::from_utf8_lossy(&log), &format!("the log {}", path.display()))
        .map_err(|why| Failure::Failed(format!("{}: {why}", path.display())))
}

/// A copy of another machine's files, or what programs said there.
fn from_folder(folder: &Path) -> Result<Capture> {
    let shown = folder.display();
    if !folder.exists() {
        return Err(Failure::Usage(format!("there is no folder {shown}")));
    }
    if !folder.is_dir() {
        return Err(Failure::Usage(format!(
            "{shown} is a file, and --from wants a folder: with a copy of /sys and /proc, or the texts of \
             `acpidump` and `lspci -xxxx -vvv`; a log of Nexit is for --from-log"
        )));
    }
    let mut capture = Capture::new(format!("the folder {shown}"));
    let texts = Texts::read(folder)?;
    let inside = |name: &str| Some(folder.join(name)).filter(|path| path.is_dir());
    let own = |mark: &str| Some(folder.to_path_buf()).filter(|path| path.join(mark).exists());
    let sys = inside("sys").or_else(|| own("bus/pci/devices")).or_else(|| own("firmware/acpi"));
    let proc = inside("proc").or_else(|| own("cpuinfo"));
    let trees = sys.is_some() || proc.is_some();
    if trees {
        let none = folder.join("sys");
        let (sys, proc) = (sys.unwrap_or(none), proc.unwrap_or_else(|| folder.join("proc")));
        let trees = Trees { sys, proc, live: false };
        cpus::read(&trees, &mut capture);
        trees.read(&mut capture);
    }
    texts.add(&mut capture, trees);
    if capture.tables.is_empty() && capture.functions.is_empty() && capture.cpus.is_empty() {
        return Err(Failure::Failed(format!(
            "in {shown} there is nothing of a machine: neither a copy of /sys and /proc (`sys`, `proc`), \
             nor a text of `acpidump`, nor one of `lspci -xxxx -vvv`{}",
            capture.missing.iter().fold(String::new(), |text, it| text + "; " + it)
        )));
    }
    Ok(capture)
}

/// What lies in a folder beside copies of trees.
#[derive(Default)]
struct Texts {
    acpidump: Vec<String>,
    lspci: Vec<String>,
    /// Names and bytes of files that are tables.
    tables: Vec<(String, Vec<u8>)>,
}

impl Texts {
    /// Reads the folder's files; what they are shows in their contents.
    fn read(folder: &Path) -> Result<Self> {
        let mut texts = Self::default();
        for path in sys::entries(folder).or_failed("read", folder)? {
            let length = fs::metadata(&path).map(|it| if it.is_file() { it.len() } else { 0 });
            if !length.is_ok_and(|length| (1..=MAX_TEXT).contains(&length)) {
                continue;
            }
            let bytes = fs::read(&path).or_failed("read", &path)?;
            let text = String::from_utf8_lossy(&bytes).replace('\r', "");
            if acpidump::is_one(&text) {
                texts.acpidump.push(text);
            } else if lspci::is_one(&text) {
                texts.lspci.push(text);
            } else if is_table(&bytes) {
                texts.tables.push((sys::name(&path), bytes));
            }
        }
        Ok(texts)
    }

    /// Adds what the trees do not have, or have less of.
    fn add(self, capture: &mut Capture, trees: bool) {
        let Self { acpidump, lspci, tables } = self;
        if capture.tables.is_empty() {
            let wanted = acpidump.len() + tables.len();
            for text in &acpidump {
                let (found, wrong) = acpidump::read(text);
                let is_key = |table: &Table| ["MSDM", "SLIC"].contains(&table.signature.as_str());
                capture.tables.extend(found.into_iter().filter(|table| !is_key(table)));
                capture.missing.extend(wrong);
            }
            for (name, bytes) in tables {
                sys::add_table(capture, bytes, &name);
            }
            if wanted > 0 {
                capture.missing.retain(|it| !it.starts_with("the firmware's ACPI tables"));
            } else if !trees {
                capture.missing.push(String::from(
                    "the firmware's ACPI tables: there is no text of `acpidump` in the folder",
                ));
            }
        }
        for text in &lspci {
            let (found, wrong) = lspci::read(text);
            let more = |it: &capture::Function| {
                let known = capture.function(it.at);
                known.is_none_or(|known| known.config.0.len() < it.config.0.len())
            };
            let found: Vec<capture::Function> = found.into_iter().filter(|it| more(it)).collect();
            if !found.is_empty() {
                capture.missing.extend(wrong);
                capture.missing.retain(|it| {
                    !it.starts_with("configuration space behind")
                        && !it.starts_with("the PCI functions")
                });
            }
            for function in found {
                capture.functions.retain(|known| known.at != function.at);
                capture.functions.push(function);
            }
        }
        capture.functions.sort_by_key(|function| function.at);
        if lspci.is_empty() && capture.functions.is_empty() && !trees {
            capture.missing.push(String::from(
                "the PCI functions: there is no text of `lspci -xxxx -vvv` in the folder",
            ));
        }
        if !trees {
            capture.missing.push(String::from(
                "CPUs and memory map: copy /proc and /sys of the machine, too, or run `nexit probe` there",
            ));
        }
    }
}

/// Whether a file is an ACPI table as Linux has it, or `acpidump -b`.
fn is_table(bytes: &[u8]) -> bool {
    let length = arch::bytes::u32_at(bytes, 4).map_or(0, |length| length as usize);
    let name = bytes.get(..4).unwrap_or_default();
    let plain = name.iter().all(|byte| {
        byte.is_ascii_uppercase() || byte.is_ascii_digit() || *byte == b'_' || *byte == b'!'
    });
    plain && length == bytes.len() && length >= 36
}
