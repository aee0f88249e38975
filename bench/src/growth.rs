//! `nexit-bench growth`: what grows with CPUs and with guests. One guest of 1, 2, 4, 8 CPUs, then as many
//! guests of one CPU, each with a small payload of `tests/payload`.
//!
//! Boot time is virtual: with `-icount shift=0` a nanosecond passes with each instruction, so that it is a
//! count, the loops that wait for a time included.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use nexit::failure::{Failure, OrFailed, Result};
use nexit::tool::Tool;
use serde_json::Value;

use crate::cli::GrowthArgs;
use crate::history;
use crate::mode::{Mode, absolute};
use crate::reading::{self, reason};
use crate::results::{self, Figure, How};

/// CPUs of the one guest, or guests.
const STEPS: [usize; 4] = [1, 2, 4, 8];
/// Exit reasons that the payload `cost` has many of: local (CPUID, MSR) and behind the guest's lock (I/O).
const REASONS: [&str; 3] = ["cpuid", "msr", "io"];
/// Exits that an interrupt or its end would cost; the payload `gates` takes thousands.
const INTERRUPT_REASONS: [&str; 2] = ["external_interrupt", "eoi"];

/// What such results say that they are.
pub(crate) const GROWTH: &str = "growth";

/// What the machine is divided into.
#[derive(Clone, Copy, Debug)]
enum Kind {
    OneGuest,
    Guests,
}

/// Runs all of it, prints the table and writes the file of results.
pub(crate) fn run(args: &GrowthArgs) -> Result<()> {
    fs::create_dir_all(&args.folders.folder).or_failed("create", &args.folders.folder)?;
    let mut results = results::about("none: payloads");
    results.machine.insert("settings".to_owned(), GROWTH.to_owned());
    for (kind, name) in [(Kind::OneGuest, "CPUs of one guest"), (Kind::Guests, "guests of one CPU")]
    {
        for n in STEPS {
            let work = format!("{n} {name}");
            let figure = |(figure, how, value): (String, How, f64)| {
                let (work, mode) = (work.clone(), Mode::Exitless);
                Figure { work, mode, figure, how, n: 1, min: value, median: value, max: value }
            };
            results.figures.extend(measure(args, kind, n)?.into_iter().map(figure));
            println!("nexit-bench: {work}");
        }
    }
    print!("{}", table(&results.figures));
    args.folders.keep.as_ref().map_or(Ok(()), |folder| history::keep(&results, folder))?;
    println!("\nnexit-bench: {}", results::save(&results, &args.folders.results)?.display());
    Ok(())
}

fn measure(args: &GrowthArgs, kind: Kind, n: usize) -> Result<Vec<(String, How, f64)>> {
    let boot = nexit(args, kind, n, "cost", &["-icount", "shift=0"])?;
    let counts = args.folders.folder.join("growth.counts");
    let plugin = format!("{},out={}", args.plugin.display(), counts.display());
    let interrupts = nexit(args, kind, n, "gates", &[])?;
    nexit(args, kind, n, "cost", &["-plugin", &plugin])?;
    let text = fs::read_to_string(&counts).or_failed("read", &counts)?;
    let all = reading::windows(&text)?.into_iter().rfind(|window| window.window.is_none());
    let all = all.ok_or_else(|| Failure::Failed(format!("no sum in {}", counts.display())))?.sum();
    let mut figures = vec![
        ("memory, bytes".to_owned(), How::Reported, number(&boot, "memory_bytes")?),
        ("boot, virtual ns".to_owned(), How::Counted, number(&boot, "boot_tsc")?),
    ];
    for name in REASONS {
        let mut codes = all.by_code.iter().filter(|(code, _)| reason(code) == name);
        let (_, cost) =
            codes.next().ok_or_else(|| Failure::Failed(format!("no exit by {name}")))?;
        let each = cost.instructions as f64 / cost.exits as f64;
        figures.push((format!("instructions per {name} exit"), How::Counted, each));
    }
    let guests = interrupts["guests"].as_array();
    let vcpus =
        guests.into_iter().flatten().filter_map(|guest| guest["vcpus"].as_array()).flatten();
    let exits =
        vcpus.map(|vcpu| INTERRUPT_REASONS.map(|name| vcpu["exits"][name].as_f64().unwrap_or(0.0)));
    let exits: f64 = exits.flatten().sum();
    figures.push(("exits by interrupt and EOI".to_owned(), How::Counted, exits));
    Ok(figures)
}

