//! The host side: builds Nexit images and guests, and runs them in an emulator.
//!
//! Path of a run: [`cli`] (what the user wants) → `scenario` (the configuration, checked) → [`qemu`],
//! [`bochs`] or `nested`, which is both (the machine) → `session` (the process, its console, and the user's `terminal`) → `verdict`
//! (what the hypervisor said of the guests) → exit status. Meanwhile others `attach`, a user by
//! `panes`. Public is what the benchmark and the tests
//! need, too.
#![forbid(unsafe_code)]

pub mod attach;
pub mod bochs;
#[cfg(test)]
mod book;
mod built;
mod cable;
mod check;
pub mod cli;
mod console;
pub mod demo;
mod dump;
pub mod failure;
mod files;
mod folders;
mod gdb;
mod image;
mod init;
pub mod machine;
mod nested;
mod output;
mod panes;
mod probe;
pub mod qemu;
mod report;
mod run;
mod scenario;
mod session;
mod size;
mod stats;
mod symbolize;
mod symbols;
mod terminal;
pub mod tool;
mod turn;
mod verdict;
pub mod vtd;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;

use cli::{Cli, Command, Format, ImageArgs, Loader};
use failure::{Failure, OrFailed as _, Result};
use scenario::Scenario;

/// The program `nexit`.
#[must_use]
pub fn main() -> ExitCode {
    match execute(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("nexit: {failure}");
            failure.exit_code()
        }
    }
}

fn execute(command: Command) -> Result<()> {
    match command {
        Command::Run(args) => run::run(&args),
        Command::Console(args) => panes::run(&args),
        Command::Image(args) => build_image(&args),
        Command::Probe(args) => probe::run(&args),
        Command::Check(args) => check::check(&args),
        Command::Init(args) => init::init(&args),
        Command::Demo(args) => {
            demo::build(args.kernel, &args.scripts, &args.programs, &args.output)
        }
        Command::Stats(args) => stats::print(&args),
        Command::Explain(args) => explain_log(&args.log),
        Command::Gdb(args) => gdb::serve(&args),
        Command::Dump(args) => dump::dump(&args),
        Command::Symbols(args) => symbols::write(&args),
        Command::Symbolize(args) => symbolize::print(&args),
    }
}

fn explain_log(path: &Path) -> Result<()> {
    let log = std::fs::read(path).or_failed("read", path)?;
    let reasons = explain::explain(&String::from_utf8_lossy(&log));
    if reasons.is_empty() {
        let path = path.display();
        return Err(Failure::Failed(format!("{path} has no line of an entry that a CPU refused")));
    }
    reasons.iter().for_each(|reason| println!("{reason}"));
    Ok(())
}

fn build_image(args: &ImageArgs) -> Result<()> {
    let scenario = Scenario::load(&args.config, args.unchecked)?;
    let (images, output) = (&args.images, args.output.as_path());
    match args.format {
        Format::Iso => {
            files::check_writable("--output", output, &scenario.files)?;
            image::build(&scenario, images, args.loader.unwrap_or(Loader::Grub), output)?;
        }
        Format::Esp => {
            let loader = args.loader.unwrap_or(Loader::Native);
            folders::system_partition(&scenario, images, loader, output)?;
        }
        Format::Directory | Format::Pxe if args.loader.is_some() => {
            let text = "--loader is for iso and esp: leave it out";
            return Err(Failure::Usage(text.to_owned()));
        }
        Format::Directory => folders::for_grub(&scenario, images, output)?,
        Format::Pxe => folders::for_ipxe(&scenario, images, output)?,
    }
    println!("nexit: wrote {}", args.output.display());
    Ok(())
}
