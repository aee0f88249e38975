//! A guest that does anything, from a seed (`tests/payload/src/bin/fuzz`), beside guests that notice what comes through.
//! `make endurance` does it for hours.

use nexit_tests::{Devices, Emulator, Folder, Outcome, Payload};

/// Another seed finds other things: `make endurance` takes any. A failure comes again with the seed in its log.
const SEED: u64 = 1;

fn guest(payload: Payload<'_>, name: &str) -> String {
    let own = format!("name = \"{}\"", payload.program);
    payload.toml().replace(&own, &format!("name = \"{name}\""))
}

/// So many trials of its first CPU beside so many passes of the neighbour over its memory.
fn anything_it_does_stays_its_own(emulator: Emulator, trials: u32, passes: u32) {
    let folder = Folder::new(&format!("fuzz-{emulator}"));
    let (watch, anything) = (format!("victim {passes}"), format!("{SEED} {trials}"));
    let victim = Payload { command_line: &watch, memory: "16M", ..Payload::new("hostile") };
    let fuzz =
        Payload { command_line: &anything, cpus: "[1, 2]", memory: "16M", ..Payload::new("fuzz") };
    let mut toml = guest(victim, "victim") + &guest(fuzz, "fuzz");
    let mut devices = Devices::none();
    if emulator == Emulator::Qemu {
        let transfers = Payload {
            command_line: "2000",
            cpus: "[3]",
            memory: "16M",
            further: "devices = [\"00:04.0\"]",
            ..Payload::new("generations")
        };
        toml += &guest(transfers, "disk");
        devices = devices.nvme();
    }
    let options = [emulator.options(), &["--timeout", "240"]].concat();
    let outcome = folder.run(&toml, &options, &devices);
    assert_eq!(outcome.status, Some(0), "{outcome}");
    assert!(!outcome.output.contains("FAILED"), "{outcome}");
    for claim in ["its life lasts", "its second CPU goes on"] {
        assert!(said(&outcome, "fuzz", claim), "{claim}\n{outcome}");
    }
    for claim in ["its memory is as it wrote it", "its timer ran", "nobody interrupted it"] {
        assert!(said(&outcome, "victim", claim), "{claim}\n{outcome}");
    }
    if emulator == Emulator::Qemu {
        let claim = "each transfer is whole and interrupts once";
        assert!(said(&outcome, "disk", claim), "{claim}\n{outcome}");
    }
}

/// Whether a guest said that `claim` holds.
fn said(outcome: &Outcome, guest: &str, claim: &str) -> bool {
    let start = format!("{guest}: payload: {claim}: ok (");
    outcome.output.lines().any(|line| line.starts_with(&start))
}

#[test]
fn whatever_a_guest_does_by_chance_reaches_no_other_on_amd_v() {
    anything_it_does_stays_its_own(Emulator::Qemu, 5000, 400);
}

#[test]
fn whatever_a_guest_does_by_chance_reaches_no_other_on_vt_x() {
    anything_it_does_stays_its_own(Emulator::Bochs, 500, 30);
}
