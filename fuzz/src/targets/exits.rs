//! The whole exit policy: a guest of two CPUs that does anything, in each interrupt mode.

mod step;
mod tasks;
mod world;

use arch::Vector;
use arch::exit::ExitReason;
use arch::vcpu::{EventKind, exception};
use guest::vm::Next;

use crate::input::Input;
use world::World;

/// The most exits of an input.
const MAX_EXITS: usize = 64;
/// The most pages that one step needs.
const MAX_PAGES: usize = 8;

/// Devices that are as they said at the boot: policy never asks for what is not the guest's.
pub(super) fn honest(input: &[u8]) {
    let mut input = Input(input);
    run(World::new(input.byte(), &[]), input);
}

/// Devices that say something else each time: policy may be misled, and what it then asks for is refused.
pub(super) fn lying(input: &[u8]) {
    let mut input = Input(input);
    let head = input.byte();
    let lies = usize::from(input.byte()) + 1;
    let lies = input.bytes(lies);
    run(World::new(head, lies), input);
}

fn run(mut world: World, mut input: Input<'_>) {
    for _ in 0..MAX_EXITS {
        if input.is_empty() || goes_on(&mut world, &mut input) == Gone::Over {
            break;
        }
    }
    world.end();
}

/// Whether an exit from CPL 3 is one that must not end the guest. The others are a failure of the hardware or of the CPU's
/// state, a port, which a kernel has allowed, and a triple fault, which a kernel's tables allow.
fn may_not_end(exit: &step::Exit<'_>) -> bool {
    let vectoring = exit.vectoring.map(|event| event.kind);
    let delivered = matches!(exit.reason, ExitReason::TaskSwitch(_) | ExitReason::Exception { .. });
    let may_end = matches!(
        exit.reason,
        ExitReason::TripleFault
            | ExitReason::EntryFailure(_)
            | ExitReason::ControlRegister(_)
            | ExitReason::Io(_)
            | ExitReason::Exception { vector: Vector(exception::MC), .. }
    );
    let may_end = may_end || delivered && vectoring == Some(EventKind::HardwareException);
    !may_end
}

#[derive(PartialEq)]
enum Gone {
    On,
    Over,
}

/// One exit with all that follows from it.
fn goes_on(world: &mut World, input: &mut Input<'_>) -> Gone {
    let cpu = usize::from(input.byte() & 1);
    let exit = step::Exit::read(input);
    world.before(cpu, &exit);
    let program = world.runs_program(cpu);
    let mut next = world.exit(cpu, exit.reason);
    let ended = matches!(next, Next::End(_));
    assert!(!(ended && program && may_not_end(&exit)), "{:?} of a program", exit.reason);
    if matches!(exit.reason, ExitReason::TaskSwitch(_)) && !ended {
        world.check_task(cpu);
    }
    for _ in 0..MAX_PAGES {
        if next != Next::Step {
            break;
        }
        // The CPU writes to the pages that stand in, and is done; or it needs another one.
        let (slot, at, bytes) =
            (input.byte() & 3, usize::from(input.word() & 0xfff), input.array::<8>());
        let page = &mut world.machine.stand_ins[usize::from(slot)];
        page.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = from);
        let reason = if input.bit() { ExitReason::Step } else { step::fault(input) };
        next = world.stepped(cpu, reason);
    }
    if next == Next::Step {
        world.end_steps(cpu);
    }
    world.check();
    if matches!(next, Next::End(_)) { Gone::Over } else { Gone::On }
}
