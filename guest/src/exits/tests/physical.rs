//! Which of the CPU's own MSRs policy reaches, whatever a guest does.

use std::collections::BTreeSet;

use arch::msr::{
    IA32_APIC_BASE, IA32_X2APIC_APICID, IA32_X2APIC_ICR, IA32_X2APIC_LVT_CMCI,
    IA32_X2APIC_LVT_ERROR, IA32_X2APIC_LVT_THERMAL,
};

use super::*;
use crate::cpuid::Vendor;
use crate::msr::{Msrs, policy_may_read, policy_may_write};

/// Where MSRs are.
fn numbers() -> impl Iterator<Item = u32> {
    (0..0x1000).chain(0xc000_0000..0xc000_0400).chain(0xc001_0000..0xc001_1100)
}

/// Reads and writes every MSR, and switches the local APIC off and on.
fn try_all(mode: InterruptMode, vendor: Vendor) -> (BTreeSet<u32>, BTreeSet<u32>) {
    let mut world = World::new(mode);
    world.cpu.msrs = Msrs::new(vendor, None, true);
    for msr in numbers() {
        *world.gpr(Gpr::Rcx) = msr.into();
        world.handle(ExitReason::ReadMsr, None);
        for value in [0, 0xff, 0x1_00ec, 0x1ff] {
            world.vcpu.state.rip = CODE;
            if msr != IA32_APIC_BASE {
                world.wrmsr(msr, value);
            }
        }
    }
    for base in [0xfee0_0100, 0xfee0_0900] {
        world.wrmsr(IA32_APIC_BASE, base);
    }
    (world.machine.read_msrs, world.machine.written_msrs)
}

#[test]
fn policy_reaches_exactly_the_msrs_that_the_kernel_lets_it_reach() {
    let (mut read, mut written) = (BTreeSet::new(), BTreeSet::new());
    for mode in [InterruptMode::Exitless, InterruptMode::Exiting, InterruptMode::Posted] {
        for vendor in [Vendor::Intel, Vendor::Amd] {
            let (more_read, more_written) = try_all(mode, vendor);
            read.extend(more_read);
            written.extend(more_written);
        }
    }
    let allowed = |may: fn(u32) -> bool| numbers().filter(|msr| may(*msr)).collect::<BTreeSet<_>>();
    assert_eq!(read, allowed(policy_may_read));
    assert_eq!(written, allowed(policy_may_write));
    assert_eq!(written.len(), 7);
}

#[test]
fn no_msr_that_reaches_another_cpu_or_is_the_hosts_may_be_written() {
    let lvts = IA32_X2APIC_LVT_THERMAL..=IA32_X2APIC_LVT_ERROR;
    let others = [IA32_X2APIC_ICR, IA32_X2APIC_LVT_CMCI, IA32_X2APIC_APICID, IA32_APIC_BASE];
    // FEATURE_CONTROL, EFER, VM_CR, VM_HSAVE_PA, the VMX capabilities.
    let hosts = [0x3a, 0xc000_0080, 0xc001_0114, 0xc001_0117].into_iter().chain(0x480..0x494);
    for msr in lvts.chain(others).chain(hosts) {
        assert!(!policy_may_write(msr), "{msr:#x}");
    }
}
