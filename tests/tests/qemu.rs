//! Linux on AMD-V and VT-d in QEMU, from the list "What must be shown".

use nexit_tests::{Devices, Folder, Guest, Outcome};

const TIMEOUT: &[&str] = &["--timeout", "240"];

fn run(name: &str, guest: &Guest, devices: &Devices) -> Outcome {
    Folder::new(name).run(&guest.toml(), TIMEOUT, devices)
}

fn assert_powered_off(outcome: &Outcome) {
    assert_eq!(outcome.status, Some(0), "{outcome}");
    assert_eq!(outcome.guest_outcome("linux"), Some("poweroff"), "{outcome}");
    assert_eq!(outcome.report["backend"], "svm");
    assert_eq!(outcome.report["iommu"], "vt-d");
}

#[test]
fn ten_thousand_nvme_interrupts_cost_no_exit() {
    let guest = Guest::on_qemu("nvme reads=10000", "[\"00:04.0\"]");
    let outcome = run("nvme-exitless", &guest, &Devices::none().nvme());
    assert_powered_off(&outcome);
    let _ = outcome.result("nvme-files");
    let line = outcome.result("nvme");
    assert!(line.get("interrupts") >= 10_000, "{line:?}");
    assert_eq!(line.interrupt_exits(), 0, "{line:?}");
    assert_eq!(line.exits_but_the_watchdogs(), 0, "{line:?}");
}

#[test]
fn the_classic_way_works_and_shows_in_the_counters() {
    let mut guest = Guest::on_qemu("nvme reads=10000", "[\"00:04.0\"]");
    guest.interrupts = "exiting";
    let outcome = run("nvme-exiting", &guest, &Devices::none().nvme());
    assert_powered_off(&outcome);
    let _ = outcome.result("nvme-files");
    let line = outcome.result("nvme");
    assert!(line.get("external_interrupt") >= 10_000, "{line:?}");
    assert!(line.get("eoi") >= 10_000, "{line:?}");
}

fn network(model: &'static str) {
    let guest = Guest::on_qemu(model, "[\"00:05.0\"]");
    let name = format!("network-{model}");
    let outcome = run(&name, &guest, &Devices::none().network(model, 5));
    assert_powered_off(&outcome);
    for part in ["ping", "tcp"] {
        let line = outcome.result(&format!("{model}-{part}"));
        assert!(line.get("interrupts") > 0, "{line:?}");
        assert_eq!(line.interrupt_exits(), 0, "{line:?}");
        // The programs that do it ask CPUID when they start.
        assert_eq!(line.exits_but_the_watchdogs(), line.exits("cpuid"), "{line:?}");
    }
}

#[test]
fn e1000e_pings_and_transfers_without_exits() {
    network("e1000e");
}

#[test]
fn igb_pings_and_transfers_without_exits() {
    network("igb");
}

/// Without KVM's clock it measures the TSC by the ACPI timer, and without the local APIC's timer the PIT
/// is all that ticks.
#[test]
fn linux_lives_by_the_machines_own_timers() {
    let guest = Guest::on_qemu("timer no-kvmclock nolapic_timer", "[]");
    let outcome = run("own-timers", &guest, &Devices::none());
    assert_powered_off(&outcome);
    assert!(outcome.output.contains("using PMTIMER reference calibration"), "{outcome}");
    let line = outcome.result("timer");
    assert!(line.get("interrupts") > 0, "{line:?}");
    assert_eq!(line.interrupt_exits(), 0, "{line:?}");
}

#[test]
fn a_device_that_is_not_assigned_is_invisible() {
    let guest = Guest::on_qemu("pci", "[\"00:04.0\"]");
    let devices = Devices::none().nvme().network("e1000e", 5);
    let outcome = run("invisible", &guest, &devices);
    assert_powered_off(&outcome);
    let functions: Vec<&str> =
        outcome.output.lines().filter_map(|line| line.trim().strip_prefix("pci: ")).collect();
    assert!(functions.iter().any(|f| f.starts_with("0000:00:04.0 0x010802")), "{outcome}");
    assert!(!functions.iter().any(|f| f.contains(" 0x0200")), "{outcome}");
}
