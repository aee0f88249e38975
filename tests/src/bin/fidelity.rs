//! `make fidelity`: runs three payloads on the bare machine and under Nexit, in every mode on every emulator, and writes
//! the differences to `docs/fidelity.md`.
//!
//! `fidelity [--output FILE] [EMULATOR …]`: QEMU, both versions of Bochs and nested KVM if no name is given. The page has
//! the others, too, as they were seen last; `last` runs none.

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
    let mut names = EMULATORS.map(|emulator| emulator.to_string()).to_vec();
    names.push(NONE.to_owned());
    let arguments = Arguments::read(&names)?;
    let mut page = Page::default();
    for emulator in EMULATORS {
        let columns = if arguments.selects(&emulator.to_string()) {
            run_columns(emulator).map_err(|error| format!("{emulator}: {error}"))?
        } else {
            let Some(columns) = last_columns(emulator) else { continue };
            columns
        };
        page.add(emulator, &columns);
    }
    arguments.write(&page.text())?;
    Ok(page.unexplained == 0)
}

/// The bare machine's facts, and those under Nexit in each mode.
struct Columns {
    bare: Facts,
    modes: Vec<(&'static str, Facts)>,
}

fn run_columns(emulator: Emulator) -> Result<Columns, String> {
    let bare = facts(emulator, Column::Bare)?;
    println!("{emulator}: bare: {} facts", bare.0.len());
    let modes = modes(emulator).iter();
    let modes = modes.map(|mode| Ok((*mode, facts(emulator, Column::Nexit(mode))?)));
    Ok(Columns { bare, modes: modes.collect::<Result<_, String>>()? })
}

fn last_columns(emulator: Emulator) -> Option<Columns> {
    let modes = modes(emulator).iter();
    let modes = modes.map(|mode| Some((*mode, Facts::last(emulator, Column::Nexit(mode))?)));
    Some(Columns {
        bare: Facts::last(emulator, Column::Bare)?,
        modes: modes.collect::<Option<_>>()?,
    })
}

#[derive(Default)]
struct Page {
    columns: String,
    /// By fact and values: the emulators and modes with this difference.
    rows: BTreeMap<(String, String, String, Option<String>), Vec<String>>,
    unexplained: usize,
}

impl Page {
    fn add(&mut self, emulator: Emulator, columns: &Columns) {
        let known = known();
        let bare = &columns.bare;
        for (mode, seen) in &columns.modes {
            let different = compare(emulator, mode, bare, seen, &known);
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
    }

    fn text(&self) -> String {
        let mut rows = String::new();
        for ((fact, bare, under_nexit, reason), places) in &self.rows {
            let reason = reason.as_deref().unwrap_or("**not explained**");
            let places = places.join("; ");
            let _ = writeln!(rows, "| {fact} | {places} | {bare} | {under_nexit} | {reason} |");
        }
        format!(
            "# As on bare metal\n\n`make fidelity` generates this page. Three small programs print one line for each fact: \
             `fidelity` of the CPU and its local APIC, `modes` of its modes and deliveries, `features` of what CPUID \
             announces, of memory and of ports. They run on the bare machine, booted by multiboot, and as guests of Nexit \
             in each mode, and the lines are compared. `tests/fidelity/differences.toml` lists the permitted differences, \
             with reasons. All machines are emulated, including the bare machine. `nested` is KVM in Linux in Bochs 3; its bare machine is KVM's \
             guest.\n\n\
             Each group of facts is a module of `tests/payload/src/bin/fidelity`, `…/modes` or `…/features` that its `main.rs` \
             calls.\n\n\
             | Emulator | Mode | Facts | Equal | Explained | Not explained |\n|---|---|--:|--:|--:|--:|\n{}\n\
             ## Differences\n\n| Fact | Where | Bare | Under Nexit | Reason |\n|---|---|---|---|---|\n{rows}",
            self.columns
        )
    }
}
