//! The local APIC of the CPU that calls, in whatever mode it is.

use arch::msr::IA32_APIC_BASE;
use cpu::instructions::write_msr;

use payload::local_apic::{ENABLE, PAGE, X2APIC};
pub(crate) use payload::local_apic::{base, in_x2apic_mode, mode, read, write};

pub(crate) const ID: u16 = 0x20;
pub(crate) const TPR: u16 = 0x80;
pub(crate) const EOI: u16 = 0xb0;
pub(crate) const LDR: u16 = 0xd0;
pub(crate) const DFR: u16 = 0xe0;
pub(crate) const SVR: u16 = 0xf0;
pub(crate) const ISR: u16 = 0x100;
pub(crate) const TMR: u16 = 0x180;
pub(crate) const IRR: u16 = 0x200;
pub(crate) const ESR: u16 = 0x280;
pub(crate) const ICR: u16 = 0x300;
const ICR_HIGH: u16 = 0x310;
pub(crate) const TIMER: u16 = 0x320;
pub(crate) const INITIAL_COUNT: u16 = 0x380;
pub(crate) const DIVIDE: u16 = 0x3e0;
/// SVR: enabled, spurious vector 0xFF.
pub(crate) const ENABLED: u32 = 0x1ff;

fn set_base(value: u64) {
    // SAFETY: the payload's own.
    unsafe { write_msr(IA32_APIC_BASE, value) };
}

/// All eight words of ISR, TMR or IRR.
pub(crate) fn bits(register: u16) -> [u32; 8] {
    core::array::from_fn(|word| read(register + 16 * word as u16))
}

/// Whether a vector's bit of one of these registers is set.
pub(crate) fn bit(register: u16, vector: u8) -> bool {
    read(register + u16::from(vector / 32) * 16) >> (vector % 32) & 1 != 0
}

/// Sends what `low` says.
pub(crate) fn send(destination: u32, low: u32) {
    if in_x2apic_mode() {
        let value = u64::from(destination) << 32 | u64::from(low);
        // SAFETY: both CPUs are the payload's own.
        unsafe { write_msr(arch::msr::IA32_X2APIC_ICR, value) };
    } else {
        write(ICR_HIGH, destination << 24);
        write(ICR, low);
    }
}

/// ESR as a write of it leaves it.
pub(crate) fn errors() -> u32 {
    write(ESR, 0);
    read(ESR)
}

/// Xapic mode with the registers as after a reset, and enabled.
pub(crate) fn enter_xapic_mode() {
    if in_x2apic_mode() {
        let other = base() & 1 << 8;
        // From x2APIC mode there is no other way (SDM "x2APIC State Transitions").
        for value in [PAGE | other, PAGE | ENABLE | other] {
            set_base(value);
        }
    }
    write(SVR, ENABLED);
}

pub(crate) fn enter_x2apic_mode() {
    set_base(base() | ENABLE | X2APIC);
    write(SVR, ENABLED);
}
