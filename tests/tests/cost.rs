//! What an interrupt costs, counted by the TCG plugin (`bench/plugin`): every instruction, guest's and
//! hypervisor's apart.

use nexit_tests::{Devices, Folder, Guest, build_folder};
use serde_json::Value;

/// The first window of the demo's `iobench`: just its reads.
fn window_of_reads(interrupts: &'static str) -> (u64, Value) {
    let mut guest = Guest::on_qemu("nvme reads=4000", "[\"00:04.0\"]");
    guest.interrupts = interrupts;
    let folder = Folder::new(&format!("cost-{interrupts}"));
    let counts = folder.path("counts.json");
    let plugin = build_folder().join("release/libnexit_count.so");
    assert!(plugin.is_file(), "{} is missing: `make plugin` builds it", plugin.display());
    let plugin = format!("{},out={}", plugin.display(), counts.display());
    // Without an HPET there is no watchdog on AMD-V: whatever runs then is not the watchdog's.
    let devices = Devices::arguments(&["-machine", "hpet=off", "-plugin", &plugin]).nvme();
    let outcome = folder.run(&guest.toml(), &["--timeout", "300"], &devices);
    assert_eq!(outcome.status, Some(0), "{outcome}");
    let text = std::fs::read_to_string(&counts).unwrap_or_default();
    let first = text.lines().next().unwrap_or_default();
    let window = serde_json::from_str(first).unwrap_or_default();
    (outcome.result("nvme").get("interrupts"), window)
}

#[test]
fn thousands_of_interrupts_execute_no_instruction_of_the_hypervisor() {
    let (interrupts, window) = window_of_reads("exitless");
    assert!(interrupts >= 3000, "{interrupts}");
    let cpu = &window["cpus"][0];
    assert!(cpu["guest"].as_u64() > Some(1000 * interrupts), "the guest worked: {window}");
    assert_eq!((cpu["host"].as_u64(), cpu["switches"].as_u64()), (Some(0), Some(0)), "{window}");
    let idle = &window["cpus"][1];
    assert_eq!(idle["host"].as_u64(), Some(0), "a processor without a job sleeps: {window}");
}

#[test]
fn the_classic_way_executes_the_hypervisor_at_every_interrupt() {
    let (interrupts, window) = window_of_reads("exiting");
    let cpu = &window["cpus"][0];
    // One exit for the interrupt, one for its EOI.
    assert!(cpu["switches"].as_u64() >= Some(2 * interrupts), "{interrupts} interrupts: {window}");
    assert!(cpu["host"].as_u64() > cpu["switches"].as_u64(), "{window}");
}
