//! LIDT and its kin: where the shadow is, and that what the guest stores is seen.

use arch::segment::DescriptorTableRegister;

use super::*;

fn shadows(world: &World) -> [Option<u64>; 2] {
    core::array::from_fn(|slot| world.machine.shadow_at[slot].map(Gpa::as_u64))
}

#[test]
fn an_aligned_table_is_shadowed_where_it_is() {
    let world = World::with_idt();
    assert_eq!(shadows(&world), [Some(IDT), None]);
    assert_eq!(world.vcpu.state.idtr, table(IDT, 0xfff));
    for vector in 0..256 {
        let expected = if vector < 32 { OPEN } else { CLOSED };
        assert_eq!(world.gate(vector), expected, "{vector:#x}");
    }
    assert_eq!(world.memory.0[IDT as usize + 16 * 0x40 + 5], OPEN, "the guest's own is untouched");
}

#[test]
fn a_straddling_table_has_two_shadows_and_its_neighbours_stay() {
    let mut world = World::with_idt();
    let base = IDT + 0x808;
    world.make_idt(base);
    world.put(base - 1, &[0xa5]);
    world.put(base + 0x1000, &[0x5a]);
    world.lidt(base, 0xfff);
    assert_eq!(shadows(&world), [Some(IDT), Some(IDT + 0x1000)]);
    for vector in 32..256 {
        assert_eq!(world.gate_at(base, vector), CLOSED, "{vector:#x}");
    }
    assert_eq!((world.seen(base - 1), world.seen(base + 0x1000)), (0xa5, 0x5a));
}

#[test]
fn a_table_that_moves_gives_its_pages_back_and_takes_its_grants_along() {
    let mut world = World::with_idt();
    let (straddling, other) = (IDT + 0x1800, IDT + 0x4000);
    world.make_idt(straddling);
    world.lidt(straddling, 0xfff);
    assert_eq!(shadows(&world), [Some(IDT + 0x1000), Some(IDT + 0x2000)]);
    assert_eq!(world.gate(0x40), OPEN, "the page before is as the guest left it");
    world.grant(0x40);
    world.make_idt(other);
    world.lidt(other, 0xfff);
    assert_eq!(shadows(&world), [Some(other), None]);
    assert_eq!((world.gate_at(other, 0x40), world.gate_at(other, 0x41)), (OPEN, CLOSED));
}

#[test]
fn pages_are_those_behind_the_linear_address_and_may_be_out_of_order_or_absent() {
    let mut world = World::with_idt();
    world.map(0xb000, 0x9007);
    world.map(0xc000, 0x8007);
    world.lidt(0xb800, 0xfff);
    assert_eq!(shadows(&world), [Some(0x9000), Some(0x8000)]);
    world.map(0xc000, 0);
    world.lidt(0xb800, 0xfff);
    assert_eq!(shadows(&world), [Some(0x9000), None]);
    world.map(0xb000, 0x4_0000_0007);
    world.lidt(0xb000, 0xfff);
    assert_eq!(shadows(&world), [None, None], "a table outside RAM");
}

#[test]
fn one_page_under_two_addresses_has_one_shadow() {
    let mut world = World::with_idt();
    world.map(0xb000, 0x9007);
    world.map(0xc000, 0x9007);
    world.lidt(0xb800, 0xfff);
    assert_eq!(shadows(&world), [Some(0x9000), None]);
}

#[test]
fn neither_the_classic_mode_nor_real_mode_has_a_shadow() {
    let mut world = World::new(InterruptMode::Exiting);
    world.lidt(IDT, 0xfff);
    assert_eq!((shadows(&world), world.vcpu.exception_intercepts), ([None, None], 0));
    let mut world = World::with_idt();
    world.vcpu.state.cr0 = 0x10;
    world.vcpu.state.efer = 0;
    world.vcpu.state.segments[SegmentRegister::Cs as usize].access = AccessRights::CODE16;
    *world.gpr(Gpr::Rbx) = OPERAND;
    world.execute(&[0x0f, 0x01, 0x1f], ExitReason::DescriptorTable);
    assert_eq!(shadows(&world), [None, None]);
    assert_eq!(world.vcpu.state.idtr.limit, 0xfff);
}

