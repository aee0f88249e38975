//! Which refusals may end a guest: of what a program does, none.

use arch::exit::{EntryFailure, IoAccess, TaskSwitch, TaskSwitchSource};

use super::tasks::{BUSY, GDT, NEW, OLD, event};
use super::*;

const NOWHERE: u64 = 0xfed9_0000;
const UNKNOWN: [u8; 3] = [0x0f, 0x58, 0x03]; // addps xmm0, [rbx]

const PORT_STRING: ExitReason = ExitReason::Io(IoAccess {
    port: 0x80,
    width: arch::Width::Byte,
    input: true,
    string: true,
    repeat: false,
    instruction_length: 1,
});

/// An access that the nested table has stopped: a fetch, or a walk of the guest's tables.
fn stopped(fetch: bool, table_walk: bool) -> ExitReason {
    let gpa = Gpa::new(NOWHERE);
    ExitReason::NestedPageFault(NestedPageFault { gpa, write: false, fetch, table_walk })
}

/// What a refused exit comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Then {
    /// The CPU does it by itself, with a page in place of nothing.
    Step,
    /// It is executed again.
    Again,
    /// The guest has this exception.
    Raised(u8),
    Ends,
}

const UNEXPECTED: ExitReason = ExitReason::Unexpected { code: 9, qualification: 0 };
const FAILURE: EntryFailure = EntryFailure { code: 33, qualification: 0, meaning: "" };
const CONTROL: ControlRegisterWrite = ControlRegisterWrite { register: 4, qualification: 0 };

/// So often the same must happen.
const TRIES: usize = 64;

/// The exit, the bytes at RIP, and what it comes to the first and the 64th time in a row, from CPL 0 and from CPL 3.
type Row = (&'static str, ExitReason, &'static [u8], [Then; 2], [Then; 2]);

fn rows() -> Vec<Row> {
    use Then::{Again, Ends, Raised, Step};
    let (step, at_once) = ([Step; 2], [Ends; 2]);
    let (kernel, program) = ([Again, Ends], [Again, Raised(exception::UD)]);
    let tables = ExitReason::DescriptorTable;
    let local = ExitReason::LocalDescriptorTable;
    vec![
        ("unknown at nothing", fault(NOWHERE, false), &UNKNOWN, step, step),
        ("unknown at a register", fault(0xfec0_0000, true), &UNKNOWN, step, step),
        ("port string at nothing", fault(NOWHERE, true), &[0x6c], step, step),
        ("a fetch from nowhere", stopped(true, false), &[], step, step),
        ("a fetch from a BAR", stopped(true, false), &[], step, step),
        ("tables nowhere", stopped(false, true), &[], step, step),
        ("a table instruction no more", tables, &[0x90], kernel, program),
        ("another known instruction", tables, &[0x88, 0x03], kernel, program),
        ("the same of the other kind", local, &[0x90], kernel, program),
        ("INS no more", PORT_STRING, &[0x90], kernel, program),
        ("INS become OUTS", PORT_STRING, &[0x6e], kernel, program),
        ("never asked for", UNEXPECTED, &[], at_once, [Raised(exception::GP); 2]),
        // Only CPL 0 has these.
        ("CR4 not told", ExitReason::ControlRegister(CONTROL), &[], at_once, at_once),
        ("entry refused", ExitReason::EntryFailure(FAILURE), &[], at_once, at_once),
    ]
}

fn what_comes(world: &mut World, reason: ExitReason) -> Then {
    // So often a second has gone.
    world.machine.tsc += world.machine.tsc_khz * 1000 / (TRIES as u64 - 1) + 1;
    let next = world.exit(reason, None);
    world.cpu.step = Default::default();
    match (next, world.vcpu.injected) {
        (Next::End(_), _) => Then::Ends,
        (Next::Step, _) => Then::Step,
        (Next::Resume, Some(event)) => Then::Raised(event.vector.0),
        (Next::Resume, None) => Then::Again,
    }
}

#[test]
fn no_exit_of_a_program_ends_its_guest_and_of_a_kernel_only_what_repeats() {
    for (what, reason, code, kernel, program) in rows() {
        for (cpl, expected) in [(0, kernel), (3, program)] {
            let mut world = World::with_idt();
            world.at_cpl(cpl);
            world.put(world.vcpu.state.rip, code);
            *world.gpr(Gpr::Rbx) = NOWHERE;
            *world.gpr(Gpr::Rdi) = NOWHERE;
            let rip = world.vcpu.state.rip;
            let seen = [(); TRIES].map(|()| what_comes(&mut world, reason));
            assert!(seen[..TRIES - 1].iter().all(|then| *then == seen[0]), "{what}: {seen:?}");
            let seen = [seen[0], seen[TRIES - 1]];
            assert_eq!(seen, expected, "{what} at CPL {cpl}");
            assert_eq!(world.vcpu.state.rip, rip, "{what}");
        }
    }
}

