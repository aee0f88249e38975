//! `make fidelity`: the same payload bare and under Nexit, in every mode on every emulator, and the page of what
//! differs.
//!
//! `fidelity [--output FILE] [EMULATOR …]`: without names QEMU and both versions of Bochs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;

use nexit_tests::Emulator;
use nexit_tests::fidelity::{Column, Difference, compare, facts, known, modes};

const EMULATORS: [Emulator; 3] = [Emulator::Qemu, Emulator::Bochs, Emulator::BochsVtd];

fn main() -> ExitCode {
    let mut output = None;
    let mut names: Vec<String> = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--output" { output = arguments.next() } else { names.push(argument) }
    }
    let chosen = EMULATORS.into_iter();
    let chosen =
        chosen.filter(|emulator| names.is_empty() || names.contains(&emulator.to_string()));
    let mut page = Page::default();
    for emulator in chosen {
        if let Err(error) = page.add(emulator) {
            eprintln!("fidelity: {emulator}: {error}");
            return ExitCode::FAILURE;
        }
    }
    if let Some(output) = &output
        && let Err(error) = std::fs::write(output, page.text())
    {
        eprintln!("fidelity: cannot write {output}: {error}");
        return ExitCode::FAILURE;
    }
    if page.unexplained == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[derive(Default)]
struct Page {
    columns: String,
    /// By fact and values, where it is so.
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
            "# As on bare metal\n\nMade by `make fidelity`. A small program prints a line for each fact of the CPU and its \
             local APIC. It runs on the bare machine, booted by multiboot, and as a guest of Nexit in each mode, and the \
             lines are compared. What may differ stands in `tests/fidelity/differences.toml`, with the reason. All of it \
             is emulation: the bare machine is the emulator's.\n\nA group of facts is a module of \
             `tests/payload/src/bin/fidelity` and a call in its `main.rs`.\n\n\
             | Emulator | Mode | Facts | The same | Explained | Not explained |\n|---|---|--:|--:|--:|--:|\n{}\n\
             ## What differs\n\n| Fact | Where | Bare | Under Nexit | Reason |\n|---|---|---|---|---|\n{rows}",
            self.columns
        )
    }
}
