//! `nexit-bench run`: the modes interleaved, again and again, then what came out.

use std::fs;

use nexit::failure::{OrFailed, Result};

use crate::cli::RunArgs;
use crate::images::{self, Images};
use crate::mode::{Boot, Mode};
use crate::reading::{self, Measured};
use crate::{page, results, table};

/// The works of `bench/guest/init`.
const WORKS: [&str; 8] = ["nvme", "slow", "e1000e", "igb", "timer", "ipi", "process", "idle"];

/// Runs the benchmark.
pub(crate) fn run(args: &RunArgs) -> Result<()> {
    let modes = modes(args);
    let repeat = args.repeat.unwrap_or(if args.quick { 1 } else { 3 });
    fs::create_dir_all(&args.folder).or_failed("create", &args.folder)?;
    let images = images::build(&args.folder, &args.programs, modes.contains(&Mode::Kvm))?;
    let words = words(args);
    let mut results = results::about(&images.version);
    results.machine.insert("settings".to_owned(), format!("{words} repeat={repeat}"));
    let mut runs = Vec::new();
    for turn in 1..=repeat {
        // KVM's machine takes longer than all others together.
        for mode in modes.iter().filter(|mode| turn == 1 || **mode != Mode::Kvm) {
            let works = boot(args, &images, &words, *mode, turn);
            let notes = take(*mode, works, &mut runs);
            let notes = notes.into_iter().map(|note| format!("{} run {turn}: {note}", mode.name()));
            results.notes.extend(notes);
            results.figures = results::aggregate(&runs);
            results.machine.insert("host load after".to_owned(), results::load_average());
            // At once, as a later boot may hang or be cut short.
            results::save(&results, &args.results)?;
        }
    }
    print!("{}", table::text(&results));
    let path = results::save(&results, &args.results)?;
    let report = args.folder.join("report.html");
    page::write(&results, &report)?;
    println!("\nnexit-bench: {} and {}", path.display(), report.display());
    Ok(())
}

/// Keeps what a boot measured and returns what went wrong: the rest still says something.
fn take(
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

fn modes(args: &RunArgs) -> Vec<Mode> {
    if !args.modes.is_empty() {
        return args.modes.clone();
    }
    Mode::ALL.into_iter().filter(|mode| !args.quick || *mode != Mode::Kvm).collect()
}

fn words(args: &RunArgs) -> String {
    let scale = args.scale.unwrap_or(if args.quick { 10 } else { 100 });
    let works = if args.works.is_empty() { WORKS.join(",") } else { args.works.join(",") };
    let idle = if args.quick { 2 } else { 10 };
    format!("works={works} n={scale} idle={idle}")
}

fn boot(
    args: &RunArgs,
    images: &Images,
    words: &str,
    mode: Mode,
    turn: u32,
) -> Result<Vec<Measured>> {
    let start = std::time::Instant::now();
    let linux = Boot { images, plugin: &args.plugin, words, payload: None, folder: &args.folder };
    let mut works = Vec::new();
    // The payload's page tables and console are not made for a guest of KVM.
    if mode != Mode::Kvm {
        let payload = Some(args.payload.as_path());
        let output = Boot { payload, ..linux }.run(mode, turn)?;
        works.extend(reading::works(&output.console, &output.counts)?);
    }
    let output = linux.run(mode, turn)?;
    works.extend(reading::works(&output.console, &output.counts)?);
    let seconds = start.elapsed().as_secs();
    println!("nexit-bench: {} run {turn}: {} works, {seconds} s", mode.name(), works.len());
    Ok(works)
}
