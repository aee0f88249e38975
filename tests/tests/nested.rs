//! VT-x together with VT-d: nested KVM, in a Linux that Bochs runs. Slow, so only `make test-all` runs it.
//!
//! One virtual CPU each: where a guest is entered with IF = 0, Bochs 3.0 has no external interrupt exit until IF
//! changes, so a virtual CPU that waits for another so has the inner Linux' only CPU for 21 seconds at a time
//! (docs/known-issues.md). For the same reason `dma`, `apic` and `hostile` with two CPUs are not here.

use nexit_tests::{Devices, Emulator, Folder, Guest, Kernel, Outcome, gates};

const OPTIONS: &[&str] = &["--emulator", "nested", "--timeout", "1800"];

fn linux(name: &str, interrupts: &'static str) -> Outcome {
    let guest = Guest {
        kernel: Kernel::Cloud,
        memory: "384M",
        interrupts,
        ..Guest::on_qemu("nvme reads=1000 quiet", "[\"00:04.0\"]")
    };
    let outcome = Folder::new(name).run(&guest.toml(), OPTIONS, &Devices::none().nvme());
    assert_eq!(outcome.status, Some(0), "{outcome}");
    assert_eq!(outcome.guest_outcome("linux"), Some("poweroff"), "{outcome}");
    assert_eq!(outcome.report["backend"], "vmx");
    assert_eq!(outcome.report["iommu"], "vt-d");
    let _ = outcome.result("nvme-files");
    outcome
}

#[test]
#[ignore = "slow: `make test-all`"]
fn a_thousand_nvme_interrupts_cost_no_exit_on_vt_x_with_vt_d() {
    let outcome = linux("nested-exitless", "exitless");
    let line = outcome.result("nvme");
    assert!(line.get("interrupts") >= 1000, "{line:?}");
    assert_eq!(line.interrupt_exits(), 0, "{line:?}");
    assert_eq!(line.exits_but_the_watchdogs(), 0, "{line:?}");
    // It says what it ran in.
    for what in ["nested: Linux ", "nested: KVM: nested=Y ept=Y ", "nested: QEMU emulator version "]
    {
        assert!(outcome.output.lines().any(|line| line.starts_with(what)), "{what}\n{outcome}");
    }
}

#[test]
#[ignore = "slow: `make test-all`"]
fn exitless_interrupts_cost_nothing_in_nested_kvm() {
    gates::cost_nothing(Emulator::Nested);
}

/// Without HLT exiting while an interrupt waits for its window, KVM left Linux halted for up to a second each time
/// (docs/known-issues.md).
#[test]
#[ignore = "slow: `make test-all`"]
fn the_exiting_mode_reads_its_disk_in_nested_kvm() {
    let outcome = linux("nested-exiting", "exiting");
    let line = outcome.result("nvme");
    assert!(line.get("external_interrupt") >= 1000 && line.get("eoi") >= 1000, "{line:?}");
}
