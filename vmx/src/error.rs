//! What VT-x can refuse, in sentences.

use core::fmt;

use arch::Hpa;

/// Why this CPU cannot run guests by VT-x.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VmxError {
    /// CPUID does not know VMX.
    NoVmx,
    /// The firmware has locked VMX off; the value of IA32_FEATURE_CONTROL.
    LockedOff(u64),
    /// A control that Nexit needs cannot be set.
    MissingControl(MissingControl),
    /// A control that would make every CR3, RDTSC … exit cannot be cleared.
    ForcedControl(MissingControl),
    /// EPT or VPID lacks something that Nexit needs; the text names it.
    MissingEptFeature {
        /// What is missing.
        what: &'static str,
        /// IA32_VMX_EPT_VPID_CAP.
        capability: u64,
    },
    /// ICR writes pass in the guest's bitmaps, and this CPU does not send IPIs by itself.
    NoIpiVirtualization,
    /// A VMX instruction failed where it must not.
    Refused {
        instruction: &'static str,
        /// Its operand.
        frame: Hpa,
    },
}

/// A control and the capability MSR that rules over it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MissingControl {
    /// The SDM's name of the control, in capitals.
    pub control: &'static str,
    /// Name of the capability MSR.
    pub register: &'static str,
    /// Its value.
    pub capability: u64,
}

impl fmt::Display for VmxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoVmx => f.write_str(
                "the CPU has no VT-x (CPUID.1:ECX.VMX = 0): use a CPU that has it, or in a virtual \
                 machine switch nested VT-x on",
            ),
            Self::LockedOff(value) => write!(
                f,
                "VT-x is locked off by firmware (IA32_FEATURE_CONTROL = {value:#x}): enable it in \
                 setup"
            ),
            Self::MissingControl(MissingControl { control, register, capability }) => write!(
                f,
                "the CPU's VT-x has no {control} ({register} = {capability:#018x}): use a newer CPU"
            ),
            Self::ForcedControl(MissingControl { control, register, capability }) => write!(
                f,
                "the CPU's VT-x cannot switch {control} off ({register} = {capability:#018x}): use \
                 a newer CPU"
            ),
            Self::MissingEptFeature { what, capability } => write!(
                f,
                "the CPU's EPT has no {what} (IA32_VMX_EPT_VPID_CAP = {capability:#x}): use a newer \
                 CPU"
            ),
            Self::NoIpiVirtualization => f.write_str(
                "this CPU has no IPI virtualization and another of the guest's has: choose CPUs of one kind for it",
            ),
            Self::Refused { instruction, frame } => write!(
                f,
                "{instruction} of the page at {frame} failed: another hypervisor may own VT-x"
            ),
        }
    }
}

impl core::error::Error for VmxError {}

/// What failed, by VM-instruction error (SDM "VM-Instruction Error Numbers"; 0: none was told), with IPI
/// virtualization or without.
pub(crate) const fn instruction_error(number: u32, virtualizes_ipis: bool) -> &'static str {
    match number {
        0 => "VM entry without a current VMCS",
        7 if virtualizes_ipis => {
            "VM entry with invalid control fields; IPI virtualization, which no CPU had run before, is one of \
             them: choose interrupts = \"exitless\" or \"exiting\" and report this"
        }
        _ => "VM-instruction error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn controls_that_are_refused_with_ipi_virtualization_name_it() {
        assert!(instruction_error(7, true).contains("IPI virtualization"));
        assert!(!instruction_error(7, false).contains("IPI virtualization"));
    }

    #[test]
    fn a_lock_names_the_register_and_the_way_out() {
        assert_eq!(
            VmxError::LockedOff(1).to_string(),
            "VT-x is locked off by firmware (IA32_FEATURE_CONTROL = 0x1): enable it in setup"
        );
    }
}
