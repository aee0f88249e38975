//! Guests that try to reach each other's memory, devices, ports and CPUs, and get nothing; their
//! neighbour, which fills memory, counts and lets its timer run, notices nothing.

use nexit_tests::{Devices, Emulator, Folder, Outcome, Payload, build_folder};

const TIMEOUT: &[&str] = &["--timeout", "240"];

/// A guest of `tests/payload/src/bin/hostile`.
fn guest(name: &str, cpus: &str, attempt: &str, further: &str) -> String {
    let kernel = Payload::new("hostile").path();
    let kernel = kernel.display();
    format!(
        "[[guest]]\nname = \"{name}\"\ncpus = {cpus}\nmemory = \"16M\"\nkernel = \"{kernel}\"\n\
         cmdline = \"{attempt}\"\n{further}\n"
    )
}

/// The neighbour. So many passes over its memory that the others are done before.
fn victim(emulator: Emulator, passes: (u32, u32)) -> String {
    let passes = if emulator == Emulator::Qemu { passes.0 } else { passes.1 };
    guest("victim", "[0]", &format!("victim {passes}"), "")
}

fn run(emulator: Emulator, name: &str, toml: &str) -> Outcome {
    let options = [emulator.options(), TIMEOUT].concat();
    let folder = Folder::new(&format!("hostile-{name}-{emulator}"));
    let outcome = folder.run(toml, &options, &Devices::none());
    assert_eq!(outcome.guest_outcome("victim"), Some("poweroff"), "{outcome}");
    assert!(!outcome.output.contains("FAILED"), "{outcome}");
    for claim in ["its memory is as it wrote it", "its timer ran", "nobody interrupted it"] {
        assert!(said(&outcome, "victim", claim), "{claim}\n{outcome}");
    }
    assert!(outcome.own_lines().any(|line| line == "nexit: all guests have ended"), "{outcome}");
    outcome
}

/// Whether a guest said that `claim` holds.
fn said(outcome: &Outcome, guest: &str, claim: &str) -> bool {
    let start = format!("{guest}: payload: {claim}: ok (");
    outcome.output.lines().any(|line| line.starts_with(&start))
}

/// Where the hypervisor said that a guest has ended; the end of the output where it did not.
fn end_of(outcome: &Outcome, guest: &str) -> usize {
    let start = format!("\nnexit: guest {guest}: ");
    let ends = outcome.output.match_indices(&start).map(|(at, _)| at);
    ends.filter(|at| outcome.output[*at..].lines().nth(1).is_some_and(|l| l.ends_with(" exits")))
        .last()
        .unwrap_or(outcome.output.len())
}

const CLAIMS: &[&str] = &[
    "no MSR that reaches further can be written",
    "no MSR of virtualization can be read",
    "EFER shows no SVME",
    "no instruction of virtualization works",
    "the caches can be written back",
    "no control register takes what it must not",
    "CR0.CD can be set",
    "a single step traps behind it",
    "no descriptor behind the GDT is loaded",
    "INT n of its own gate works",
    "no address but its own leads anywhere",
    "string instructions bring nothing",
    "a string ends at the page that is not there",
    "no port but its own leads anywhere",
    "no function but its own is there",
    "15 bytes of prefixes are an instruction",
    "16 are a fault",
    "LOCK MOV is undefined",
    "a device takes what SIDT and its kin store",
    "code in a device runs to its end",
    "an interrupt for others comes to nobody",
    "NMIs to itself are its own",
    "interrupts to itself are its own",
    "nothing came that it did not send itself",
    "its own second CPU runs after all this",
];

/// A guest with two CPUs tries everything, and leaves with interrupts pending that are exceptions in
/// the host's own IDT.
fn nothing_comes_through(emulator: Emulator, interrupts: &str) {
    let hostile = guest("hostile", "[1, 2]", "all two", &format!("interrupts = \"{interrupts}\""));
    let toml = victim(emulator, (1000, 60)) + &hostile;
    let outcome = run(emulator, interrupts, &toml);
    assert_eq!(outcome.status, Some(0), "{outcome}");
    assert_eq!(outcome.guest_outcome("hostile"), Some("poweroff"), "{outcome}");
    for claim in CLAIMS {
        assert!(said(&outcome, "hostile", claim), "{claim}\n{outcome}");
    }
    let both = end_of(&outcome, "hostile") < end_of(&outcome, "victim");
    assert!(both, "the neighbour watched to the end\n{outcome}");
    let notes = outcome.own_lines().filter(|line| line.contains("which is unused")).count();
    assert!((1..=8).contains(&notes), "{notes} notes of what it did again and again\n{outcome}");
}

#[test]
fn a_guest_reaches_nothing_that_is_not_its_own_on_amd_v() {
    nothing_comes_through(Emulator::Qemu, "exitless");
}

#[test]
fn nor_does_it_in_the_exiting_mode_on_amd_v() {
    nothing_comes_through(Emulator::Qemu, "exiting");
}

#[test]
fn a_guest_reaches_nothing_that_is_not_its_own_on_vt_x() {
    nothing_comes_through(Emulator::Bochs, "exitless");
}

#[test]
fn a_guest_reaches_nothing_that_is_not_its_own_on_vt_x_with_vt_d() {
    nothing_comes_through(Emulator::BochsVtd, "exitless");
}

