//! VMX root operation on this CPU: reading the capability MSRs, VMXON.
//!
//! Invariant: no MSR is read that CPUID or an earlier MSR does not promise, and VMXON is tried only
//! where [`check`] finds nothing missing, so that neither raises #GP or #UD.

use core::marker::PhantomData;

use arch::Hpa;
use arch::msr::IA32_FEATURE_CONTROL;
use arch::register::Cr4 as Cr4Bits;
use cpu::instructions::{cpuid, read_msr, write_msr};
use x86_64::registers::control::{Cr0, Cr4};

use crate::capability::{Capabilities, FEATURE_CONTROL_LOCK, FEATURE_CONTROL_VMX, Features, check};
use crate::{VmxError, vmcs};

impl Capabilities {
    /// Takes the snapshot.
    ///
    /// # Safety
    /// This runs in ring 0.
    #[must_use]
    pub unsafe fn read() -> Self {
        Self::gather(cpuid, |number| {
            // SAFETY: ring 0, says the caller; `gather` asks for what is there.
            unsafe { read_msr(number) }
        })
    }
}

/// Proof that this CPU is in VMX root operation, which it leaves when this is dropped. Not `Send`: it
/// stays on its CPU.
#[derive(Debug)]
pub struct VmxOn {
    /// What this CPU can do.
    pub features: Features,
    _this_cpu: PhantomData<*mut ()>,
}

impl Drop for VmxOn {
    fn drop(&mut self) {
        // SAFETY: `self` proves root operation, and whoever made a virtual CPU on it promised that
        // it is gone by now.
        unsafe { core::arch::asm!("vmxoff", options(nostack)) };
    }
}

/// Puts this CPU in VMX root operation. Where the firmware left IA32_FEATURE_CONTROL open, VMX is
/// switched on in it and it is locked.
///
/// # Errors
/// What the CPU lacks, or that VMXON failed.
///
/// # Safety
/// This runs in ring 0 with 64-bit paging, and nothing that it returned before lives on this CPU. `region` is a 4 KiB page,
/// identity-mapped, of RAM below the CPU's physical-address width, that is this CPU's VMXON region
/// for as long as what this returns lives.
pub unsafe fn enable(region: Hpa) -> Result<VmxOn, VmxError> {
    // SAFETY: ring 0, says the caller.
    let features = check(&unsafe { Capabilities::read() })?;
    let capabilities = &features.capabilities;
    if capabilities.feature_control & FEATURE_CONTROL_LOCK == 0 {
        let value = capabilities.feature_control | FEATURE_CONTROL_LOCK | FEATURE_CONTROL_VMX;
        // SAFETY: VMX is there, so the MSR is; it is not locked.
        unsafe { write_msr(IA32_FEATURE_CONTROL, value) };
    }
    let cr0 = Cr0::read_raw() & capabilities.cr0_fixed1 | capabilities.cr0_fixed0;
    // SAFETY: only the bits that VMX fixes change: NE is set; PE and PG are set already.
    unsafe { Cr0::write_raw(cr0) };
    let vmxe = Cr4Bits::VMXE.bits();
    let cr4 = Cr4::read_raw() & capabilities.cr4_fixed1 | capabilities.cr4_fixed0 | vmxe;
    // SAFETY: only VMXE is added; bits that VMX forbids are none that the host uses.
    unsafe { Cr4::write_raw(cr4) };
    // SAFETY: the page is ours, says the caller.
    unsafe { vmcs::initialize_region(region, capabilities.revision()) };
    // SAFETY: CR0, CR4 and IA32_FEATURE_CONTROL are as VMXON wants them and the region is set up.
    if unsafe { vmcs::vmxon(region) } {
        return Err(VmxError::Refused { instruction: "VMXON", frame: region });
    }
    cpu::exceptions::at_nmi(crate::vcpu::exit_at_once);
    Ok(VmxOn { features, _this_cpu: PhantomData })
}
