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

use crate::capability::{
    BASIC_TRUE_CONTROLS, Capabilities, FEATURE_CONTROL_LOCK, FEATURE_CONTROL_VMX, Features, check,
};
use crate::controls::{Primary, Secondary};
use crate::{VmxError, vmcs};

/// SDM "VMX Capability Reporting Facility".
mod msr {
    pub(super) const IA32_VMX_BASIC: u32 = 0x480;
    pub(super) const IA32_VMX_PINBASED_CTLS: u32 = 0x481;
    pub(super) const IA32_VMX_PROCBASED_CTLS: u32 = 0x482;
    pub(super) const IA32_VMX_EXIT_CTLS: u32 = 0x483;
    pub(super) const IA32_VMX_ENTRY_CTLS: u32 = 0x484;
    pub(super) const IA32_VMX_MISC: u32 = 0x485;
    pub(super) const IA32_VMX_CR0_FIXED0: u32 = 0x486;
    pub(super) const IA32_VMX_CR0_FIXED1: u32 = 0x487;
    pub(super) const IA32_VMX_CR4_FIXED0: u32 = 0x488;
    pub(super) const IA32_VMX_CR4_FIXED1: u32 = 0x489;
    pub(super) const IA32_VMX_PROCBASED_CTLS2: u32 = 0x48b;
    pub(super) const IA32_VMX_EPT_VPID_CAP: u32 = 0x48c;
    pub(super) const IA32_VMX_PROCBASED_CTLS3: u32 = 0x492;
    /// From a control MSR (0x481 to 0x484) to its TRUE form.
    pub(super) const TRUE_OFFSET: u32 = 0x48d - IA32_VMX_PINBASED_CTLS;
}

impl Capabilities {
    /// Takes the snapshot.
    ///
    /// # Safety
    /// This runs in ring 0.
    #[must_use]
    pub unsafe fn read() -> Self {
        const CPUID_1_ECX_VMX: u32 = 1 << 5;
        if cpuid(1, 0).ecx & CPUID_1_ECX_VMX == 0 {
            return Self::default();
        }
        let existing = |number: u32, exists: bool| {
            // SAFETY: ring 0, says the caller; VMX is there, and with it every MSR that `exists`.
            if exists { unsafe { read_msr(number) } } else { 0 }
        };
        let basic = existing(msr::IA32_VMX_BASIC, true);
        let true_offset = if basic & BASIC_TRUE_CONTROLS != 0 { msr::TRUE_OFFSET } else { 0 };
        let control = |number: u32| existing(number + true_offset, true);
        let primary = control(msr::IA32_VMX_PROCBASED_CTLS);
        let may = |capability: u64, bit: u32| (capability >> 32) as u32 & bit != 0;
        let secondary = existing(
            msr::IA32_VMX_PROCBASED_CTLS2,
            may(primary, Primary::ACTIVATE_SECONDARY_CONTROLS.bits()),
        );
        Self {
            vmx: true,
            physical_address_bits: cpuid(0x8000_0008, 0).eax as u8,
            feature_control: existing(IA32_FEATURE_CONTROL, true),
            basic,
            pin_based: control(msr::IA32_VMX_PINBASED_CTLS),
            primary,
            secondary,
            tertiary: existing(
                msr::IA32_VMX_PROCBASED_CTLS3,
                may(primary, Primary::ACTIVATE_TERTIARY_CONTROLS.bits()),
            ),
            exit: control(msr::IA32_VMX_EXIT_CTLS),
            entry: control(msr::IA32_VMX_ENTRY_CTLS),
            misc: existing(msr::IA32_VMX_MISC, true),
            cr0_fixed0: existing(msr::IA32_VMX_CR0_FIXED0, true),
            cr0_fixed1: existing(msr::IA32_VMX_CR0_FIXED1, true),
            cr4_fixed0: existing(msr::IA32_VMX_CR4_FIXED0, true),
            cr4_fixed1: existing(msr::IA32_VMX_CR4_FIXED1, true),
            ept_vpid: existing(
                msr::IA32_VMX_EPT_VPID_CAP,
                may(secondary, (Secondary::ENABLE_EPT | Secondary::ENABLE_VPID).bits()),
            ),
        }
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
