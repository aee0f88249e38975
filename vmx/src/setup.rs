//! The parts of a VMCS that are written once: the controls, what they point at, and the host state.

use arch::VcpuSetup;
use arch::msr::{IA32_EFER, IA32_FS_BASE, IA32_GS_BASE, IA32_PAT};
use arch::vcpu::{InterruptMode, exception};
use cpu::instructions::read_msr;
use cpu::segments;
use x86_64::registers::control::{Cr0, Cr3, Cr4};

use crate::VmxError;
use crate::bitmap::{Bitmaps, IoBitmaps};
use crate::capability::{Features, ept_pointer};
use crate::control_register::OwnedBits;
use crate::controls::{Controls, PinBased, Secondary, exception_bitmap};
use crate::field::{self, FieldWriter};
use crate::posted::{NOTIFICATION, PidPointers, Posting};
use crate::run;
use crate::vcpu::VPID;
use crate::virtual_apic::VirtualApic;
use crate::vmcs::Vmcs;

/// Writes the control fields.
pub(crate) fn write_controls(
    vmcs: &mut impl FieldWriter,
    features: &Features,
    setup: &VcpuSetup,
    virtual_apic: Option<VirtualApic>,
) -> Result<(), VmxError> {
    let controls = Controls::choose(&features.capabilities, setup.mode)?;
    // Else the guest would write the ICR of the machine.
    if setup.virtual_ipis && !controls.virtualizes_ipis() {
        return Err(VmxError::NoIpiVirtualization);
    }
    vmcs.write(field::PIN_BASED_VM_EXECUTION_CONTROLS, controls.pin_based.bits());
    vmcs.write(field::PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS, controls.primary.bits());
    vmcs.write(field::SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS, controls.secondary.bits());
    vmcs.write(field::VM_EXIT_CONTROLS, controls.exit.bits());
    vmcs.write(field::VM_ENTRY_CONTROLS, controls.entry.bits());
    if controls.secondary.contains(Secondary::ENABLE_VPID) {
        vmcs.write(field::VIRTUAL_PROCESSOR_IDENTIFIER, VPID);
    }
    if controls.secondary.contains(Secondary::ENABLE_XSAVES) {
        vmcs.write(field::XSS_EXITING_BITMAP, 0);
    }
    if let Some(virtual_apic) = virtual_apic {
        vmcs.write(field::VIRTUAL_APIC_ADDRESS, virtual_apic.page.as_u64());
        vmcs.write(field::TPR_THRESHOLD, 0);
        if controls.pin_based.contains(PinBased::PROCESS_POSTED_INTERRUPTS)
            && let Some(Posting { descriptor, table, .. }) = virtual_apic.posting
        {
            vmcs.write(field::POSTED_INTERRUPT_DESCRIPTOR_ADDRESS, descriptor.address());
            vmcs.write(field::POSTED_INTERRUPT_NOTIFICATION_VECTOR, u16::from(NOTIFICATION.0));
            descriptor.use_it();
            if controls.virtualizes_ipis() {
                vmcs.write(
                    field::TERTIARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS,
                    controls.tertiary,
                );
                vmcs.write(field::PID_POINTER_TABLE_ADDRESS, core::ptr::from_ref(table) as u64);
                vmcs.write(field::LAST_PID_POINTER_INDEX, PidPointers::LAST);
            }
        }
    }
    vmcs.write(field::EPT_POINTER, ept_pointer(setup.nested_root));
    let (bitmaps, io_bitmaps) =
        (setup.bitmaps.as_u64(), setup.bitmaps.as_u64() + Bitmaps::IO_OFFSET);
    vmcs.write(field::ADDRESS_OF_MSR_BITMAPS, bitmaps);
    vmcs.write(field::ADDRESS_OF_IO_BITMAP_A, io_bitmaps);
    vmcs.write(field::ADDRESS_OF_IO_BITMAP_B, io_bitmaps + IoBitmaps::B_OFFSET);
    vmcs.write(field::TSC_OFFSET, 0);
    let shadow_gates = match setup.mode {
        InterruptMode::Exitless => 1 << exception::NP,
        InterruptMode::Exiting | InterruptMode::Posted => 0,
    };
    vmcs.write(field::EXCEPTION_BITMAP, exception_bitmap(shadow_gates));
    vmcs.write(field::PAGE_FAULT_ERROR_CODE_MASK, 0);
    vmcs.write(field::PAGE_FAULT_ERROR_CODE_MATCH, 0);
    vmcs.write(field::CR0_GUEST_HOST_MASK, OwnedBits::cr0(&features.capabilities).mask);
    vmcs.write(field::CR4_GUEST_HOST_MASK, OwnedBits::cr4(&features.capabilities, setup.cr4).mask);
    for count in [
        field::CR3_TARGET_COUNT,
        field::VM_EXIT_MSR_STORE_COUNT,
        field::VM_EXIT_MSR_LOAD_COUNT,
        field::VM_ENTRY_MSR_LOAD_COUNT,
    ] {
        vmcs.write(count, 0);
    }
    vmcs.write(field::VMCS_LINK_POINTER, !0);
    Ok(())
}

/// Writes the host state: what this CPU holds now.
///
/// # Safety
/// This runs in ring 0, with the tables of [`cpu::segments`] and in the address space in which the hypervisor
/// goes on after an exit; its TSS is at `tss_base`.
pub(crate) unsafe fn write_host_state(vmcs: &mut Vmcs, tss_base: u64) {
    vmcs.write(field::HOST_CR0, Cr0::read_raw());
    vmcs.write(field::HOST_CR3, Cr3::read_raw().0.start_address().as_u64());
    vmcs.write(field::HOST_CR4, Cr4::read_raw());
    vmcs.write(field::HOST_CS_SELECTOR, segments::CODE.0);
    vmcs.write(field::HOST_SS_SELECTOR, segments::DATA.0);
    vmcs.write(field::HOST_TR_SELECTOR, segments::TASK.0);
    for unused in [
        field::HOST_ES_SELECTOR,
        field::HOST_DS_SELECTOR,
        field::HOST_FS_SELECTOR,
        field::HOST_GS_SELECTOR,
    ] {
        vmcs.write(unused, 0);
    }
    vmcs.write(field::HOST_TR_BASE, tss_base);
    vmcs.write(field::HOST_GDTR_BASE, segments::gdtr().base.as_u64());
    vmcs.write(field::HOST_IDTR_BASE, segments::idtr().base.as_u64());
    for (field, msr) in [(field::HOST_FS_BASE, IA32_FS_BASE), (field::HOST_GS_BASE, IA32_GS_BASE)] {
        // SAFETY: ring 0, says the caller; every 64-bit CPU has it.
        vmcs.write(field, unsafe { read_msr(msr) });
    }
    for (field, msr) in [(field::HOST_IA32_EFER, IA32_EFER), (field::HOST_IA32_PAT, IA32_PAT)] {
        // SAFETY: as above.
        vmcs.write(field, unsafe { read_msr(msr) });
    }
    vmcs.write(field::HOST_IA32_SYSENTER_CS, 0);
    vmcs.write(field::HOST_IA32_SYSENTER_ESP, 0);
    vmcs.write(field::HOST_IA32_SYSENTER_EIP, 0);
    vmcs.write(field::HOST_RSP, 0); // `run::enter` writes it
    vmcs.write(field::HOST_RIP, run::place_of_exits());
}

#[cfg(test)]
mod tests;
