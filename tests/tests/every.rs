//! Every kind of instruction, where nothing is and at a device's registers: `tests/payload/src/bin/every`.

use nexit_tests::{Devices, Emulator, Folder, Payload};

/// What the emulators do in a second page after they have changed something: they cannot execute it again. QEMU 10
/// reads and writes ten bytes across two pages as if these were neighbours in the machine, too.
const OF_THE_EMULATOR: [(Emulator, &[&str]); 2] = [
    (Emulator::Qemu, &["lock cmpxchg8b", "Frstor_m94byte", "Frstor_m108byte", "Fld_m80fp"]),
    (Emulator::Bochs, &["Fldenv_m28byte", "Frstor_m108byte"]),
];

fn no_instruction_is_too_much(emulator: Emulator, interrupts: &str) {
    let further = format!("interrupts = \"{interrupts}\"");
    let payload = Payload { further: &further, ..Payload::new("every") };
    let folder = Folder::new(&format!("every-{emulator}-{interrupts}"));
    let options = [emulator.options(), &["--timeout", "240"]].concat();
    let outcome = folder.run(&payload.toml(), &options, &Devices::none());
    assert_eq!(outcome.guest_outcome("every"), Some("poweroff"), "{outcome}");
    assert!(!outcome.output.contains("FAILED"), "{outcome}");
    for claim in [
        "every instruction does where nothing is what it does with ones",
        "and so it does across two pages",
        "a register is written and read by any instruction",
    ] {
        assert!(outcome.output.contains(&format!("payload: {claim}: ok (")), "{claim}\n{outcome}");
    }
    let known = OF_THE_EMULATOR.iter().filter(|(of, _)| *of == emulator);
    let known: Vec<_> = known.flat_map(|(_, names)| names.iter()).collect();
    for line in outcome.output.lines().filter(|line| line.contains(" differs at ")) {
        let is = |name: &&&str| line.contains(&format!("payload: {name} differs at 0xffd"));
        assert!(known.iter().any(is), "{line}\n{outcome}");
    }
}

#[test]
fn no_instruction_is_too_much_on_amd_v() {
    no_instruction_is_too_much(Emulator::Qemu, "exitless");
}

#[test]
fn nor_is_any_in_the_exiting_mode_on_amd_v() {
    no_instruction_is_too_much(Emulator::Qemu, "exiting");
}

#[test]
#[ignore = "the exitless mode has the same code: `make test-all`"]
fn nor_is_any_in_the_other_modes_on_vt_x() {
    no_instruction_is_too_much(Emulator::Bochs, "exiting");
    no_instruction_is_too_much(Emulator::Bochs, "posted");
}

#[test]
fn no_instruction_is_too_much_on_vt_x() {
    no_instruction_is_too_much(Emulator::Bochs, "exitless");
}
