//! Accesses that the nested table stopped: pages of the IDT, device registers, nothing.

use proptest::prelude::*;

use super::*;

const MOV_BYTE: [u8; 2] = [0x88, 0x03]; // mov [rbx], al
const MOV_QWORD: [u8; 3] = [0x48, 0x89, 0x03]; // mov [rbx], rax
const LOAD: [u8; 2] = [0x8b, 0x03]; // mov eax, [rbx]
const PUSH: [u8; 1] = [0x50];
const REP_MOVSB: [u8; 2] = [0xf3, 0xa4];
const REP_STOSQ: [u8; 3] = [0xf3, 0x48, 0xab];
const MOVUPS: [u8; 3] = [0x0f, 0x11, 0x13]; // movups [rbx], xmm2

/// Writes a mark over the shadow, so that what is derived again stands out.
fn mark(world: &mut World) {
    for byte in world.machine.shadow.iter().flatten() {
        byte.store(0xcc, Ordering::Relaxed);
    }
}

/// Which bytes of the shadows have been derived since.
fn derived(world: &World) -> Vec<u64> {
    let fresh = |slot: usize| {
        let bytes = world.machine.shown(slot).into_iter().enumerate();
        bytes
            .filter(|(_, byte)| *byte != 0xcc)
            .map(move |(i, _)| IDT + 4096 * slot as u64 + i as u64)
    };
    fresh(0).chain(fresh(1)).collect()
}

/// A world whose IDT lies across two pages.
fn straddling() -> (World, u64) {
    let (mut world, base) = (World::with_idt(), IDT + 0x808);
    world.make_idt(base);
    world.lidt(base, 0xfff);
    (world, base)
}

#[test]
fn a_write_reaches_the_real_table_and_derives_what_it_touched() {
    let mut world = World::with_idt();
    mark(&mut world);
    *world.gpr(Gpr::Rax) = 0x0102_ee04_0506_0708;
    let (at, rip) = (IDT + 16 * 0x40, world.vcpu.state.rip);
    world.touch(&MOV_QWORD, at, true);
    assert_eq!(world.vcpu.state.rip, rip + 3);
    assert_eq!(world.get::<8>(at), 0x0102_ee04_0506_0708_u64.to_le_bytes());
    assert_eq!(derived(&world), (at..at + 8).collect::<Vec<_>>());
    assert_eq!(world.seen(at + 5), 0x6e, "closed, with the guest's DPL");
    world.grant(0x40);
    world.touch(&MOV_QWORD, at, true);
    assert_eq!(world.seen(at + 5), 0xee);
}

#[test]
fn a_read_modify_write_works_on_the_real_byte() {
    let mut world = World::with_idt();
    let at = IDT + 16 * 0x40 + 5;
    world.touch(&[0x80, 0x0b, 0x60], at, true); // or byte [rbx], 0x60
    assert_eq!((world.memory.0[at as usize], world.seen(at)), (0xee, 0x6e));
}

#[test]
fn a_single_step_of_a_string_instruction_is_one_iteration() {
    let mut world = World::with_idt();
    world.vcpu.state.rflags |= Rflags::TF.bits();
    (*world.gpr(Gpr::Rsi), *world.gpr(Gpr::Rcx)) = (OPERAND, 2);
    let rip = world.vcpu.state.rip;
    world.touch(&REP_MOVSB, IDT, true);
    assert_eq!((*world.gpr(Gpr::Rcx), world.vcpu.state.rip), (1, rip));
    world.touch(&REP_MOVSB, IDT + 1, true);
    assert_eq!((*world.gpr(Gpr::Rcx), world.vcpu.state.rip), (0, rip + 2));
}

