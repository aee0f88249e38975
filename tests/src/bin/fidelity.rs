//! `make fidelity`: runs four payloads on the bare machine and under Nexit, in every mode on every emulator, and writes
//! the differences to `docs/fidelity.md`.
//!
//! `fidelity [--output FILE] [EMULATOR | EMULATOR-COLUMN …]`: QEMU, both versions of Bochs and nested KVM if no name is given,
//! each with the columns `bare`, `exitless`, `exiting` and, where it has it, `posted`. The page has the others, too, as they
//! were seen last; `last` runs none.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;

use nexit_tests::Emulator;
use nexit_tests::fidelity::{Column, Difference, Facts, compare, facts, known, modes};
use nexit_tests::page::Arguments;

const EMULATORS: [Emulator; 4] =
    [Emulator::Qemu, Emulator::Bochs, Emulator::BochsVtd, Emulator::Nested];
const NONE: &str = "last";

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
    let mut names = vec![NONE.to_owned()];
    for emulator in EMULATORS {
        names.push(emulator.to_string());
        names.extend(columns(emulator).map(|column| name(emulator, column)));
    }
    let arguments = Arguments::read(&names)?;
    let mut page = Page::default();
    for emulator in EMULATORS {
        let mut seen = Vec::new();
        for column in columns(emulator) {
            let name = name(emulator, column);
            let now = arguments.selects(&emulator.to_string()) || arguments.selects(&name);
            let facts = if now {
                Some(facts(emulator, column).map_err(|error| format!("{name}: {error}"))?)
            } else {
                Facts::last(emulator, column)
            };
            seen.push(facts);
        }
        let mut seen = seen.into_iter();
        let Some(bare) = seen.next().flatten() else { continue };
        for (mode, seen) in modes(emulator).iter().zip(seen) {
            if let Some(seen) = seen {
                page.add(emulator, mode, &bare, &seen);
            }
        }
    }
    arguments.write(&page.text())?;
    Ok(page.unexplained == 0)
}

/// The bare machine, and Nexit in each mode.
fn columns(emulator: Emulator) -> impl Iterator<Item = Column> {
    std::iter::once(Column::Bare).chain(modes(emulator).iter().map(|mode| Column::Nexit(mode)))
}

fn name(emulator: Emulator, column: Column) -> String {
    format!("{emulator}-{}", column.name())
}

#[derive(Default)]
struct Page {
    columns: String,
    /// By fact and values: the emulators and modes with this difference.
    rows: BTreeMap<(String, String, String, Option<String>), Vec<String>>,
    unexplained: usize,
}

impl Page {
    fn add(&mut self, emulator: Emulator, mode: &str, bare: &Facts, seen: &Facts) {
        let different = compare(emulator, mode, bare, seen, &known());
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

    fn text(&self) -> String {
        let mut rows = String::new();
        for ((fact, bare, under_nexit, reason), places) in &self.rows {
            let reason = reason.as_deref().unwrap_or("**not explained**");
            let places = places.join("; ");
            let _ = writeln!(rows, "| {fact} | {places} | {bare} | {under_nexit} | {reason} |");
        }
        format!(
            "# As on bare metal\n\n`make fidelity` generates this page. Four small programs print one line for each fact: \
             `fidelity` of the CPU and its local APIC, `modes` of its modes and deliveries, `features` of what CPUID \
             announces, of memory and of ports, `pair` of what only two CPUs show. They run on the bare machine, booted by multiboot, and as guests of Nexit \
             in each mode, and the lines are compared. `tests/fidelity/differences.toml` lists the permitted differences, \
             with reasons. All machines are emulated, including the bare machine. `nested` is KVM in Linux in Bochs 3; its bare machine is KVM's \
             guest.\n\n\
             Each group of facts is a module of `tests/payload/src/bin/fidelity`, `…/modes`, `…/features` or `…/pair` that its `main.rs` \
             calls.\n\n\
             | Emulator | Mode | Facts | Equal | Explained | Not explained |\n|---|---|--:|--:|--:|--:|\n{}\n\
             ## Differences\n\n| Fact | Where | Bare | Under Nexit | Reason |\n|---|---|---|---|---|\n{rows}",
            self.columns
        )
    }
}
