//! How fast the TSC runs, on machines that lack one clock or another, or all time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nexit_tests::{Devices, Folder, Outcome, Payload};

/// Boots a small guest to its end.
fn boot(name: &str, payload: &Payload<'_>, options: &[&str], devices: &[&str]) -> Outcome {
    let options = [&["--timeout", "120"], options].concat();
    let outcome = Folder::new(name).run(&payload.toml(), &options, &Devices::arguments(devices));
    assert_eq!(outcome.status, Some(0), "{outcome}");
    outcome
}

fn ends() -> Payload<'static> {
    Payload { command_line: "poweroff", ..Payload::new("ends") }
}

/// What the boot line says: kHz, the error in parts per million, and the source.
fn tsc(outcome: &Outcome) -> (u64, u64, String) {
    let told = outcome.own_lines().find_map(|line| line.split_once("TSC at "));
    let parts = told.and_then(|(_, told)| told.split_once(" kHz ("));
    let read = parts.and_then(|(khz, source)| {
        let errors = source.split("within ").skip(1).map(|text| text.split(' ').next());
        let least = errors.filter_map(|ppm| ppm?.parse().ok()).min();
        Some((khz.parse().ok()?, least?, source.to_owned()))
    });
    read.unwrap_or_else(|| panic!("no line on the TSC\n{outcome}"))
}

/// Both true frequencies are one: no further apart than the two errors together.
#[track_caller]
fn assert_same_tsc(one: &Outcome, other: &Outcome) {
    let ((khz, ppm, _), (other_khz, other_ppm, _)) = (tsc(one), tsc(other));
    // A host corrects its clocks by up to 500 ppm.
    let most = khz * (ppm + other_ppm + 500) / 1_000_000;
    assert!(khz.abs_diff(other_khz) <= most, "{khz} and {other_khz} kHz");
}

#[test]
fn a_machine_without_one_clock_or_another_knows_its_tsc_all_the_same() {
    let all = boot("clocks-all", &ends(), &[], &[]);
    assert!(tsc(&all).2.starts_with("HPET within "), "{all}");
    for (name, machine, source) in [
        ("clocks-no-pit", "q35,pit=off", "HPET within "),
        ("clocks-no-hpet", "q35,hpet=off", "ACPI timer within "),
        ("clocks-acpi-timer-alone", "q35,pit=off,hpet=off", "ACPI timer within "),
    ] {
        let outcome = boot(name, &ends(), &[], &["-machine", machine]);
        assert!(tsc(&outcome).2.starts_with(source), "{outcome}");
        assert_same_tsc(&all, &outcome);
    }
}

#[test]
fn processors_start_without_a_pit() {
    let payload = Payload { cpus: "[3]", ..ends() };
    let outcome = boot("clocks-smp", &payload, &["--cpus", "4"], &["-machine", "q35,pit=off"]);
    assert!(outcome.own_lines().any(|line| line.contains("4 CPUs")), "{outcome}");
}

#[test]
fn a_busy_boot_is_right_within_the_error_that_it_tells() {
    let quiet = boot("clocks-quiet", &ends(), &[], &[]);
    let over = Arc::new(AtomicBool::new(false));
    let threads = 4 * thread::available_parallelism().map_or(2, usize::from);
    let busy: Vec<_> = (0..threads)
        .map(|_| Arc::clone(&over))
        .map(|over| thread::spawn(move || while !over.load(Ordering::Relaxed) {}))
        .collect();
    let outcomes = ["clocks-busy-1", "clocks-busy-2", "clocks-busy-3"]
        .map(|name| boot(name, &ends(), &[], &[]));
    over.store(true, Ordering::Relaxed);
    let ended = busy.into_iter().all(|thread| thread.join().is_ok());
    assert!(ended);
    for outcome in &outcomes {
        assert_same_tsc(&quiet, outcome);
    }
}

/// The model has the leaves of the CPU that was sold, and `ips` is how fast it is.
#[test]
fn a_frequency_that_bochs_claims_and_does_not_have_is_not_used() {
    let options = ["--emulator", "bochs", "--bochs-model", "corei7_skylake_x"];
    let outcome = boot("clocks-claim", &ends(), &options, &[]);
    let (khz, _, source) = tsc(&outcome);
    assert_eq!(khz, 50_000, "{outcome}");
    assert!(source.starts_with("HPET within "), "{outcome}");
    let remark = outcome.own_lines().find(|line| line.contains("CPUID leaf 0x"));
    assert!(remark.is_some_and(|line| line.ends_with(": it is not used")), "{outcome}");
}

/// Code of an option ROM for the firmware to call: 1 << 36 in this CPU's IA32_TSC_ADJUST.
fn option_rom() -> [u8; 512] {
    let mut rom = [0; 512];
    let code: &[u8] = &[
        0x55, 0xaa, 1, // signature, 512 bytes; then what is called, in real mode
        0x66, 0x50, 0x66, 0x51, 0x66, 0x52, // push eax, ecx, edx
        0x66, 0xb9, 0x3b, 0, 0, 0, // mov ecx, 0x3b
        0x66, 0xb8, 0, 0, 0, 0, // mov eax, 0
        0x66, 0xba, 0x10, 0, 0, 0, // mov edx, 0x10
        0x0f, 0x30, // wrmsr
        0x66, 0x5a, 0x66, 0x59, 0x66, 0x58, // pop edx, ecx, eax
        0xcb, // retf
    ];
    rom[..code.len()].copy_from_slice(code);
    let sum = rom.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    rom[511] = sum.wrapping_neg();
    rom
}

#[test]
fn what_firmware_has_added_to_a_cpus_tsc_is_taken_off() {
    let folder = Folder::new("clocks-adjusted");
    let rom = folder.write("adjust.rom", option_rom());
    let line = format!("optromimage1: file=\"{rom}\", address=0xd0000");
    let payload = Payload { cpus: "[0]", ..ends() };
    let options = ["--emulator", "bochs", "--timeout", "120"];
    let outcome = folder.run(&payload.toml(), &options, &Devices::arguments(&[&line]));
    assert_eq!(outcome.status, Some(0), "{outcome}");
    // Bochs' counter starts at 0 and has 50 millions a second.
    assert!(outcome.number("TSC") < 1 << 36, "{outcome}");
}
