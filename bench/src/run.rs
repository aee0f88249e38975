//! `nexit-bench run`: the modes interleaved, again and again, then what came out.

use std::fs;
use std::path::{Path, PathBuf};

use nexit::cli::Accel;
use nexit::failure::{Failure, OrFailed, Result};
use nexit::qemu;

use crate::cli::{Count, Folders, MachineKind, RunArgs};
use crate::images::{self, Images};
use crate::mode::{Boot, Mode, Output};
use crate::question::Technology;
use crate::reading::{self, Measured};
use crate::results::{Figure, Results};
use crate::{bochs, history, page, results, start, table, vectors};

/// The works of `bench/guest/init`.
const WORKS: [&str; 8] = ["nvme", "slow", "e1000e", "igb", "timer", "ipi", "process", "idle"];

/// A CPU beside its emulation: work that is over too soon is little beside the start of its program.
const FASTER: u32 = 50;

/// Runs the benchmark.
pub(crate) fn run(args: &RunArgs) -> Result<()> {
    let count = args.count()?;
    qemu::check(args.accel)?;
    let modes = modes(args, count);
    let on = |machine| args.on(machine, count);
    let repeat = args.repeat.unwrap_or(if args.quick { 1 } else { 3 });
    fs::create_dir_all(&args.folders.folder).or_failed("create", &args.folders.folder)?;
    let images = images::build(&args.folders.folder, &args.programs, modes.contains(&Mode::Kvm))?;
    let faster = if args.accel == Accel::Kvm { FASTER } else { 1 };
    let words = words(args, &wanted(args, &WORKS), faster);
    let mut results = results::about(&images.version);
    results.machine.insert("settings".to_owned(), format!("{words} repeat={repeat}"));
    if count == Count::Tsc {
        let accel = if args.accel == Accel::Kvm { "KVM" } else { "TCG, which stands in for a CPU" };
        results.machine.insert("accelerator".to_owned(), accel.to_owned());
    }
    let mut runs = Vec::new();
    let starts = starts(args, &modes, count, &images, &mut results)?;
    if on(MachineKind::VtX) {
        // Once: Bochs does the same each time.
        vt_x(args, &modes, &mut results, &mut runs)?;
        results.figures = results::aggregate(&runs);
    }
    let in_qemu = on(MachineKind::AmdV);
    let counted = in_qemu && count == Count::Plugin;
    let handlers = if counted { Some(handlers(args, &images)?) } else { None };
    let counter = handlers.as_deref().map(|handlers| (args.plugin.as_path(), handlers));
    // QEMU's own emulation has none of what the mode `posted` needs.
    let there = |mode: &&Mode| **mode != Mode::Posted || args.accel == Accel::Kvm;
    for turn in (1..=repeat).filter(|_| in_qemu) {
        for mode in modes.iter().filter(there) {
            let output = boot(args, &images, counter, &words, *mode, turn);
            let works = output.map(|(works, console)| {
                if count == Count::Tsc {
                    results.add_facts(*mode, &console);
                } else {
                    keep_page_counts(&mut results, "AMD-V", *mode, &console);
                }
                works
            });
            let notes = take(*mode, works, &mut runs);
            let notes = notes.into_iter().map(|note| format!("{} run {turn}: {note}", mode.name()));
            results.notes.extend(notes);
            results.figures = results::aggregate(&runs);
            results.machine.insert("host load after".to_owned(), results::load_average());
            if !results.figures.is_empty() {
                // At once, as a later boot may hang or be cut short.
                results::save(&results, &args.folders.results)?;
            }
        }
        if results.figures.is_empty() {
            // Nor would the next repetition bring anything.
            break;
        }
    }
    results.figures.extend(starts);
    if results.figures.is_empty() {
        let text = format!("nothing was measured: {}", results.notes.join("; "));
        return Err(Failure::Failed(text));
    }
    finish(&mut results, &args.folders)
}

