//! The MSRs outside the local APIC: which pass, and what the others do.
//!
//! Invariant: whatever [`crate::cpuid`] shows has its MSRs here; every other MSR raises #GP, which
//! operating systems expect of an MSR that is not there. Nothing that the guest writes reaches a
//! physical MSR but through [`passes`]. The local APIC's registers are `eli`'s.

mod clock;
mod physical;

use arch::machine::{CpuidResult, GuestMemory, Machine};
use arch::msr::{
    IA32_ARCH_CAPABILITIES, IA32_BIOS_SIGN_ID, IA32_DEBUGCTL, IA32_EFER, IA32_FEATURE_CONTROL,
    IA32_FMASK, IA32_FS_BASE, IA32_KERNEL_GS_BASE, IA32_MCG_CAP, IA32_MCG_STATUS, IA32_MISC_ENABLE,
    IA32_PAT, IA32_STAR, IA32_SYSENTER_CS, IA32_SYSENTER_EIP, IA32_TIME_STAMP_COUNTER,
    IA32_TSC_AUX, IA32_XSS, MsrPass,
};
use arch::register::{Cr0, Efer};
use arch::vcpu::Vcpu;

pub use clock::ClockBase;
use clock::{KVM_SYSTEM_TIME_NEW, KVM_WALL_CLOCK_NEW};
pub use physical::{policy_may_read, policy_may_write};

use crate::cpuid::Vendor;
use crate::mtrr::Mtrrs;

const IA32_PLATFORM_ID: u32 = 0x17;
/// Of the P6 family, and on later CPUs 0; of an AMD CPU the cluster's number.
const EBL_CR_POWERON: u32 = 0x2a;
/// The Pentium's names for the address and status of machine-check bank 0: no bank, nothing in it.
const IA32_P5_MC_ADDR: u32 = 0;
const IA32_P5_MC_TYPE: u32 = 1;
/// Of an AMD CPU, which has them without a word of CPUID's.
const LAST_BRANCH_FROM: u32 = 0x1db;
const LAST_EXCEPTION_TO: u32 = 0x1de;
const IA32_SPEC_CTRL: u32 = 0x48;
const IA32_PRED_CMD: u32 = 0x49;
const IA32_FLUSH_CMD: u32 = 0x10b;
const IA32_XFD: u32 = 0x1c4;
const IA32_XFD_ERR: u32 = 0x1c5;
/// PerfEvtSel0 to 3 and PerfCtr0 to 3: no bit of CPUID announces them (APM "Core Performance Monitor Counters"), so a guest
/// may touch them on any CPU. Nothing is counted.
const PERF_EVT_SEL0: u32 = 0xc001_0000;
const PERF_CTR3: u32 = 0xc001_0007;
const SYSCFG: u32 = 0xc001_0010;
const HWCR: u32 = 0xc001_0015;
const NB_CFG: u32 = 0xc001_001f;
const PATCH_LOADER: u32 = 0xc001_0020;
/// The processor's name, two registers of CPUID's leaves 8000_0002 to 8000_0004 in each.
const NAME: u32 = 0xc001_0030;
const NAME_END: u32 = 0xc001_0035;
const INTERRUPT_PENDING: u32 = 0xc001_0055;
/// Base of configuration space in memory: off.
const MMIO_CFG_BASE: u32 = 0xc001_0058;
const SMM_BASE: u32 = 0xc001_0111;
const SMM_MASK: u32 = 0xc001_0113;
/// Of the instruction cache, the data cache and the table walker, one behind the other.
const IC_CFG: u32 = 0xc001_1021;
const TW_CFG: u32 = 0xc001_1023;
/// Of the L2 cache.
const BU_CFG2: u32 = 0xc001_102a;
/// Of the execution units: Windows reads it.
const EX_CFG: u32 = 0xc001_102c;
const DE_CFG: u32 = 0xc001_1029;

