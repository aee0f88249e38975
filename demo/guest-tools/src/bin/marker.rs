//! `marker open|close`: opens or closes the inner window for a program that is not ours. `marker sleep COUNT
//! MILLISECONDS`: sleeps so often, within one.

use std::process::ExitCode;
use std::time::Duration;

use guest_tools::{Window, describe, marker};

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("open") => marker::open::<{ marker::WORK }>(),
        Some("close") => marker::close::<{ marker::WORK }>(),
        Some("sleep") => return sleep().unwrap_or(ExitCode::FAILURE),
        _ => return ExitCode::from(2),
    }
    ExitCode::SUCCESS
}

fn sleep() -> Option<ExitCode> {
    let number = |index| std::env::args().nth(index)?.parse().ok();
    let (count, pause) = (number(2)?, Duration::from_millis(number(3)?));
    let window = Window::open("Local").ok()?;
    (0..count).for_each(|_| std::thread::sleep(pause));
    println!("operations={count} {}", describe(&window.close().ok()?));
    Some(ExitCode::SUCCESS)
}