/// Runs the payload in that many guests, or in one of that many CPUs; the report.
fn nexit(args: &GrowthArgs, kind: Kind, n: usize, payload: &str, extra: &[&str]) -> Result<Value> {
    let kernel = absolute(&args.payloads.join(payload))?;
    let [config, report, log] =
        ["toml", "json", "log"].map(|end| args.folders.folder.join(format!("growth.{end}")));
    fs::write(&config, toml(kind, n, &kernel)).or_failed("write", &config)?;
    let program = std::env::current_exe().unwrap_or_default().with_file_name("nexit");
    let mut tool = Tool::new(&program.to_string_lossy())
        .args(["run", "--timeout", "120", "--config"])
        .arg(&config);
    tool = tool.arg("--report").arg(&report).arg("--").args(extra);
    fs::write(&log, tool.output()?).or_failed("write", &log)?;
    let text = fs::read_to_string(&report).or_failed("read", &report)?;
    serde_json::from_str(&text)
        .map_err(|error| Failure::Failed(format!("{}: {error}", report.display())))
}

fn toml(kind: Kind, n: usize, kernel: &Path) -> String {
    let cpus = match kind {
        Kind::OneGuest => vec![(0..n).collect::<Vec<_>>()],
        Kind::Guests => (0..n).map(|cpu| vec![cpu]).collect(),
    };
    let mut text = String::new();
    for (index, cpus) in cpus.iter().enumerate() {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "[[guest]]\nname = \"g{index}\"\ncpus = {cpus:?}\nmemory = \"16M\"\nkernel = \"{}\"",
            kernel.display()
        );
    }
    text
}

fn number(report: &Value, key: &str) -> Result<f64> {
    report[key].as_f64().ok_or_else(|| Failure::Failed(format!("no {key} in the report")))
}

/// One row for each step. Pure.
fn table(figures: &[Figure]) -> String {
    const COLUMN: usize = 28;
    let works: Vec<&[Figure]> = figures.chunk_by(|one, next| one.work == next.work).collect();
    let heading = works.first().into_iter().copied().flatten();
    let heading: String = heading.map(|figure| format!("{:>COLUMN$}", figure.figure)).collect();
    let mut text = format!("{:<20}{heading}\n", "");
    for figures in works {
        let cells = figures.iter().map(|figure| {
            let digits = usize::from(figure.median.fract() != 0.0) * 2;
            format!("{:>COLUMN$.digits$}", figure.median)
        });
        let work = figures.first().map_or("", |figure| &figure.work);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{work:<20}{}", cells.collect::<String>());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_figures_of_a_step() {
        let figure = |work: &str, figure: &str, value| Figure {
            work: work.to_owned(),
            mode: Mode::Exitless,
            figure: figure.to_owned(),
            how: How::Counted,
            n: 1,
            min: value,
            median: value,
            max: value,
        };
        let figures = ["1", "2"].map(|n| [figure(n, "a", 1.0), figure(n, "b", 2.5)]).concat();
        let text = table(&figures);
        let rows: Vec<Vec<&str>> =
            text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows, [vec!["a", "b"], vec!["1", "1", "2.50"], vec!["2", "1", "2.50"]]);
    }

    #[test]
    fn each_guest_has_cpus_of_its_own() {
        let one = toml(Kind::OneGuest, 2, Path::new("/k"));
        assert_eq!(
            one,
            "[[guest]]\nname = \"g0\"\ncpus = [0, 1]\nmemory = \"16M\"\nkernel = \"/k\"\n"
        );
        let two = toml(Kind::Guests, 2, Path::new("/k"));
        assert_eq!((two.matches("[[guest]]").count(), two.contains("cpus = [1]\n")), (2, true));
    }
}
