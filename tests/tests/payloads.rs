//! The exitless path and the walls, checked from inside by payload guests, on both emulators.

use nexit_tests::{Devices, Emulator, Folder, Outcome, Payload};

/// What holds in every interrupt mode.
const CLAIMS: &[&str] = &[
    "the hypervisor's own leaf is there",
    "the guest starts in x2APIC mode",
    "SIDT gives what was loaded",
    "a first arrival is delivered once",
    "a thousand interrupts of a granted vector are all taken",
    "the guest's exceptions are its own",
    "INT n of a vector never granted works",
    "INT n of a gate that the guest itself left not present is #NP",
    "an interrupt for a gate that the guest has closed is #NP",
    "IPIs that a CPU sends itself through the ICR arrive, their vector granted beforehand",
    "an NMI that a CPU sends itself arrives",
    "a rewritten gate takes effect at once",
    "a halted CPU wakes for each timer interrupt",
    "data that share a page with the IDT can be written",
    "a string instruction may fill them",
    "vector registers are stored there as they are",
    "each vector from 32 to 254 arrives once",
    "each arrives a second time",
    "pages that the IDT has left are the guest's again",
    "the watchdog calls the host back while the guest has interrupts off",
];

/// What costs nothing in the exitless mode, and how much it costs at least in the exiting one: the
/// self-IPI or the timer's interrupt, and the EOI.
const COSTS: &[(&str, u64)] = &[
    ("exits for 1000 self-IPIs with EOI, IDT page-aligned", 2000),
    ("exits for 1000 self-IPIs with EOI, IDT straddling two pages in the middle of a gate", 2000),
    ("exits for one more of each of 223 vectors", 446),
    ("exits for 100 one-shot timers armed, slept for and ended", 200),
];

/// Only the CPU of Bochs has this timer.
const DEADLINE: (&str, u64) = ("exits for 100 deadline timers armed, slept for and ended", 200);

fn costs(emulator: Emulator) -> impl Iterator<Item = &'static (&'static str, u64)> {
    COSTS.iter().chain((emulator != Emulator::Qemu).then_some(&DEADLINE))
}

fn gates(emulator: Emulator, interrupts: &str) -> Outcome {
    let further = format!("interrupts = \"{interrupts}\"");
    let payload = Payload { further: &further, ..Payload::new("gates") };
    let outcome = emulator.run(&format!("gates-{interrupts}"), &payload);
    outcome.assert_verdicts(CLAIMS);
    assert_eq!(outcome.report["backend"], emulator.backend());
    // No exit of a guest's exception, whatever the mode.
    assert_eq!(outcome.number("exits for 10 exceptions"), 0, "{outcome}");
    let (watchdog, other) = match emulator {
        Emulator::Qemu => ("nmi", "preemption_timer"),
        Emulator::Bochs | Emulator::BochsVtd => ("preemption_timer", "nmi"),
    };
    assert!(outcome.number(&format!("{watchdog} exits")) > 0, "{outcome}");
    assert_eq!(outcome.number(&format!("{other} exits")), 0, "{outcome}");
    outcome
}

fn interrupts_cost_nothing(emulator: Emulator) {
    let outcome = gates(emulator, "exitless");
    for (what, _) in costs(emulator) {
        assert_eq!(outcome.number(what), 0, "{what}\n{outcome}");
    }
    // It is the guest's first of all: the shadow is put in place, then the vector is granted.
    assert_eq!(outcome.number("shadow_gate exits for a first arrival"), 2, "{outcome}");
    assert_eq!(outcome.number("exits for writing 256 gates before it"), 0, "{outcome}");
    assert!(outcome.number("exits for writing one gate") > 0, "the IDT is shadowed\n{outcome}");
    for reason in ["external_interrupt", "eoi"] {
        assert_eq!(outcome.number(&format!("exits by {reason}")), 0, "{outcome}");
        assert_eq!(outcome.exits(reason), Some(0), "{outcome}");
    }
}

fn interrupts_show_in_the_counters(emulator: Emulator) {
    let outcome = gates(emulator, "exiting");
    for (what, least) in costs(emulator) {
        assert!(outcome.number(what) >= *least, "{what}\n{outcome}");
    }
    assert_eq!(outcome.number("exits for writing one gate"), 0, "no shadow\n{outcome}");
    assert_eq!(outcome.number("exits by shadow_gate"), 0, "{outcome}");
    assert!(outcome.number("exits by external_interrupt") >= 100, "the timer's\n{outcome}");
    assert!(outcome.number("exits by eoi") >= 2000, "{outcome}");
}

#[test]
fn exitless_interrupts_cost_nothing_on_amd_v() {
    interrupts_cost_nothing(Emulator::Qemu);
}

#[test]
fn exitless_interrupts_cost_nothing_on_vt_x() {
    interrupts_cost_nothing(Emulator::Bochs);
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
    let outcome = gates(Emulator::Bochs, "posted");
    for (what, _) in &COSTS[..3] {
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
    let full = "mapping a BAR: no memory is left for page tables";
    let full = outcome.own_lines().filter(|line| line.ends_with(full)).count();
    assert_eq!(full, 8, "it may take so many frames, and the log is not flooded\n{outcome}");
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
