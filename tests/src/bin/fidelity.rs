//! `make fidelity`: runs one payload on the bare machine and under Nexit, in every mode on every emulator, and writes
//! the differences to `docs/fidelity.md`.
//!
//! `fidelity [--output FILE] [EMULATOR …]`: QEMU and both versions of Bochs if no name is given.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;

use nexit_tests::Emulator;
use nexit_tests::fidelity::{Column, Difference, compare, facts, known, modes};
use nexit_tests::page::Arguments;

const EMULATORS: [Emulator; 3] = [Emulator::Qemu, Emulator::Bochs, Emulator::BochsVtd];

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("fidelity: {error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<bool, String> {
    let arguments = Arguments::read(&EMULATORS.map(|emulator| emulator.to_string()))?;
    let mut page = Page::default();
    for emulator in EMULATORS.into_iter().filter(|one| arguments.selects(&one.to_string())) {
        page.add(emulator).map_err(|error| format!("{emulator}: {error}"))?;
    }
    arguments.write(&page.text())?;
    Ok(page.unexplained == 0)
}

#[derive(Default)]
struct Page {
    columns: String,
    /// By fact and values: the emulators and modes with this difference.
    rows: BTreeMap<(String, String, String, Option<String>), Vec<String>>,
    unexplained: usize,
}

impl Page {
    fn add(&mut self, emulator: Emulator) -> Result<(), String> {
        let known = known();
        let bare = facts(emulator, Column::Bare)?;
        println!("{emulator}: bare: {} facts", bare.0.len());
        for mode in modes(emulator) {
            let seen = facts(emulator, Column::Nexit(mode))?;
            let different = compare(emulator, mode, &bare, &seen, &known);
            let unexplained = different.iter().filter(|one| one.reason.is_none()).count();
            self.unexplained += unexplained;
            let (all, same) = (bare.0.len(), bare.0.len().saturating_sub(different.len()));
            let (explained, of) = (different.len() - unexplained, format!("{emulator}, {mode}"));
            println!("{of}: {same} of {all} the same, {explained} explained, {unexplained} not");
            let _ = writeln!(
                self.columns,
                "| {emulator} | {mode} | {all} | {same} | {explained} | {unexplained} |"
            );
            for Difference { fact, bare, under_nexit, reason } in different {
                if reason.is_none() {
                    println!("  {fact}: bare {bare}; under Nexit {under_nexit}");
                }
                self.rows.entry((fact, bare, under_nexit, reason)).or_default().push(of.clone());
            }
        }
        Ok(())
    }

    fn text(&self) -> String {
        let mut rows = String::new();
        for ((fact, bare, under_nexit, reason), places) in &self.rows {
            let reason = reason.as_deref().unwrap_or("**not explained**");
            let places = places.join("; ");
            let _ = writeln!(rows, "| {fact} | {places} | {bare} | {under_nexit} | {reason} |");
        }
        format!(
            "# As on bare metal\n\n`make fidelity` generates this page. A small program prints one line for each fact of the \
             CPU and its local APIC. It runs on the bare machine, booted by multiboot, and as a guest of Nexit in each \
             mode, and the lines are compared. `tests/fidelity/differences.toml` lists the permitted differences, with \
             reasons. All machines are emulated, including the bare machine.\n\nEach group of facts is a module of \
             `tests/payload/src/bin/fidelity` that its `main.rs` calls.\n\n\
             | Emulator | Mode | Facts | Equal | Explained | Not explained |\n|---|---|--:|--:|--:|--:|\n{}\n\
             ## Differences\n\n| Fact | Where | Bare | Under Nexit | Reason |\n|---|---|---|---|---|\n{rows}",
            self.columns
        )
    }
}