/// What leads nowhere, all at once, each on a CPU of its own, and whether its guest goes on or has a triple fault, as on
/// hardware. Bochs has time for some.
const NOWHERE: &[(&str, bool)] = &[
    ("vector-load", true),
    ("push", true),
    ("rom", true),
    ("far", false),
    ("call", true),
    ("idt", false),
    ("tables", false),
];

fn who_breaks_itself_breaks_nothing_else(emulator: Emulator) {
    let tried = match emulator {
        Emulator::Qemu => NOWHERE,
        Emulator::Bochs | Emulator::BochsVtd | Emulator::Nested => {
            NOWHERE.get(NOWHERE.len() / 2..).unwrap_or(NOWHERE)
        }
    };
    let attempts = tried.iter().enumerate();
    let others = attempts
        .map(|(index, (attempt, _))| guest(attempt, &format!("[{}]", index + 1), attempt, ""));
    let toml = victim(emulator, (300, 4)) + &others.collect::<String>();
    let outcome = run(emulator, "ends", &toml);
    for (attempt, survives) in tried {
        let end = if *survives { "poweroff" } else { "triple_fault" };
        assert_eq!(outcome.guest_outcome(attempt), Some(end), "{attempt}\n{outcome}");
        let said = format!("{attempt}: payload: {attempt} lived (");
        let lived = outcome.output.lines().any(|line| line.starts_with(&said));
        assert_eq!(lived, *survives, "{attempt}\n{outcome}");
        assert!(end_of(&outcome, attempt) < end_of(&outcome, "victim"), "{attempt}\n{outcome}");
    }
}

#[test]
fn a_guest_that_breaks_itself_breaks_nothing_else_on_amd_v() {
    who_breaks_itself_breaks_nothing_else(Emulator::Qemu);
}

#[test]
fn a_guest_that_breaks_itself_breaks_nothing_else_on_vt_x() {
    who_breaks_itself_breaks_nothing_else(Emulator::Bochs);
}

/// A CPU of each guest raises an exception whose delivery raises it again; its other CPU ends the guest, for which the
/// hypervisor must get the first one back.
fn a_cpu_that_raises_the_same_exception_for_ever_still_comes_back(
    emulator: Emulator,
    endless: &[(&str, &str)],
) {
    let others = endless.iter().map(|(attempt, cpus)| guest(attempt, cpus, attempt, ""));
    let toml = victim(emulator, (300, 4)) + &others.collect::<String>();
    let outcome = run(emulator, "endless", &toml);
    for (attempt, _) in endless {
        assert_eq!(outcome.guest_outcome(attempt), Some("poweroff"), "{attempt}\n{outcome}");
        let exceptions = outcome.guest_exits(attempt, "exception");
        // In QEMU a delivery hits no breakpoint: one exit, and the handler runs.
        let least = if emulator == Emulator::Qemu { 1 } else { 100 };
        assert!(exceptions >= Some(least), "{attempt}: {exceptions:?} exceptions\n{outcome}");
    }
}

#[test]
fn a_cpu_that_raises_the_same_exception_for_ever_still_comes_back_on_amd_v() {
    a_cpu_that_raises_the_same_exception_for_ever_still_comes_back(
        Emulator::Qemu,
        &[("debug", "[1, 2]")],
    );
}

#[test]
fn a_cpu_that_raises_the_same_exception_for_ever_still_comes_back_on_vt_x() {
    a_cpu_that_raises_the_same_exception_for_ever_still_comes_back(
        Emulator::Bochs,
        &[("debug", "[1, 2]"), ("alignment", "[3, 4]")],
    );
}

/// No exit from CPL 3 ends a guest.
fn what_a_program_does_ends_no_guest(emulator: Emulator) {
    let payload = Payload { cpus: "[0, 1]", memory: "16M", ..Payload::new("program") };
    let options = [emulator.options(), TIMEOUT].concat();
    let folder = Folder::new(&format!("program-{emulator}"));
    let outcome = folder.run(&payload.toml(), &options, &Devices::none());
    assert_eq!(outcome.status, Some(0), "{outcome}");
    outcome.assert_verdicts(&[
        "a device takes what a program stores by SIDT and its kin",
        "a program's code in a device runs to its end",
        "a program's SS from a device brings no flags of the hypervisor's into the kernel",
        "a program's SIDT may change at any moment",
    ]);
}

#[test]
fn what_a_program_does_ends_no_guest_on_amd_v() {
    what_a_program_does_ends_no_guest(Emulator::Qemu);
}

#[test]
fn what_a_program_does_ends_no_guest_on_vt_x() {
    what_a_program_does_ends_no_guest(Emulator::Bochs);
}

/// A CPU that has CET, which no guest is shown.
#[test]
fn no_bit_of_cr4_brings_in_a_feature_that_is_not_shown_on_vt_x() {
    let bochs = build_folder().join("bochs3/bochs").display().to_string();
    let model = ["--emulator", "bochs", "--bochs", &bochs, "--bochs-model", "tigerlake"];
    let folder = Folder::new("hostile-tigerlake");
    let toml = guest("hostile", "[0]", "all", "");
    let outcome = folder.run(&toml, &[&model, TIMEOUT].concat(), &Devices::none());
    assert!(!outcome.output.contains("FAILED"), "{outcome}");
    let claim = "payload: no control register takes what it must not: ok (";
    assert!(outcome.output.contains(claim), "{outcome}");
}
