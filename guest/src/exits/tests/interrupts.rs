//! Gates of the shadow, interprocessor interrupts, and the classic mode's injection.

use arch::msr::{
    IA32_X2APIC_EOI, IA32_X2APIC_ICR, IA32_X2APIC_ISR0, IA32_X2APIC_LVT_TIMER, IA32_X2APIC_SIVR,
    IA32_X2APIC_TMR0, IA32_X2APIC_TPR,
};

use super::*;

const EXT: u32 = 1;

const fn gate_code(vector: u8) -> u32 {
    (vector as u32) << 3 | 2
}

const fn np(code: u32) -> Option<Event> {
    Some(Event::exception(exception::NP, Some(code)))
}

pub(super) fn raised(vector: u8, error_code: u32) -> ExitReason {
    ExitReason::Exception { vector: Vector(vector), error_code: Some(error_code), qualification: 0 }
}

/// An interrupt (or `INT n`) meets a gate that is not present.
fn closed_gate(world: &mut World, vector: u8, kind: EventKind) {
    world.handle(raised(exception::NP, gate_code(vector)), cut_short(vector, kind));
}

#[test]
fn a_first_arrival_opens_its_own_gate_and_is_delivered() {
    let mut world = World::with_idt();
    assert_eq!((world.gate(0x40), world.gate(0x41), world.gate(14)), (CLOSED, CLOSED, OPEN));
    closed_gate(&mut world, 0x40, EXTERNAL);
    assert_eq!(world.vcpu.injected, Some(Event::interrupt(Vector(0x40))));
    assert_eq!((world.gate(0x40), world.gate(0x41)), (OPEN, CLOSED));
    assert_eq!(world.machine.eois, 0, "the guest ends it itself");
}

#[test]
fn int_n_opens_the_gate_and_is_executed_again() {
    let mut world = World::with_idt();
    let rip = world.vcpu.state.rip;
    closed_gate(&mut world, 0x80, EventKind::SoftwareInterrupt);
    assert_eq!((world.vcpu.injected, world.vcpu.state.rip), (None, rip));
    assert_eq!(world.gate(0x80), OPEN);
}

#[test]
fn an_interrupt_does_not_push_the_resume_flag_of_a_fault_that_the_guest_never_saw() {
    for kind in [EXTERNAL, EventKind::SoftwareInterrupt] {
        let mut world = World::with_idt();
        world.vcpu.state.rflags |= Rflags::RF.bits();
        closed_gate(&mut world, 0x40, kind);
        assert_eq!(world.vcpu.state.rflags & Rflags::RF.bits(), 0, "{kind:?}");
    }
    let mut stray = World::with_idt();
    stray.touch(&[0x88, 0x03], IDT + 16 * 0x50 + 5, true); // no gate any more
    stray.vcpu.state.rflags |= Rflags::RF.bits();
    closed_gate(&mut stray, 0x50, EXTERNAL);
    assert_eq!(stray.vcpu.state.rflags & Rflags::RF.bits(), 0, "a stray one");
    let mut world = World::with_idt();
    world.vcpu.state.rflags |= Rflags::RF.bits();
    world.handle(raised(exception::NP, 0x18), None);
    assert!(world.vcpu.state.rflags & Rflags::RF.bits() != 0, "this one is the guest's");
}

#[test]
fn int_n_without_a_gate_is_the_guests_own_fault() {
    let mut world = World::with_idt();
    let flags = IDT + 16 * 0x80 + 5;
    world.touch(&[0x88, 0x03], flags, true); // mov [rbx], al: no gate any more
    closed_gate(&mut world, 0x80, EventKind::SoftwareInterrupt);
    let not_a_gate = Some(Event::exception(exception::GP, Some(gate_code(0x80))));
    assert_eq!(world.vcpu.injected, not_a_gate);
    *world.gpr(Gpr::Rax) = CLOSED.into();
    world.touch(&[0x88, 0x03], flags, true); // a gate that is not present
    closed_gate(&mut world, 0x80, EventKind::SoftwareInterrupt);
    assert_eq!(world.vcpu.injected, np(gate_code(0x80)));
}

#[test]
fn a_stray_interrupt_is_ended_and_dropped_and_does_not_flood_the_log() {
    let mut world = World::with_idt();
    world.touch(&[0x88, 0x03], IDT + 16 * 0x50 + 5, true);
    for _ in 0..20 {
        closed_gate(&mut world, 0x50, EXTERNAL);
        assert_eq!(world.vcpu.injected, None);
    }
    assert_eq!(world.machine.eois, 20);
    assert_eq!(world.machine.log, ["guest test: dropped a stray interrupt 0x50"; 8]);
}

