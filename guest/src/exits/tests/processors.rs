//! Several CPUs of one guest.

use arch::Vector;
use arch::machine::CpuRequest;
use arch::msr::{IA32_X2APIC_ESR, IA32_X2APIC_ICR};

use super::*;

/// A guest of `count` CPUs; the world's own is the first.
fn of_cpus(count: u32) -> World {
    let mut world = World::with_idt();
    world.switch_apics_on(count);
    world
}

#[test]
fn a_fixed_ipi_goes_to_the_cpus_that_it_names_and_to_no_other() {
    const VECTOR: u8 = 0x51;
    let fixed = 0x4000 | u64::from(VECTOR);
    let cases: [(u64, &[usize]); 4] = [
        (2 << 32 | fixed, &[2]),
        (0xc_0000 | fixed, &[1, 2, 3]),
        (0b1010_u64 << 32 | 0x800 | fixed, &[1, 3]),
        (9 << 32 | fixed, &[]),
    ];
    for (icr, expected) in cases {
        let mut world = of_cpus(4);
        world.wrmsr(IA32_X2APIC_ICR, icr);
        let sent: Vec<usize> = world.machine.ipis.iter().map(|(cpu, _)| *cpu).collect();
        assert_eq!(sent, expected, "{icr:#x}");
        assert!(world.machine.ipis.iter().all(|(_, vector)| *vector == Vector(VECTOR)));
        assert!(world.machine.self_ipis.is_empty());
        assert!(world.guest.grants.allows(Vector(VECTOR)));
    }
}

#[test]
fn init_start_up_and_nmi_are_requests_to_the_other_cpu() {
    let mut world = of_cpus(2);
    for icr in [0x4500, 0x4699, 0x0400] {
        world.wrmsr(IA32_X2APIC_ICR, 1 << 32 | icr);
    }
    let expected = [(1, CpuRequest::Init), (1, CpuRequest::Start(0x99)), (1, CpuRequest::Nmi)];
    assert_eq!(world.machine.requests, expected);
    assert!(world.machine.ipis.is_empty());
}

#[test]
fn a_lowest_priority_ipi_goes_to_one_cpu() {
    let mut world = of_cpus(4);
    world.wrmsr(IA32_X2APIC_ICR, 0b1110_u64 << 32 | 0x4900 | 0x61);
    assert_eq!(world.machine.ipis, [(1, Vector(0x61))]);
}

#[test]
fn a_cpu_whose_apic_is_off_takes_no_vector_but_init_and_nmi() {
    let mut world = of_cpus(3);
    let off = VirtualApic::new(InterruptMode::Exitless, ApicId(1), false).addressing();
    world.guest.set_addressing(1, off);
    world.wrmsr(IA32_X2APIC_ICR, 0xc_4051);
    assert_eq!(world.machine.ipis, [(2, Vector(0x51))]);
    world.wrmsr(IA32_X2APIC_ICR, 1 << 32 | 0x4400);
    assert_eq!(world.machine.requests, [(1, CpuRequest::Nmi)]);
}

#[test]
fn a_logical_ipi_follows_what_the_cpus_wrote_to_their_ldr() {
    let mut world = of_cpus(3);
    for (cpu, ldr) in [(1, 0x04), (2, 0x44)] {
        let mut apic = VirtualApic::new(InterruptMode::Exitless, ApicId(cpu), false);
        apic.write_base(0xfee0_0000, 39).unwrap();
        apic.write_base(0xfee0_0800, 39).unwrap();
        apic.write_page(0xf0, arch::Width::Dword, 0x1ff);
        apic.write_page(0xd0, arch::Width::Dword, ldr << 24);
        world.guest.set_addressing(cpu as usize, apic.addressing());
    }
    for (icr, expected) in [(0x40_u64 << 32 | 0x4851, 2), (0x04 << 32 | 0x4951, 1)] {
        world.wrmsr(IA32_X2APIC_ICR, icr);
        assert_eq!(world.machine.ipis.pop(), Some((expected, Vector(0x51))), "{icr:#x}");
    }
}

/// A guest of 4 CPUs in the posted mode, whose CPU virtualizes IPIs.
fn posted() -> World {
    let mut world = World::new(InterruptMode::Posted);
    world.switch_apics_on(4);
    world.vcpu.apic_page = Some(Box::new([0; 1024]));
    world.wrmsr(IA32_X2APIC_SIVR, 0x1ff);
    world
}

