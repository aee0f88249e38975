//! What is said of a guest that waits for what cannot come.

use arch::msr::IA32_X2APIC_LVT_TIMER;

use super::*;
use crate::devices::pit;

/// Halted with interrupts on, before any clock is set, the only CPU of its guest.
fn world() -> World {
    let mut world = World::with_idt();
    world.put(CODE, &[0x90; 4096]);
    world.put(CODE + 0xff, &[0xf4]);
    world.vcpu.state.rip = CODE + 0x100;
    world
}

/// Looks each half of a second; what was said then.
fn look(world: &mut World, times: u32) -> Vec<String> {
    let before = world.machine.log.len();
    for _ in 0..times {
        world.machine.tsc += 500 * world.machine.tsc_khz;
        world.handle(ExitReason::Nmi, None);
    }
    world.machine.log[before..].to_vec()
}

#[test]
fn a_halt_that_no_clock_can_end_is_said_once_with_its_reason() {
    let mut world = world();
    assert_eq!(look(&mut world, 6), [""; 0]);
    let said = "guest test: CPU 0 waits at 0x6100 since 0.502 s after its start, and no clock can interrupt it: the \
                PIT's line is not its own, and its local APIC's timer is masked";
    assert_eq!(look(&mut world, 60), [said]);
}

#[test]
fn a_short_loop_is_a_wait_and_work_is_not() {
    let mut busy = world();
    busy.vm.lines.push(Line { input: 2, gsi: pit::GSI, active_low: false });
    let mut said = Vec::new();
    for round in 0..10 {
        busy.vcpu.state.rip = CODE + 0x100 + 16 * (round % 4);
        said.extend(look(&mut busy, 1));
    }
    assert_eq!(said.len(), 1);
    assert!(said[0].contains("IRQ 0 is masked at its 8259s and its I/O APIC"), "{said:?}");
    let mut works = world();
    for round in 0..20 {
        works.vcpu.state.rip = CODE + 0x100 + 256 * (round % 2);
        assert_eq!(look(&mut works, 1), [""; 0]);
    }
}

#[test]
fn a_guest_with_a_clock_or_interrupts_off_or_another_cpu_waits_for_something() {
    let mut ticks = world();
    ticks.machine.msrs.insert(IA32_X2APIC_LVT_TIMER, 0);
    ticks.machine.msrs.insert(IA32_X2APIC_SIVR, 0);
    ticks.wrmsr(IA32_X2APIC_SIVR, 0x1ff);
    ticks.wrmsr(IA32_X2APIC_LVT_TIMER, 0x40);
    assert_eq!(look(&mut ticks, 20), [""; 0]);
    let mut off = world();
    off.vcpu.state.rflags = 2;
    off.put(CODE + 0xff, &[0x90]);
    assert_eq!(look(&mut off, 20), [""; 0]);
    let mut two = world();
    two.guest.started.store(3, Ordering::Release);
    assert_eq!(look(&mut two, 20), [""; 0]);
}

#[test]
fn zeros_are_said_wherever_they_are() {
    let mut world = world();
    world.vcpu.state.rflags = 2;
    world.put(CODE, &[0; 4096]);
    let mut said = Vec::new();
    for round in 1..10 {
        world.vcpu.state.rip = CODE + 0x200 * round;
        said.extend(look(&mut world, 1));
    }
    let sentence = "guest test: CPU 0 executes zeros at 0x6200, since 0.502 s after its start: a call or an interrupt has \
                    led there, and there is no BIOS";
    assert_eq!(said, [sentence]);
}