/// Branch trace and PEBS are not there. Whether fast strings are on is the CPU's: without bit 0 Linux drops
/// ERMS, and clears pages otherwise.
const MISC_ENABLE: u64 = 1 << 11 | 1 << 12;
const FAST_STRINGS: u64 = 1;
/// IA32_FEATURE_CONTROL: locked, with VMX off.
const FEATURE_CONTROL_LOCKED: u64 = 1;
/// HWCR: the TSC runs at the P0 frequency always.
const HWCR_TSC_FREQUENCY_SELECT: u64 = 1 << 24;
/// The "not affected" answers and hints that promise no further MSR (SDM "IA32_ARCH_CAPABILITIES").
const ARCH_CAPABILITIES_SHOWN: u64 =
    0x1f | 1 << 5 | 1 << 6 | 1 << 8 | 7 << 13 | 1 << 17 | 3 << 19 | 1 << 24 | 7 << 26 | 1 << 62;
/// The MSRs that pass on every CPU. One that the CPU lacks raises #GP by itself.
const PASSES: [MsrPass; 7] = [
    both(IA32_SYSENTER_CS, IA32_SYSENTER_EIP),
    both(IA32_STAR, IA32_FMASK),
    both(IA32_FS_BASE, IA32_KERNEL_GS_BASE),
    both(IA32_TSC_AUX, IA32_TSC_AUX),
    both(IA32_SPEC_CTRL, IA32_PRED_CMD),
    MsrPass { first: IA32_FLUSH_CMD, last: IA32_FLUSH_CMD, read: false, write: true },
    both(IA32_XFD, IA32_XFD_ERR),
];

const fn both(first: u32, last: u32) -> MsrPass {
    MsrPass { first, last, read: true, write: true }
}

/// The MSRs that a guest may use without an exit, those of the local APIC aside: state of its own
/// that the CPU, which is the guest's alone, may keep.
#[must_use]
pub const fn passes() -> &'static [MsrPass] {
    &PASSES
}

/// What an access comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MsrOutcome {
    /// The value read.
    Value(u64),
    /// Written.
    Done,
    /// #GP(0): the value or the access is not allowed.
    GeneralProtection,
    /// #GP(0): there is no such MSR.
    Unknown,
}

/// One vCPU's MSRs.
#[derive(Clone, Debug)]
pub struct Msrs {
    vendor: Vendor,
    clock: Option<ClockBase>,
    /// CPUID shows XSAVES, which IA32_XSS comes with (SDM "Model-Specific Registers (MSRs)").
    xsaves: bool,
    mtrrs: Mtrrs,
    hwcr: u64,
    nb_cfg: u64,
    system_time: u64,
    wall_clock: u64,
}

impl Msrs {
    /// After reset. `clock` is there where the guest is offered the KVM clock
    /// ([`crate::cpuid::CpuidPolicy::kvmclock`]), `xsaves` where it is shown XSAVES
    /// ([`crate::cpuid::CpuidPolicy::xsaves`]).
    #[must_use]
    pub fn new(vendor: Vendor, clock: Option<ClockBase>, xsaves: bool) -> Self {
        Self {
            vendor,
            clock,
            xsaves,
            mtrrs: Mtrrs::default(),
            hwcr: HWCR_TSC_FREQUENCY_SELECT,
            nb_cfg: 0,
            system_time: 0,
            wall_clock: 0,
        }
    }

    /// Whether a write of this MSR makes the hypervisor write to the guest's memory.
    #[must_use]
    pub const fn writes_memory(msr: u32) -> bool {
        matches!(msr, KVM_SYSTEM_TIME_NEW | KVM_WALL_CLOCK_NEW)
    }

