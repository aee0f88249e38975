//! `nexit-fuzz`: gives the targets inputs, and counts them.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use nexit_fuzz::count::Counts;
use nexit_fuzz::{TARGETS, Target, corpus, mutate};

mod libfuzzer;

/// Inputs between two looks at the clock.
const PIECE: u64 = 1_000;

#[derive(Parser)]
#[command(about = "Any input to the parsers, state machines and the exit policy")]
struct Arguments {
    /// One target instead of all.
    #[arg(long, global = true)]
    target: Option<String>,
    /// Seconds in all.
    #[arg(long, global = true, default_value_t = 60)]
    total: u64,
    /// The page whose table counts the inputs.
    #[arg(long, global = true)]
    count: Option<PathBuf>,
    #[command(subcommand)]
    command: Order,
}

#[derive(Subcommand)]
enum Order {
    /// Mutations of the corpus by a seed.
    Run {
        /// The same seed gives the same inputs.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// libFuzzer, which looks for inputs that reach new code.
    Guided {
        /// The program `guided`, built with what counts coverage.
        #[arg(long)]
        program: PathBuf,
        /// Where its corpora and findings are.
        #[arg(long, default_value = "target/fuzz/corpus")]
        folder: PathBuf,
        /// Put what reaches new code into the corpus in the tree.
        #[arg(long)]
        keep: bool,
    },
    /// One input, as a line of a corpus: for a finding.
    Input {
        /// The bytes in hexadecimal.
        line: String,
    },
}

fn main() -> ExitCode {
    match work(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("nexit-fuzz: {sentence}");
            ExitCode::FAILURE
        }
    }
}

fn work(arguments: &Arguments) -> Result<(), String> {
    let wanted =
        |target: &&Target| arguments.target.as_deref().is_none_or(|name| name == target.name);
    let targets: Vec<&Target> = TARGETS.iter().filter(wanted).collect();
    if targets.is_empty() {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        return Err(format!("there is no such target; there are {}", names.join(", ")));
    }
    let seconds = (arguments.total / targets.len() as u64).max(1);
    let mut failed = Vec::new();
    for target in targets {
        let inputs = match &arguments.command {
            Order::Run { seed } => run(target, *seed, Duration::from_secs(seconds))?,
            Order::Guided { program, folder, keep } => {
                let paths = libfuzzer::Paths { program, folder };
                let (inputs, sound) = libfuzzer::run(target, &paths, seconds, *keep)?;
                if !sound {
                    failed.push(target.name);
                }
                inputs
            }
            Order::Input { line } => {
                let input = capture::bytes::unhex(line).ok_or("the input is not hexadecimal")?;
                (target.run)(&input);
                1
            }
        };
        println!("{}: {inputs} inputs", target.name);
        if let Some(page) = &arguments.count {
            Counts::add(Path::new(page), target.name, inputs)?;
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(format!("findings in {}", failed.join(", "))) }
}

/// Inputs until the time is over. A finding is a panic, which says the input.
fn run(target: &Target, seed: u64, time: Duration) -> Result<u64, String> {
    let corpus = corpus::read(target.name)?;
    let begin = Instant::now();
    let mut inputs = 0;
    while begin.elapsed() < time {
        inputs += mutate::run(target, &corpus, seed.wrapping_add(inputs), PIECE);
    }
    Ok(inputs)
}
