//! What the CPU looks at before it enters, for the log: `nexit explain` has the rules.

use core::fmt;

use crate::controls::{PinBased, Primary, Secondary};
use crate::field::{self, Field, Readable, Width};
use crate::vcpu::VmxVcpu;

impl VmxVcpu {
    /// [`arch::vcpu::Vcpu::write_state`]: the controls and the guest-state area by the fields' encodings, and what the
    /// rules depend on: IA32_VMX_CR0_FIXED0 and the three behind it, the capability MSRs of the controls (the TRUE
    /// ones' numbers stand for the others where there are none), the width of addresses by its leaf.
    pub(crate) fn write_vmcs(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("vmcs")?;
        self.write_controls(f)?;
        self.write_fields(f, field::GUEST_ES_SELECTOR, 8)?;
        self.write_fields(f, field::VMCS_LINK_POINTER, 4)?;
        self.write_fields(f, field::VM_ENTRY_CONTROLS, 5)?;
        self.write_fields(f, field::GUEST_ES_LIMIT, 20)?;
        self.write_fields(f, field::GUEST_CR0, 20)?;
        let of = &self.features.capabilities;
        let fixed = [of.cr0_fixed0, of.cr0_fixed1, of.cr4_fixed0, of.cr4_fixed1];
        for (msr, value) in (0x486_u32..).zip(fixed) {
            write!(f, " {msr:x}={value:x}")?;
        }
        let (second, third) = (of.secondary, of.tertiary);
        for (msr, value) in [(0x48b_u32, second), (0x48c, of.ept_vpid), (0x492, third)] {
            write!(f, " {msr:x}={value:x}")?;
        }
        for (msr, value) in (0x48d_u32..).zip([of.pin_based, of.primary, of.exit, of.entry]) {
            write!(f, " {msr:x}={value:x}")?;
        }
        write!(f, " 80000008={:x}", of.physical_address_bits)
    }

    /// The control fields, but those that the CPU need not have and the controls do not use.
    fn write_controls(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_fields(f, field::PIN_BASED_VM_EXECUTION_CONTROLS, 2)?;
        self.write_fields(f, field::CR3_TARGET_COUNT, 4)?;
        self.write_fields(f, field::SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS, 1)?;
        self.write_fields(f, field::ADDRESS_OF_IO_BITMAP_A, 3)?;
        self.write_fields(f, field::EPT_POINTER, 1)?;
        let pin_based = self.vmcs.read(field::PIN_BASED_VM_EXECUTION_CONTROLS);
        let primary = self.vmcs.read(field::PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS);
        let primary = Primary::from_bits_retain(primary);
        let secondary = self.vmcs.read(field::SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS);
        if Secondary::from_bits_retain(secondary).contains(Secondary::ENABLE_VPID) {
            self.write_fields(f, field::VIRTUAL_PROCESSOR_IDENTIFIER, 1)?;
        }
        if primary.contains(Primary::USE_TPR_SHADOW) {
            self.write_fields(f, field::VIRTUAL_APIC_ADDRESS, 1)?;
            self.write_fields(f, field::TPR_THRESHOLD, 1)?;
        }
        if PinBased::from_bits_retain(pin_based).contains(PinBased::PROCESS_POSTED_INTERRUPTS) {
            self.write_fields(f, field::POSTED_INTERRUPT_NOTIFICATION_VECTOR, 1)?;
            self.write_fields(f, field::POSTED_INTERRUPT_DESCRIPTOR_ADDRESS, 1)?;
        }
        if primary.contains(Primary::ACTIVATE_TERTIARY_CONTROLS) {
            self.write_fields(f, field::TERTIARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS, 1)?;
            self.write_fields(f, field::PID_POINTER_TABLE_ADDRESS, 1)?;
            self.write_fields(f, field::LAST_PID_POINTER_INDEX, 1)?;
        }
        Ok(())
    }

    fn write_fields<W: Width>(
        &self,
        f: &mut fmt::Formatter<'_>,
        first: Field<W>,
        count: u32,
    ) -> fmt::Result {
        for field in (0..count).map(|index| first.nth(index)) {
            let value: u64 = self.vmcs.read(field).into();
            write!(f, " {:x}={value:x}", field.encoding())?;
        }
        Ok(())
    }
}
