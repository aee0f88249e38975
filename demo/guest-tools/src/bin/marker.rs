//! `marker open|close`: opens or closes the inner window for a program that is not ours.

use std::process::ExitCode;

use guest_tools::marker;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("open") => marker::open::<{ marker::WORK }>(),
        Some("close") => marker::close::<{ marker::WORK }>(),
        _ => return ExitCode::from(2),
    }
    ExitCode::SUCCESS
}
