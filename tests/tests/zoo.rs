//! Some machines of the zoo in every run of the tests; `make zoo` has them all.

use std::collections::BTreeSet;

use nexit_tests::zoo::{Machine, machines};

fn assert_ends_as_it_says(name: &str) {
    let machine = Machine::named(name);
    assert!(machine.in_every_test, "{name} is not marked as a machine of every test");
    for road in machine.roads() {
        let outcome = machine.run_small_guest(road);
        let verdict = machine.judge(&outcome);
        assert!(verdict.is_ok(), "{name} by {road}: {verdict:?}\n{outcome}");
    }
}

#[test]
fn every_row_has_a_name_of_its_own_and_a_way_to_boot() {
    let machines = machines();
    let names: BTreeSet<&str> = machines.iter().map(|machine| machine.name.as_str()).collect();
    assert_eq!(names.len(), machines.len());
    assert!(machines.iter().all(|machine| !machine.roads().is_empty()));
}

#[test]
fn ram_above_4_gib_by_all_roads() {
    assert_ends_as_it_says("5g");
}

#[test]
fn ram_above_4_gib_on_vt_x() {
    assert_ends_as_it_says("bochs-5g");
}

#[test]
fn a_guest_whose_memory_goes_on_above_4_gib_by_all_roads() {
    assert_ends_as_it_says("guest-across-4g");
}

#[test]
fn gaps_between_the_apic_ids() {
    assert_ends_as_it_says("sparse-apic-ids");
}

#[test]
fn an_apic_id_above_255_is_interrupted_without_exits() {
    assert_ends_as_it_says("apic-id-above-255");
}

#[test]
fn a_server_with_two_root_buses() {
    assert_ends_as_it_says("server");
}
