//! Is there an AMD-V that this hypervisor can use, and if so switch it on
//! (APM volume 2, "Enabling SVM").
//!
//! Invariant: nothing that could raise #GP is done before [`check`] has said yes.

use core::fmt;
use core::marker::PhantomData;

use arch::Hpa;
use arch::address::PAGE_SIZE;
use arch::machine::CpuidResult;
use arch::msr::{IA32_EFER, VM_CR, VM_HSAVE_PA};
use arch::register::Efer;
use cpu::instructions::{cpuid, read_msr, write_msr};

use crate::run;

/// CPUID 0x8000_0001 ECX: SVM.
const CPUID_SVM: u32 = 1 << 2;
/// CPUID 0x8000_000A EDX: nested paging.
const CPUID_NP: u32 = 1 << 0;
/// CPUID 0x8000_000A EDX: VM_CR.LOCK exists.
const CPUID_SVML: u32 = 1 << 2;
/// CPUID 0x8000_000A EDX: nRIP is saved on exits.
const CPUID_NRIPS: u32 = 1 << 3;
/// CPUID 0x8000_000A EDX: TLB_CONTROL can flush one ASID.
const CPUID_FLUSH_BY_ASID: u32 = 1 << 6;
/// CPUID 0x8000_000A EDX: decode assists.
const CPUID_DECODE_ASSISTS: u32 = 1 << 7;
/// CPUID 0x8000_000A EDX: bus lock threshold.
const CPUID_BUS_LOCK_THRESHOLD: u32 = 1 << 29;
const VM_CR_LOCK: u64 = 1 << 3;
const VM_CR_SVMDIS: u64 = 1 << 4;

/// What the CPU and the firmware say about AMD-V, as plain data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// CPUID 0x8000_0001 ECX; 0 where the CPU has no such leaf.
    pub extended_features: u32,
    /// CPUID 0x8000_000A EBX: number of ASIDs. This and the rest are 0 on a CPU without SVM.
    pub asids: u32,
    /// CPUID 0x8000_000A EDX: SVM features.
    pub svm_features: u32,
    /// The VM_CR MSR.
    pub vm_cr: u64,
}

impl Capabilities {
    /// Reads them from the CPU that runs this.
    ///
    /// # Safety
    /// The caller runs at privilege level 0.
    #[must_use]
    pub unsafe fn read() -> Self {
        Self::gather(cpuid, || {
            // SAFETY: every CPU with SVM has VM_CR; the caller runs at privilege level 0.
            unsafe { read_msr(VM_CR) }
        })
    }

    /// The same, from CPUID and from VM_CR, which is read where there is SVM only.
    #[must_use]
    pub fn gather(cpuid: impl Fn(u32, u32) -> CpuidResult, vm_cr: impl Fn() -> u64) -> Self {
        let none = Self { extended_features: 0, asids: 0, svm_features: 0, vm_cr: 0 };
        if cpuid(0x8000_0000, 0).eax < 0x8000_000a {
            return none;
        }
        let extended_features = cpuid(0x8000_0001, 0).ecx;
        if extended_features & CPUID_SVM == 0 {
            return Self { extended_features, ..none };
        }
        let leaf = cpuid(0x8000_000a, 0);
        Self { extended_features, asids: leaf.ebx, svm_features: leaf.edx, vm_cr: vm_cr() }
    }
}

/// What a usable AMD-V has beyond the necessary.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    /// Exits tell where the next instruction is, and software events are injected with it.
    pub nrip_save: bool,
    /// One ASID can be flushed by itself.
    pub flush_by_asid: bool,
    /// Exits tell more of an instruction. Every CPU with x2APIC has this; QEMU's has not.
    pub decode_assists: bool,
    /// Bus locks can be made to exit.
    pub bus_lock_threshold: bool,
}

impl Features {
    /// Whether this is QEMU's AMD-V, which no CPU's is without decode assists; `docs/known-issues.md` has its quirks.
    #[must_use]
    pub(crate) const fn is_emulated(&self) -> bool {
        !self.decode_assists
    }
}

/// Why AMD-V cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SvmError {
    /// CPUID does not report SVM.
    NotSupported,
    /// Firmware has switched SVM off and locked it; the value of VM_CR.
    LockedOff(u64),
    NoNestedPaging,
    /// Fewer than two ASIDs; the number.
    TooFewAsids(u32),
}

