//! `make zoo`: boots the small guest on every machine in every way, and writes `docs/zoo.md`.
//!
//! `zoo [--output FILE] [NAME …]`: all machines if no name is given.

use std::fmt::Write as _;
use std::process::ExitCode;

use nexit_tests::page::Arguments;
use nexit_tests::zoo::{Machine, Road, machines};

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("zoo: {error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<bool, String> {
    let all = machines();
    let names: Vec<String> = all.iter().map(|machine| machine.name.clone()).collect();
    let arguments = Arguments::read(&names)?;
    let mut table = Table::default();
    for machine in all.iter().filter(|machine| arguments.selects(&machine.name)) {
        table.add(machine);
        // After each row: an interrupted run leaves the rows so far.
        arguments.write(&table.text())?;
    }
    println!("{} passed, {} failed", table.passed, table.failed);
    Ok(table.failed == 0)
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
            "# The zoo\n\n`make zoo` generates this page from the machines in `tests/zoo/machines.toml`. On each machine \
             a small guest must run to its end, or Nexit must refuse the machine with the expected sentence. Without a \
             device, the guest checks all of its memory. With one, it is Linux and reads 200 blocks by NVMe. All \
             machines are emulated; none is real hardware.\n\n{} passed, {} failed.\n\n\
             | Machine | Emulator | Configuration | `-kernel` | BIOS, GRUB | UEFI, GRUB | UEFI, native |\n\
             |---|---|---|---|---|---|---|\n{}",
            self.passed, self.failed, self.rows
        )
    }
}
