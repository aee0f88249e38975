//! What every CPU that runs guests must have.

use arch::machine::CpuidResult;

use crate::Refusal;

/// Whose virtualization a CPU has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Vendor {
    /// Intel's VT-x.
    VtX,
    AmdV,
}

/// Which vendor's virtualization a CPU claims to have (SDM "Discovering Support for VMX"; APM "Enabling
/// SVM").
///
/// # Errors
/// When it shows none.
pub fn vendor(cpuid: impl Fn(u32) -> CpuidResult) -> Result<Vendor, Refusal> {
    const VMX: u32 = 1 << 5;
    const SVM: u32 = 1 << 2;
    if cpuid(1).ecx & VMX != 0 {
        Ok(Vendor::VtX)
    } else if cpuid(0x8000_0000).eax >= 0x8000_0001 && cpuid(0x8000_0001).ecx & SVM != 0 {
        Ok(Vendor::AmdV)
    } else {
        Err(Refusal::machine(
            "the CPU shows neither VT-x (CPUID 1 ECX bit 5) nor AMD-V (CPUID 0x80000001 ECX bit 2): \
             enable virtualization in the firmware's setup, or in the emulator",
        ))
    }
}

/// The CPU lacks x2APIC mode.
#[must_use]
pub fn no_x2apic() -> Refusal {
    Refusal::machine(
        "the CPU has no x2APIC (CPUID 1 ECX bit 21): enable it in the firmware's setup; without \
         it interrupts cannot be ended without an exit",
    )
}

/// The CPU lacks execute disable.
#[must_use]
pub fn no_execute_disable() -> Refusal {
    Refusal::machine(
        "the CPU has no execute disable (CPUID 0x80000001 EDX bit 20): switch it on in the firmware's setup \
         (\"XD\", \"NX\" or \"no-execute memory protection\")",
    )
}

/// What a CPU lacks, by its CPUID, beside virtualization.
pub fn lacks(cpuid: impl Fn(u32) -> CpuidResult) -> impl Iterator<Item = Refusal> {
    const X2APIC: u32 = 1 << 21;
    const EXECUTE_DISABLE: u32 = 1 << 20;
    let extended = cpuid(0x8000_0000).eax >= 0x8000_0001;
    let has_nx = extended && cpuid(0x8000_0001).edx & EXECUTE_DISABLE != 0;
    let no_nx = (!has_nx).then(no_execute_disable);
    let no_x2apic = (cpuid(1).ecx & X2APIC == 0).then(no_x2apic);
    no_nx.into_iter().chain(no_x2apic)
}
