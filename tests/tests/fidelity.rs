//! The same payload bare and under Nexit says the same; `make fidelity` has Bochs 3, too, and makes the page.

use nexit_tests::Emulator;
use nexit_tests::fidelity::{Column, compare, facts, known, modes, text};

fn a_guest_sees_what_the_bare_machine_shows(emulator: Emulator, modes: &[&'static str]) {
    let known = known();
    let bare = facts(emulator, Column::Bare).unwrap_or_else(|error| panic!("{error}"));
    for mode in modes {
        let seen = facts(emulator, Column::Nexit(mode)).unwrap_or_else(|error| panic!("{error}"));
        let mut different = compare(emulator, mode, &bare, &seen, &known);
        different.retain(|difference| difference.reason.is_none());
        assert!(different.is_empty(), "{emulator}, {mode}:\n{}", text(&different));
    }
}

#[test]
fn a_guest_sees_what_the_bare_machine_shows_on_amd_v() {
    a_guest_sees_what_the_bare_machine_shows(Emulator::Qemu, modes(Emulator::Qemu));
}

/// The mode in which most is software.
#[test]
fn a_guest_sees_what_the_bare_machine_shows_in_the_exiting_mode_on_vt_x() {
    a_guest_sees_what_the_bare_machine_shows(Emulator::Bochs, &["exiting"]);
}

#[test]
#[ignore = "four boots in Bochs: `make test-all`"]
fn a_guest_sees_what_the_bare_machine_shows_on_vt_x() {
    a_guest_sees_what_the_bare_machine_shows(Emulator::Bochs, modes(Emulator::Bochs));
}
