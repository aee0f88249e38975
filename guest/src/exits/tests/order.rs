//! The order of what a guest's interrupt needs: its gate is open before it is routed, and it is routed
//! before its device can send it.

use std::boxed::Box;

use arch::Width;
use arch::interrupt::MsiMessage;
use arch::machine::{ConfigSpace, InterruptLine};

use super::*;
use crate::devices::ioapic;
use crate::fake::Done;
use crate::pci::{Host, SharedMemory};

const ENTRY: u64 = BAR + 0x2000;
const LIVE: u32 = 0;
const MASKED: u32 = 1;

/// A world that notes changes of its shadows.
fn world() -> World {
    let mut world = World::with_idt();
    world.machine.watches_shadows = true;
    world
}

fn store(world: &mut World, gpa: u64, value: u32) {
    *world.gpr(Gpr::Rax) = value.into();
    world.touch(&[0x89, 0x03], gpa, true); // mov [rbx], eax
}

/// What was done since the last call of this.
fn order(world: &World) -> Vec<Done> {
    world.machine.order.take()
}

fn config(function: Bdf, offset: u64) -> u64 {
    ECAM + (u64::from(function.requester_id()) << 12) + offset
}

fn message(function: Bdf, index: u16) -> InterruptLine {
    InterruptLine::Message { function, index }
}

fn fill_entry(world: &mut World, control: u32) {
    for (offset, value) in [(0, 0xfee0_0000), (4, 0), (8, 0x61), (12, control)] {
        store(world, ENTRY + offset, value);
    }
}

/// The real entry of the MSI-X table sends the message that belongs to the route.
fn programmed() -> Done {
    Done::Entry(NVME, 0, Some(MsiMessage { address: 0xfee0_0010, data: 0 }))
}

#[test]
fn an_msi_x_vector_is_granted_then_routed_then_programmed() {
    let mut world = world();
    store(&mut world, config(NVME, 0x40), 0x8000_0011);
    fill_entry(&mut world, MASKED);
    order(&world);
    store(&mut world, ENTRY + 12, LIVE);
    assert_eq!(order(&world), [Done::Shadow, Done::Route(message(NVME, 0), true), programmed()]);
    assert_eq!(world.gate(0x61), OPEN);
}

#[test]
fn msi_x_is_enabled_after_all_its_vectors_were_granted() {
    let mut world = world();
    fill_entry(&mut world, LIVE);
    order(&world);
    store(&mut world, config(NVME, 0x40), 0x8000_0011);
    let enabled = Done::Config(NVME, 0x42, 0x8000);
    let expected = [Done::Shadow, Done::Route(message(NVME, 0), true), programmed(), enabled];
    assert_eq!(order(&world), expected);
}

/// An interrupt that is live already moves by its route alone.
#[test]
fn a_live_vector_changes_only_after_the_new_one_was_granted() {
    let mut world = world();
    store(&mut world, config(NVME, 0x40), 0x8000_0011);
    fill_entry(&mut world, LIVE);
    order(&world);
    store(&mut world, ENTRY + 8, 0x62);
    assert_eq!(order(&world)[..2], [Done::Shadow, Done::Route(message(NVME, 0), true)]);
    assert_eq!((world.gate(0x61), world.gate(0x62)), (OPEN, OPEN));
}

#[test]
fn an_msi_vector_is_granted_then_routed_then_programmed() {
    let mut world = world();
    for (offset, value) in [(0x54, 0xfee0_0000), (0x58, 0), (0x5c, 0x51)] {
        store(&mut world, config(NIC, offset), value);
    }
    order(&world);
    store(&mut world, config(NIC, 0x50), 0x0001_0005);
    let done = order(&world);
    assert_eq!(done[..2], [Done::Shadow, Done::Route(message(NIC, 0), true)]);
    assert_eq!(done.last(), Some(&Done::Config(NIC, 0x52, 1)), "enabled");
    assert_eq!(world.gate(0x51), OPEN);
}

