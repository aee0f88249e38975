//! What CPUID says about the TSC's frequency.

use arch::machine::CpuidResult;

use crate::interval::Interval;
use crate::window::PLAUSIBLE_HZ;

/// Names of the sources, as the log has them.
const LEAF_15: &str = "CPUID leaf 0x15";
const LEAF_16: &str = "CPUID leaf 0x16";
const LEAF_4000_0010: &str = "CPUID leaf 0x40000010";

/// Leaf 0x16 names a processor as it is sold: "2.9 GHz" may be 2,904 MHz.
const NOMINAL_PPM: u64 = 10_000;

/// A source's word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Claim {
    /// Whose.
    pub(crate) name: &'static str,
    pub(crate) hz: u64,
    /// By how much it may be wrong and yet be honest.
    pub(crate) interval: Interval,
}

/// Every source, with its claim or why it has none.
pub(crate) fn claims(
    cpuid: &dyn Fn(u32) -> CpuidResult,
) -> [(&'static str, Result<Claim, &'static str>); 3] {
    let exact = |name, hz| plausible(Claim { name, hz, interval: Interval { low: hz, high: hz } });
    let rough =
        |hz| plausible(Claim { name: LEAF_16, hz, interval: Interval::around(hz, NOMINAL_PPM) });
    [
        (LEAF_15, by_crystal(cpuid).and_then(|hz| exact(LEAF_15, hz))),
        (LEAF_4000_0010, by_hypervisor(cpuid).and_then(|hz| exact(LEAF_4000_0010, hz))),
        (LEAF_16, nominal(cpuid).and_then(rough)),
    ]
}

fn plausible(claim: Claim) -> Result<Claim, &'static str> {
    PLAUSIBLE_HZ.contains(&claim.hz).then_some(claim).ok_or("claims what no CPU has")
}

/// SDM "Time Stamp Counter and Nominal Core Crystal Clock Information Leaf".
fn by_crystal(cpuid: &dyn Fn(u32) -> CpuidResult) -> Result<u64, &'static str> {
    const LEAF: u32 = 0x15;
    if cpuid(0).eax < LEAF {
        return Err("is not there");
    }
    let leaf = cpuid(LEAF);
    if leaf.eax == 0 || leaf.ebx == 0 {
        return Err("gives no ratio");
    }
    if leaf.ecx == 0 {
        return Err("gives no crystal clock");
    }
    Ok(u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax))
}

/// SDM "Processor Frequency Information Leaf": the base frequency, which is the TSC's where leaf 0x15 has a
/// ratio. It is the crystal clock that this ratio leaves open that the base frequency stands for.
fn nominal(cpuid: &dyn Fn(u32) -> CpuidResult) -> Result<u64, &'static str> {
    const LEAF: u32 = 0x16;
    if cpuid(0).eax < LEAF {
        return Err("is not there");
    }
    let ratio = cpuid(0x15);
    if ratio.eax == 0 || ratio.ebx == 0 {
        return Err("says nothing of the TSC, as leaf 0x15 gives no ratio");
    }
    match cpuid(LEAF).eax & 0xffff {
        0 => Err("gives no base frequency"),
        mhz => Ok(u64::from(mhz) * 1_000_000),
    }
}

/// The leaf that VMware defines and KVM's user programs fill in as well: EAX = the TSC's frequency in kHz
/// (Linux, `arch/x86/kernel/cpu/vmware.c`; QEMU, `vmware-cpuid-freq`).
fn by_hypervisor(cpuid: &dyn Fn(u32) -> CpuidResult) -> Result<u64, &'static str> {
    const BASE: u32 = 0x4000_0000;
    const LEAF: u32 = BASE + 0x10;
    const HYPERVISOR: u32 = 1 << 31;
    if cpuid(1).ecx & HYPERVISOR == 0 {
        return Err("is not there, as no hypervisor is below");
    }
    let base = cpuid(BASE);
    let mut signature = [0; 12];
    for (to, from) in signature.chunks_exact_mut(4).zip([base.ebx, base.ecx, base.edx]) {
        to.copy_from_slice(&from.to_le_bytes());
    }
    if !matches!(&signature, b"VMwareVMware" | b"KVMKVMKVM\0\0\0") {
        return Err("is not defined by the hypervisor below");
    }
    match cpuid(LEAF).eax {
        khz if base.eax >= LEAF && khz != 0 => Ok(u64::from(khz) * 1000),
        _ => Err("is not there"),
    }
}
