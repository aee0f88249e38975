//! Bits of MSRs that are reserved where CPUID has no feature for them: which are refused.

use payload::fact;

use crate::control::{Value, has, read_msr, refused, write_msr};

const DEBUGCTL: u32 = 0x1d9;
const HWCR: u32 = 0xc001_0015;
const SMM_LOCK: u64 = 1;
/// Bits of DEBUGCTL that need nothing but the CPU's model, or have effects when they are set: LBR, BTF, TR, BTS, BTINT, …
const DEBUGCTL_BITS: u64 = 0x1_ffff;

pub(crate) fn all() {
    let before = read_msr(DEBUGCTL).or_zero();
    fact!("reserved: DEBUGCTL"; "{}", read_msr(DEBUGCTL));
    let mut kept = 0;
    let bits = refused(|bit| {
        let fine = write_msr(DEBUGCTL, before | bit).fine();
        kept |= read_msr(DEBUGCTL).or_zero();
        write_msr(DEBUGCTL, before);
        fine
    });
    fact!("reserved: DEBUGCTL: reserved bits that are refused"; "{:#x}", bits & !DEBUGCTL_BITS);
    fact!("reserved: DEBUGCTL: reserved bits that are kept"; "{:#x}", kept & !DEBUGCTL_BITS);
    fact!("reserved: DEBUGCTL: other bits that are refused"; "{:#x}", bits & DEBUGCTL_BITS);
    fact!("reserved: DEBUGCTL: other bits that are kept"; "{:#x}", kept & DEBUGCTL_BITS);
    // An Intel CPU has no HWCR.
    if crate::control::qemu() {
        let before = read_msr(HWCR).or_zero();
        fact!("reserved: HWCR"; "{}", read_msr(HWCR));
        let mut kept = 0;
        let bits = refused(|bit| {
            if bit == SMM_LOCK {
                return true;
            }
            let fine = write_msr(HWCR, before | bit).fine();
            kept |= read_msr(HWCR).or_zero();
            write_msr(HWCR, before);
            fine
        });
        fact!("reserved: HWCR: bits that are refused"; "{bits:#x}");
        fact!("reserved: HWCR: bits that are kept"; "{kept:#x}");
    }
    // With no feature that an MSR belongs to it is not there.
    for (name, msr, feature) in [
        ("IA32_TSC_AUX", 0xc000_0103, (0x8000_0001, 3, 27)),
        ("IA32_SPEC_CTRL", 0x48, (7, 3, 26)),
        ("IA32_BNDCFGS", 0xd90, (7, 1, 14)),
        ("IA32_PKRS", 0x6e1, (7, 2, 31)),
        ("IA32_U_CET", 0x6a0, (7, 2, 7)),
        ("IA32_UMWAIT_CONTROL", 0xe1, (7, 2, 5)),
    ] {
        let there = matches!(read_msr(msr), Value::Read(_));
        fact!("reserved: {name} is there as CPUID says"; "{}", has(feature) == there);
    }
}
