//! When a guest counts as halted for good.

use super::*;

fn world(byte_before: u8, enabled: bool) -> World {
    let mut world = World::with_idt();
    world.vcpu.state.rip = CODE + 0x100;
    world.put(CODE + 0xff, &[byte_before]);
    world.vcpu.state.rflags = if enabled { 0x202 } else { 2 };
    world
}

/// Three calls, so many milliseconds after each other.
fn calls(world: &mut World, apart: u64) -> Vec<Next> {
    let call = |_| {
        world.machine.tsc += apart * world.machine.tsc_khz;
        world.exit(ExitReason::Nmi, None)
    };
    (0..3).map(call).collect()
}

fn ticks(world: &mut World) -> Vec<Next> {
    calls(world, 1000)
}

const GOES_ON: [Next; 3] = [Next::Resume; 3];
const ENDS: [Next; 3] = [Next::Resume, Next::Resume, Next::End(Outcome::Halted)];

#[test]
fn a_guest_has_halted_for_good_when_three_calls_in_a_row_say_so() {
    assert_eq!(ticks(&mut world(0xf4, false)), ENDS, "behind HLT");
    let mut halted = world(0x90, false);
    halted.vcpu.halted = Some(true);
    assert_eq!(ticks(&mut halted), ENDS, "halted");
}

#[test]
fn calls_that_come_close_together_say_nothing_more_than_one() {
    let mut world = world(0xf4, false);
    for _ in 0..3 {
        assert_eq!(calls(&mut world, 1), GOES_ON, "keys, and an operator that looks");
    }
    assert_eq!(ticks(&mut world), [GOES_ON[0], ENDS[2], ENDS[2]]);
}

#[test]
fn a_guest_that_waits_for_interrupts_or_works_goes_on() {
    assert_eq!(ticks(&mut world(0xf4, true)), GOES_ON);
    assert_eq!(ticks(&mut world(0x90, false)), GOES_ON);
}

#[test]
fn who_only_runs_behind_a_hlt_goes_on() {
    let mut program = world(0xf4, false);
    program.at_cpl(3);
    assert_eq!(ticks(&mut program), GOES_ON, "with IOPL 3 it may switch interrupts off");
    let mut told = world(0xf4, false);
    told.vcpu.halted = Some(false);
    assert_eq!(ticks(&mut told), GOES_ON, "the CPU tells that it runs");
    let mut polls = world(0xf4, false);
    let call = |polls: &mut World| {
        *polls.gpr(Gpr::Rcx) += 1;
        calls(polls, 1000)[0]
    };
    assert!((0..9).all(|_| call(&mut polls) == Next::Resume), "a register counts");
}

#[test]
fn a_move_between_the_calls_starts_the_count_anew() {
    let mut world = world(0xf4, false);
    world.handle(ExitReason::Nmi, None);
    world.handle(ExitReason::Nmi, None);
    world.vcpu.state.rip = CODE + 0x200;
    world.put(CODE + 0x1ff, &[0xf4]);
    assert_eq!(ticks(&mut world), ENDS);
}

#[test]
fn no_intercepted_hlt_ends_a_guest() {
    for enabled in [false, true] {
        let mut world = world(0x90, enabled);
        world.handle(ExitReason::Halt, None);
        assert_eq!(world.vcpu.state.rip, CODE + 0x100, "the CPU shall halt by itself");
    }
}