impl fmt::Display for SvmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSupported => f.write_str(
                "the CPU has no AMD-V (CPUID 0x80000001 ECX.SVM = 0): use another machine, or under \
                 an emulator a CPU model with svm",
            ),
            Self::LockedOff(vm_cr) => write!(
                f,
                "AMD-V is locked off by firmware (VM_CR = {vm_cr:#x}): enable it in setup"
            ),
            Self::NoNestedPaging => f.write_str(
                "the CPU's AMD-V has no nested paging (CPUID 0x8000000A EDX.NP = 0): use a newer \
                 machine, or under an emulator a CPU model with npt",
            ),
            Self::TooFewAsids(asids) => write!(
                f,
                "the CPU's AMD-V has {asids} address-space identifiers (CPUID 0x8000000A EBX), a \
                 guest needs at least 2: use another machine"
            ),
        }
    }
}

impl core::error::Error for SvmError {}

/// Whether AMD-V can be used.
///
/// # Errors
/// The first thing that is missing.
pub fn check(capabilities: &Capabilities) -> Result<Features, SvmError> {
    let Capabilities { extended_features, asids, svm_features, vm_cr } = *capabilities;
    if extended_features & CPUID_SVM == 0 {
        return Err(SvmError::NotSupported);
    }
    // A SVMDIS that is not locked is ours to clear; without the lock feature it cannot be cleared.
    let clearable = svm_features & CPUID_SVML != 0 && vm_cr & VM_CR_LOCK == 0;
    if vm_cr & VM_CR_SVMDIS != 0 && !clearable {
        return Err(SvmError::LockedOff(vm_cr));
    }
    if svm_features & CPUID_NP == 0 {
        return Err(SvmError::NoNestedPaging);
    }
    if asids < 2 {
        return Err(SvmError::TooFewAsids(asids));
    }
    Ok(Features {
        nrip_save: svm_features & CPUID_NRIPS != 0,
        flush_by_asid: svm_features & CPUID_FLUSH_BY_ASID != 0,
        decode_assists: svm_features & CPUID_DECODE_ASSISTS != 0,
        bus_lock_threshold: svm_features & CPUID_BUS_LOCK_THRESHOLD != 0,
    })
}

/// Proof that AMD-V is on on this CPU, which goes off when this is dropped. Not `Send`: it stays on its CPU.
#[derive(Debug)]
pub struct SvmOn {
    /// What this CPU has beyond the necessary.
    pub features: Features,
    /// Where the host's own TR is, and what else VMRUN does not switch.
    host: Hpa,
    _this_cpu: PhantomData<*mut ()>,
}

impl SvmOn {
    /// Where the host's own TR is.
    pub(crate) fn host(&self) -> Hpa {
        self.host
    }

    /// From here to the next exit no NMI is lost: it stays pending for the guest and exits there. (GIF is clear from
    /// the first exit on; VMRUN sets it for the guest.)
    pub fn hold_nmis(&self) {
        // SAFETY: AMD-V is on, so this is privilege level 0 and the instruction exists.
        unsafe { core::arch::asm!("clgi", options(nostack)) };
    }

    /// The host takes the NMIs held since [`Self::hold_nmis`] or an exit.
    pub fn release_nmis(&self) {
        // SAFETY: AMD-V is on; the host's handlers take whatever was held back, and IF is clear.
        unsafe { core::arch::asm!("stgi", options(nostack)) };
    }
}

impl Drop for SvmOn {
    /// Switches AMD-V off with GIF set, as it has to be before (APM "Global Interrupt Flag").
    fn drop(&mut self) {
        // SAFETY: AMD-V is on, and `enable` has made the block; the virtual CPU is gone.
        unsafe { run::take_task_register(self.host) };
        self.release_nmis();
        // SAFETY: SVM is on, so the MSR is there.
        unsafe { write_msr(VM_HSAVE_PA, 0) };
        // SAFETY: every 64-bit CPU has EFER; privilege level 0.
        let efer = unsafe { read_msr(IA32_EFER) };
        // SAFETY: whoever made a virtual CPU promised that it is gone by now; the rest is kept.
        unsafe { write_msr(IA32_EFER, efer & !Efer::SVME.bits()) };
    }
}