    /// RDMSR.
    pub fn read(&self, msr: u32, vcpu: &impl Vcpu, machine: &mut impl Machine) -> MsrOutcome {
        if let Some(value) = self.mtrrs.read(msr) {
            return MsrOutcome::Value(value);
        }
        let value = match msr {
            IA32_TIME_STAMP_COUNTER => machine.tsc(),
            IA32_PAT => vcpu.pat(),
            IA32_EFER => vcpu.efer(),
            IA32_BIOS_SIGN_ID => machine.read_msr(msr).unwrap_or(0),
            IA32_MCG_CAP | IA32_MCG_STATUS | IA32_DEBUGCTL => 0,
            IA32_P5_MC_ADDR..=IA32_P5_MC_TYPE | EBL_CR_POWERON => 0,
            IA32_XSS if self.xsaves => 0,
            IA32_ARCH_CAPABILITIES => match machine.read_msr(msr) {
                Some(real) => real & ARCH_CAPABILITIES_SHOWN,
                None => return MsrOutcome::GeneralProtection,
            },
            KVM_SYSTEM_TIME_NEW if self.clock.is_some() => self.system_time,
            KVM_WALL_CLOCK_NEW if self.clock.is_some() => self.wall_clock,
            _ => return self.read_of_vendor(msr, machine),
        };
        MsrOutcome::Value(value)
    }

    /// The MSRs that only one vendor has and that Linux reads without expecting a #GP.
    fn read_of_vendor(&self, msr: u32, machine: &mut impl Machine) -> MsrOutcome {
        let value = match (self.vendor, msr) {
            (Vendor::Intel, IA32_PLATFORM_ID) => 0,
            (Vendor::Intel, IA32_FEATURE_CONTROL) => FEATURE_CONTROL_LOCKED,
            (Vendor::Intel, IA32_MISC_ENABLE) => {
                MISC_ENABLE | machine.read_msr(msr).unwrap_or(0) & FAST_STRINGS
            }
            (Vendor::Amd, SYSCFG | INTERRUPT_PENDING | PERF_EVT_SEL0..=PERF_CTR3) => 0,
            (Vendor::Amd, MMIO_CFG_BASE | SMM_BASE..=SMM_MASK) => 0,
            (Vendor::Amd, IC_CFG..=TW_CFG | BU_CFG2 | EX_CFG) => 0,
            // No branch is recorded, as DEBUGCTL keeps LBR off.
            (Vendor::Amd, LAST_BRANCH_FROM..=LAST_EXCEPTION_TO) => 0,
            (Vendor::Amd, NAME..=NAME_END) => name(msr - NAME, machine),
            (Vendor::Amd, HWCR) => self.hwcr,
            (Vendor::Amd, NB_CFG) => self.nb_cfg,
            // Whether LFENCE is serializing must be the truth.
            (Vendor::Amd, DE_CFG) => machine.read_msr(msr).unwrap_or(0),
            _ => return MsrOutcome::Unknown,
        };
        MsrOutcome::Value(value)
    }

    /// WRMSR.
    pub fn write(
        &mut self,
        msr: u32,
        value: u64,
        vcpu: &mut impl Vcpu,
        machine: &mut impl Machine,
        memory: &mut impl GuestMemory,
    ) -> MsrOutcome {
        if let Some(allowed) = self.mtrrs.write(msr, value) {
            return done_if(allowed);
        }
        match msr {
            // The TSC is the machine's; a guest that would set it keeps the one that it has.
            IA32_TIME_STAMP_COUNTER => MsrOutcome::Done,
            IA32_PAT => write_pat(value, vcpu),
            IA32_EFER => self.write_efer(value, vcpu, machine),
            // Written before CPUID, to make it fill the revision in; and features that are not there.
            IA32_BIOS_SIGN_ID | IA32_DEBUGCTL | EBL_CR_POWERON => MsrOutcome::Done,
            IA32_MCG_STATUS | IA32_P5_MC_ADDR..=IA32_P5_MC_TYPE => done_if(value == 0),
            // XRSTORS loads MSRs that do not pass: of a component that is not enabled, none. Processor
            // Trace writes to physical addresses, user interrupts go to any local APIC.
            IA32_XSS if self.xsaves => done_if(value == 0),
            KVM_SYSTEM_TIME_NEW => self.write_system_time(value, machine, memory),
            KVM_WALL_CLOCK_NEW => self.write_wall_clock(value, machine, memory),
            _ => self.write_of_vendor(msr, value),
        }
    }

