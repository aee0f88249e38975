//! The physical MSRs that policy reaches on a guest's behalf, and no others: the kernel holds it to these lists.
//!
//! Invariant: none of them is the hypervisor's own (APIC_BASE, EFER, FEATURE_CONTROL, VM_CR …), and none of those
//! that are written reaches another CPU, as the ICR would.

use core::ops::RangeInclusive;

use arch::msr::{
    IA32_ARCH_CAPABILITIES, IA32_BIOS_SIGN_ID, IA32_MISC_ENABLE, IA32_X2APIC_CUR_COUNT,
    IA32_X2APIC_DIV_CONF, IA32_X2APIC_EOI, IA32_X2APIC_INIT_COUNT, IA32_X2APIC_IRR0,
    IA32_X2APIC_ISR0, IA32_X2APIC_LVT_TIMER, IA32_X2APIC_PPR, IA32_X2APIC_SELF_IPI,
    IA32_X2APIC_SIVR, IA32_X2APIC_TPR,
};

use super::DE_CFG;

/// What is in service, its trigger mode, and what is requested.
const INTERRUPTS: RangeInclusive<u32> = IA32_X2APIC_ISR0..=IA32_X2APIC_IRR0 + 7;

/// Whether policy may read this MSR of the CPU.
#[must_use]
pub fn policy_may_read(msr: u32) -> bool {
    let single = matches!(
        msr,
        IA32_BIOS_SIGN_ID
            | IA32_ARCH_CAPABILITIES
            | IA32_MISC_ENABLE
            | DE_CFG
            | IA32_X2APIC_TPR
            | IA32_X2APIC_PPR
            | IA32_X2APIC_INIT_COUNT
            | IA32_X2APIC_CUR_COUNT
            | IA32_X2APIC_DIV_CONF
    );
    single || INTERRUPTS.contains(&msr)
}

/// Whether policy may write this MSR of the CPU: the timer, the spurious vector, the priority, the end of an
/// interrupt, and an interrupt to the CPU itself.
#[inline]
#[must_use]
pub const fn policy_may_write(msr: u32) -> bool {
    matches!(
        msr,
        IA32_X2APIC_TPR
            | IA32_X2APIC_EOI
            | IA32_X2APIC_SIVR
            | IA32_X2APIC_LVT_TIMER
            | IA32_X2APIC_INIT_COUNT
            | IA32_X2APIC_DIV_CONF
            | IA32_X2APIC_SELF_IPI
    )
}
