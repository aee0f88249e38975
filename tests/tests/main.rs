//! Every test on an emulator, in one program: its threads take one test after the other, so that the machine's
//! processors are at work until the last one, and one limit holds for all emulators.

mod apic;
mod bars;
mod bochs;
mod boot;
mod boots;
mod check;
mod clocks;
mod command_line;
mod console;
mod cost;
mod cost_exits;
mod debugging;
mod ends;
mod every;
mod fidelity;
mod firmware;
mod fuzz;
mod generations;
mod hostile;
mod image;
mod linux32;
mod lost_processor;
mod neighbours;
mod nested;
mod partitions;
mod payloads;
mod probe;
mod processors;
mod qemu;
mod refusals;
mod serial;
mod shared;
mod silent;
mod steps;
mod sweep;
mod typed;
mod vtx_vtd;
mod wired;
mod zoo;

/// A file that is not named above would not be run.
#[test]
fn every_file_is_part_of_this_program() {
    let folder = nexit_tests::project_folder().join("tests/tests");
    let named: Vec<String> = include_str!("main.rs")
        .lines()
        .filter_map(|line| Some(line.strip_prefix("mod ")?.strip_suffix(';')?.to_owned()))
        .collect();
    let mut there: Vec<String> = std::fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some(entry.path().file_stem()?.to_str()?.to_owned()))
        .filter(|name| name != "main")
        .collect();
    there.sort();
    assert_eq!(named, there, "in {}", folder.display());
}
