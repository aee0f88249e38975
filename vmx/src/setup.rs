//! The parts of a VMCS that are written once: the controls, what they point at, and the host state.

use arch::msr::{IA32_EFER, IA32_FS_BASE, IA32_GS_BASE, IA32_PAT};
use arch::vcpu::{InterruptMode, exception};
use cpu::instructions::read_msr;
use x86_64::registers::control::{Cr0, Cr4};

use crate::VmxError;
use crate::capability::{Features, ept_pointer};
use crate::control_register::OwnedBits;
use crate::controls::{Controls, PinBased, Secondary};
use crate::field::{
    ADDRESS_OF_IO_BITMAP_A, ADDRESS_OF_IO_BITMAP_B, ADDRESS_OF_MSR_BITMAPS, CR0_GUEST_HOST_MASK,
    CR3_TARGET_COUNT, CR4_GUEST_HOST_MASK, EPT_POINTER, EXCEPTION_BITMAP, HOST_CR0, HOST_CR3,
    HOST_CR4, HOST_CS_SELECTOR, HOST_DS_SELECTOR, HOST_ES_SELECTOR, HOST_FS_BASE, HOST_FS_SELECTOR,
    HOST_GDTR_BASE, HOST_GS_BASE, HOST_GS_SELECTOR, HOST_IA32_EFER, HOST_IA32_PAT,
    HOST_IA32_SYSENTER_CS, HOST_IA32_SYSENTER_EIP, HOST_IA32_SYSENTER_ESP, HOST_IDTR_BASE,
    HOST_RIP, HOST_RSP, HOST_SS_SELECTOR, HOST_TR_BASE, HOST_TR_SELECTOR, LAST_PID_POINTER_INDEX,
    PAGE_FAULT_ERROR_CODE_MASK, PAGE_FAULT_ERROR_CODE_MATCH, PID_POINTER_TABLE_ADDRESS,
    PIN_BASED_VM_EXECUTION_CONTROLS, POSTED_INTERRUPT_DESCRIPTOR_ADDRESS,
    POSTED_INTERRUPT_NOTIFICATION_VECTOR, PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS,
    SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS,
    TERTIARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS, TPR_THRESHOLD, TSC_OFFSET,
    VIRTUAL_APIC_ADDRESS, VIRTUAL_PROCESSOR_IDENTIFIER, VM_ENTRY_CONTROLS, VM_ENTRY_MSR_LOAD_COUNT,
    VM_EXIT_CONTROLS, VM_EXIT_MSR_LOAD_COUNT, VM_EXIT_MSR_STORE_COUNT, VMCS_LINK_POINTER,
    XSS_EXITING_BITMAP,
};
use crate::posted::{NOTIFICATION, PidPointers, Posting};
use crate::run;
use crate::vcpu::{HostState, VcpuSetup};
use crate::vmcs::Vmcs;