#[test]
fn a_granted_interrupt_without_a_gate_is_the_guests_own_fault() {
    let mut world = World::with_idt();
    world.touch(&[0x88, 0x03], IDT + 16 * 0x50 + 5, true);
    world.grant(0x50);
    closed_gate(&mut world, 0x50, EXTERNAL);
    assert_eq!(world.vcpu.injected, np(gate_code(0x50) | EXT));
    assert_eq!(world.machine.eois, 0, "as on hardware it stays in service");
}

#[test]
fn a_gate_that_stays_closed_is_not_tried_forever() {
    // The guest's page tables lead the CPU to another table than the one that was shadowed.
    let mut world = World::with_idt();
    world.map(IDT, 0xa007);
    closed_gate(&mut world, 0x50, EXTERNAL);
    closed_gate(&mut world, 0x50, EXTERNAL);
    assert_eq!(world.vcpu.injected, np(gate_code(0x50) | EXT));
}

#[test]
fn a_gate_that_another_cpu_opened_meanwhile_is_tried_again() {
    let mut world = World::with_idt();
    world.grant(0x50);
    closed_gate(&mut world, 0x50, EXTERNAL);
    assert_eq!(world.vcpu.injected, Some(Event::interrupt(Vector(0x50))));
}

#[test]
fn without_a_shadow_a_gate_that_is_not_present_is_the_guests_own() {
    let mut world = World::new(InterruptMode::Exitless);
    closed_gate(&mut world, 0x80, EventKind::SoftwareInterrupt);
    assert_eq!(world.vcpu.injected, np(gate_code(0x80)));
}

#[test]
fn the_guests_own_faults_are_its_own_and_add_up_as_on_hardware() {
    let mut world = World::with_idt();
    world.handle(raised(exception::NP, 0x18), None);
    assert_eq!(world.vcpu.injected, np(0x18));
    let first = |vector| cut_short(vector, EventKind::HardwareException);
    world.handle(raised(exception::NP, 0x18), first(exception::PF));
    let double_fault = Some(Event::exception(exception::DF, Some(0)));
    assert_eq!(world.vcpu.injected, double_fault);
    let third = world.exit(raised(exception::NP, 0x18), first(exception::DF));
    assert_eq!(third, Next::End(Outcome::TripleFault));
}

#[test]
fn general_protection_exits_only_while_the_table_is_short() {
    let mut world = World::with_idt();
    let np_only = 1 << exception::NP;
    assert_eq!(world.vcpu.exception_intercepts, np_only);
    world.lidt(IDT, 16 * 32 - 1);
    assert_eq!(world.vcpu.exception_intercepts, np_only | 1 << exception::GP);
    let code = gate_code(0x40);
    world.handle(raised(exception::GP, code), cut_short(0x40, EXTERNAL));
    assert_eq!(world.vcpu.injected, Some(Event::exception(exception::GP, Some(code | EXT))));
    world.handle(raised(exception::GP, 0), None);
    assert_eq!(world.vcpu.injected, gp());
    world.lidt(IDT, 0xffff);
    assert_eq!(world.vcpu.exception_intercepts, np_only);
}

#[test]
fn an_ipi_to_itself_is_granted_and_sent_and_one_to_others_is_nobodys() {
    let mut world = World::with_idt();
    for (value, vector) in [(0x4_00f1, 0xf1), (0x8_00f2, 0xf2), (0xf3, 0xf3), (0x1_0000_08f4, 0xf4)]
    {
        world.wrmsr(IA32_X2APIC_ICR, value);
        assert_eq!(world.machine.self_ipis.pop(), Some(Vector(vector)));
        assert_eq!(world.gate(vector.into()), OPEN);
    }
    for others in [0xc_00f8, 0x1_0000_00f8, 0x2_0000_08f8, 0x1_0000_0500, 0x1_0000_0699, 0x500] {
        world.wrmsr(IA32_X2APIC_ICR, others);
        assert_eq!((world.machine.self_ipis.pop(), world.vcpu.injected), (None, None));
    }
}

#[test]
fn an_nmi_to_itself_is_injected_and_the_instruction_is_over() {
    let mut world = World::with_idt();
    let rip = world.vcpu.state.rip;
    world.wrmsr(IA32_X2APIC_ICR, 0x4_0400);
    let injected = world.vcpu.injected.unwrap();
    assert_eq!((injected.vector, injected.kind), (Vector(2), EventKind::Nmi));
    assert_eq!(world.vcpu.state.rip, rip + 2);
}

