//! The local APIC of the CPU that calls, by its page or by its MSRs.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arch::Hpa;
use arch::msr::IA32_APIC_BASE;
use cpu::instructions::{read_msr, write_msr};

pub(crate) const ID: u16 = 0x20;
pub(crate) const VERSION: u16 = 0x30;
pub(crate) const TPR: u16 = 0x80;
pub(crate) const PPR: u16 = 0xa0;
pub(crate) const EOI: u16 = 0xb0;
pub(crate) const LDR: u16 = 0xd0;
pub(crate) const DFR: u16 = 0xe0;
pub(crate) const SVR: u16 = 0xf0;
pub(crate) const ISR: u16 = 0x100;
pub(crate) const IRR: u16 = 0x200;
pub(crate) const ICR: u16 = 0x300;
pub(crate) const ICR_HIGH: u16 = 0x310;
pub(crate) const LVT_TIMER: u16 = 0x320;
pub(crate) const INITIAL_COUNT: u16 = 0x380;
pub(crate) const CURRENT_COUNT: u16 = 0x390;
pub(crate) const DIVIDE: u16 = 0x3e0;

pub(crate) const DISABLED: u64 = 0;
pub(crate) const XAPIC: u64 = 1 << 11;
pub(crate) const X2APIC: u64 = 3 << 10;
/// Where the page is after reset.
pub(crate) const PAGE: u64 = 0xfee0_0000;
/// SVR: enabled, spurious vector 0xFF.
pub(crate) const ENABLED: u32 = 0x1ff;

/// Where each CPU's page is; 0 in x2APIC mode.
static PAGES: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
/// #GPs that [`crate::interrupts`] has taken.
pub(crate) static FAULTS: AtomicU32 = AtomicU32::new(0);

/// The local APIC of CPU 0 or 1.
#[derive(Clone, Copy)]
pub(crate) struct Local(pub(crate) usize);

impl Local {
    fn page(self) -> u64 {
        PAGES[self.0].load(Ordering::Relaxed)
    }

    pub(crate) fn base(self) -> u64 {
        // SAFETY: every CPU in long mode has it.
        unsafe { read_msr(IA32_APIC_BASE) }
    }

    /// Writes IA32_APIC_BASE: page and mode; `false` where that is #GP.
    pub(crate) fn set_base(self, page: u64, mode: u64) -> bool {
        let before = FAULTS.load(Ordering::Relaxed);
        // SAFETY: the guest's own; a #GP is skipped.
        unsafe { write_msr(IA32_APIC_BASE, page | mode | self.base() & 1 << 8) };
        let allowed = FAULTS.load(Ordering::Relaxed) == before;
        if allowed {
            PAGES[self.0].store(if mode == XAPIC { page } else { 0 }, Ordering::Relaxed);
        }
        allowed
    }

    pub(crate) fn read(self, register: u16) -> u32 {
        match self.page() {
            // SAFETY: every register here exists in x2APIC mode.
            0 => unsafe { read_msr(0x800 + u32::from(register >> 4)) as u32 },
            page => peek(page + u64::from(register)),
        }
    }

    pub(crate) fn write(self, register: u16, value: u32) {
        match self.page() {
            // SAFETY: as for `read`.
            0 => unsafe { write_msr(0x800 + u32::from(register >> 4), value.into()) },
            page => {
                let at = cpu::physical::pointer::<u32>(Hpa::new(page + u64::from(register)));
                // SAFETY: the guest's own local APIC.
                unsafe { at.write_volatile(value) };
            }
        }
    }

    pub(crate) fn eoi(self) {
        self.write(EOI, 0);
    }

    /// Sends what `low` says to `destination`, a broadcast if it is all ones.
    pub(crate) fn send(self, destination: u32, low: u32) {
        if self.page() == 0 {
            let value = u64::from(destination) << 32 | u64::from(low);
            // SAFETY: the guest's own; it reaches no CPU but the guest's.
            unsafe { write_msr(arch::msr::IA32_X2APIC_ICR, value) };
        } else {
            self.write(ICR_HIGH, destination << 24);
            self.write(ICR, low);
        }
    }

    /// Whether a vector's bit of a 256-bit register ([`ISR`], [`IRR`]) is set.
    pub(crate) fn bit(self, register: u16, vector: u8) -> bool {
        self.read(register + u16::from(vector / 32) * 16) >> (vector % 32) & 1 != 0
    }
}

/// Reads 32 bits anywhere.
pub(crate) fn peek(at: u64) -> u32 {
    // SAFETY: mapped, like all below 4 GiB.
    unsafe { cpu::physical::pointer::<u32>(Hpa::new(at)).read_volatile() }
}
