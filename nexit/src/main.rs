//! `nexit`: the host-side command line.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    nexit::main()
}
