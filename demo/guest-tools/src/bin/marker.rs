//! `marker open|close`: opens or closes the inner window for a program that is not ours. `marker idle
//! SECONDS`: does nothing, within one.

use std::process::ExitCode;
use std::time::Duration;

use guest_tools::marker;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("open") => marker::open::<{ marker::WORK }>(),
        Some("close") => marker::close::<{ marker::WORK }>(),
        Some("idle") => {
            let seconds = std::env::args().nth(2).and_then(|word| word.parse().ok());
            marker::open::<{ marker::WORK }>();
            std::thread::sleep(Duration::from_secs(seconds.unwrap_or(1)));
            marker::close::<{ marker::WORK }>();
        }
        _ => return ExitCode::from(2),
    }
    ExitCode::SUCCESS
}