#[test]
fn string_instructions_write_the_table_in_one_exit() {
    let mut world = World::with_idt();
    world.put(OPERAND, &[0x8e; 64]);
    mark(&mut world);
    let at = IDT + 16 * 0x40;
    *world.gpr(Gpr::Rsi) = OPERAND;
    *world.gpr(Gpr::Rcx) = 64;
    world.touch(&REP_MOVSB, at, true);
    assert_eq!(derived(&world), (at..at + 64).collect::<Vec<_>>());
    assert_eq!((world.seen(at + 5), world.seen(at + 6)), (CLOSED, 0x8e));
    assert_eq!(*world.gpr(Gpr::Rcx), 0);

    *world.gpr(Gpr::Rcx) = 300;
    *world.gpr(Gpr::Rax) = 0;
    let rip = world.vcpu.state.rip;
    world.touch(&REP_STOSQ, IDT, true);
    assert_eq!(
        (world.vcpu.state.rip, *world.gpr(Gpr::Rcx)),
        (rip, 44),
        "the rest at the next exit"
    );
    assert_eq!(*world.gpr(Gpr::Rdi), IDT + 256 * 8);
    world.execute(&REP_STOSQ, fault(IDT + 256 * 8, true));
    assert_eq!((world.vcpu.state.rip, *world.gpr(Gpr::Rcx)), (rip + 3, 0));
    assert_eq!(world.get::<2400>(IDT), [0; 2400]);
}

#[test]
fn a_string_that_faults_has_done_what_came_before() {
    let mut world = World::with_idt();
    world.map(IDT + 0x1000, 0);
    *world.gpr(Gpr::Rcx) = 4;
    *world.gpr(Gpr::Rax) = 0x1111;
    let rip = world.vcpu.state.rip;
    world.touch(&REP_STOSQ, IDT + 0xff0, true);
    let page_fault = Some(Event::exception(exception::PF, Some(2)));
    assert_eq!((world.vcpu.injected, world.vcpu.cr2), (page_fault, IDT + 0x1000));
    assert_eq!((*world.gpr(Gpr::Rcx), *world.gpr(Gpr::Rdi)), (2, IDT + 0x1000));
    assert_eq!(world.vcpu.state.rip, rip);
}

/// The CPU has asked for the element that exited, and of MOVS for that operand alone.
#[test]
fn outside_of_64_bit_mode_an_operand_goes_on_at_0_behind_4_gib() {
    const MOV_DWORD: [u8; 2] = [0x8b, 0x03]; // mov eax, [rbx]
    let mut world = World::with_idt();
    // 0 is RAM, and its first bytes are known; where a 64-bit CPU goes on, at 4 GiB, nothing is mapped.
    world.put(TABLE, &3_u64.to_le_bytes());
    world.put(0, &[0x11, 0x22]);
    let nothing = 0xffff_fffe;
    world.touch(&MOV_DWORD, nothing, false);
    assert!(world.vcpu.injected.is_some(), "#PF at 4 GiB");
    world.vcpu.injected = None;
    world.vcpu.state.segments[SegmentRegister::Cs as usize].access = AccessRights::CODE32;
    // A segment that begins at 0 ends there, too.
    world.vcpu.state.segments[SegmentRegister::Ds as usize].base = 0x1000;
    *world.gpr(Gpr::Rbx) = nothing - 0x1000;
    world.execute(&MOV_DWORD, fault(nothing, false));
    assert_eq!((world.vcpu.injected, *world.gpr(Gpr::Rax)), (None, 0x2211_ffff));
}

