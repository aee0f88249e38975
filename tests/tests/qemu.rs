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

#[test]
fn a_device_that_is_not_there_is_refused_by_name() {
    let guest = Guest::on_qemu("nvme", "[\"00:09.0\"]");
    let outcome = run("no-device", &guest, &Devices::none());
    assert_eq!(outcome.status, Some(1), "{outcome}");
    assert!(outcome.errors.contains("00:09.0"), "{outcome}");
}

#[test]
fn a_guest_that_panics_fails_the_run() {
    let guest = Guest::on_qemu("crash", "[]");
    let outcome = run("panic", &guest, &Devices::none());
    assert_eq!(outcome.status, Some(1), "{outcome}");
    assert!(outcome.output.contains("Kernel panic"), "{outcome}");
    assert!(outcome.guest_outcome("linux").is_some_and(|how| how != "poweroff"), "{outcome}");
}

fn boots(name: &str, options: &[&str]) {
    let guest = Guest::on_qemu("idle", "[]");
    let options = [TIMEOUT, options].concat();
    let outcome = Folder::new(name).run(&guest.toml(), &options, &Devices::none());
    assert_powered_off(&outcome);
    let _ = outcome.result("idle");
}

#[test]
fn boots_by_qemu_itself() {
    boots("boot-kernel", &["--boot", "kernel"]);
}

#[test]
fn boots_by_bios_and_grub() {
    boots("boot-bios", &["--boot", "iso"]);
}

#[test]
fn boots_by_uefi_and_grub() {
    boots("boot-uefi", &["--boot", "uefi"]);
}

#[test]
fn boots_by_uefi_and_the_native_loader() {
    boots("boot-native", &["--boot", "uefi", "--loader", "native"]);
}
