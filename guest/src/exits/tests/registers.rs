//! CPUID, MSRs, XSETBV.

use arch::msr::{
    IA32_APIC_BASE, IA32_X2APIC_ICR, IA32_X2APIC_INIT_COUNT, IA32_X2APIC_ISR0,
    IA32_X2APIC_LVT_TIMER, IA32_X2APIC_TPR,
};

use arch::register::Efer;

use super::*;
use crate::cpuid::{CpuidPolicy, FEATURES, SYSCALL, Vendor};

fn rdmsr(world: &mut World, msr: u32) -> Option<u64> {
    (*world.gpr(Gpr::Rcx), *world.gpr(Gpr::Rax)) = (msr.into(), 0);
    *world.gpr(Gpr::Rdx) = u64::MAX;
    world.handle(ExitReason::ReadMsr, None);
    match world.vcpu.injected {
        Some(event) => {
            assert_eq!(Some(event), gp());
            None
        }
        None => Some(*world.gpr(Gpr::Rdx) << 32 | *world.gpr(Gpr::Rax)),
    }
}

#[test]
fn cpuid_fills_four_registers_with_32_bits_and_moves_on() {
    let mut world = World::with_idt();
    let rip = world.vcpu.state.rip;
    (*world.gpr(Gpr::Rax), *world.gpr(Gpr::Rbx)) = (0xffff_ffff_4000_0000, u64::MAX);
    world.handle(ExitReason::Cpuid, None);
    assert_eq!(world.gpr(Gpr::Rbx).to_le_bytes(), *b"KVMK\0\0\0\0");
    assert_eq!(world.vcpu.state.rip, rip + 2);
}

#[test]
fn an_msr_that_is_not_there_is_a_general_protection_fault_at_the_instruction() {
    let mut world = World::with_idt();
    let rip = world.vcpu.state.rip;
    assert_eq!(rdmsr(&mut world, 0x1234_5678), None);
    world.wrmsr(0x1234_5678, 0);
    assert_eq!((world.vcpu.injected, world.vcpu.state.rip), (gp(), rip));
}

#[test]
fn real_mode_gets_no_error_code() {
    let mut world = World::new(InterruptMode::Exitless);
    world.vcpu.state.cr0 = 0x10;
    world.wrmsr(0x1234_5678, 0);
    assert_eq!(world.vcpu.injected, Some(Event::exception(exception::GP, None)));
}

#[test]
fn the_local_apics_msrs_read_as_the_guests_own() {
    let mut world = World::with_idt();
    world.machine.msrs.insert(IA32_X2APIC_TPR, 0x30);
    assert_eq!(rdmsr(&mut world, IA32_APIC_BASE), Some(0xfee0_0d00));
    assert_eq!(rdmsr(&mut world, 0x802), Some(0), "not the physical CPU's");
    assert_eq!(rdmsr(&mut world, IA32_X2APIC_TPR), Some(0x30), "the physical one");
    world.wrmsr(IA32_X2APIC_ICR, 0x7_0000_00f8);
    assert_eq!(rdmsr(&mut world, IA32_X2APIC_ICR), Some(0x7_0000_00f8));
    for none in [0x80b, 0x80e, 0x831, 0x83f, 0x8ff] {
        assert_eq!(rdmsr(&mut world, none), None, "{none:#x}");
    }
}

#[test]
fn the_bootstrap_processors_bit_can_be_written_on_intels_cpus_alone() {
    for (vendor, kept) in [(*b"Genu", 0xfee0_0c00), (*b"Auth", 0xfee0_0d00)] {
        let mut world = World::with_idt();
        let leaf = CpuidResult { ebx: u32::from_le_bytes(vendor), ..CpuidResult::default() };
        world.machine.cpuid.insert((0, 0), leaf);
        world.guest.cpuid = CpuidPolicy::new(vec![ApicId(0)], &world.machine);
        world.wrmsr(IA32_APIC_BASE, 0xfee0_0c00);
        assert_eq!(world.vcpu.injected, None);
        assert_eq!(rdmsr(&mut world, IA32_APIC_BASE), Some(kept));
        world.wrmsr(IA32_APIC_BASE, 0xfee0_0e00);
        assert_eq!(rdmsr(&mut world, IA32_APIC_BASE), Some(kept), "refused");
    }
}