/// Switches AMD-V on, on the CPU that runs this. `hsave` is a frame where VMRUN keeps the host's state; in the one behind it
/// is what VMRUN does not switch.
///
/// # Errors
/// What [`check`] finds missing. Nothing has been changed then.
///
/// # Safety
/// The caller runs at privilege level 0, with interrupts off and an IDT that handles NMIs, and nothing that this returned before lives on this
/// CPU. The two frames at `hsave` are this CPU's alone for as long as what this returns lives; TR is the host's.
pub unsafe fn enable(hsave: Hpa) -> Result<SvmOn, SvmError> {
    // SAFETY: privilege level 0, as the caller promises.
    let capabilities = unsafe { Capabilities::read() };
    let features = check(&capabilities)?;
    if capabilities.vm_cr & VM_CR_SVMDIS != 0 {
        // SAFETY: `check` has seen that VM_CR is not locked; clearing SVMDIS only permits SVME.
        unsafe { write_msr(VM_CR, capabilities.vm_cr & !VM_CR_SVMDIS) };
    }
    // SAFETY: every 64-bit CPU has EFER; privilege level 0.
    let efer = unsafe { read_msr(IA32_EFER) };
    // SAFETY: the CPU has SVM and VM_CR permits it, so SVME is no reserved bit; the rest is kept.
    unsafe { write_msr(IA32_EFER, efer | Efer::SVME.bits()) };
    // SAFETY: SVM is on; the address is a frame's and the caller gives the frame away.
    unsafe { write_msr(VM_HSAVE_PA, hsave.as_u64()) };
    let host = hsave.wrapping_add(PAGE_SIZE);
    // SAFETY: SVM is on, and the caller gives the frame away.
    unsafe { run::vmsave(host.as_u64()) };
    Ok(SvmOn { features, host, _this_cpu: PhantomData })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A CPU with all that is needed and nothing more.
    const PLAIN: Capabilities =
        Capabilities { extended_features: 1 << 2, asids: 16, svm_features: 1, vm_cr: 0 };

    #[test]
    fn a_plain_cpu_is_enough() {
        let features = Features {
            nrip_save: false,
            flush_by_asid: false,
            decode_assists: false,
            bus_lock_threshold: false,
        };
        assert_eq!(check(&PLAIN), Ok(features));
        // Zen 2 and Zen 4 have the first three; Zen 5 has bus lock threshold, too.
        let more = Features {
            nrip_save: true,
            flush_by_asid: true,
            decode_assists: true,
            bus_lock_threshold: false,
        };
        let svm_features = 1 | 1 << 3 | 1 << 6 | 1 << 7;
        assert_eq!(check(&Capabilities { svm_features, ..PLAIN }), Ok(more));
        let newest = Capabilities { svm_features: svm_features | 1 << 29, ..PLAIN };
        assert_eq!(check(&newest), Ok(Features { bus_lock_threshold: true, ..more }));
    }

    #[test]
    fn each_lack_has_its_own_sentence() {
        let none = Capabilities { extended_features: 0, asids: 0, svm_features: 0, vm_cr: 0 };
        assert_eq!(check(&none), Err(SvmError::NotSupported));
        let off = Capabilities { vm_cr: 0x18, svm_features: 5, ..PLAIN };
        assert_eq!(check(&off), Err(SvmError::LockedOff(0x18)));
        let flat = Capabilities { svm_features: 4, ..PLAIN };
        assert_eq!(check(&flat), Err(SvmError::NoNestedPaging));
        assert_eq!(check(&Capabilities { asids: 1, ..PLAIN }), Err(SvmError::TooFewAsids(1)));
        assert_eq!(
            SvmError::LockedOff(0x18).to_string(),
            "AMD-V is locked off by firmware (VM_CR = 0x18): enable it in setup"
        );
    }

    #[test]
    fn svmdis_counts_only_where_it_cannot_be_cleared() {
        assert!(check(&Capabilities { vm_cr: 0x10, svm_features: 5, ..PLAIN }).is_ok());
        assert!(check(&Capabilities { vm_cr: 0x08, svm_features: 5, ..PLAIN }).is_ok());
        let unlockable = Capabilities { vm_cr: 0x10, ..PLAIN };
        assert_eq!(check(&unlockable), Err(SvmError::LockedOff(0x10)));
    }
}
