//! What the frequent exits cost in instructions of the hypervisor: exact counts, so that a change that
//! makes one dearer is seen. A figure is of the instruction's whole way out and back, itself included.
//! And how many there are while Linux starts.

use nexit_tests::{Devices, Emulator, Folder, Guest, Payload};

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
    ("a read of a port where nothing is", 441, 500),
];

fn frequent_exits_are_short(emulator: Emulator) {
    let options = [emulator.options(), &["--timeout", "90"]].concat();
    // With it QEMU's TSC counts instructions; with one CPU Bochs' always does.
    let count = match emulator {
        Emulator::Qemu => Devices::arguments(&["-icount", "shift=0"]),
        Emulator::Bochs | Emulator::BochsVtd | Emulator::Nested => Devices::none(),
    };
    let folder = Folder::new(&format!("cost-{emulator}"));
    let outcome = folder.run(&Payload::new("cost").toml(), &options, &count);
    outcome.assert_verdicts(&[]);

    assert_eq!(outcome.number("instructions for nothing"), 1, "the TSC counts them\n{outcome}");
    for (what, on_amd_v, on_vt_x) in BOUNDS {
        let most = if emulator == Emulator::Qemu { *on_amd_v } else { *on_vt_x };
        let cost = outcome.number(&format!("instructions for {what}"));
        assert!(cost <= most, "{what}: {cost} instructions, {most} allowed\n{outcome}");
    }
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