#[test]
fn an_apic_that_is_switched_off_leaves_no_timer_running() {
    let mut world = World::with_idt();
    let timer = [(IA32_X2APIC_LVT_TIMER, 0x2_00ec), (IA32_X2APIC_INIT_COUNT, 7)];
    world.machine.msrs.extend(timer);
    world.machine.msrs.extend([(IA32_X2APIC_ISR0 + 2, 0x11), (IA32_X2APIC_TPR, 0)]);
    world.wrmsr(IA32_APIC_BASE, 0xfee0_0500);
    assert_eq!(world.vcpu.injected, gp(), "not a mode that there is");
    assert_eq!(world.machine.msrs[&IA32_X2APIC_INIT_COUNT], 7);
    world.wrmsr(IA32_APIC_BASE, 0xfee0_0100);
    assert_eq!(world.vcpu.injected, None);
    assert_eq!(world.machine.msrs[&IA32_X2APIC_LVT_TIMER], 0x1_0000);
    assert_eq!(world.machine.msrs[&IA32_X2APIC_INIT_COUNT], 0);
    assert_eq!((world.machine.eois, world.machine.msrs[&IA32_X2APIC_TPR]), (2, 0xff));
    world.wrmsr(IA32_APIC_BASE, 0xfee0_0900);
    assert_eq!(world.machine.msrs[&IA32_X2APIC_TPR], 0);
}

#[test]
fn the_physical_priority_is_the_guests_own_in_the_exitless_mode_alone() {
    for (mode, priority) in [(InterruptMode::Exitless, 0xff), (InterruptMode::Exiting, 0x1f)] {
        let mut world = World::new(mode);
        world.machine.msrs.insert(IA32_X2APIC_TPR, 0x1f);
        world.wrmsr(IA32_APIC_BASE, 0xfee0_0100);
        assert_eq!(world.machine.msrs[&IA32_X2APIC_TPR], priority);
    }
}

#[test]
fn the_clock_is_seen_even_in_the_page_of_the_idt() {
    let mut world = World::with_idt();
    world.lidt(IDT, 16 * 0x80 - 1);
    world.wrmsr(0x4b56_4d01, IDT + 0xf01);
    assert_eq!((world.get::<1>(IDT + 0xf00), world.seen(IDT + 0xf00)), ([2], 2));
}

#[test]
fn xsetbv_sets_what_the_cpu_allows_and_only_for_ring_0() {
    let mut world = World::with_idt();
    let rip = world.vcpu.state.rip;
    world.vcpu.state.cr4 |= Cr4::OSXSAVE.bits();
    let xsetbv = |world: &mut World, index, value, ring: u32| {
        world.vcpu.state.segments[SegmentRegister::Ss as usize].access =
            AccessRights(AccessRights::DATA32.0 | ring << 5);
        (*world.gpr(Gpr::Rcx), *world.gpr(Gpr::Rax)) = (index, value);
        *world.gpr(Gpr::Rdx) = 0;
        world.handle(ExitReason::Xsetbv, None);
        world.vcpu.injected
    };
    assert_eq!(xsetbv(&mut world, 0, 6, 0), gp(), "without x87");
    assert_eq!(xsetbv(&mut world, 1, 7, 0), gp(), "no such register");
    assert_eq!(xsetbv(&mut world, 0, 7, 3), gp(), "ring 3");
    for hidden in [3 << 3, 1 << 19] {
        assert_eq!(xsetbv(&mut world, 0, 7 | hidden, 0), gp(), "a component that is not shown");
    }
    assert_eq!((world.machine.xcr0, world.vcpu.state.rip), (1, rip));
    // CPUID tells how much XSAVE saves now.
    for (leaf, answer) in [(0, [0xd, 0]), (0xd, [7, 832])] {
        let [eax, ebx] = answer;
        world.machine.cpuid.insert((leaf, 0), CpuidResult { eax, ebx, ..CpuidResult::default() });
    }
    assert_eq!(xsetbv(&mut world, 0, 7, 0), None);
    assert_eq!((world.machine.xcr0, world.vcpu.state.rip), (7, rip + 3));
    (*world.gpr(Gpr::Rax), *world.gpr(Gpr::Rcx)) = (0xd, 0);
    world.handle(ExitReason::Cpuid, None);
    assert_eq!((*world.gpr(Gpr::Rax), *world.gpr(Gpr::Rbx)), (7, 832));
}

