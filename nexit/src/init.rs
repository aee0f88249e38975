//! `nexit init`: a configuration for a machine, to begin with: one guest that has every device that a guest can
//! have, whole cores, and the memory that fits; a core is left for a second guest.
//!
//! Invariant: what it writes passes `nexit check` on the same machine but for the files, which the user
//! supplies.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use capture::Capture;
use plan::devices::stays;
use plan::memory;
use plan::processors::MAX_CPUS;

use crate::check::facts::Facts;
use crate::check::read_machine;
use crate::check::verdict::{DeviceVerdict, verdicts};
use crate::cli::InitArgs;
use crate::failure::{Failure, OrFailed as _, Result};

const MIB: u64 = 1 << 20;
/// Room for kernel and initrd, which are not known yet.
const FILES: u64 = 256 * MIB;

/// Writes or prints the proposal.
pub(crate) fn init(args: &InitArgs) -> Result<()> {
    let capture = read_machine(&args.machine)?;
    let text = propose(&capture, &args.machine)?;
    let Some(output) = &args.output else {
        print!("{text}");
        return Ok(());
    };
    let shown = output.display();
    if output.exists() {
        let text =
            format!("--output {shown}: it is there already: remove it, or name another file");
        return Err(Failure::Usage(text));
    }
    let mut file =
        OpenOptions::new().write(true).create_new(true).open(output).or_failed("create", output)?;
    file.write_all(text.as_bytes()).or_failed("write", output)?;
    println!("nexit: wrote {shown}; edit kernel, initrd and cmdline in it, then:");
    println!("nexit check {shown} --machine {}", args.machine.display());
    Ok(())
}

/// The proposal for a machine, whose file is called `file`.
pub(crate) fn propose(capture: &Capture, file: &Path) -> Result<String> {
    let facts = Facts::new(capture);
    if let Some(refusal) = facts.refusals.first() {
        let words = refusal.words();
        return Err(Failure::Failed(format!(
            "{}: no guest can run there: {words}",
            file.display()
        )));
    }
    let (first, second) = split(&facts);
    let (memory, left) = memory(&facts, !second.is_empty());
    let mut text = String::new();
    head(&mut text, capture, file);
    if facts.no_iommu.is_some() {
        without_iommu(&mut text, &facts);
    }
    let _ = write!(
        text,
        "\n[[guest]]\nname = \"first\"\n# {}\ncpus = {first:?}\n# {}\nmemory = \"{memory}M\"\n",
        about_cpus(&facts, &first),
        about_memory(&facts, left)
    );
    text.push_str(
        "kernel = \"vmlinuz\"           # EDIT: a Linux bzImage, or a multiboot kernel\n\
         initrd = \"initrd.img\"        # EDIT, or remove it\n\
         cmdline = \"console=ttyS0\"    # EDIT: what the system needs, such as root=\n",
    );
    devices(&mut text, capture, &facts);
    if !second.is_empty() {
        second_guest(&mut text, &second, left);
    }
    Ok(text)
}

fn head(text: &mut String, capture: &Capture, file: &Path) {
    let system = capture.system.as_deref().unwrap_or("a machine");
    let file = file.display();
    let _ = writeln!(
        text,
        "# {} for {}, as {file} describes it. Proposed by `nexit init`.\n\
         # Edit the lines that say EDIT, then: nexit check {} --machine {file}",
        config::FILE_NAME,
        plain(system),
        config::FILE_NAME
    );
    for missing in &capture.missing {
        let _ = writeln!(text, "# Not known when this was proposed: {}", plain(missing));
    }
}

/// Without line breaks and other control characters.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn without_iommu(text: &mut String, facts: &Facts) {
    let why = facts.no_iommu.as_deref().unwrap_or_default();
    let _ = writeln!(
        text,
        "#\n# No IOMMU can be used: {}.\n\
         # So no device can be given to a guest, unless the guest is trusted with the whole machine:\n\
         # then remove the # of the next line, and write devices = \"all\" below.\n\
         # unsafe_no_iommu = true",
        plain(why)
    );
}

/// The CPUs of a first and a second guest: whole cores, the last one for the second.
fn split(facts: &Facts) -> (Vec<u32>, Vec<u32>) {
    // A CPU that does not tell its core is one.
    let core = |number: u32| {
        let cpu = facts.cpus.get(number as usize);
        cpu.and_then(|cpu| cpu.core).map_or((1, number), |core| (0, core))
    };
    let count = facts.cpus.len().max(1) as u32;
    let mut cores: Vec<Vec<u32>> = Vec::new();
    for number in 0..count {
        match cores.iter_mut().find(|known| known.iter().any(|it| core(*it) == core(number))) {
            Some(known) => known.push(number),
            None => cores.push(vec![number]),
        }
    }
    let second = if cores.len() > 1 { cores.pop().unwrap_or_default() } else { Vec::new() };
    let mut first: Vec<u32> = Vec::new();
    for core in cores {
        if first.len() + core.len() <= MAX_CPUS {
            first.extend(core);
        }
    }
    first.sort_unstable();
    (first, second)
}