#[test]
fn only_a_kernel_that_halts_with_interrupts_off_ends_its_guest_at_a_tick() {
    for reason in [ExitReason::Nmi, ExitReason::HostTimer] {
        for (cpl, told, then) in [
            (0, Some(true), Then::Ends),
            (0, None, Then::Ends),
            (0, Some(false), Then::Again),
            (3, None, Then::Again),
        ] {
            let mut world = World::with_idt();
            world.at_cpl(cpl);
            world.put(CODE, &[0xf4]);
            (world.vcpu.state.rip, world.vcpu.state.rflags) = (CODE + 1, 2);
            world.vcpu.halted = told;
            let seen = [(); TRIES].map(|()| {
                world.machine.tsc += 1000 * world.machine.tsc_khz;
                what_comes(&mut world, reason)
            });
            assert_eq!((seen[0], seen[TRIES - 1]), (Then::Again, then), "{reason:?} at CPL {cpl}");
        }
    }
}

#[test]
fn bytes_that_change_again_and_again_are_tried_again_and_again() {
    let mut world = World::with_idt();
    for turn in 0..100_u8 {
        world.put(world.vcpu.state.rip, &[0x90, turn]);
        assert_eq!(what_comes(&mut world, ExitReason::DescriptorTable), Then::Again);
    }
    world.put(world.vcpu.state.rip, &[0x0f, 0x01, 0x0b]);
    *world.gpr(Gpr::Rbx) = OPERAND;
    world.handle(ExitReason::DescriptorTable, None);
    assert_eq!(world.vcpu.state.rip, CODE + 6, "SIDT is carried out at last");
}

#[test]
fn code_where_there_is_no_memory_is_no_table_instruction() {
    let mut world = World::with_idt();
    world.at_cpl(3);
    world.map(0xf000, NOWHERE | 7);
    world.vcpu.state.rip = 0xf000;
    let seen = [(); TRIES].map(|()| what_comes(&mut world, ExitReason::DescriptorTable));
    assert_eq!((seen[0], seen[TRIES - 1]), (Then::Again, Then::Raised(exception::UD)));
}

/// Who changes them may stand still in the midst of it.
#[test]
fn it_takes_a_second_until_a_guest_has_stood_still() {
    let mut world = World::with_idt();
    world.at_cpl(0);
    world.put(world.vcpu.state.rip, &[0x0f, 0x0d, 0x0b]);
    let exit = |world: &mut World| world.exit(ExitReason::DescriptorTable, None);
    assert!((0..1000).all(|_| exit(&mut world) == Next::Resume));
    world.machine.tsc += world.machine.tsc_khz * 1000;
    assert!(matches!(exit(&mut world), Next::End(_)));
}

/// Another CPU flips the bytes in step with this one's exits, between which it executes what they are then.
#[test]
fn a_guest_that_goes_on_between_does_not_stand_still() {
    let mut world = World::with_idt();
    world.at_cpl(0);
    world.put(world.vcpu.state.rip, &[0x0f, 0x0d, 0x0b]);
    for turn in 0..3 * TRIES as u64 {
        *world.gpr(Gpr::R15) = turn;
        assert_eq!(what_comes(&mut world, ExitReason::DescriptorTable), Then::Again);
    }
}

/// Another CPU flips the bytes: now they are what exited, and now they are not.
#[test]
fn bytes_that_are_changed_back_between_are_not_the_same_again_and_again() {
    let mut world = World::with_idt();
    world.at_cpl(0);
    *world.gpr(Gpr::Rbx) = OPERAND;
    for _ in 0..3 * TRIES {
        world.vcpu.state.rip = CODE;
        world.put(CODE, &[0x0f, 0x0d, 0x0b]);
        assert_eq!(what_comes(&mut world, ExitReason::DescriptorTable), Then::Again);
        world.execute(&[0x0f, 0x01, 0x0b], ExitReason::DescriptorTable);
    }
}

