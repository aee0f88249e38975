//! Steps: what the page of a CPU's own holds, and what of it reaches a device.

use super::*;

const NOWHERE: u64 = 0xfed9_0000;
const UNKNOWN: [u8; 3] = [0x0f, 0x58, 0x03]; // addps xmm0, [rbx]

/// An instruction that only the CPU knows, at `gpa`.
fn begin(world: &mut World, gpa: u64) {
    world.put(CODE, &UNKNOWN);
    world.vcpu.state.rip = CODE;
    *world.gpr(Gpr::Rbx) = gpa;
    assert_eq!(world.exit(fault(gpa, true), None), Next::Step);
    assert!(world.cpu.step.one());
}

fn end(world: &mut World) {
    world.context(|vm| vm).stepped(&ExitReason::Step);
    assert_eq!(world.machine.stand_in_at, [None; 4]);
}

fn page(world: &World, slot: usize) -> &[u8; 4096] {
    &world.machine.stand_ins[slot]
}

#[test]
fn nothing_is_a_page_of_ones_and_what_is_written_to_it_is_lost() {
    let mut world = World::with_idt();
    world.order();
    begin(&mut world, NOWHERE + 0x123);
    assert_eq!(world.machine.stand_in_at[0], Some(Gpa::new(NOWHERE)));
    assert!(page(&world, 0).iter().all(|byte| *byte == 0xff));
    world.machine.stand_ins[0] = [0; 4096];
    end(&mut world);
    assert_eq!((world.order(), world.machine.log.len()), (vec![], 1));
}

#[test]
fn registers_read_as_they_are_and_only_what_has_changed_is_written() {
    let mut world = World::with_idt();
    // The MSI-X table: virtual, and masked at first.
    let entry = BAR + 0x2010;
    begin(&mut world, entry + 4);
    let at = 0x10;
    assert_eq!(page(&world, 0)[at..at + 16], [[0; 12].as_slice(), &[1, 0, 0, 0]].concat()[..]);
    assert_eq!(page(&world, 0)[at + 64..][..4], [0xff; 4], "64 bytes of it");
    world.machine.stand_ins[0][at..at + 4].copy_from_slice(&0xfee0_0000_u32.to_le_bytes());
    world.machine.stand_ins[0][at + 8] = 0x61;
    end(&mut world);
    assert_eq!(super::memory::devices::load(&mut world, entry), 0xfee0_0000);
    assert_eq!(super::memory::devices::load(&mut world, entry + 8), 0x61);
    assert_eq!(super::memory::devices::load(&mut world, entry + 12), 1);
}

#[test]
fn a_second_page_joins_the_first_and_a_fault_leaves_the_device_alone() {
    let mut world = World::with_idt();
    begin(&mut world, 0xfec0_0000);
    world.machine.stand_ins[0][0] = 0x55;
    world.context(|vm| vm).stepped(&fault(NOWHERE, false));
    begin(&mut world, NOWHERE);
    let both = [Some(Gpa::new(0xfec0_0000)), Some(Gpa::new(NOWHERE)), None, None];
    assert_eq!(world.machine.stand_in_at, both);
    end(&mut world);
    assert_eq!(super::memory::devices::load(&mut world, 0xfec0_0000), 0x55, "written at the end");
    begin(&mut world, 0xfec0_0000);
    world.machine.stand_ins[0][0] = 0x66;
    world.context(|vm| vm).end_steps();
    assert_eq!(super::memory::devices::load(&mut world, 0xfec0_0000), 0x55);
}

#[test]
fn an_instruction_with_more_pages_than_there_are_gets_them_by_turns() {
    let mut world = World::with_idt();
    for turn in 0..5 {
        begin(&mut world, NOWHERE + 0x1000 * turn);
    }
    let at = [4, 1, 2, 3].map(|turn| Some(Gpa::new(NOWHERE + 0x1000 * turn)));
    assert_eq!(world.machine.stand_in_at, at);
}

#[test]
fn an_event_that_leads_nowhere_is_delivered_with_a_page_in_its_way() {
    let mut world = World::with_idt();
    assert_eq!(world.exit(fault(NOWHERE, true), cut_short(0x40, EXTERNAL)), Next::Step);
    assert_eq!(world.vcpu.injected, Some(Event::interrupt(Vector(0x40))));
    assert!(!world.cpu.step.one());
    // Its stack goes on in another page.
    let second = fault(NOWHERE + 0x1000, true);
    world.context(|vm| vm).stepped(&second);
    assert_eq!(world.exit(second, cut_short(0x40, EXTERNAL)), Next::Step);
    let both = [0, 0x1000].map(|at| Some(Gpa::new(NOWHERE + at)));
    assert_eq!(world.machine.stand_in_at, [both[0], both[1], None, None]);
    // What its handler then does is something else.
    let third = fault(NOWHERE + 0x2000, true);
    world.vcpu.vectoring = None;
    world.context(|vm| vm).stepped(&third);
    assert_eq!(world.machine.stand_in_at, [None; 4]);
}