/// The CPU has put `value` into the guest's page, and exits behind the WRMSR.
fn written(world: &mut World, offset: u16, value: u64) {
    let page = world.vcpu.apic_page.as_mut().unwrap();
    let at = usize::from(offset / 4);
    (page[at], page[at + 1]) = (value as u32, (value >> 32) as u32);
    let rip = world.vcpu.state.rip;
    world.handle(ExitReason::ApicWrite(offset), None);
    assert_eq!(world.vcpu.state.rip, rip, "the write has been carried out");
}

#[test]
fn an_ipi_that_the_cpu_leaves_to_us_goes_where_a_trapped_one_does() {
    let icrs = [
        2 << 32 | 0x4051,
        0xc_4051,
        0b1010_u64 << 32 | 0x4851,
        9 << 32 | 0x4051,
        u64::from(u32::MAX) << 32 | 0x51,
        1 << 32 | 0x4500,
        1 << 32 | 0x4699,
        1 << 32 | 0x4400,
        1 << 32 | 0x4005,
        0x4_4051,
    ];
    for icr in icrs {
        let (mut left, mut trapped) = (posted(), posted());
        written(&mut left, 0x300, icr);
        trapped.wrmsr(IA32_X2APIC_ICR, icr);
        assert_eq!(left.machine.ipis, trapped.machine.ipis, "{icr:#x}");
        assert_eq!(left.machine.requests, trapped.machine.requests, "{icr:#x}");
        assert_eq!(left.cpu.apic.pending, trapped.cpu.apic.pending, "{icr:#x}");
        assert_eq!(left.count(Counter::Msr), trapped.count(Counter::Msr));
    }
}

#[test]
fn a_notification_that_exits_delivers_what_is_posted_and_is_no_interrupt_itself() {
    const NOTIFICATION: Vector = Vector(0xf2);
    let mut world = posted();
    world.vcpu.posted = Some((NOTIFICATION, [0, 1 << 31, 1 << 1, 0, 0, 0, 0, 1 << 30]));
    world.handle(ExitReason::ExternalInterrupt(Some(Vector(0x51))), None);
    assert_eq!(world.cpu.apic.pending.irr.words(), [0, 0, 1 << 17, 0, 0, 0, 0, 0], "the guest's");
    world.handle(ExitReason::ExternalInterrupt(Some(NOTIFICATION)), None);
    let requested = [0, 1 << 31, 1 << 17 | 1 << 1, 0, 0, 0, 0, 1 << 30];
    assert_eq!(world.cpu.apic.pending.irr.words(), requested);
    assert_eq!(world.machine.eois, 2, "each is ended in the physical local APIC");
    assert_eq!(world.vcpu.posted, None);
}

#[test]
fn a_self_ipi_that_nobody_can_take_is_an_error_and_nothing_else() {
    let mut world = posted();
    written(&mut world, 0x3f0, 5);
    assert_eq!(world.cpu.apic.pending.next(), None);
    world.wrmsr(IA32_X2APIC_ESR, 0);
    assert_eq!(world.cpu.apic.read(IA32_X2APIC_ESR), Ok(eli::ApicRead::Value(0x60)));
}

#[test]
fn no_write_to_the_page_reaches_beyond_the_guest_or_past_its_end() {
    let mut world = posted();
    for offset in 0..=0xfff {
        world.vcpu.apic_page = Some(Box::new([0xffff_ffff; 1024]));
        world.handle(ExitReason::ApicWrite(offset), None);
    }
    assert!(world.machine.ipis.iter().all(|(cpu, _)| *cpu < 4));
    assert!(world.machine.msrs.is_empty());
}

#[test]
fn other_cpus_post_by_themselves_only_while_the_local_apic_is_on() {
    let mut world = posted();
    assert!(world.vcpu.reachable);
    world.wrmsr(IA32_X2APIC_SIVR, 0xff);
    assert!(!world.vcpu.reachable);
    world.wrmsr(IA32_X2APIC_SIVR, 0x1ff);
    assert!(world.vcpu.reachable);
    world.context(|vm| vm).init();
    assert!(!world.vcpu.reachable);
}