#[test]
fn the_timers_vector_is_granted_before_the_physical_timer_has_it() {
    let mut world = World::with_idt();
    world.machine.msrs.extend([(IA32_X2APIC_SIVR, 0x1ff), (IA32_X2APIC_LVT_TIMER, 0x1_0000)]);
    world.wrmsr(IA32_X2APIC_SIVR, 0x1ff);
    world.wrmsr(IA32_X2APIC_LVT_TIMER, 0x2_00ec);
    assert_eq!((world.gate(0xff), world.gate(0xec)), (OPEN, OPEN));
    assert_eq!(world.machine.msrs[&IA32_X2APIC_LVT_TIMER], 0x2_00ec);
}

mod exiting {
    use super::*;

    fn world() -> World {
        let mut world = World::new(InterruptMode::Exiting);
        world.wrmsr(IA32_X2APIC_SIVR, 0x1ff);
        for word in 0..8 {
            world.machine.msrs.extend([(IA32_X2APIC_ISR0 + word, 0), (IA32_X2APIC_TMR0 + word, 0)]);
        }
        world
    }

    /// The vector is in service in the physical APIC, and the back end says so.
    fn arrive(world: &mut World, vector: u8, level: bool) {
        let (word, bit) = (u32::from(vector / 32), 1 << (vector % 32));
        *world.machine.msrs.get_mut(&(IA32_X2APIC_ISR0 + word)).unwrap() |= bit;
        if level {
            *world.machine.msrs.get_mut(&(IA32_X2APIC_TMR0 + word)).unwrap() |= bit;
        }
        world.handle(ExitReason::ExternalInterrupt(Some(Vector(vector))), None);
    }

    fn in_service(world: &World, vector: u8) -> bool {
        let word = world.machine.msrs[&(IA32_X2APIC_ISR0 + u32::from(vector / 32))];
        word >> (vector % 32) & 1 != 0
    }

    fn interrupt(vector: u8) -> Option<Event> {
        Some(Event::interrupt(Vector(vector)))
    }

    #[test]
    fn an_interrupt_is_injected_as_soon_as_the_guest_can_take_it() {
        let mut world = world();
        arrive(&mut world, 0x40, false);
        assert_eq!((world.vcpu.injected, world.vcpu.window), (interrupt(0x40), false));
        assert_eq!(world.machine.eois, 1, "an edge is over at once");
    }

    /// What MOV to CR8 does, with no exit; the next exit is one that says nothing of it.
    fn move_to_cr8(world: &mut World, value: u8) {
        world.vcpu.cr8 = value;
        world.handle(ExitReason::InterruptWindow, None);
    }

    fn tpr(world: &mut World) -> u64 {
        *world.gpr(Gpr::Rcx) = IA32_X2APIC_TPR.into();
        world.handle(ExitReason::ReadMsr, None);
        *world.gpr(Gpr::Rax)
    }

    #[test]
    fn cr8_is_the_task_priority() {
        let mut world = world();
        move_to_cr8(&mut world, 15);
        assert_eq!(tpr(&mut world), 0xf0);
        arrive(&mut world, 0x53, false);
        assert_eq!(
            (world.vcpu.injected, world.vcpu.awaited),
            (None, 5),
            "it waits for CR8 to fall"
        );
        world.wrmsr(IA32_X2APIC_TPR, 0x6a);
        assert_eq!((world.vcpu.cr8, world.vcpu.awaited, world.vcpu.injected), (6, 5, None));
        assert_eq!(tpr(&mut world), 0x6a, "and not its class alone");
        move_to_cr8(&mut world, 4);
        assert_eq!((world.vcpu.injected, world.vcpu.awaited), (interrupt(0x53), 0));
        assert_eq!(tpr(&mut world), 0x40);
    }

    #[test]
    fn with_interrupts_off_or_held_back_it_waits_for_the_window() {
        for held_back in [false, true] {
            let mut world = world();
            world.vcpu.interrupt_shadow = held_back;
            world.vcpu.state.rflags = if held_back { 0x202 } else { 2 };
            arrive(&mut world, 0x40, false);
            assert_eq!((world.vcpu.injected, world.vcpu.window), (None, true));
            world.vcpu.state.rflags = 0x202;
            world.vcpu.interrupt_shadow = false;
            world.handle(ExitReason::InterruptWindow, None);
            assert_eq!((world.vcpu.injected, world.vcpu.window), (interrupt(0x40), false));
        }
    }

    /// `cli`, an interrupt, `sti; hlt`: KVM would leave the CPU halted, whatever window was asked for.
    #[test]
    fn one_that_waits_for_its_window_ends_a_halt_at_once() {
        let mut world = world();
        world.vcpu.state.rflags = 2;
        arrive(&mut world, 0x40, false);
        assert!(world.vcpu.window && world.vcpu.halt_exits);
        let rip = world.vcpu.state.rip;
        world.vcpu.state.rflags = 0x202;
        world.vcpu.interrupt_shadow = true;
        world.handle(ExitReason::Halt, None);
        assert_eq!((world.vcpu.injected, world.vcpu.state.rip), (interrupt(0x40), rip + 1));
        assert!(!world.vcpu.halt_exits, "and nothing is left of it");
    }