/// The exits of a guest's start, in the modes of Nexit.
fn starts(
    args: &RunArgs,
    modes: &[Mode],
    count: Count,
    images: &Images,
    results: &mut Results,
) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    if wanted(args, &[start::WORK]).is_empty() || args.accel == Accel::Kvm {
        return Ok(figures);
    }
    for (machine, technology) in
        [(MachineKind::VtX, Technology::VtX), (MachineKind::AmdV, Technology::AmdV)]
    {
        let small;
        let (kernel, initrd) = match technology {
            _ if !args.on(machine, count) => continue,
            Technology::AmdV => (&images.kernel, &images.initrd),
            Technology::VtX => {
                small = bochs::images(&args.folders.folder, &args.programs)?;
                (&small.kernel, &small.initrd)
            }
        };
        let there = |mode: &&Mode| match mode {
            Mode::Exitless | Mode::Exiting => true,
            Mode::Posted => technology == Technology::VtX,
            Mode::Bare | Mode::Kvm => false,
        };
        for mode in modes.iter().filter(there) {
            match start::measure(technology, *mode, kernel, initrd, &args.folders.folder) {
                Ok(measured) => figures.extend(measured),
                Err(failure) => {
                    let note = format!("{}, {}: start: {failure}", technology.name(), mode.name());
                    results.notes.push(note);
                }
            }
            println!("nexit-bench: {}, {}: start", technology.name(), mode.name());
        }
    }
    Ok(figures)
}

/// The last figures, the table, the file of results and the page.
pub(crate) fn finish(results: &mut Results, folders: &Folders) -> Result<()> {
    results.figures.extend(results::beyond_bare(results));
    print!("{}", table::text(results));
    let path = results::save(results, &folders.results)?;
    folders.keep.as_ref().map_or(Ok(()), |folder| history::keep(results, folder))?;
    fs::create_dir_all(&folders.folder).or_failed("create", &folders.folder)?;
    let report = folders.folder.join("report.html");
    page::write(results, &report)?;
    println!("\nnexit-bench: {} and {}", path.display(), report.display());
    Ok(())
}

/// Keeps what a boot measured and returns what went wrong: the rest still says something.
pub(crate) fn take(
    mode: Mode,
    works: Result<Vec<Measured>>,
    runs: &mut Vec<(Mode, Vec<Measured>)>,
) -> Vec<String> {
    match works {
        Ok(works) => {
            let (bad, good): (Vec<_>, Vec<_>) =
                works.into_iter().partition(|work| work.failed.is_some());
            runs.push((mode, good));
            bad.into_iter().filter_map(|work| work.failed).collect()
        }
        Err(failure) => vec![failure.to_string()],
    }
}

fn modes(args: &RunArgs, count: Count) -> Vec<Mode> {
    if !args.modes.is_empty() {
        return args.modes.clone();
    }
    let without_kvm = args.quick || count == Count::Tsc;
    Mode::ALL.into_iter().filter(|mode| !without_kvm || *mode != Mode::Kvm).collect()
}

/// VT-x in Bochs: each mode once on each machine, the payload and Linux.
fn vt_x(
    args: &RunArgs,
    modes: &[Mode],
    results: &mut Results,
    runs: &mut Vec<(Mode, Vec<Measured>)>,
) -> Result<()> {
    let images = bochs::images(&args.folders.folder, &args.programs)?;
    for kind in &bochs::KINDS {
        let works = wanted(args, kind.works);
        if works.is_empty() {
            continue;
        }
        let words = words(args, &works, 1);
        for mode in bochs::modes(modes) {
            let start = std::time::Instant::now();
            let boot = |payload, results: &mut Results| -> Result<Vec<Measured>> {
                let console = bochs::boot(kind, args, &images, &words, mode, payload)?;
                keep_page_counts(results, kind.name, mode, &console);
                let mut works = reading::works(&console, None)?;
                works.iter_mut().for_each(|work| work.work.insert_str(0, bochs::PREFIX));
                Ok(works)
            };
            let payload = kind.micro.then_some(Some(args.payload.as_path()));
            for payload in payload.into_iter().chain([None]) {
                let notes = take(mode, boot(payload, results), runs);
                results.notes.extend(notes.into_iter().map(|note| format!("VT-x: {note}")));
            }
            let seconds = start.elapsed().as_secs();
            println!("nexit-bench: {}, {}: {seconds} s", kind.name, mode.name());
        }
    }
    Ok(())
}