    fn write_of_vendor(&mut self, msr: u32, value: u64) -> MsrOutcome {
        match (self.vendor, msr) {
            (Vendor::Intel, IA32_MISC_ENABLE)
            | (Vendor::Amd, SYSCFG | INTERRUPT_PENDING | DE_CFG | PERF_EVT_SEL0..=PERF_CTR3)
            // Microcode, SMM and the name are the host's, and stay as they are.
            | (Vendor::Amd, PATCH_LOADER | MMIO_CFG_BASE | SMM_BASE..=SMM_MASK)
            | (Vendor::Amd, IC_CFG..=TW_CFG | BU_CFG2 | EX_CFG)
            | (Vendor::Amd, NAME..=NAME_END) => {}
            (Vendor::Amd, HWCR) => self.hwcr = value,
            (Vendor::Amd, NB_CFG) => self.nb_cfg = value,
            (Vendor::Intel, IA32_FEATURE_CONTROL) => return MsrOutcome::GeneralProtection,
            _ => return MsrOutcome::Unknown,
        }
        MsrOutcome::Done
    }

    /// EFER: reserved bits and a change of LME while paging is on are refused; LMA is the CPU's
    /// (APM "Extended Feature Enable Register (EFER)").
    fn write_efer(&self, value: u64, vcpu: &mut impl Vcpu, machine: &impl Machine) -> MsrOutcome {
        let mut allowed = Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE;
        if self.vendor == Vendor::Amd {
            let cpuid = |leaf| machine.cpuid(leaf, 0);
            // FFXSR, TCE, automatic IBRS, each with the CPUID bit that announces it.
            for (bit, feature) in [
                (1 << 14, cpuid(0x8000_0001).edx >> 25),
                (1 << 15, cpuid(0x8000_0001).ecx >> 17),
                (1 << 21, cpuid(0x8000_0021).eax >> 8),
            ] {
                if feature & 1 != 0 {
                    allowed |= Efer::from_bits_retain(bit);
                }
            }
        }
        let (old, new) = (Efer::from_bits_retain(vcpu.efer()), Efer::from_bits_retain(value));
        let paging = Cr0::from_bits_retain(vcpu.cr0()).contains(Cr0::PG);
        let changes_mode = (old ^ new).contains(Efer::LME);
        if value & !allowed.bits() != 0 || paging && changes_mode {
            return MsrOutcome::GeneralProtection;
        }
        vcpu.set_efer(((new - Efer::LMA) | (old & Efer::LMA)).bits());
        MsrOutcome::Done
    }
}

/// A sixth of the 48 characters, as CPUID has them.
fn name(part: u32, machine: &impl Machine) -> u64 {
    let CpuidResult { eax, ebx, ecx, edx } = machine.cpuid(0x8000_0002 + part / 2, 0);
    let [low, high] = if part & 1 == 0 { [eax, ebx] } else { [ecx, edx] };
    u64::from(high) << 32 | u64::from(low)
}

fn done_if(allowed: bool) -> MsrOutcome {
    if allowed { MsrOutcome::Done } else { MsrOutcome::GeneralProtection }
}

/// PAT: every byte is a memory type (SDM "IA32_PAT MSR").
fn write_pat(value: u64, vcpu: &mut impl Vcpu) -> MsrOutcome {
    let valid = value.to_le_bytes().into_iter().all(|kind| matches!(kind, 0 | 1 | 4..=7));
    if valid {
        vcpu.set_pat(value);
    }
    done_if(valid)
}

#[cfg(test)]
mod tests;
