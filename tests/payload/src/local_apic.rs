//! The local APIC of the CPU that calls, in whatever mode it is: by its page where that is after a reset, or by its MSRs.

use arch::Hpa;
use arch::msr::IA32_APIC_BASE;
use cpu::instructions::{read_msr, write_msr};
use cpu::physical::pointer;

/// Where the page is after a reset.
pub const PAGE: u64 = 0xfee0_0000;
/// Bits of IA32_APIC_BASE.
pub const ENABLE: u64 = 1 << 11;
pub const X2APIC: u64 = 1 << 10;

/// IA32_APIC_BASE.
#[must_use]
pub fn base() -> u64 {
    // SAFETY: every CPU in long mode has it.
    unsafe { read_msr(IA32_APIC_BASE) }
}

#[must_use]
pub fn in_x2apic_mode() -> bool {
    base() & X2APIC != 0
}

/// The mode, as facts name it.
#[must_use]
pub fn mode() -> &'static str {
    if in_x2apic_mode() { "x2APIC" } else { "xAPIC" }
}

/// Reads the register at this offset of the page.
#[must_use]
pub fn read(register: u16) -> u32 {
    if in_x2apic_mode() {
        // SAFETY: every register that is asked for exists in x2APIC mode.
        return unsafe { read_msr(0x800 + u32::from(register >> 4)) } as u32;
    }
    // SAFETY: the machine's own, or the guest's.
    unsafe { pointer::<u32>(Hpa::new(PAGE + u64::from(register))).read_volatile() }
}

/// Writes it.
pub fn write(register: u16, value: u32) {
    if in_x2apic_mode() {
        // SAFETY: as for `read`.
        unsafe { write_msr(0x800 + u32::from(register >> 4), value.into()) };
    } else {
        // SAFETY: as for `read`.
        unsafe { pointer::<u32>(Hpa::new(PAGE + u64::from(register))).write_volatile(value) };
    }
}
