//! VT-x and VT-d together, as Intel's machines have them: Linux with an NVMe controller behind a strict unit, in
//! Bochs 3 with the plugin of `tests/machines`. The unit keeps whatever hardware may keep; every test asks it
//! whether it was ever used by what it should have forgotten.

use nexit_tests::{Counters, Devices, Emulator, Folder, Guest, Kernel, Outcome, Payload};

const TIMEOUT: &[&str] = &["--timeout", "600"];
/// A CPU that posts interrupts.
const POSTING: &[&str] = &["--bochs-model", "corei7_skylake_x"];

fn linux(demo: &'static str, interrupts: &'static str) -> Guest {
    Guest {
        memory: "256M",
        kernel: Kernel::Cloud,
        interrupts,
        ..Guest::on_qemu(demo, "[\"00:04.0\"]")
    }
}

/// A run with the demo's disk; the guest came to its end, and the unit has nothing to complain of.
fn run(name: &str, toml: &str, options: &[&str], plugin: &str) -> (Outcome, Counters) {
    let folder = Folder::new(name);
    let devices = Devices::disk_behind_vtd(&folder, plugin);
    let options = [Emulator::BochsVtd.options(), TIMEOUT, options].concat();
    let outcome = folder.run(toml, &options, &devices);
    assert_eq!(outcome.status, Some(0), "{outcome}");
    assert_eq!(outcome.report["backend"], "vmx");
    assert_eq!(outcome.report["iommu"], "vt-d");
    let counters = Counters::of(&folder);
    counters.assert_clean(&outcome);
    (outcome, counters)
}

#[test]
fn linux_reads_its_nvme_disk_by_msi_x_without_any_exit() {
    let guest = linux("nvme,timer reads=1000 quiet", "exitless");
    let (outcome, counters) = run("vtd-exitless", &guest.toml(), &[], "");
    let _ = outcome.result("nvme-files");
    let line = outcome.result("nvme");
    assert!(line.get("interrupts") >= 1000, "{line:?}");
    assert_eq!(line.exits_but_the_watchdogs(), 0, "{line:?}");
    assert_eq!(line.interrupt_exits(), 0, "{line:?}");
    assert_eq!(outcome.result("timer").interrupt_exits(), 0);
    assert!(counters.get("remapped") >= 1000, "{counters:?}");
    for name in ["faults", "compatibility", "device_4_refused"] {
        assert_eq!(counters.get(name), 0, "{counters:?}");
    }
}

#[test]
fn the_exiting_mode_shows_in_the_counters() {
    let guest = linux("nvme reads=300 quiet", "exiting");
    let (outcome, _) = run("vtd-exiting", &guest.toml(), &[], "");
    let line = outcome.result("nvme");
    assert!(line.get("external_interrupt") >= 300, "{line:?}");
    assert!(line.get("eoi") >= 300, "{line:?}");
}

/// It switches itself off, so none of its interrupts was slept over.
#[test]
fn a_device_interrupt_in_the_posted_mode_exits_once_and_its_end_never() {
    let guest = linux("nvme reads=300 quiet", "posted");
    let (outcome, _) = run("vtd-posted", &guest.toml(), POSTING, "");
    let line = outcome.result("nvme");
    assert!(line.get("external_interrupt") >= line.get("interrupts"), "{line:?}");
    assert!(line.get("interrupts") >= 300, "{line:?}");
    assert_eq!(line.get("eoi"), 0, "{line:?}");
}

/// The pin goes through the I/O APIC, whose entry is remapped; Remote IRR ends with the guest's own EOI.
#[test]
fn a_level_triggered_line_through_the_remapped_io_apic_costs_no_exit() {
    let toml = linux("nvme reads=300 quiet", "exitless").toml() + "intx = [\"00:04.0=19\"]\n";
    let (outcome, counters) = run("vtd-intx", &toml, &[], "intx=1");
    let line = outcome.result("nvme");
    assert!(line.get("interrupts") >= 300, "{line:?}");
    assert_eq!(line.exits_but_the_watchdogs(), 0, "{line:?}");
    assert!(counters.get("remapped") >= 300, "{counters:?}");
}