fn about_cpus(facts: &Facts, first: &[u32]) -> String {
    if facts.cpus.is_empty() {
        return "EDIT: the machine file does not say how many CPUs there are".to_owned();
    }
    let rest = facts.cpus.len() - first.len();
    let kept = match rest {
        0 => String::new(),
        1 => ", 1 is left".to_owned(),
        _ => format!(", {rest} are left"),
    };
    format!(
        "The machine has {} CPUs, counted from 0 in the MADT's order; threads of one core are together{kept}",
        facts.cpus.len()
    )
}

/// MiB for the first guest, and what is left for a second.
fn memory(facts: &Facts, second: bool) -> (u64, u64) {
    /// Without a memory map.
    const GUESS: u64 = 1024;
    let all = facts.free([FILES].into_iter(), 0).available() / MIB;
    let left = match all {
        _ if !second => 0,
        4096.. => 1024,
        1024.. => 256,
        _ => 0,
    };
    // The largest that is there in the pieces that a guest can have.
    let fits = |mebibytes: u64| {
        let mut pool = facts.free([FILES].into_iter(), (mebibytes + left) * MIB);
        let Some(guest) = guest(mebibytes) else { return false };
        let map = memory::map(&guest, None, None);
        memory::find(&guest, &map, None, &mut pool).is_ok() && pool.available() >= left * MIB
    };
    let unit = if all > 8192 { 256 } else { 16 };
    let most = (1..=all / unit).rev().map(|units| units * unit).find(|it| fits(*it));
    (most.unwrap_or(GUESS), left)
}

fn guest(mebibytes: u64) -> Option<config::GuestConfig> {
    let text =
        format!("[[guest]]\nname = \"-\"\ncpus = [0]\nmemory = \"{mebibytes}M\"\nkernel = \"-\"\n");
    config::parse(&text).ok()?.guests.into_iter().next()
}

fn about_memory(facts: &Facts, left: u64) -> String {
    let all = facts.free([].into_iter(), 0).available() / MIB;
    if all == 0 {
        return "EDIT: the machine file does not say how much memory there is".to_owned();
    }
    format!(
        "About {all} MiB are free beside the hypervisor; {} MiB of them are for files that the loader \
         brings, {left} for a second guest",
        FILES / MIB
    )
}

fn devices(text: &mut String, capture: &Capture, facts: &Facts) {
    let verdicts = verdicts(capture, facts, None);
    let of = |at: &str| facts.view.functions.iter().find(|function| function.bdf.to_string() == at);
    let wanted = |it: &&DeviceVerdict| of(&it.at).is_some_and(|function| !stays(function));
    let mut given = String::new();
    let (mut except, mut lines, mut left) = (Vec::new(), Vec::new(), String::new());
    for verdict in verdicts.iter().filter(wanted) {
        let (at, what) = (&verdict.at, plain(&verdict.what));
        if let Some(why) = &verdict.why_not {
            except.push(at.clone());
            let _ = writeln!(left, "#   {at} {what}: {}", plain(why));
            continue;
        }
        let interrupts = verdict.interrupts.as_deref().unwrap_or("not known");
        let reset = verdict.reset.as_deref().unwrap_or("not known");
        let _ = writeln!(given, "#   {at} {what}: interrupts {interrupts}; reset {reset}");
        if interrupts.starts_with("only by its pin") {
            lines.push(format!("\"{at}=LINE\""));
        }
    }
    if facts.no_iommu.is_some() {
        text.push_str("devices = []\n");
        return;
    }
    let kept = facts.view.functions.iter().filter(|it| it.is_of_the_platform());
    let kept: Vec<String> = kept.map(|function| function.bdf.to_string()).collect();
    if !kept.is_empty() {
        let _ = writeln!(
            left,
            "#   {}: SMBus and SPI controllers (the board's sensors, its firmware), left out by default",
            kept.join(", ")
        );
    }
    if !given.is_empty() {
        let _ = write!(text, "# Every device that a guest can have:\n{given}");
    }
    text.push_str("devices = \"all\"\n");
    if !left.is_empty() {
        let _ = write!(text, "# Left out:\n{left}");
    }
    if !except.is_empty() {
        let _ = writeln!(text, "except = {except:?}");
    }
    if !lines.is_empty() {
        let _ = writeln!(
            text,
            "# EDIT, or they raise no interrupt: LINE is the IRQ that `lspci -v` shows in a Linux without \
             Nexit\n# intx = [{}]",
            lines.join(", ")
        );
    }
}

fn second_guest(text: &mut String, cpus: &[u32], left: u64) {
    let memory = left.max(64);
    let room = if left == 0 { " (and take as much from the first)" } else { "" };
    let _ = write!(
        text,
        "\n# A second guest, on the core that is left{room}: remove the #, or give its CPUs to the first.\n\
         # [[guest]]\n# name = \"second\"\n# cpus = {cpus:?}\n# memory = \"{memory}M\"\n\
         # kernel = \"vmlinuz\"\n# initrd = \"initrd.img\"\n# cmdline = \"console=ttyS0\"\n"
    );
}

#[cfg(test)]
mod tests;
