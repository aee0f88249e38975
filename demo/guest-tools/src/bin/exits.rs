//! `exits INTERRUPT-NAME COMMAND…`: runs a command and says what it cost in interrupts and exits.
//! The exit status is the command's.
//!
//! `exits` alone, as the kernel's first program (`rdinit=/bin/exits`): says what the first CPU's exits have been
//! since the guest began.

use std::process::{Command, ExitCode};

use guest_tools::counters::{Counters, ThisCpu, read};
use guest_tools::{Window, describe};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, program, rest @ ..] = arguments.as_slice() else {
        if let (true, Some(counters)) = (arguments.is_empty(), read(&mut ThisCpu)) {
            let none =
                Counters { by_reason: vec![0; counters.by_reason.len()], ..Counters::default() };
            // What the reading itself cost is in no counter before it is stopped.
            println!("demo: start: ok {}", none.until(&Counters { queries: 0, ..counters }));
            return ExitCode::SUCCESS;
        }
        eprintln!("usage: exits [INTERRUPT-NAME COMMAND…]");
        return ExitCode::from(2);
    };
    match measure(name, program, rest) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("exits: {program}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(name: &str, program: &str, arguments: &[String]) -> std::io::Result<bool> {
    let window = Window::open(name)?;
    let status = Command::new(program).args(arguments).status()?;
    println!("{}", describe(&window.close()?));
    Ok(status.success())
}
