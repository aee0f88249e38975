//! `procbench COUNT PROGRAM`: COUNT times starts a program and waits for it, and touches 1 MiB of fresh
//! memory page by page.

use std::process::{Command, ExitCode};

use guest_tools::{Window, describe};

const FRESH: usize = 1 << 20;
const PAGE: usize = 4096;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [count, program] = arguments.as_slice() else { return usage() };
    let Ok(count) = count.parse::<u64>() else { return usage() };
    let Ok(window) = Window::open("Local") else { return ExitCode::FAILURE };
    for _ in 0..count {
        if !Command::new(program).status().is_ok_and(|status| status.success()) {
            println!("procbench: {program} failed");
            return ExitCode::FAILURE;
        }
        let mut fresh = vec![0_u8; FRESH];
        fresh.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
        std::hint::black_box(fresh);
    }
    let Ok(outcome) = window.close() else { return ExitCode::FAILURE };
    println!("operations={count} {}", describe(&outcome));
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprintln!("usage: procbench COUNT PROGRAM");
    ExitCode::from(2)
}