#[test]
fn a_string_ends_where_a_segment_does() {
    const READABLE: u32 = 0x4091; // 32-bit data, read-only
    const REP_STOSD: [u8; 2] = [0xf3, 0xab];
    const REP_MOVSD: [u8; 2] = [0xf3, 0xa5];
    let segment = |limit, access| Segment {
        limit,
        access: AccessRights(access),
        ..Segment { selector: 0x10, base: 0, limit: 0, access: AccessRights(0x4093) }
    };
    let world = || {
        let mut world = World::with_idt();
        (world.vcpu.state.cr0, world.vcpu.state.efer) = (0x11, 0);
        world.vcpu.state.segments[SegmentRegister::Cs as usize].access = AccessRights(0x409b);
        for register in [SegmentRegister::Es, SegmentRegister::Ds] {
            world.vcpu.state.segments[register as usize] = segment(!0, 0x4093);
        }
        *world.gpr(Gpr::Rcx) = 4;
        (*world.gpr(Gpr::Rsi), *world.gpr(Gpr::Rax)) = (OPERAND, 0x1234_5678);
        world
    };
    let (es, ds) = (SegmentRegister::Es as usize, SegmentRegister::Ds as usize);
    let mut cut = world();
    cut.vcpu.state.segments[es] = segment(IDT as u32 + 7, 0x4093);
    let rip = cut.vcpu.state.rip;
    cut.touch(&REP_STOSD, IDT, true);
    assert_eq!((cut.vcpu.injected, cut.vcpu.state.rip), (gp(), rip), "behind two of them");
    assert_eq!((*cut.gpr(Gpr::Rcx), *cut.gpr(Gpr::Rdi)), (2, IDT + 8));
    for (what, register, wrong, left) in [
        ("a source that ends", ds, segment(OPERAND as u32 + 11, 0x4093), 1),
        ("a destination that ends", es, segment(IDT as u32 + 11, 0x4093), 1),
        ("a destination to read", es, segment(!0, READABLE), 4),
        ("a null destination", es, Segment::NULL, 4),
    ] {
        let mut world = world();
        world.vcpu.state.segments[register] = wrong;
        world.touch(&REP_MOVSD, IDT, true);
        assert_eq!((world.vcpu.injected, *world.gpr(Gpr::Rcx)), (gp(), left), "{what}");
    }
    let mut other = world();
    other.vcpu.state.segments[ds] = segment(IDT as u32 + 2, 0x4093);
    other.touch(&[0x89, 0x03], IDT, true); // mov [ebx], eax
    assert_eq!(other.vcpu.injected, gp(), "another instruction than the one that exited");
}

#[test]
fn vector_stores_are_written_whole_or_not_at_all() {
    let mut world = World::with_idt();
    world.machine.xmm[2] = core::array::from_fn(|i| 0xe0 | i as u8);
    let at = IDT + 16 * 0x40;
    world.touch(&MOVUPS, at, true);
    assert_eq!(world.get::<16>(at), world.machine.xmm[2]);
    assert_eq!((world.seen(at + 5), world.seen(at + 6)), (0x6e, 0xe6));
    world.map(IDT + 0x1000, 0);
    let before = world.get::<8>(IDT + 0xff8);
    world.touch(&MOVUPS, IDT + 0xff8, true);
    assert_eq!(world.vcpu.cr2, IDT + 0x1000, "the first byte that is not there");
    assert_eq!(world.vcpu.injected, Some(Event::exception(exception::PF, Some(2))));
    assert_eq!(world.get::<8>(IDT + 0xff8), before);
}

/// As it was turned into one by another CPU, when it had exited already.
#[test]
fn a_vector_store_that_the_cpu_would_refuse_shows_no_register() {
    let (em, ts) = (Cr0::EM.bits(), Cr0::TS.bits());
    for (cr0, no_sse, raised) in [
        (ts, false, exception::NM),
        (em, false, exception::UD),
        (0, true, exception::UD),
        (ts, true, exception::UD),
    ] {
        let mut world = World::with_idt();
        world.machine.xmm[2] = [0xe7; 16];
        world.vcpu.state.cr0 |= cr0;
        world.vcpu.state.cr4 &= if no_sse { !Cr4::OSFXSR.bits() } else { !0 };
        let (before, rip) = (world.get::<16>(IDT), world.vcpu.state.rip);
        world.touch(&MOVUPS, IDT, true);
        assert_eq!(world.vcpu.injected, Some(Event::exception(raised, None)));
        assert_eq!((world.get::<16>(IDT), world.vcpu.state.rip), (before, rip));
    }
}

