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
        for mode in &modes {
            match boot(args, &images, &words, *mode, turn) {
                Ok(works) => {
                    let (bad, good): (Vec<_>, Vec<_>) =
                        works.into_iter().partition(|work| work.failed.is_some());
                    let notes = bad.into_iter().filter_map(|work| work.failed);
                    results
                        .notes
                        .extend(notes.map(|note| format!("{} {turn}: {note}", mode.name())));
                    runs.push((*mode, good));
                }
                // The others still say something.
                Err(failure) => {
                    eprintln!("nexit-bench: {failure}");
                    results.notes.push(format!("{} run {turn}: {failure}", mode.name()));
                }
            }
        }
    }
    results.figures = results::aggregate(&runs);
    results.machine.insert("host load after".to_owned(), results::load_average());
    print!("{}", table::text(&results));
    let path = results::save(&results, &args.results)?;
    let report = args.folder.join("report.html");
    page::write(&results, &report)?;
    println!("\nnexit-bench: {} and {}", path.display(), report.display());
    Ok(())
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
    let boot = Boot { images, plugin: &args.plugin, words, folder: &args.folder };
    let output = boot.run(mode, turn)?;
    let works = reading::works(&output.console, &output.counts)?;
    let seconds = start.elapsed().as_secs();
    println!("nexit-bench: {} run {turn}: {} works, {seconds} s", mode.name(), works.len());
    Ok(works)
}
