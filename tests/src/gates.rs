//! The payload `gates`: the exitless path, checked from inside a guest, in every emulator and interrupt mode.

use crate::emulator::Emulator;
use crate::guest::Payload;
use crate::outcome::Outcome;

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

/// The timer that QEMU's own emulation lacks.
const DEADLINE: (&str, u64) = ("exits for 100 deadline timers armed, slept for and ended", 200);

/// What the payload counts in `emulator`, and how much of it there is at least in the exiting mode. The first three
/// are of self-IPIs, the others of timers.
pub fn costs(emulator: Emulator) -> impl Iterator<Item = &'static (&'static str, u64)> {
    COSTS.iter().chain((emulator != Emulator::Qemu).then_some(&DEADLINE))
}

/// Runs it in this interrupt mode.
///
/// # Panics
/// A claim does not hold.
#[must_use]
pub fn run(emulator: Emulator, interrupts: &str) -> Outcome {
    let further = format!("interrupts = \"{interrupts}\"");
    let payload = Payload { further: &further, ..Payload::new("gates") };
    let outcome = emulator.run(&format!("gates-{interrupts}"), &payload);
    outcome.assert_verdicts(CLAIMS);
    assert_eq!(outcome.report["backend"], emulator.backend());
    // No exit of a guest's exception, whatever the mode.
    assert_eq!(outcome.number("exits for 10 exceptions"), 0, "{outcome}");
    let (watchdog, other) = emulator.watchdog();
    assert!(outcome.number(&format!("{watchdog} exits")) > 0, "{outcome}");
    assert_eq!(outcome.number(&format!("{other} exits")), 0, "{outcome}");
    outcome
}

/// Runs it in the exitless mode, where no interrupt causes an exit.
///
/// # Panics
/// One does.
pub fn cost_nothing(emulator: Emulator) {
    let outcome = run(emulator, "exitless");
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
