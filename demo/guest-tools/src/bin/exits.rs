//! `exits INTERRUPT-NAME COMMAND…`: runs a command and says what it cost in interrupts and exits.
//! The exit status is the command's.

use std::process::{Command, ExitCode};

use guest_tools::{Window, describe};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, program, rest @ ..] = arguments.as_slice() else {
        eprintln!("usage: exits INTERRUPT-NAME COMMAND…");
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
