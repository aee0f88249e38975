//! `nexit`: the host-side command line. Builds images and runs them in an emulator.
//!
//! Path of a run: [`cli`] (what the user wants) → [`scenario`] (the configuration, checked) →
//! [`qemu`] or [`bochs`] (the machine) → [`run`] (the process, its console) → [`verdict`] (what the
//! hypervisor said of the guests) → exit status.
#![forbid(unsafe_code)]

mod cli;
mod demo;
mod failure;
mod scenario;
mod size;
mod tool;

use std::process::ExitCode;

use clap::Parser as _;

use cli::{Cli, Command};
use failure::Result;

fn main() -> ExitCode {
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
        Command::Demo(args) => demo::build(args.kernel, &args.scripts, &args.programs, &args.output),
        _ => Ok(()),
    }
}
