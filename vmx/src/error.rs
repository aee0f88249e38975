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
    /// A VMX instruction failed where it must not.
    Refused {
        /// The instruction.
        instruction: &'static str,
        /// Its operand.
        frame: Hpa,
    },
    /// The caller gave an address that is not a multiple of 4 KiB.
    Unaligned(Hpa),
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
            Self::Refused { instruction, frame } => write!(
                f,
                "{instruction} of the page at {frame} failed: another hypervisor may own VT-x"
            ),
            Self::Unaligned(address) => {
                write!(f, "the page given to VT-x at {address} is not 4 KiB-aligned")
            }
        }
    }
}

impl core::error::Error for VmxError {}

/// What a VM-instruction error means (SDM "VM-Instruction Error Numbers"), with IPI virtualization or without.
pub(crate) const fn instruction_error(number: u32, virtualizes_ipis: bool) -> &'static str {
    match number {
        1 => "VMCALL executed in VMX root operation",
        2 => "VMCLEAR with invalid physical address",
        3 => "VMCLEAR with VMXON pointer",
        4 => "VMLAUNCH with non-clear VMCS",
        5 => "VMRESUME with non-launched VMCS",
        6 => "VMRESUME after VMXOFF",
        7 if virtualizes_ipis => {
            "VM entry with invalid control fields; IPI virtualization, which no CPU had run before, is one of \
             them: choose interrupts = \"exitless\" or \"exiting\" and report this"
        }
        7 => "VM entry with invalid control fields",
        8 => "VM entry with invalid host-state fields",
        9 => "VMPTRLD with invalid physical address",
        10 => "VMPTRLD with VMXON pointer",
        11 => "VMPTRLD with incorrect VMCS revision identifier",
        12 => "VMREAD or VMWRITE from or to an unsupported VMCS component",
        13 => "VMWRITE to a read-only VMCS component",
        15 => "VMXON executed in VMX root operation",
        16 => "VM entry with invalid executive-VMCS pointer",
        17 => "VM entry with non-launched executive VMCS",
        18 => "VM entry with executive-VMCS pointer that is not the VMXON pointer",
        19 => "VMCALL with non-clear VMCS",
        20 => "VMCALL with invalid VM-exit control fields",
        22 => "VMCALL with incorrect MSEG revision identifier",
        23 => "VMXOFF under dual-monitor treatment of SMIs and SMM",
        24 => "VMCALL with invalid SMM-monitor features",
        25 => "VM entry with invalid VM-execution control fields in executive VMCS",
        26 => "VM entry with events blocked by MOV SS",
        28 => "invalid operand to INVEPT or INVVPID",
        _ => "a VM-instruction error that the manual does not list",
    }
}

/// What a VM-entry failure that is reported as an exit means, by basic exit reason and exit
/// qualification (SDM "VM-Entry Failures During or After Loading Guest State"); `None` for invalid
/// guest state that the qualification does not explain.
pub(crate) const fn entry_failure(reason: u16, qualification: u64) -> Option<&'static str> {
    match (reason, qualification) {
        (33, 2) => Some("invalid guest state: a PDPTE has reserved bits set"),
        (33, 3) => Some("invalid guest state: an NMI is injected while MOV SS blocks events"),
        (33, 4) => Some("invalid guest state: the VMCS link pointer"),
        (33, _) => None,
        (34, _) => Some("an entry of the VM-entry MSR-load area could not be loaded"),
        (41, _) => Some("a machine-check event during VM entry"),
        _ => Some("a VM-entry failure that the manual does not list"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::string::ToString;

    #[test]
    fn every_listed_instruction_error_has_its_own_sentence() {
        let listed: Vec<u32> = (1..=28).filter(|n| ![14, 21, 27].contains(n)).collect();
        let sentences: HashSet<_> = listed.iter().map(|n| instruction_error(*n, false)).collect();
        assert_eq!(sentences.len(), listed.len());
        assert!(!sentences.contains(instruction_error(14, false)));
        assert!(instruction_error(7, true).contains("IPI virtualization"));
    }

    #[test]
    fn a_lock_names_the_register_and_the_way_out() {
        assert_eq!(
            VmxError::LockedOff(1).to_string(),
            "VT-x is locked off by firmware (IA32_FEATURE_CONTROL = 0x1): enable it in setup"
        );
    }

    #[test]
    fn each_entry_failure_has_its_own_sentence() {
        let all = [(33, 2), (33, 3), (33, 4), (34, 1), (41, 0), (99, 0)];
        let sentences: HashSet<_> = all.iter().map(|(r, q)| entry_failure(*r, *q)).collect();
        assert_eq!(sentences.len(), all.len());
        assert_eq!(entry_failure(33, 0), None);
    }
}