#[test]
fn protected_mode_has_gates_of_8_bytes() {
    let mut world = World::with_idt();
    world.vcpu.state.cr0 = 0x11;
    world.vcpu.state.efer = 0;
    world.vcpu.state.segments[SegmentRegister::Cs as usize].access = AccessRights::CODE32;
    world.put(IDT, &[0, 0, 0, 0, 0, OPEN, 0, 0].repeat(256));
    world.lidt(IDT, 0x7ff);
    let gate = |vector: u64| world.seen(IDT + 8 * vector + 5);
    assert_eq!((gate(14), gate(31), gate(32), gate(255)), (OPEN, OPEN, CLOSED, CLOSED));
}

#[test]
fn real_modes_own_table_that_is_loaded_on_the_way_there_is_neither_shadowed_nor_shortened() {
    for mut world in [World::with_idt(), World::new(InterruptMode::Exitless)] {
        world.vcpu.state.cr0 = 0x11;
        world.vcpu.state.efer = 0;
        world.vcpu.state.segments[SegmentRegister::Cs as usize].access = AccessRights::CODE32;
        world.lidt(0, 0x3ff);
        assert_eq!((shadows(&world), world.cpu.idt_limit), ([None, None], None));
        assert_eq!(world.vcpu.state.idtr.limit, 0x3ff);
    }
}

#[test]
fn a_load_that_hardware_refuses_leaves_all_as_it_was() {
    let mut world = World::with_idt();
    let (rip, idtr) = (world.vcpu.state.rip, world.vcpu.state.idtr);
    world.lidt(0x8000_0000_0000, 0xfff);
    assert_eq!(world.vcpu.injected, gp(), "not canonical");
    world.vcpu.state.segments[SegmentRegister::Ss as usize].access = AccessRights(0xc0f3);
    world.lidt(IDT + 0x1000, 0xfff);
    assert_eq!(world.vcpu.injected, gp(), "ring 3");
    world.vcpu.state.segments[SegmentRegister::Ss as usize].access = AccessRights::DATA32;
    world.map(OPERAND, 0);
    world.lidt(IDT + 0x1000, 0xfff);
    assert_eq!(world.vcpu.injected, Some(Event::exception(exception::PF, Some(0))));
    assert_eq!(world.vcpu.cr2, OPERAND);
    assert_eq!((world.vcpu.state.rip, world.vcpu.state.idtr), (rip, idtr));
    assert_eq!(shadows(&world), [Some(IDT), None]);
}

#[test]
fn a_gdt_is_loaded_and_leaves_the_shadow_alone() {
    let mut world = World::with_idt();
    world.put(OPERAND, &[0x7f, 0, 0, 0x50, 0, 0, 0, 0, 0, 0]);
    *world.gpr(Gpr::Rbx) = OPERAND;
    world.execute(&[0x0f, 0x01, 0x13], ExitReason::DescriptorTable);
    assert_eq!(world.vcpu.descriptor_table(DescriptorTableRegister::Gdtr), table(0x5000, 0x7f));
    assert_eq!(shadows(&world), [Some(IDT), None]);
}

#[test]
fn what_is_stored_is_the_guests_own_table_and_seen_even_in_the_page_of_the_idt() {
    let mut world = World::with_idt();
    world.lidt(IDT, 16 * 0x80 - 1);
    let free = IDT + 0xf00;
    *world.gpr(Gpr::Rbx) = free;
    for reason in [ExitReason::DescriptorTable, fault(free, true)] {
        world.put(free, &[0xff; 10]);
        let rip = world.vcpu.state.rip;
        world.execute(&[0x0f, 0x01, 0x0b], reason);
        assert_eq!(world.vcpu.state.rip, rip + 3);
        let expected = [0xff, 0x07, 0x00, 0x80, 0, 0, 0, 0, 0, 0];
        assert_eq!(world.get::<10>(free), expected);
        assert_eq!(
            expected.map(u64::from),
            core::array::from_fn(|i| world.seen(free + i as u64).into())
        );
    }
}

