//! Machines with many CPUs, and with APIC identifiers that are not 0, 1, 2 …

use nexit_tests::{Devices, Folder, Outcome, Payload};

fn boot(name: &str, payload: &Payload<'_>, options: &[&str], devices: &[&str]) -> Outcome {
    let options = [&["--timeout", "180"], options].concat();
    let outcome = Folder::new(name).run(&payload.toml(), &options, &Devices::arguments(devices));
    assert_eq!(outcome.status, Some(0), "{outcome}");
    assert_eq!(outcome.guest_outcome(payload.program), Some("poweroff"), "{outcome}");
    outcome
}

#[track_caller]
fn assert_cpus(outcome: &Outcome, count: u32) {
    let line = format!("nexit: {count} CPUs");
    assert!(outcome.own_lines().any(|own| own == line), "{outcome}");
    assert!(!outcome.output.contains("left out"), "{outcome}");
}

#[test]
fn more_cpus_than_a_word_has_bits_start_and_the_last_runs_a_guest() {
    let payload = Payload { cpus: "[71]", command_line: "poweroff", ..Payload::new("ends") };
    let outcome = boot("processors-72", &payload, &["--cpus", "72"], &[]);
    assert_cpus(&outcome, 72);
}

/// Identifiers 0 and 256: alike in their low eight bits. Both take interrupts of the exiting mode.
#[test]
fn cpus_with_identifiers_256_apart_are_told_apart() {
    let payload = Payload { further: "interrupts = \"exiting\"", ..Payload::new("gates") };
    let other =
        payload.toml().replace("name = \"gates\"", "name = \"other\"").replace("[0]", "[1]");
    let devices = [
        "-smp",
        "1,sockets=2,cores=129,threads=1,maxcpus=258",
        "-device",
        "EPYC-v4-x86_64-cpu,socket-id=1,core-id=0,thread-id=0",
    ];
    let outcome = Folder::new("processors-256").run(
        &(payload.toml() + &other),
        &["--timeout", "180"],
        &Devices::arguments(&devices),
    );
    assert_eq!(outcome.status, Some(0), "{outcome}");
    assert_cpus(&outcome, 2);
    for guest in ["gates", "other"] {
        assert_eq!(outcome.guest_outcome(guest), Some("poweroff"), "{outcome}");
    }
    assert!(!outcome.output.contains("FAILED"), "{outcome}");
}

#[test]
fn identifiers_with_gaps_are_counted_without_them() {
    let payload = Payload { cpus: "[5]", command_line: "poweroff", ..Payload::new("ends") };
    let outcome =
        boot("processors-gaps", &payload, &[], &["-smp", "6,sockets=2,cores=3,threads=1"]);
    assert_cpus(&outcome, 6);
}