    #[test]
    fn a_halt_with_interrupts_off_lasts_though_an_interrupt_waits() {
        let mut world = world();
        world.vcpu.state.rflags = 2;
        arrive(&mut world, 0x40, false);
        let rip = world.vcpu.state.rip;
        world.handle(ExitReason::Halt, None);
        assert_eq!((world.vcpu.injected, world.vcpu.state.rip), (None, rip));
        assert!(
            world.vcpu.window && !world.vcpu.halt_exits,
            "the CPU halts, and does not exit again"
        );
        // An NMI may have woken it: its next halt is looked at again.
        world.handle(ExitReason::Nmi, None);
        assert!(world.vcpu.window && world.vcpu.halt_exits);
    }

    #[test]
    fn without_one_that_waits_no_halt_exits() {
        let mut world = world();
        arrive(&mut world, 0x40, false);
        assert!(!world.vcpu.window && !world.vcpu.halt_exits);
    }

    #[test]
    fn it_never_takes_the_place_of_another_event() {
        let mut world = world();
        world.vcpu.state.rflags = 2;
        arrive(&mut world, 0x40, false);
        world.vcpu.state.rflags = 0x202;
        world.handle(ExitReason::Nmi, cut_short(0x30, EXTERNAL));
        assert_eq!((world.vcpu.injected, world.vcpu.window), (interrupt(0x30), true));
    }

    #[test]
    fn the_next_one_comes_by_priority_after_eoi() {
        let mut world = world();
        arrive(&mut world, 0x51, false);
        arrive(&mut world, 0x41, false);
        assert_eq!((world.vcpu.injected, world.vcpu.window), (None, false));
        world.wrmsr(IA32_X2APIC_EOI, 0);
        assert_eq!(world.vcpu.injected, interrupt(0x41));
        arrive(&mut world, 0x61, false);
        assert_eq!(world.vcpu.injected, interrupt(0x61), "above what is in service");
    }

    #[test]
    fn a_level_interrupt_is_ended_when_the_guest_ends_it() {
        let mut world = world();
        arrive(&mut world, 0x40, true);
        assert_eq!((world.vcpu.injected, world.machine.eois), (interrupt(0x40), 0));
        world.wrmsr(IA32_X2APIC_EOI, 0);
        assert_eq!(world.machine.eois, 1);
        world.wrmsr(IA32_X2APIC_EOI, 0);
        assert_eq!(world.machine.eois, 1, "nothing was in service");
    }

    #[test]
    fn ending_a_level_interrupt_below_one_that_waits_leaves_none_behind() {
        let mut world = world();
        arrive(&mut world, 0x40, true);
        world.vcpu.state.rflags = 2;
        arrive(&mut world, 0x50, true);
        world.wrmsr(IA32_X2APIC_EOI, 0);
        assert!(!in_service(&world, 0x40), "its line can interrupt again");
        // The line of the other one is still up.
        arrive(&mut world, 0x50, true);
        world.vcpu.state.rflags = 0x202;
        world.handle(ExitReason::InterruptWindow, None);
        assert_eq!(world.vcpu.injected, interrupt(0x50));
        world.wrmsr(IA32_X2APIC_EOI, 0);
        assert!(!in_service(&world, 0x50));
    }

    #[test]
    fn a_level_interrupt_that_a_disabled_apic_loses_does_not_block_the_others() {
        let mut world = world();
        world.machine.msrs.insert(IA32_X2APIC_LVT_TIMER, 0);
        world.wrmsr(IA32_X2APIC_SIVR, 0xff);
        arrive(&mut world, 0x40, true);
        assert_eq!((world.vcpu.injected, world.machine.eois), (None, 1));
    }

    #[test]
    fn its_own_ipis_and_the_consoles_line_are_injected_too() {
        let mut world = world();
        world.wrmsr(IA32_X2APIC_ICR, 0x4_0045);
        assert_eq!(world.vcpu.injected, interrupt(0x45));
        world.vm.io_apic.write(0, 0x18);
        world.vm.io_apic.write(0x10, 0x54);
        world.vm.devices.uart.write(4, 8);
        world.vm.devices.uart.write(1, 1);
        world.machine.typed.push_back(b'a');
        world.handle(ExitReason::Nmi, None);
        assert_eq!(world.vcpu.injected, interrupt(0x54));
        assert_eq!(world.machine.self_ipis, [], "nothing physical");
    }
}