/// A task switch with something wrong: what, how it comes, what is wrong, and what it comes to, from CPL 0 and CPL 3 alike:
/// a program makes one by a task gate that it may call or that is an exception's, and by IRET with the nested-task flag.
type Switch = (&'static str, TaskSwitchSource, fn(&mut World), Then);

fn switches() -> Vec<Switch> {
    use TaskSwitchSource::{Call, IdtGate, Iret, Jump};
    use Then::{Again, Ends, Raised};
    const TR: usize = SegmentRegister::Tr as usize;
    fn new_task_at(world: &mut World, at: u64, byte: u8) {
        world.put(GDT + u64::from(NEW) + at, &[byte]);
    }
    /// The GDT ends where RAM does, and has the descriptor of the old task behind that.
    fn old_task_behind_memory(world: &mut World) {
        const HELD: u64 = 0x40;
        let table: [u8; HELD as usize] = world.get(GDT);
        world.put(RAM - HELD, &table);
        world.vcpu.state.gdtr.base = Gva::new(RAM - HELD);
        world.vcpu.state.segments[TR].selector = HELD as u16;
    }
    fn no_task_for_a_double_fault(world: &mut World) {
        world.set_tss(0x4c, 0);
        world.vcpu.vectoring = event(exception::DF, EventKind::HardwareException, Some(0));
    }
    let (ts, np, gp) = (Raised(exception::TS), Raised(exception::NP), Raised(exception::GP));
    vec![
        ("no GDT", Call, |it| it.vcpu.state.gdtr.base = Gva::new(NOWHERE), gp),
        ("no GDT, back", Iret, |it| it.vcpu.state.gdtr.base = Gva::new(NOWHERE), ts),
        ("a task that runs", Jump, |it| new_task_at(it, 5, BUSY), gp),
        ("a task that does not run, back", Iret, |_| {}, ts),
        ("an absent task", Call, |it| new_task_at(it, 5, 9), np),
        ("a short TSS for #PF", IdtGate, |it| new_task_at(it, 0, 0x66), Raised(exception::DF)),
        ("a short TSS of the old task", Call, |it| it.vcpu.state.segments[TR].limit = 0x2b, ts),
        ("no memory behind the new TSS", Call, |it| new_task_at(it, 4, 0xf0), ts),
        (
            "no memory behind the old TSS",
            Call,
            |it| it.vcpu.state.segments[TR].base = NOWHERE,
            Again,
        ),
        ("no memory behind the old task's descriptor", Jump, old_task_behind_memory, Again),
        ("the same, called", Call, old_task_behind_memory, Again),
        (
            "a stack nowhere for the error code",
            IdtGate,
            |it| it.set_tss(0x38, NOWHERE as u32),
            Again,
        ),
        ("code nowhere", Jump, |it| it.set_tss(0x20, NOWHERE as u32), Again),
        ("no code", Jump, |it| it.set_tss(0x4c, 0), ts),
        // As on hardware, which shuts down: a kernel whose gate for #DF leads nowhere.
        ("no task for #DF", IdtGate, no_task_for_a_double_fault, Ends),
    ]
}

#[test]
fn no_task_switch_of_a_program_ends_its_guest_but_by_a_triple_fault() {
    for (what, source, spoil, expected) in switches() {
        for cpl in [0, 3] {
            let mut world = World::with_tasks();
            world.at_cpl(cpl);
            spoil(&mut world);
            let gate = source == TaskSwitchSource::IdtGate;
            let fault = event(exception::PF, EventKind::HardwareException, Some(4));
            let delivered = world.vcpu.vectoring.or(fault).filter(|_| gate);
            let reason = ExitReason::TaskSwitch(TaskSwitch { selector: Some(NEW), source });
            let before = (world.vcpu.state, world.memory.0.clone());
            for turn in 0..=TRIES {
                (world.vcpu.state, world.memory.0) = before.clone();
                let next = world.exit(reason, delivered);
                let then = match (next, world.vcpu.injected) {
                    (Next::End(_), _) => Then::Ends,
                    (_, Some(event)) => Then::Raised(event.vector.0),
                    _ => Then::Again,
                };
                assert_eq!(then, expected, "{what} at CPL {cpl}, turn {turn}");
            }
        }
    }
}

#[test]
fn a_link_that_is_nowhere_reads_as_ones_and_is_no_task() {
    for cpl in [0, 3] {
        let mut world = World::with_tasks();
        world.at_cpl(cpl);
        world.vcpu.state.segments[SegmentRegister::Tr as usize].base = NOWHERE;
        let source = TaskSwitchSource::Iret;
        world.handle(ExitReason::TaskSwitch(TaskSwitch { selector: None, source }), None);
        let expected = Event::exception(exception::TS, Some(0xfffc));
        assert_eq!(world.vcpu.injected, Some(expected), "CPL {cpl}");
        assert_eq!(world.vcpu.segment(SegmentRegister::Tr).selector, OLD);
    }
}
