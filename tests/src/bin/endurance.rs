//! `make endurance`: long runs, and what is the same after them as before: `docs/endurance.md`.
//!
//! `endurance [--output FILE] [PART …]`: all parts if no name is given. `PERCENT` in the environment, 100 by default,
//! scales them.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Instant;

use nexit_tests::endurance::{Amount, PARTS, run};
use nexit_tests::page::Arguments;

const HEAD: &str = "# Endurance\n\n`make endurance` generates this page: hours of work on emulated machines, and what is \
    the same after it as before. `PERCENT=1 make endurance` does a hundredth. A part that was not run has no row.\n\n\
    | Part | Claim | Result | Minutes it took |\n|---|---|---|--:|\n";

fn main() -> ExitCode {
    match all() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("endurance: {error}");
            ExitCode::from(2)
        }
    }
}

fn all() -> Result<bool, String> {
    let names: Vec<String> = PARTS.iter().map(|part| part.0.to_owned()).collect();
    let arguments = Arguments::read(&names)?;
    let percent = match std::env::var("PERCENT") {
        Err(_) => 100,
        Ok(text) => match text.parse() {
            Ok(percent @ 1..=1000) => percent,
            _ => return Err(format!("PERCENT is {text}: give a whole number from 1 to 1000")),
        },
    };
    let (mut page, mut good) = (HEAD.to_owned(), true);
    for part in PARTS.iter().filter(|part| arguments.selects(part.0)) {
        println!("{}: {}", part.0, part.1);
        let begin = Instant::now();
        let result = run(part, Amount::percent(percent));
        good &= result.is_ok();
        // A failure's words may be a whole log, which is in the part's folder.
        let failure =
            |words: String| format!("**failed**: {}", words.lines().next().unwrap_or_default());
        let result = result.unwrap_or_else(failure);
        println!("{}: {result}", part.0);
        let _ = writeln!(
            page,
            "| {} | {} | {result} | {} |",
            part.0,
            part.1,
            begin.elapsed().as_secs().div_ceil(60)
        );
        // After each part: an interrupted run leaves the rows so far.
        arguments.write(&page)?;
    }
    Ok(good)
}