/// As Linux does it: enabled first, masked, with a message that is nobody's; then filled; then unmasked.
#[test]
fn a_masked_msi_is_not_granted_and_unmasked_only_after_it_was() {
    let mut world = world();
    order(&world);
    store(&mut world, config(NIC, 0x60), MASKED);
    store(&mut world, config(NIC, 0x50), 0x0001_0005);
    for (offset, value) in [(0x54, 0xfee0_0000), (0x58, 0), (0x5c, 0x51)] {
        store(&mut world, config(NIC, offset), value);
    }
    assert_eq!((world.gate(0x51), &world.machine.log), (CLOSED, &vec![]));
    let unmasked = Done::Config(NIC, 0x60, !1);
    let done = order(&world);
    assert!(!done.contains(&unmasked) && done.contains(&Done::Config(NIC, 0x52, 1)), "{done:?}");
    store(&mut world, config(NIC, 0x60), LIVE);
    let expected = [Done::Shadow, Done::Route(message(NIC, 0), true), unmasked];
    assert_eq!(order(&world), expected);
}

#[test]
fn an_msi_message_that_is_refused_is_said_only_while_it_is_unmasked_and_enabled() {
    let mut world = world();
    store(&mut world, config(NIC, 0x5c), 0x0e); // a vector of exceptions
    store(&mut world, config(NIC, 0x60), MASKED);
    store(&mut world, config(NIC, 0x50), 0x0001_0005);
    for (offset, value) in [(0x54, 0xfee0_0000), (0x58, 0), (0x5c, 0x0e)] {
        store(&mut world, config(NIC, offset), value);
    }
    assert_eq!(world.machine.log, Vec::<String>::new());
    store(&mut world, config(NIC, 0x60), LIVE);
    let said = ["00:07.0: message 0 stays masked: message vector 0x0e belongs to exceptions"];
    assert_eq!(world.machine.log, said);
    assert_eq!(world.config.read(NIC, 0x52, Width::Word) & 1, 0, "off");
    store(&mut world, config(NIC, 0x50), 0x0000_0005);
    store(&mut world, config(NIC, 0x5c), 0x0f);
    assert_eq!(world.machine.log, said, "disabled");
}

#[test]
fn in_a_row_of_short_lives_a_refused_message_is_not_said() {
    for quiet in [false, true] {
        let mut world = world();
        if quiet {
            world.vm.be_quiet();
        }
        for (offset, value) in
            [(0x54, 0xfee0_0000), (0x58, 0), (0x5c, 0x0e), (0x60, LIVE), (0x50, 0x0001_0005)]
        {
            store(&mut world, config(NIC, offset), value);
        }
        assert_eq!(world.machine.log.is_empty(), quiet, "{:?}", world.machine.log);
    }
}

#[test]
fn a_lines_vector_is_granted_before_the_line_is_routed() {
    let mut world = world();
    store(&mut world, ioapic::BASE, 0x10 + 2 * 14);
    order(&world);
    store(&mut world, ioapic::BASE + 0x10, 0x2e);
    assert_eq!(order(&world), [Done::Shadow, Done::Route(InterruptLine::Gsi(14), true)]);
}

#[test]
fn a_doorbell_that_was_rung_while_masked_rings_after_its_vector_was_granted() {
    let mut world = world();
    let memory: &'static SharedMemory = Box::leak(Box::new(SharedMemory::new(REGION.length)));
    world.vm.bus.add_shared(memory, 0).unwrap();
    let (machine, space) = (&mut world.machine, &mut world.config);
    world.vm.bus.attach(&mut Host { machine, config: space });
    let function = Bdf::new(0, 31, 0);
    let [registers, table] = [0x10, 0x14].map(|at| {
        world.touch(&[0x8b, 0x03], config(function, at), false); // mov eax, [rbx]
        *world.gpr(Gpr::Rax)
    });
    store(&mut world, config(function, 4), 6);
    store(&mut world, config(function, 0x40), 0x8000_0011);
    for (offset, value) in [(0, 0xfee0_0000), (4, 0), (8, 0x71), (12, MASKED)] {
        store(&mut world, table + offset, value);
    }
    store(&mut world, registers + 12, 0);
    assert_eq!((&world.machine.rung[..], world.gate(0x71)), (&[][..], CLOSED));
    order(&world);
    store(&mut world, table + 12, LIVE);
    assert_eq!(order(&world), [Done::Shadow, Done::Ring(CPU, Vector(0x71))]);
}