#[test]
fn a_write_across_pages_is_derived_on_both_sides() {
    let (mut world, _) = straddling();
    mark(&mut world);
    *world.gpr(Gpr::Rax) = u64::MAX;
    let at = IDT + 0xffd;
    world.touch(&MOV_QWORD, at, true);
    assert_eq!(world.get::<8>(at), [0xff; 8]);
    assert_eq!(derived(&world), (at..at + 8).collect::<Vec<_>>());
    // Out of the table's last page into one that has no shadow.
    let at = IDT + 0x1ffd;
    mark(&mut world);
    world.touch(&MOV_QWORD, at, true);
    assert_eq!(derived(&world), (at..at + 3).collect::<Vec<_>>());
    assert_eq!(world.get::<8>(at), [0xff; 8]);
}

proptest! {
    #[test]
    fn any_writes_and_grants_leave_the_shadow_as_derived_from_scratch(
        steps in proptest::collection::vec((0_u64..0x1ff0, any::<u64>(), 0_usize..4, any::<u8>()), 1..24),
    ) {
        let (mut world, _) = straddling();
        for (offset, value, how, vector) in steps {
            world.vcpu.state.rip = CODE;
            *world.gpr(Gpr::Rax) = value;
            *world.gpr(Gpr::Rcx) = value & 31;
            world.machine.xmm[2] = [value as u8; 16];
            let code: &[u8] = [&MOV_BYTE[..], &MOV_QWORD, &REP_STOSQ, &MOVUPS][how];
            world.touch(code, IDT + offset, true);
            world.wrmsr(arch::msr::IA32_X2APIC_ICR, 0x4_0000 | u64::from(vector));
        }
        let idt = world.vm.shadows.of_cpu(0).unwrap();
        for slot in [0, 1] {
            let real = world.get::<4096>(IDT + 4096 * slot as u64);
            let followed = world.machine.shown(slot);
            idt.derive(slot, 0, &real, &world.guest.grants, &world.machine.shadow[slot]);
            prop_assert_eq!(world.machine.shown(slot), followed);
        }
    }
}

#[test]
fn a_stack_or_gdt_in_the_page_of_the_idt_opens_all_gates_and_goes_on() {
    let mut world = World::with_idt();
    let rip = world.vcpu.state.rip;
    world.touch(&PUSH, IDT + 0xff8, true);
    assert_eq!((world.vcpu.state.rip, world.vcpu.injected), (rip, None), "executed again");
    assert_eq!((&world.machine.shadow_at[..], world.gate(0x40)), (&[None, None][..], OPEN));
    assert_eq!(world.machine.log.len(), 1);
    world.lidt(IDT, 0xfff);
    assert_eq!(world.gate(0x40), CLOSED);
}

#[test]
fn an_access_of_event_delivery_is_not_the_instructions_at_rip() {
    let mut world = World::with_idt();
    let rip = world.vcpu.state.rip;
    world.put(rip, &MOV_BYTE);
    *world.gpr(Gpr::Rbx) = 0xd000;
    *world.gpr(Gpr::Rax) = 0x77;
    world.handle(fault(IDT + 0xff8, true), cut_short(0x40, EXTERNAL));
    assert_eq!(world.vcpu.injected, Some(Event::interrupt(Vector(0x40))), "delivered again");
    assert_eq!((world.vcpu.state.rip, world.memory.0[0xd000]), (rip, 0));
    assert_eq!(world.machine.shadow_at, [None, None]);
}

/// Another CPU has met the same page and was first: it has shown the real one, or loaded another table.
#[test]
fn no_page_of_ones_takes_the_place_of_memory_whoever_was_stopped_there() {
    let stopped = |fetch, table_walk| {
        let gpa = Gpa::new(IDT + 0xff8);
        ExitReason::NestedPageFault(NestedPageFault { gpa, write: true, fetch, table_walk })
    };
    for (reason, vectoring) in [
        (stopped(false, false), cut_short(0x40, EXTERNAL)),
        (stopped(false, true), None),
        (stopped(false, true), cut_short(0x40, EXTERNAL)),
        (stopped(true, false), None),
    ] {
        let mut world = World::with_idt();
        world.handle(stopped(false, false), cut_short(0x41, EXTERNAL));
        let rip = world.vcpu.state.rip;
        world.handle(reason, vectoring);
        let again = vectoring.map(|_| Event::interrupt(Vector(0x40)));
        assert_eq!((world.vcpu.injected, world.vcpu.state.rip), (again, rip), "{reason:?}");
        assert_eq!(world.machine.stand_in_at, [None; 4], "{reason:?}");
    }
}