#[test]
fn an_address_beyond_all_tables_is_a_general_protection_fault() {
    let mut world = World::with_idt();
    world.put(CODE + 3, &UNKNOWN);
    world.handle(fault(1 << 48, false), None);
    assert_eq!(world.vcpu.injected, gp(), "and no step");
}

/// Code in the registers of a device that exit.
#[test]
fn what_would_show_the_steps_flags_is_no_instruction_in_a_devices_registers() {
    const TABLE: u64 = BAR + 0x2000;
    let fetch = |gpa| {
        ExitReason::NestedPageFault(NestedPageFault {
            gpa: Gpa::new(gpa),
            write: false,
            fetch: true,
            table_walk: false,
        })
    };
    let int_n = u32::from(u16::from_le_bytes([0xcd, 0x40]));
    for (what, code, runs) in [
        ("INT 0x40", int_n, false),
        ("INT1", 0xf1, false),
        ("SYSCALL", 0x050f, false),
        ("PUSHF behind a prefix", 0x9c66, false),
        ("IRET", 0xcf48, false),
        ("CLI", 0xfa, false),
        ("MOV SS and SYSCALL", 0x050f_d08e, false),
        ("MOV DS", 0xd88e, true),
        ("STI", 0xfb, true),
        ("NOP", 0x90, true),
    ] {
        let mut world = World::with_idt();
        super::memory::devices::store(&mut world, TABLE + 8, code);
        world.at_cpl(3);
        world.map(0xf000, TABLE | 7);
        world.vcpu.state.rip = 0xf008;
        let next = world.exit(fetch(TABLE + 8), None);
        let raised = world.vcpu.injected.map(|event| event.vector.0);
        let expected = if runs { (Next::Step, None) } else { (Next::Resume, Some(exception::UD)) };
        assert_eq!((next, raised), expected, "{what}");
        assert_eq!(world.machine.stand_in_at.iter().flatten().count(), usize::from(runs), "{what}");
    }
    // It begins in memory, and goes on in the registers; from nowhere it reads as FF FF.
    let mut world = World::with_idt();
    super::memory::devices::store(&mut world, TABLE, 0x40cd);
    world.at_cpl(3);
    world.map(0xf000, TABLE | 7);
    world.put(CODE | 0xfff, &[0x66]);
    world.map(0xe000, (CODE & !0xfff) | 7);
    world.vcpu.state.rip = 0xefff;
    assert_eq!(world.exit(fetch(TABLE), None), Next::Resume);
    assert_eq!(world.exit(fetch(NOWHERE), None), Next::Step);
}

/// In memory, too, where the operand is what was stopped: behind it the CPU would execute what comes next.
#[test]
fn what_holds_the_trap_back_is_never_stepped() {
    const POP_SS: [u8; 2] = [0x17, 0x9c];
    for (what, code, bits64, runs) in [
        ("MOV SS, [RBX]; SYSCALL", &[0x8e, 0x13, 0x0f, 0x05][..], true, false),
        ("MOV DS, [RBX]; SYSCALL", &[0x8e, 0x1b, 0x0f, 0x05], true, true),
        ("POP SS; PUSHF", &POP_SS, false, false),
        ("POPF", &[0x9d], false, true),
    ] {
        let mut world = World::with_idt();
        if !bits64 {
            (world.vcpu.state.cr0, world.vcpu.state.efer) = (0x11, 0);
            world.vcpu.state.segments[SegmentRegister::Cs as usize].access = AccessRights::CODE32;
        }
        world.at_cpl(3);
        world.put(CODE, code);
        world.vcpu.state.rip = CODE;
        *world.gpr(Gpr::Rbx) = BAR + 0x2000;
        let next = world.exit(fault(BAR + 0x2000, false), None);
        let raised = world.vcpu.injected.map(|event| event.vector.0);
        let expected = if runs { (Next::Step, None) } else { (Next::Resume, Some(exception::UD)) };
        assert_eq!((next, raised), expected, "{what}");
        assert_eq!(world.machine.stand_in_at.iter().flatten().count(), usize::from(runs), "{what}");
    }
    let mut world = World::with_idt();
    world.put(CODE, &[0x8e, 0x13]);
    world.vcpu.state.rip = CODE;
    let delivering = world.exit(fault(NOWHERE, true), cut_short(0x40, EXTERNAL));
    assert_eq!(delivering, Next::Step, "it is not what is at RIP");
}