/// Linux moves the only vector between two CPUs while reads wait for it. Each move changes a remapping entry that
/// the unit has kept.
#[test]
fn an_interrupt_that_moves_between_cpus_is_never_lost() {
    let mut guest = linux("affinity reads=600 quiet", "exitless");
    guest.cpus = "[0, 1]";
    let (outcome, counters) = run("vtd-affinity", &guest.toml(), &[], "vectors=1");
    let line = outcome.result("affinity");
    assert!(line.get("moves") >= 4 && line.get("least") > 0, "{line:?}");
    assert_eq!(line.interrupt_exits(), 0, "{line:?}");
    assert!(counters.get("remap_hits") >= 600, "{counters:?}");
}

#[test]
fn a_cpu_goes_ten_times_and_comes_back() {
    let mut guest = linux("hotplug,nvme reads=300 quiet", "exitless");
    guest.cpus = "[0, 1]";
    let (outcome, _) = run("vtd-hotplug", &guest.toml(), &[], "");
    let _ = outcome.result("hotplug");
    let line = outcome.result("nvme");
    assert!(line.get("interrupts") >= 300, "{line:?}");
    assert_eq!(line.interrupt_exits(), 0, "{line:?}");
}

/// Programs its controller to reach others' memory and CPUs, through a unit with these options.
fn hostile_dma(name: &str, plugin: &str) -> Counters {
    let payload = Payload { further: "devices = [\"00:04.0\"]", ..Payload::new("dma") };
    let (outcome, counters) = run(name, &payload.toml(), &["--memory", "1G"], plugin);
    outcome.assert_verdicts(&["DMA into the guest's own memory works"]);
    let fault = "IOMMU fault: 00:04.0: DMA write to 0x30000000 refused";
    assert!(outcome.own_lines().any(|line| line.contains(fault)), "{outcome}");
    assert!(counters.get("faults") >= 2, "{counters:?}");
    counters
}

#[test]
fn dma_reaches_the_guests_own_memory_alone() {
    let _ = hostile_dma("vtd-dma", "");
}

#[test]
fn a_slow_unit_that_keeps_what_is_not_there_and_has_little_else_does_as_well() {
    let options = "caching_mode=1, levels=3, superpages=0, delay=20000, write_buffer=1, coherent=0";
    let _ = hostile_dma("vtd-lesser", options);
}

#[test]
fn what_the_firmware_left_on_in_the_unit_is_switched_off_first() {
    let _ = hostile_dma("vtd-left-on", "left_on=1");
}

#[test]
fn errors_of_the_firmwares_own_queue_do_not_stop_ours() {
    let _ = hostile_dma("vtd-left-error", "left_on=1, left_error=1");
}

fn refusal(name: &str, plugin: &str) -> String {
    let folder = Folder::new(name);
    let devices = Devices::disk_behind_vtd(&folder, plugin);
    let options = [Emulator::BochsVtd.options(), &["--timeout", "120"]].concat();
    let payload = Payload { further: "devices = [\"00:04.0\"]", ..Payload::new("ends") };
    let outcome = folder.run(&payload.toml(), &options, &devices);
    outcome.refusal().to_owned()
}

#[test]
fn a_unit_without_extended_interrupt_mode_is_refused() {
    let sentence = refusal("vtd-no-eim", "eim=0");
    assert!(sentence.contains("extended interrupt mode"), "{sentence}");
}

#[test]
fn a_unit_without_interrupt_remapping_is_refused() {
    let sentence = refusal("vtd-no-ir", "ir=0");
    assert!(sentence.contains("interrupt remapping"), "{sentence}");
}

#[test]
fn a_unit_that_never_answers_is_refused() {
    let sentence = refusal("vtd-deaf", "answers=0");
    assert!(sentence.contains("did not finish: invalidating its caches"), "{sentence}");
}