#[test]
fn nothing_reads_as_ones_and_swallows_writes_and_is_said_a_few_times() {
    let mut world = World::with_idt();
    for _ in 0..20 {
        world.touch(&LOAD, 0xfed0_0000, false);
        assert_eq!(*world.gpr(Gpr::Rax), 0xffff_ffff);
        world.touch(&MOV_BYTE, 0xfed0_0000, true);
    }
    assert_eq!(world.machine.log.len(), 8);
}

#[test]
fn in_a_row_of_short_lives_it_is_said_no_more() {
    let mut world = World::with_idt();
    world.vm.be_quiet();
    world.touch(&LOAD, 0xfed0_0000, false);
    assert_eq!(world.machine.log, Vec::<String>::new());
}

pub(super) mod devices {
    use arch::interrupt::{DeliveryMode, InterruptTarget, TriggerMode};
    use arch::machine::InterruptLine;

    use super::*;
    use crate::devices::ioapic;

    pub(crate) fn store(world: &mut World, gpa: u64, value: u32) {
        *world.gpr(Gpr::Rax) = value.into();
        world.touch(&[0x89, 0x03], gpa, true); // mov [rbx], eax
    }

    pub(crate) fn load(world: &mut World, gpa: u64) -> u32 {
        world.touch(&LOAD, gpa, false);
        *world.gpr(Gpr::Rax) as u32
    }

    fn redirect(world: &mut World, gsi: u32, entry: u64) {
        for (register, half) in [(1, entry >> 32), (0, entry)] {
            store(world, ioapic::BASE, 0x10 + 2 * gsi + register);
            store(world, ioapic::BASE + 0x10, half as u32);
        }
    }

    fn target(vector: u8) -> Option<InterruptTarget> {
        let (trigger, delivery) = (TriggerMode::Edge, DeliveryMode::Fixed);
        Some(InterruptTarget { vector: Vector(vector), destination: CPU, trigger, delivery })
    }

    #[test]
    fn only_the_guests_own_lines_are_routed() {
        let mut world = World::with_idt();
        redirect(&mut world, 14, 0x2e);
        assert_eq!(world.machine.routes.pop(), Some((InterruptLine::Gsi(14), target(0x2e))));
        redirect(&mut world, 14, 0x1_002e);
        assert_eq!(world.machine.routes.pop(), Some((InterruptLine::Gsi(14), None)));
        redirect(&mut world, 15, 0x2f);
        assert_eq!(world.machine.routes, []);
        assert_eq!((world.gate(0x2e), world.gate(0x2f)), (OPEN, OPEN), "granted");
    }

    #[test]
    fn a_line_of_pci_may_have_another_number_in_the_machine() {
        let mut world = World::with_idt();
        redirect(&mut world, 17, 0xa031);
        let trigger = TriggerMode::Level;
        let level = target(0x31).map(|target| InterruptTarget { trigger, ..target });
        assert_eq!(world.machine.routes.pop(), Some((InterruptLine::Gsi(40), level)));
        assert_eq!(world.gate(0x31), OPEN);
        world.machine.routes.clear();
        redirect(&mut world, 18, 0xa032);
        assert_eq!(world.machine.routes, []);
    }

    #[test]
    fn a_line_for_another_cpu_or_of_another_kind_reaches_nobody() {
        for entry in [0x0500_0000_0000_002e, 0x42e] {
            let mut world = World::with_idt();
            redirect(&mut world, 14, entry);
            assert_eq!(world.machine.routes.pop(), Some((InterruptLine::Gsi(14), None)));
            assert_eq!(world.gate(0x2e), CLOSED);
        }
    }

