//! What this CPU recorded of a machine check, read and cleared. What it means, `arch::machine_check` says.

use arch::machine_check::{MachineCheck, judge};
use arch::msr::{IA32_MC0_STATUS, IA32_MCG_CAP, IA32_MCG_STATUS};

use crate::instructions::{cpuid, read_msr, write_msr};

/// More banks no CPU has: behind them are other MSRs.
const MAX_BANKS: u32 = 32;
/// MSRs of a bank.
const STRIDE: u32 = 4;

/// How many banks this CPU has; none without a machine-check architecture.
fn banks() -> u32 {
    const MCA: u32 = 1 << 14;
    const COUNT: u64 = 0xff;
    if cpuid(1, 0).edx & MCA == 0 {
        return 0;
    }
    // SAFETY: ring 0, as all of the hypervisor; CPUID shows the architecture.
    let count = unsafe { read_msr(IA32_MCG_CAP) } & COUNT;
    (count as u32).min(MAX_BANKS)
}

/// Whether a machine check interrupts this CPU now (SDM "IA32_MCG_STATUS MSR", MCIP).
#[must_use]
pub fn in_progress() -> bool {
    const MCIP: u64 = 1 << 2;
    // SAFETY: ring 0; the banks show that the architecture is there.
    banks() > 0 && unsafe { read_msr(IA32_MCG_STATUS) } & MCIP != 0
}

/// Judges the machine check that this CPU was interrupted by, and clears what it recorded, unless the CPU is lost.
#[must_use]
pub fn take() -> MachineCheck {
    let banks = banks();
    if banks == 0 {
        return judge(0, core::iter::empty());
    }
    let status = |bank| IA32_MC0_STATUS + STRIDE * bank;
    // SAFETY: ring 0, and the architecture is there.
    let global = unsafe { read_msr(IA32_MCG_STATUS) };
    // SAFETY: as above, and so is the bank.
    let verdict = judge(global, (0..banks).map(|bank| unsafe { read_msr(status(bank)) }));
    if !matches!(verdict, MachineCheck::Lost(_)) {
        for bank in 0..banks {
            // SAFETY: as above; 0 is what may be written.
            unsafe { write_msr(status(bank), 0) };
        }
        // Until then a second one would shut the CPU down.
        // SAFETY: as above.
        unsafe { write_msr(IA32_MCG_STATUS, 0) };
    }
    verdict
}
