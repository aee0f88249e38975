//! Linux on VT-x in Bochs, started by BIOS and GRUB from the hybrid image.

use nexit_tests::{Devices, Folder, Guest, Outcome};

const OPTIONS: &[&str] = &["--emulator", "bochs", "--timeout", "600"];

fn run(name: &str, guest: &Guest) -> Outcome {
    let toml = format!("unsafe_no_iommu = true\n{}", guest.toml());
    let folder = Folder::new(name);
    let outcome = folder.run(&toml, OPTIONS, &Devices::ide(&folder));
    assert_eq!(outcome.status, Some(0), "{outcome}");
    assert_eq!(outcome.report["backend"], "vmx");
    outcome
}

#[test]
fn ide_and_timer_interrupts_cost_no_exit() {
    let outcome = run("ide-exitless", &Guest::on_bochs("ide,timer reads=3000"));
    let _ = outcome.result("ide-files");
    let line = outcome.result("ide");
    assert!(line.get("interrupts") >= 3000, "{line:?}");
    assert_eq!(line.interrupt_exits(), 0, "{line:?}");
    assert_eq!(line.exits_but_the_watchdogs(), 0, "{line:?}");
    let timer = outcome.result("timer");
    assert!(timer.get("interrupts") > 0, "{timer:?}");
    assert_eq!(timer.interrupt_exits(), 0, "{timer:?}");
}

#[test]
fn the_classic_way_works_and_shows_in_the_counters() {
    let mut guest = Guest::on_bochs("ide reads=500");
    guest.interrupts = "exiting";
    let outcome = run("ide-exiting", &guest);
    let line = outcome.result("ide");
    assert!(line.get("external_interrupt") >= 500, "{line:?}");
    assert!(line.get("eoi") >= 500, "{line:?}");
}
