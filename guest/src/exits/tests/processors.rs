//! Several CPUs of one guest.

use arch::interrupt::InterruptRegisters;
use arch::machine::CpuRequest;
use arch::msr::{
    IA32_X2APIC_DIV_CONF, IA32_X2APIC_ESR, IA32_X2APIC_ICR, IA32_X2APIC_INIT_COUNT,
    IA32_X2APIC_LVT_TIMER, IA32_X2APIC_SELF_IPI,
};
use arch::vcpu::{StartState, SystemCallMsrs};
use arch::{Vector, VectorSet};

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
fn a_cpu_starts_with_its_signature_and_with_what_init_keeps() {
    let mut world = of_cpus(2);
    let calls = SystemCallMsrs { star: 1, lstar: 2, sysenter: [3, 4, 5], ..Default::default() };
    (world.vcpu.calls, world.vcpu.pat) = (calls, 0x0406);
    let caching = 3 << 29;
    world.vcpu.state.cr0 = 0x8000_0031 | caching;
    (world.vcpu.state.cr4, world.vcpu.state.efer, world.vcpu.state.cr3) = (0x20, 0x500, 0x7000);
    world.vcpu.state.gpr = [9; 16];
    let signature = 0x0080_0f12;
    let highest = CpuidResult { eax: 1, ..CpuidResult::default() };
    let first = CpuidResult { eax: signature, ..CpuidResult::default() };
    world.machine.cpuid.extend([((0, 0), highest), ((1, 0), first)]);
    world.context(|vm| vm).init();
    world.context(|vm| vm).start(0x9a);
    let mut expected = StartState::after_sipi(0x9a);
    expected.gpr[Gpr::Rdx as usize] = signature.into();
    expected.cr0 |= caching;
    assert_eq!(world.vcpu.state, expected);
    assert_eq!((world.vcpu.calls, world.vcpu.pat), (calls, 0x0406));
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
    world.vcpu.interrupts = Some(InterruptRegisters::default());
    world.wrmsr(IA32_X2APIC_SIVR, 0x1ff);
    world
}

/// The CPU has carried out a write to the local APIC, and exits behind the WRMSR.
fn written(world: &mut World, msr: u32, value: u64) {
    let rip = world.vcpu.state.rip;
    world.handle(ExitReason::ApicWritten { msr, value }, None);
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
        written(&mut left, IA32_X2APIC_ICR, icr);
        trapped.wrmsr(IA32_X2APIC_ICR, icr);
        assert_eq!(left.machine.ipis, trapped.machine.ipis, "{icr:#x}");
        assert_eq!(left.machine.requests, trapped.machine.requests, "{icr:#x}");
        assert_eq!(left.cpu.apic.pending, trapped.cpu.apic.pending, "{icr:#x}");
        assert_eq!(left.count(Counter::Msr), trapped.count(Counter::Msr));
    }
}

#[test]
fn what_the_cpu_has_delivered_and_taken_in_meanwhile_is_taken_over_and_shown_again() {
    let mut world = posted();
    world.handle(ExitReason::ExternalInterrupt(Some(Vector(0x51))), None);
    let set = |vectors: &[u8]| {
        let mut set = VectorSet::EMPTY;
        vectors.iter().for_each(|vector| assert!(set.insert(Vector(*vector))));
        set
    };
    let shown = world.vcpu.interrupts.unwrap();
    assert_eq!((shown.irr, shown.isr), (set(&[0x51]), VectorSet::EMPTY));
    assert_eq!((world.vcpu.injected, world.vcpu.window), (None, false), "the CPU delivers");
    // It has, another CPU has sent one more, and the back end has seen to what told that.
    let kept = InterruptRegisters { irr: set(&[0x61]), isr: set(&[0x51]), tpr: 0x30, ..shown };
    world.vcpu.interrupts = Some(kept);
    world.handle(ExitReason::ExternalInterrupt(None), None);
    assert_eq!(world.cpu.apic.pending.registers, kept);
    assert_eq!(world.vcpu.interrupts, Some(kept));
    assert_eq!(world.machine.eois, 1, "the first one's, in the physical local APIC");
}

#[test]
fn a_cpu_that_halts_is_woken_by_what_can_be_delivered_and_by_nothing_else() {
    let interrupt = Rflags::IF.bits();
    for (rflags, tpr, shadow, vector, woken) in [
        (interrupt, 0, false, Some(0x51), true),
        (interrupt, 0x40, false, Some(0x51), true),
        (interrupt, 0x50, false, Some(0x51), false),
        (interrupt, 0, true, Some(0x51), false),
        (0, 0, false, Some(0x51), false),
        (interrupt, 0, false, None, false),
    ] {
        let mut world = posted();
        world.vcpu.halted = Some(true);
        (world.vcpu.state.rflags, world.vcpu.interrupt_shadow) = (rflags, shadow);
        world.vcpu.interrupts = Some(InterruptRegisters { tpr, ..InterruptRegisters::default() });
        world.handle(ExitReason::ExternalInterrupt(vector.map(Vector)), None);
        assert_eq!(
            world.vcpu.halted == Some(false),
            woken,
            "{rflags:#x} {tpr:#x} {shadow} {vector:?}"
        );
    }
}

#[test]
fn a_self_ipi_that_nobody_can_take_is_an_error_and_nothing_else() {
    let mut world = posted();
    written(&mut world, IA32_X2APIC_SELF_IPI, 5);
    assert_eq!(world.cpu.apic.pending.next(), None);
    world.wrmsr(IA32_X2APIC_ESR, 0);
    assert_eq!(world.cpu.apic.read(IA32_X2APIC_ESR), Ok(eli::ApicRead::Value(0x60)));
}

#[test]
fn no_write_to_the_local_apic_reaches_beyond_the_guest() {
    let mut world = posted();
    for msr in 0x800..=0x8ff {
        for value in [u64::MAX, u64::MAX >> 32, 0] {
            world.handle(ExitReason::ApicWritten { msr, value }, None);
        }
    }
    assert!(world.machine.ipis.iter().all(|(cpu, _)| *cpu < 4));
    let timer = [IA32_X2APIC_LVT_TIMER, IA32_X2APIC_INIT_COUNT, IA32_X2APIC_DIV_CONF];
    assert!(world.machine.written_msrs.iter().all(|msr| timer.contains(msr)));
}

#[test]
fn other_cpus_send_by_themselves_only_while_the_local_apic_is_on() {
    let mut world = posted();
    assert!(world.vcpu.accepting);
    world.wrmsr(IA32_X2APIC_SIVR, 0xff);
    assert!(!world.vcpu.accepting);
    world.wrmsr(IA32_X2APIC_SIVR, 0x1ff);
    assert!(world.vcpu.accepting);
    world.context(|vm| vm).init();
    assert!(!world.vcpu.accepting);
}
