//! `make zoo`: the small guest on every machine by every road, and the table of what came out.
//!
//! `zoo [--output FILE] [NAME …]`: without names all machines.

use std::fmt::Write as _;
use std::process::ExitCode;

use nexit_tests::zoo::{Machine, Road, machines};

fn main() -> ExitCode {
    let mut output = None;
    let mut names: Vec<String> = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--output" { output = arguments.next() } else { names.push(argument) }
    }
    let all = machines();
    if let Some(unknown) =
        names.iter().find(|name| !all.iter().any(|machine| machine.name == **name))
    {
        eprintln!("zoo: tests/zoo/machines.toml has no machine {unknown}");
        return ExitCode::from(2);
    }
    let chosen = all.iter().filter(|machine| names.is_empty() || names.contains(&machine.name));
    let mut table = Table::default();
    for machine in chosen {
        table.add(machine);
        // After each: a run that is cut short leaves what it has seen.
        if let Some(output) = &output
            && let Err(error) = std::fs::write(output, table.text())
        {
            eprintln!("zoo: cannot write {output}: {error}");
            return ExitCode::FAILURE;
        }
    }
    println!("{} passed, {} failed", table.passed, table.failed);
    if table.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[derive(Default)]
struct Table {
    rows: String,
    passed: u32,
    failed: u32,
}

impl Table {
    fn add(&mut self, machine: &Machine) {
        let roads = machine.roads();
        let _ = write!(
            self.rows,
            "| `{}` | {} | {} |",
            machine.name,
            machine.emulator(),
            machine.about
        );
        for road in Road::ALL {
            let cell = if roads.contains(&road) { self.run(machine, road) } else { String::new() };
            let _ = write!(self.rows, " {} |", cell.replace('|', "/"));
        }
        self.rows.push('\n');
    }

    fn run(&mut self, machine: &Machine, road: Road) -> String {
        let verdict = machine.judge(&machine.run_small_guest(road));
        let (word, text) = match &verdict {
            Ok(text) => ("ok", text.clone()),
            Err(text) => ("FAILED", format!("**failed**: {text}")),
        };
        if verdict.is_ok() {
            self.passed += 1
        } else {
            self.failed += 1
        }
        println!("{} {road}: {word}: {text}", machine.name);
        text
    }

    fn text(&self) -> String {
        format!(
            "# The zoo\n\nMade by `make zoo`; the machines stand in `tests/zoo/machines.toml`. On each machine a small \
             guest must reach its end, or Nexit must refuse the machine by the right sentence. Without a device the \
             guest looks at all of its memory; with one it is Linux and reads 200 blocks by NVMe. All of it is \
             emulation: no row is real hardware.\n\n{} passed, {} failed.\n\n\
             | Machine | Emulator | What is special | `-kernel` | BIOS, GRUB | UEFI, GRUB | UEFI, native |\n\
             |---|---|---|---|---|---|---|\n{}",
            self.passed, self.failed, self.rows
        )
    }
}