    #[test]
    fn ecam_and_msix_lead_to_a_granted_vector() {
        let mut world = World::with_idt();
        let function = ECAM + (u64::from(NVME.requester_id()) << 12);
        assert_eq!(load(&mut world, function), 0x1234_8086);
        assert_eq!(load(&mut world, ECAM + (5 << 15)), 0xffff_ffff, "not assigned");
        store(&mut world, function + 0x40, 0x8000_0011);
        let entry = BAR + 0x2000 + 16;
        for (offset, value) in [(0, 0xfee0_0000), (4, 0), (8, 0x61), (12, 0)] {
            store(&mut world, entry + offset, value);
        }
        let line = InterruptLine::Message { function: NVME, index: 1 };
        assert_eq!(world.machine.routes.pop(), Some((line, target(0x61))));
        assert_eq!((world.gate(0x61), world.gate(0x62)), (OPEN, CLOSED));
    }

    #[test]
    fn the_xapic_page_is_there_in_xapic_mode_only() {
        let mut world = World::with_idt();
        assert_eq!(load(&mut world, 0xfee0_0030), 0xffff_ffff);
        for base in [0xfee0_0100, 0xfee0_0900] {
            world.wrmsr(arch::msr::IA32_APIC_BASE, base);
        }
        assert_eq!(load(&mut world, 0xfee0_0030), 0x5_0014);
        assert_eq!(load(&mut world, 0xfee0_0031), 0x500);
        store(&mut world, 0xfee0_0300, 0x4_00f1);
        assert_eq!(world.machine.self_ipis, [], "software-disabled");
        store(&mut world, 0xfee0_00f0, 0x1ff);
        for _ in 0..2 {
            store(&mut world, 0xfee0_0300, 0x4_00f1);
        }
        assert_eq!(
            (&world.machine.self_ipis[..], world.gate(0xf1)),
            (&[Vector(0xf1); 2][..], OPEN)
        );
        let said = world.machine.log.iter().filter(|line| line.contains("in xAPIC mode"));
        assert_eq!(said.count(), 1, "{:?}", world.machine.log);
    }

    #[test]
    fn a_register_that_is_not_in_the_xapic_page_interrupts_by_the_error_entry() {
        let mut world = World::with_idt();
        for base in [0xfee0_0100, 0xfee0_0900] {
            world.wrmsr(arch::msr::IA32_APIC_BASE, base);
        }
        store(&mut world, 0xfee0_00f0, 0x1ff);
        store(&mut world, 0xfee0_0370, 0x43);
        assert_eq!(load(&mut world, 0xfee0_0040), 0);
        store(&mut world, 0xfee0_0280, 0);
        assert_eq!(load(&mut world, 0xfee0_0280), 0x80);
        store(&mut world, 0xfee0_03f0, 0);
        let both = (&world.machine.self_ipis[..], world.gate(0x43));
        assert_eq!(both, (&[Vector(0x43); 2][..], OPEN));
    }

    #[test]
    fn the_xapic_page_moves_but_not_over_memory() {
        const ELSEWHERE: u64 = 0xfed4_0000;
        let mut world = World::with_idt();
        for base in [0xfee0_0100, 0xfee0_0900, ELSEWHERE | 0x900] {
            world.wrmsr(arch::msr::IA32_APIC_BASE, base);
        }
        assert_eq!(load(&mut world, ELSEWHERE | 0x30), 0x5_0014);
        assert_eq!(load(&mut world, 0xfee0_0030), 0xffff_ffff);
        assert_eq!(world.vcpu.injected, None);
        world.wrmsr(arch::msr::IA32_APIC_BASE, 0x7900);
        assert_eq!(world.vcpu.injected, gp());
        assert_eq!(load(&mut world, ELSEWHERE | 0x30), 0x5_0014);
    }
}