#[test]
fn without_osxsave_there_is_no_xsetbv() {
    let mut world = World::with_idt();
    world.handle(ExitReason::Xsetbv, None);
    assert_eq!(world.vcpu.injected, Some(Event::exception(exception::UD, None)));
    assert_eq!(world.machine.xcr0, 1);
}

#[test]
fn the_msrs_of_x2apic_mode_pass_in_that_mode_alone() {
    const BASE: u64 = 0xfee0_0100;
    const ENABLED: u64 = 1 << 11;
    const X2APIC: u64 = 1 << 10;
    let mut world = World::with_idt();
    let modes = [0, ENABLED, ENABLED | X2APIC, ENABLED, 0, ENABLED];
    let passes = modes.map(|mode| {
        world.wrmsr(IA32_APIC_BASE, BASE | mode);
        world.vcpu.x2apic_passes
    });
    // From x2APIC to xAPIC mode is no way.
    assert_eq!(passes, [false, false, true, true, false, false]);
}

#[test]
fn on_intel_cpuid_shows_syscall_in_64_bit_mode_alone() {
    for (vendor, name) in [(Vendor::Intel, b"GenuineIntel"), (Vendor::Amd, b"AuthenticAMD")] {
        let mut world = World::with_idt();
        let word = |at| u32::from_le_bytes(name[at..at + 4].try_into().unwrap());
        let first = CpuidResult { eax: 0x20, ebx: word(0), ecx: word(8), edx: word(4) };
        world.machine.cpuid.insert((0, 0), first);
        let all = CpuidResult { edx: !0, ..CpuidResult::default() };
        let highest = CpuidResult { eax: FEATURES, ..CpuidResult::default() };
        world.machine.cpuid.insert((0x8000_0000, 0), highest);
        world.machine.cpuid.insert((FEATURES, 0), all);
        world.guest.cpuid = CpuidPolicy::new(vec![ApicId(0)], &world.machine);
        world.cpu = CpuState::new(0, &world.guest, 0, &world.machine);
        for (access, efer) in [
            (AccessRights::CODE64, Efer::LMA),
            (AccessRights::CODE32, Efer::LMA),
            (AccessRights::CODE32, Efer::empty()),
        ] {
            world.vcpu.state.segments[SegmentRegister::Cs as usize].access = access;
            world.vcpu.state.efer = efer.bits();
            (*world.gpr(Gpr::Rax), *world.gpr(Gpr::Rcx)) = (FEATURES.into(), 0);
            world.handle(ExitReason::Cpuid, None);
            let expected = vendor == Vendor::Amd || access == AccessRights::CODE64;
            assert_eq!(*world.gpr(Gpr::Rdx) & u64::from(SYSCALL) != 0, expected, "{vendor:?}");
        }
    }
}

#[test]
fn cpuid_shows_the_local_apic_while_it_is_on() {
    const APIC: u64 = 1 << 9;
    let mut world = World::with_idt();
    world.machine.cpuid.insert((1, 0), CpuidResult { edx: APIC as u32, ..CpuidResult::default() });
    world.cpu = CpuState::new(0, &world.guest, 0, &world.machine);
    let shown = |world: &mut World| {
        *world.gpr(Gpr::Rax) = 1;
        world.handle(ExitReason::Cpuid, None);
        *world.gpr(Gpr::Rdx) & APIC != 0
    };
    assert!(shown(&mut world));
    for (base, on) in [(0xfee0_0100, false), (0xfee0_0900, true), (0xfee0_0d00, true)] {
        world.wrmsr(arch::msr::IA32_APIC_BASE, base);
        assert_eq!(shown(&mut world), on, "{base:#x}");
    }
}

#[test]
fn the_timers_deadline_is_a_bit_where_the_cpu_has_it() {
    const DEADLINES: u32 = 1 << 24;
    for ecx in [0, DEADLINES] {
        let mut world = World::new(InterruptMode::Exitless);
        world.machine.cpuid.insert((1, 0), CpuidResult { ecx, ..CpuidResult::default() });
        world.guest.cpuid = CpuidPolicy::new(vec![ApicId(0)], &world.machine);
        world.cpu = CpuState::new(0, &world.guest, 0, &world.machine);
        let written = world.cpu.apic.write(arch::msr::IA32_X2APIC_LVT_TIMER, 0x4_0040);
        assert_eq!(written.is_ok(), ecx != 0);
    }
}