/// Those of `all` that are to run.
fn wanted<'a>(args: &RunArgs, all: &[&'a str]) -> Vec<&'a str> {
    let wanted = |work: &&str| args.works.is_empty() || args.works.iter().any(|w| w == work);
    all.iter().copied().filter(wanted).collect()
}

/// `faster` is how much the machine does in an emulator's time.
fn words(args: &RunArgs, works: &[&str], faster: u32) -> String {
    let usual = if args.quick { 5 } else { 20 };
    let scale = args.scale.unwrap_or(usual * faster);
    let works = works.join(",");
    let idle = if args.quick { 2 } else { 10 };
    format!("works={works} n={scale} idle={idle}")
}

/// The plugin's file of handlers, by a boot that is only for this where there is none yet for this kernel.
fn handlers(args: &RunArgs, images: &Images) -> Result<PathBuf> {
    let path = args.folders.folder.join("cache").join(format!("vectors-{}", images.version));
    if !path.is_file() {
        let words = "works=, symbols=1";
        let boot = Boot {
            images,
            accel: args.accel,
            plugin: Some(&args.plugin),
            words,
            steady: 0,
            vectors: None,
            payload: None,
            folder: &args.folders.folder,
        };
        let output = boot.run(Mode::Bare, 0)?;
        let unknown = || Failure::Failed("the guest's kernel hides where its handlers are".into());
        let text = vectors::file(&output.console).ok_or_else(unknown)?;
        fs::write(&path, text).or_failed("write", &path)?;
    }
    Ok(path)
}

/// `counter` is the plugin and its file of handlers, if it counts.
fn boot(
    args: &RunArgs,
    images: &Images,
    counter: Option<(&Path, &Path)>,
    words: &str,
    mode: Mode,
    turn: u32,
) -> Result<(Vec<Measured>, String)> {
    let start = std::time::Instant::now();
    let steady = if mode == Mode::Exitless && turn == 1 { args.steady } else { 0 };
    let words = &format!("{words} steady={steady}");
    let linux = Boot {
        images,
        accel: args.accel,
        plugin: counter.map(|(plugin, _)| plugin),
        words,
        steady,
        vectors: counter.map(|(_, handlers)| handlers),
        payload: None,
        folder: &args.folders.folder,
    };
    let read = |output: &Output| match &output.counts {
        Some(counts) => reading::works(&output.console, Some(counts)),
        None => reading::ticks(&output.console),
    };
    let mut works = Vec::new();
    // The payload's page tables and console are not made for a guest of KVM.
    if mode != Mode::Kvm {
        let payload = Some(args.payload.as_path());
        let output = Boot { payload, ..linux }.run(mode, turn)?;
        works.extend(read(&output)?);
    }
    let output = linux.run(mode, turn)?;
    works.extend(read(&output)?);
    let seconds = start.elapsed().as_secs();
    println!("nexit-bench: {} run {turn}: {} works, {seconds} s", mode.name(), works.len());
    Ok((works, output.console))
}

/// Keeps of which pages the guest's nested table is, as the hypervisor's log says it.
fn keep_page_counts(results: &mut Results, machine: &str, mode: Mode, console: &str) {
    if let Some((_, rest)) = console.split_once(": nested table ") {
        let counts = rest.lines().next().unwrap_or_default();
        let key = format!("nested pages, {machine}, {}", mode.name());
        results.machine.insert(key, counts.to_owned());
    }
}
