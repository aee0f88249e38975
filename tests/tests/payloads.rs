//! The exitless path and the walls, checked from inside by payload guests, on both emulators.

use nexit_tests::{Devices, Emulator, Folder, Payload, gates};

fn interrupts_show_in_the_counters(emulator: Emulator) {
    let outcome = gates::run(emulator, "exiting");
    for (what, least) in gates::costs(emulator) {
        assert!(outcome.number(what) >= *least, "{what}\n{outcome}");
    }
    assert_eq!(outcome.number("exits for writing one gate"), 0, "no shadow\n{outcome}");
    assert_eq!(outcome.number("exits by shadow_gate"), 0, "{outcome}");
    assert!(outcome.number("exits by external_interrupt") >= 100, "the timer's\n{outcome}");
    assert!(outcome.number("exits by eoi") >= 2000, "{outcome}");
}

#[test]
fn exitless_interrupts_cost_nothing_on_amd_v() {
    gates::cost_nothing(Emulator::Qemu);
}

#[test]
fn exitless_interrupts_cost_nothing_on_vt_x() {
    gates::cost_nothing(Emulator::Bochs);
}

#[test]
fn exitless_interrupts_cost_nothing_on_vt_x_with_vt_d() {
    gates::cost_nothing(Emulator::BochsVtd);
}

#[test]
fn exiting_interrupts_work_and_are_counted_on_amd_v() {
    interrupts_show_in_the_counters(Emulator::Qemu);
}

#[test]
fn exiting_interrupts_work_and_are_counted_on_vt_x() {
    interrupts_show_in_the_counters(Emulator::Bochs);
}

/// The interrupts of a CPU to itself, their EOI and their priorities are the CPU's own work; only the timer's
/// interrupt comes from outside and exits.
#[test]
fn posted_interrupts_end_without_an_exit_on_vt_x() {
    let outcome = gates::run(Emulator::Bochs, "posted");
    for (what, _) in gates::costs(Emulator::Bochs).take(3) {
        assert_eq!(outcome.number(what), 0, "{what}\n{outcome}");
    }
    assert_eq!(outcome.number("exits by eoi"), 0, "{outcome}");
    assert!(outcome.number("exits by external_interrupt") >= 100, "the timer's\n{outcome}");
}

#[test]
fn foreign_dma_is_refused_and_named_and_all_live_on() {
    let payload = Payload { further: "devices = [\"00:04.0\"]", ..Payload::new("dma") };
    // The second device is nobody's.
    let devices = Devices::arguments(&[
        "-blockdev",
        "driver=null-co,node-name=disk,size=1048576,read-zeroes=on",
        "-device",
        "nvme,drive=disk,serial=nexit,addr=4",
        "-device",
        "e1000e,addr=5",
    ]);
    let options = ["--timeout", "90", "--memory", "1G"];
    // The neighbour: see `hostile.rs`.
    let hostile = Payload::new("hostile").path();
    let neighbour = format!(
        "[[guest]]\nname = \"victim\"\ncpus = [1]\nmemory = \"16M\"\nkernel = \"{}\"\n\
         cmdline = \"victim 500\"\n",
        hostile.display()
    );
    let folder = Folder::new("dma");
    let outcome = folder.run(&(payload.toml() + &neighbour), &options, &devices);
    for claim in ["its memory is as it wrote it", "its timer ran", "nobody interrupted it"] {
        let start = format!("victim: payload: {claim}: ok (");
        assert!(outcome.output.lines().any(|line| line.starts_with(&start)), "{claim}\n{outcome}");
    }
    let nobody = "00:04.0: message 0 stays masked: no CPU of the guest is its destination";
    assert!(outcome.own_lines().any(|line| line.ends_with(nobody)), "{outcome}");
    let full = "no memory is left for page tables";
    assert!(!outcome.output.contains(full), "its reserve is enough for ever\n{outcome}");
    let dma = outcome.of_guest("dma");
    dma.assert_verdicts(&[
        "a device that is not assigned is invisible",
        "a port that is not the guest's reads as all ones",
        "an address that is not the guest's reads as all ones",
        "the assigned controller answers",
        "DMA into the guest's own memory works",
        "the controller can be enabled again",
        "registers that wander through the address space come back",
    ]);
    assert_eq!(outcome.report["iommu"], "vt-d");
    assert!(dma.payload("sees 00:04.0 ").is_some(), "{outcome}");
    assert_eq!(dma.payload("sees 00:05.0 "), None, "{outcome}");
    assert!(dma.payload("made the controller write to 0x30000000").is_some(), "{outcome}");
    for fault in ["DMA write to 0x30000000", "DMA read from 0x700000000"] {
        let line = format!("nexit: IOMMU fault: 00:04.0: {fault} refused: ");
        assert!(outcome.own_lines().any(|own| own.starts_with(&line)), "{fault}\n{outcome}");
    }
}
