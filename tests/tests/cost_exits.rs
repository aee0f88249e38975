//! What the frequent exits cost in instructions of the hypervisor: exact counts, so that a change that
//! makes one dearer is seen. A figure is of the instruction's whole way out and back, itself included.
//! And how many there are while Linux starts.

use nexit_tests::{Devices, Emulator, Folder, Guest, Outcome, Payload};

/// What was measured, and the most that it may cost on AMD-V and on VT-x.
const BOUNDS: &[(&str, u64, u64)] = &[
    ("CPUID leaf 0", 91, 96),
    ("CPUID leaf 1", 96, 102),
    ("CPUID leaf 7", 99, 104),
    ("CPUID leaf 0x40000000", 90, 95),
    ("CPUID leaf 4, subleaf 1", 110, 115),
    ("CPUID leaf 0xD", 99, 104),
    ("CPUID leaf 0x80000008", 90, 95),
    ("CPUID leaf 0x40000200", 96, 101),
    ("an ICR write to one CPU", 165, 172),
    ("a write of the timer's LVT entry", 250, 258),
    ("a read of IA32_EFER", 116, 118),
    ("a read of a port where nothing is", 441, 501),
];

/// A run of the payload `cost` with this further line of its configuration.
fn measured(emulator: Emulator, name: &str, further: &str) -> Outcome {
    let options = [emulator.options(), &["--timeout", "90"]].concat();
    // With it QEMU's TSC counts instructions; with one CPU Bochs' always does.
    let count = match emulator {
        Emulator::Qemu => Devices::arguments(&["-icount", "shift=0"]),
        Emulator::Bochs | Emulator::BochsVtd | Emulator::Nested => Devices::none(),
    };
    let payload = Payload { further, ..Payload::new("cost") };
    let outcome = Folder::new(&format!("{name}-{emulator}")).run(&payload.toml(), &options, &count);
    outcome.assert_verdicts(&[]);
    assert_eq!(outcome.number("instructions for nothing"), 1, "the TSC counts them\n{outcome}");
    outcome
}

fn frequent_exits_are_short(emulator: Emulator) {
    let outcome = measured(emulator, "cost", "");
    for (what, on_amd_v, on_vt_x) in BOUNDS {
        let most = if emulator == Emulator::Qemu { *on_amd_v } else { *on_vt_x };
        let cost = outcome.number(&format!("instructions for {what}"));
        assert!(cost <= most, "{what}: {cost} instructions, {most} allowed\n{outcome}");
    }
    a_gdb_that_is_not_there_costs_nothing(emulator, &outcome);
}

/// A guest that gdb may look at, and that none looks at: as many instructions for each exit as `without`, and as many exits.
fn a_gdb_that_is_not_there_costs_nothing(emulator: Emulator, without: &Outcome) {
    let with = measured(emulator, "cost-gdb", "gdb = \"console\"");
    for (what, ..) in BOUNDS {
        let [own, other] =
            [&with, without].map(|run| run.number(&format!("instructions for {what}")));
        assert_eq!(own, other, "{what}\n{with}");
    }
    let exits = |run: &Outcome| {
        let mut exits = run.report["guests"][0]["vcpus"][0]["exits"].clone();
        let counts = exits.as_object_mut();
        // Its calls are in the machine's time, not in the guest's.
        counts.map(|counts| counts.remove(emulator.watchdog().0));
        exits
    };
    assert!(exits(&with)["cpuid"].as_u64() > Some(1000), "{with}");
    assert_eq!(exits(&with), exits(without), "{with}");
}

#[test]
fn frequent_exits_are_short_on_amd_v() {
    frequent_exits_are_short(Emulator::Qemu);
}

#[test]
fn frequent_exits_are_short_on_vt_x() {
    frequent_exits_are_short(Emulator::Bochs);
}

/// Exits from the kernel's first instruction to the first of `init`, but the watchdog's. 36 are of `init` itself, a
/// static program of glibc, which asks CPUID before it can read the counters.
fn starts_with(most: u64, further: &str) {
    let guest = Guest::on_qemu("start quiet rdinit=/bin/exits", "[]");
    let toml = format!("{}{further}\n", guest.toml());
    let folder = Folder::new(&format!("start-{most}"));
    let outcome = folder.run(&toml, &["--timeout", "240"], &Devices::none());
    let line = outcome.result("start");
    assert!(line.exits_but_the_watchdogs() <= most, "{line:?}, {most} allowed");
}

#[test]
fn a_quiet_linux_starts_with_few_exits() {
    starts_with(1480, "pit = false");
    starts_with(1875, "");
}
