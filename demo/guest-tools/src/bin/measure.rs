//! `measure NAME COMMAND…`: runs a command in a window and says what happened in it, one fact a line:
//!
//! ```text
//! bench: NAME status 0
//! bench: NAME ns 123
//! bench: NAME interrupt nvme0q1 1000
//! bench: NAME exit nmi 2
//! bench: NAME output …
//! ```

use std::io;
use std::process::{Command, ExitCode};
use std::time::Instant;

use guest_tools::{interrupts, marker, window};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, program, rest @ ..] = arguments.as_slice() else {
        eprintln!("usage: measure NAME COMMAND…");
        return ExitCode::from(2);
    };
    match measure(name, program, rest) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("bench: {name} status {program}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(name: &str, program: &str, arguments: &[String]) -> io::Result<bool> {
    let before = interrupts::all(&std::fs::read_to_string("/proc/interrupts")?);
    let exits = window::read_all()?;
    let start = Instant::now();
    marker::open::<{ marker::COMMAND }>();
    let output = Command::new(program).args(arguments).output();
    marker::close::<{ marker::COMMAND }>();
    let elapsed = start.elapsed().as_nanos();
    let exits = window::difference(&exits, &window::read_all()?);
    let after = interrupts::all(&std::fs::read_to_string("/proc/interrupts")?);
    let output = output?;
    println!("bench: {name} ns {elapsed}");
    for (line, count) in &after {
        let fresh = count - before.get(line).copied().unwrap_or_default();
        if fresh > 0 {
            println!("bench: {name} interrupt {line} {fresh}");
        }
    }
    for (reason, count) in exits.iter().flat_map(|exits| &exits.by_reason) {
        println!("bench: {name} exit {reason} {count}");
    }
    for text in [&output.stdout, &output.stderr] {
        for line in String::from_utf8_lossy(text).lines() {
            println!("bench: {name} output {line}");
        }
    }
    println!("bench: {name} status {}", output.status.code().unwrap_or(-1));
    Ok(output.status.success())
}
