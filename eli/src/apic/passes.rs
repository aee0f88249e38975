//! The local APIC's MSRs that pass without an exit, by how interrupts come.

use arch::msr::{
    IA32_TSC_DEADLINE, IA32_X2APIC_CUR_COUNT, IA32_X2APIC_DIV_CONF, IA32_X2APIC_EOI,
    IA32_X2APIC_ICR, IA32_X2APIC_INIT_COUNT, IA32_X2APIC_IRR0, IA32_X2APIC_ISR0, IA32_X2APIC_PPR,
    IA32_X2APIC_SELF_IPI, IA32_X2APIC_TPR, MsrPass,
};
use arch::vcpu::InterruptMode;

const fn pass(first: u32, last: u32, read: bool, write: bool) -> MsrPass {
    MsrPass { first, last, read, write }
}

/// The timer's registers without its LVT entry.
const TIMER: [MsrPass; 4] = [
    pass(IA32_TSC_DEADLINE, IA32_TSC_DEADLINE, true, true),
    pass(IA32_X2APIC_INIT_COUNT, IA32_X2APIC_INIT_COUNT, true, true),
    pass(IA32_X2APIC_CUR_COUNT, IA32_X2APIC_CUR_COUNT, true, false),
    pass(IA32_X2APIC_DIV_CONF, IA32_X2APIC_DIV_CONF, true, true),
];

const EXITLESS: [MsrPass; 9] = [
    pass(IA32_X2APIC_TPR, IA32_X2APIC_TPR, true, true),
    pass(IA32_X2APIC_PPR, IA32_X2APIC_PPR, true, false),
    pass(IA32_X2APIC_EOI, IA32_X2APIC_EOI, false, true),
    pass(IA32_X2APIC_ISR0, IA32_X2APIC_IRR0 + 7, true, false),
    pass(IA32_X2APIC_SELF_IPI, IA32_X2APIC_SELF_IPI, false, true),
    TIMER[0],
    TIMER[1],
    TIMER[2],
    TIMER[3],
];

static EXITING: [MsrPass; 4] = TIMER;

/// The CPU answers these from what it keeps of the guest's local APIC: reads of the timer's registers, which it would
/// answer from there too, exit.
static POSTED: [MsrPass; 8] = [
    EXITLESS[0],
    EXITLESS[1],
    EXITLESS[2],
    EXITLESS[3],
    EXITLESS[4],
    TIMER[0],
    pass(IA32_X2APIC_INIT_COUNT, IA32_X2APIC_INIT_COUNT, false, true),
    pass(IA32_X2APIC_DIV_CONF, IA32_X2APIC_DIV_CONF, false, true),
];

/// What passes besides in the posted mode, and only while the CPU virtualizes IPIs: else a write would go to the
/// physical ICR.
pub const VIRTUAL_ICR: MsrPass = pass(IA32_X2APIC_ICR, IA32_X2APIC_ICR, true, true);

/// The local APIC's MSRs that pass without an exit while the guest is in x2APIC mode.
#[must_use]
pub const fn passes(mode: InterruptMode) -> &'static [MsrPass] {
    match mode {
        InterruptMode::Exitless => &EXITLESS,
        InterruptMode::Exiting => &EXITING,
        InterruptMode::Posted => &POSTED,
    }
}