#[test]
fn a_tss_is_loaded_from_a_gdt_in_the_page_of_the_idt() {
    const TSS: u128 = 0x0000_8900_5000_0067;
    for nested in [false, true] {
        let mut world = World::with_idt();
        world.lidt(IDT, 16 * 0x80 - 1);
        let gdt = IDT + 0xf00;
        world.put(gdt + 0x10, &TSS.to_le_bytes());
        world.vcpu.state.gdtr = table(gdt, 0x1f);
        *world.gpr(Gpr::Rax) = 0x10;
        let reason =
            if nested { fault(gdt + 0x15, true) } else { ExitReason::LocalDescriptorTable };
        world.execute(&[0x0f, 0x00, 0xd8], reason);
        assert_eq!(world.vcpu.segment(SegmentRegister::Tr).base, 0x5000);
        assert_eq!(world.seen(gdt + 0x15), 0x8b, "busy");
    }
}

#[test]
fn user_mode_instruction_prevention_holds_for_what_exits() {
    for code in [[0x0f, 0x01, 0x0b], [0x0f, 0x01, 0x03], [0x0f, 0x00, 0x03], [0x0f, 0x00, 0xc8]] {
        for (cpl, umip, refused) in [(3, 1 << 11, true), (3, 0, false), (0, 1 << 11, false)] {
            let mut world = World::with_idt();
            world.at_cpl(cpl);
            world.vcpu.state.cr4 |= umip;
            *world.gpr(Gpr::Rbx) = OPERAND;
            world.execute(&code, ExitReason::DescriptorTable);
            assert_eq!(world.vcpu.injected, gp().filter(|_| refused), "{code:x?} {cpl} {umip:#x}");
        }
    }
}

#[test]
fn what_is_stored_reaches_a_device_as_any_store_does() {
    let mut world = World::with_idt();
    world.vcpu.state.gdtr = table(0x7766_5544_3322_1100, 0x6003);
    world.order();
    *world.gpr(Gpr::Rbx) = BAR + 0x10;
    world.execute(&[0x0f, 0x01, 0x03], ExitReason::DescriptorTable); // sgdt [rbx]
    let written = |(at, value)| Done::Register(REGISTERS, at, value);
    let whole = [(0x10, 0x1100_6003), (0x14, 0x5544_3322), (0x18, 0x7766)].map(written);
    assert_eq!(world.order(), whole);
    world.execute(&[0x0f, 0x00, 0x0b], ExitReason::LocalDescriptorTable); // str [rbx]
    assert_eq!(world.order(), [written((0x10, 8))]);
}

#[test]
fn a_table_register_that_is_loaded_from_nowhere_is_loaded_with_ones() {
    let mut world = World::with_idt();
    *world.gpr(Gpr::Rbx) = 0xfed9_0000;
    world.execute(&[0x0f, 0x01, 0x13], ExitReason::DescriptorTable); // lgdt [rbx]
    assert_eq!(world.vcpu.state.gdtr, table(u64::MAX, 0xffff));
    // The GDT is where nothing is now, and a descriptor of ones is no TSS.
    world.vcpu.state.gdtr = table(0xfed9_0000, 0xffff);
    *world.gpr(Gpr::Rax) = 0x40;
    world.execute(&[0x0f, 0x00, 0xd8], ExitReason::LocalDescriptorTable);
    assert_eq!(world.vcpu.injected, Some(Event::exception(exception::GP, Some(0x40))));
}

/// What #GP of a shortened IDTR is, for an interrupt and for anything else.
const BEYOND: ExitReason = ExitReason::Exception {
    vector: Vector(exception::GP),
    error_code: Some(0x40 << 3 | 2),
    qualification: 0,
};

fn before_the_first_interrupt() -> World {
    let mut world = World::new(InterruptMode::Exitless);
    world.make_idt(IDT);
    world.lidt(IDT, 0xfff);
    world
}

#[test]
fn before_its_first_interrupt_the_guest_writes_its_table_freely_and_no_other_vector_gets_through() {
    let mut world = before_the_first_interrupt();
    assert_eq!(shadows(&world), [None, None]);
    assert_eq!(world.vcpu.state.idtr, table(IDT, 16 * 32 - 1));
    assert_eq!(world.vcpu.exception_intercepts, 1 << exception::NP | 1 << exception::GP);
    *world.gpr(Gpr::Rbx) = OPERAND;
    world.execute(&[0x0f, 0x01, 0x0b], ExitReason::DescriptorTable);
    assert_eq!(world.get::<2>(OPERAND), [0xff, 0x0f], "SIDT gives what the guest has loaded");
}

