//! `nexit-bench`: the same stock guest and the same work on the bare machine, under Nexit in its interrupt
//! modes, and under KVM with VFIO, side by side in one emulated machine.
//!
//! Path of a run: [`images`] (what boots) → [`mode`] (one boot in one mode) → [`reading`] (what guest and
//! plugin said) → [`results`] (figures with their spread) → [`table`], [`page`].
//!
//! Where nothing counts instructions (KVM, real machines), [`mode`] without the plugin or [`hardware`] in its
//! place: the guest's programs count ticks of the TSC.
//!
//! Invariant: counted figures, ticks and times never share a column. Everything counted comes from the TCG
//! plugin (`bench/plugin`) or the emulator's instruction clock; what is derived says so.
#![forbid(unsafe_code)]

mod bochs;
mod chart;
mod cli;
mod compare;
mod growth;
mod hardware;
mod history;
mod images;
mod mode;
mod model;
mod page;
mod profile;
mod question;
mod reading;
mod results;
mod run;
mod start;
mod table;
mod vectors;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser as _;
use nexit::failure::Result;

use cli::{Cli, Command};
use results::Results;

fn main() -> ExitCode {
    match execute(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("nexit-bench: {failure}");
            failure.exit_code()
        }
    }
}

/// The page, from the results of several machines.
fn report(files: &[PathBuf], output: &Path, pictures: Option<&Path>) -> Result<()> {
    let mut all = Results::default();
    for file in files {
        all.merge(results::load(file)?);
    }
    page::write(&all, output)?;
    pictures.map_or(Ok(()), |folder| page::pictures(&all, folder))
}

fn execute(command: Command) -> Result<()> {
    match command {
        Command::Run(args) => run::run(&args),
        Command::Image(args) => hardware::image(&args),
        Command::Read(args) => hardware::read(&args),
        Command::Growth(args) => growth::run(&args),
        Command::Report { results, output, pictures } => {
            report(&results, &output, pictures.as_deref())
        }
        Command::Keep { results, folder } => history::keep(&results::load(&results)?, &folder),
        Command::Compare { results } => compare::print(&results::history(&results)?),
        Command::Profile { counts, image } => profile::print(&counts, &image),
    }
}