/// Writes the control fields.
pub(crate) fn write_controls(
    vmcs: &mut Vmcs,
    features: &Features,
    setup: &VcpuSetup,
) -> Result<(), VmxError> {
    let mut controls = Controls::choose(&features.capabilities, setup.mode)?;
    if setup.vpid == 0 {
        controls.secondary.remove(Secondary::ENABLE_VPID); // VPID 0 is the host's
    }
    vmcs.write(PIN_BASED_VM_EXECUTION_CONTROLS, controls.pin_based.bits());
    vmcs.write(PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS, controls.primary.bits());
    vmcs.write(SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS, controls.secondary.bits());
    vmcs.write(VM_EXIT_CONTROLS, controls.exit.bits());
    vmcs.write(VM_ENTRY_CONTROLS, controls.entry.bits());
    if controls.secondary.contains(Secondary::ENABLE_VPID) {
        vmcs.write(VIRTUAL_PROCESSOR_IDENTIFIER, setup.vpid);
    }
    if controls.secondary.contains(Secondary::ENABLE_XSAVES) {
        vmcs.write(XSS_EXITING_BITMAP, 0);
    }
    if let Some(virtual_apic) = &setup.virtual_apic {
        vmcs.write(VIRTUAL_APIC_ADDRESS, virtual_apic.page.as_u64());
        vmcs.write(TPR_THRESHOLD, 0);
        if controls.pin_based.contains(PinBased::PROCESS_POSTED_INTERRUPTS) {
            let Posting { descriptor, table, .. } = virtual_apic.posting;
            vmcs.write(POSTED_INTERRUPT_DESCRIPTOR_ADDRESS, descriptor.address());
            vmcs.write(POSTED_INTERRUPT_NOTIFICATION_VECTOR, u16::from(NOTIFICATION.0));
            descriptor.use_it();
            if controls.virtualizes_ipis() {
                vmcs.write(TERTIARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS, controls.tertiary);
                vmcs.write(PID_POINTER_TABLE_ADDRESS, core::ptr::from_ref(table) as u64);
                vmcs.write(LAST_PID_POINTER_INDEX, PidPointers::LAST);
            }
        }
    }
    vmcs.write(EPT_POINTER, ept_pointer(setup.nested_root));
    vmcs.write(ADDRESS_OF_MSR_BITMAPS, setup.msr_bitmap.as_u64());
    vmcs.write(ADDRESS_OF_IO_BITMAP_A, setup.io_bitmap_a.as_u64());
    vmcs.write(ADDRESS_OF_IO_BITMAP_B, setup.io_bitmap_b.as_u64());
    vmcs.write(TSC_OFFSET, 0);
    let shadow_gates = match setup.mode {
        InterruptMode::Exitless => 1 << exception::NP,
        InterruptMode::Exiting | InterruptMode::Posted => 0,
    };
    vmcs.write(EXCEPTION_BITMAP, shadow_gates);
    vmcs.write(PAGE_FAULT_ERROR_CODE_MASK, 0);
    vmcs.write(PAGE_FAULT_ERROR_CODE_MATCH, 0);
    vmcs.write(CR0_GUEST_HOST_MASK, OwnedBits::cr0(&features.capabilities).mask);
    vmcs.write(CR4_GUEST_HOST_MASK, OwnedBits::cr4(&features.capabilities).mask);
    for count in
        [CR3_TARGET_COUNT, VM_EXIT_MSR_STORE_COUNT, VM_EXIT_MSR_LOAD_COUNT, VM_ENTRY_MSR_LOAD_COUNT]
    {
        vmcs.write(count, 0);
    }
    vmcs.write(VMCS_LINK_POINTER, !0);
    Ok(())
}

/// Writes the host state: what `host` says, and for the rest what this CPU holds now.
///
/// # Safety
/// This runs in ring 0; `host` is the environment in which the hypervisor goes on after an exit.
pub(crate) unsafe fn write_host_state(vmcs: &mut Vmcs, host: &HostState) {
    vmcs.write(HOST_CR0, Cr0::read_raw());
    vmcs.write(HOST_CR3, host.cr3);
    vmcs.write(HOST_CR4, Cr4::read_raw());
    vmcs.write(HOST_CS_SELECTOR, host.cs);
    vmcs.write(HOST_SS_SELECTOR, host.ss);
    vmcs.write(HOST_TR_SELECTOR, host.tr);
    for unused in [HOST_ES_SELECTOR, HOST_DS_SELECTOR, HOST_FS_SELECTOR, HOST_GS_SELECTOR] {
        vmcs.write(unused, 0);
    }
    vmcs.write(HOST_TR_BASE, host.tr_base);
    vmcs.write(HOST_GDTR_BASE, host.gdtr_base);
    vmcs.write(HOST_IDTR_BASE, host.idtr_base);
    for (field, msr) in [(HOST_FS_BASE, IA32_FS_BASE), (HOST_GS_BASE, IA32_GS_BASE)] {
        // SAFETY: ring 0, says the caller; every 64-bit CPU has it.
        vmcs.write(field, unsafe { read_msr(msr) });
    }
    for (field, msr) in [(HOST_IA32_EFER, IA32_EFER), (HOST_IA32_PAT, IA32_PAT)] {
        // SAFETY: as above.
        vmcs.write(field, unsafe { read_msr(msr) });
    }
    vmcs.write(HOST_IA32_SYSENTER_CS, 0);
    vmcs.write(HOST_IA32_SYSENTER_ESP, 0);
    vmcs.write(HOST_IA32_SYSENTER_EIP, 0);
    vmcs.write(HOST_RSP, 0); // `run::enter` writes it
    vmcs.write(HOST_RIP, run::exited as *const () as u64);
}