#[test]
fn the_first_interrupt_has_the_shadow_put_in_place_and_comes_again() {
    let mut world = before_the_first_interrupt();
    world.put(IDT + 16 * 0x41 + 5, &[0]);
    world.grant(0x41);
    world.grant(0x42);
    world.vcpu.state.rflags |= Rflags::RF.bits();
    world.handle(BEYOND, cut_short(0x40, EXTERNAL));
    assert_eq!(world.vcpu.injected, Some(Event::interrupt(Vector(0x40))));
    assert_eq!(world.vcpu.state.rflags & Rflags::RF.bits(), 0, "the fault's, which nobody sees");
    assert_eq!((shadows(&world), world.vcpu.state.idtr), ([Some(IDT), None], table(IDT, 0xfff)));
    assert_eq!((world.gate(0x40), world.gate(0x41), world.gate(0x42)), (CLOSED, 0, OPEN));
    assert_eq!(world.vcpu.exception_intercepts, 1 << exception::NP);
    world.make_idt(IDT + 0x1000);
    world.lidt(IDT + 0x1000, 0xfff);
    assert_eq!(shadows(&world), [Some(IDT + 0x1000), None], "from now on at once");
}

/// Its translation is older than the shadow, and goes at its next exit.
#[test]
fn what_another_cpu_still_writes_to_the_real_page_is_in_the_shadow_once_it_has_flushed() {
    let mut world = before_the_first_interrupt();
    world.handle(BEYOND, cut_short(0x40, EXTERNAL));
    world.grant(0x41);
    let gate = IDT + 16 * 0x41;
    world.put(gate, &[0x78, 0x56, 8, 0, 0, 0xee, 0x34, 0x12]);
    assert_eq!(world.seen(gate), 0, "the page behind the shadow");
    world.context(|vm| vm).table_changed();
    let seen: [u8; 8] = core::array::from_fn(|at| world.seen(gate + at as u64));
    assert_eq!(seen, [0x78, 0x56, 8, 0, 0, 0xee, 0x34, 0x12]);
    assert_eq!(world.vcpu.flushed, 1, "before");
    assert_eq!(world.gate(0x42), CLOSED);
}

#[test]
fn a_general_protection_fault_of_the_guests_own_happens_again_without_an_exit() {
    let mut world = before_the_first_interrupt();
    let rip = world.vcpu.state.rip;
    let own = ExitReason::Exception { vector: Vector(13), error_code: Some(0), qualification: 0 };
    world.handle(own, None);
    assert_eq!((world.vcpu.injected, world.vcpu.state.rip), (None, rip));
    assert_eq!(world.vcpu.exception_intercepts, 1 << exception::NP);
    assert_eq!(shadows(&world), [Some(IDT), None]);
}

#[test]
fn a_cpu_that_was_not_interrupted_first_gets_its_whole_table_at_its_own_first() {
    let mut world = before_the_first_interrupt();
    world.vm.interrupted = true;
    world.handle(BEYOND, cut_short(0x40, EXTERNAL));
    assert_eq!((shadows(&world), world.vcpu.state.idtr), ([Some(IDT), None], table(IDT, 0xfff)));
}

#[test]
fn init_ends_a_shortened_table() {
    let mut world = before_the_first_interrupt();
    world.context(|vm| vm).init();
    assert_eq!(world.vcpu.exception_intercepts, 1 << exception::NP);
    assert_eq!((world.cpu.idt_limit, shadows(&world)), (None, [None, None]));
}

#[test]
fn in_real_mode_no_table_is_shortened() {
    let mut world = World::new(InterruptMode::Exitless);
    world.vcpu.state.cr0 = 0x10;
    world.vcpu.state.efer = 0;
    world.vcpu.state.segments[SegmentRegister::Cs as usize].access = AccessRights::CODE16;
    *world.gpr(Gpr::Rbx) = OPERAND;
    world.put(OPERAND, &[0xff, 0x03, 0, 0, 0, 0]);
    world.execute(&[0x0f, 0x01, 0x1f], ExitReason::DescriptorTable);
    assert_eq!((world.vcpu.state.idtr.limit, world.cpu.idt_limit), (0x3ff, None));
}
