//! The local APIC in x2APIC mode (SDM "Extended XAPIC (x2APIC)").

use core::marker::PhantomData;

use arch::clock::{Counter, Reading};
use arch::{ApicId, Vector, msr};

use crate::clock::bracketed;
use crate::exceptions;
use crate::instructions::{cpuid, read_msr, write_msr};
use crate::sleep;

const APIC_BASE_ENABLE: u64 = 1 << 11;
const APIC_BASE_EXTD: u64 = 1 << 10;
const SIVR_ENABLE: u64 = 1 << 8;
/// The spurious vector: priority class 15, never granted, needs no EOI.
const SPURIOUS_VECTOR: u64 = 0xff;
const LVT_MASKED: u64 = 1 << 16;
/// The timer's divide configuration.
const DIVIDE_BY_1: u64 = 0xb;
/// The task-priority threshold while no guest has the CPU: nothing below vector 32 is the host's.
const HOST_PRIORITY: u64 = 0x1f;

/// Proof that this CPU's local APIC is in x2APIC mode. It stays on its CPU: it is neither `Send` nor `Sync`.
///
/// ```compile_fail,E0277
/// fn moves<T: Send>() {}
/// moves::<cpu::local_apic::LocalApic>();
/// ```
#[derive(Clone, Copy, Debug)]
pub struct LocalApic {
    id: ApicId,
    of_this_cpu: PhantomData<*mut ()>,
}

impl LocalApic {
    /// Switches this CPU's local APIC to x2APIC mode, software-enabled, every LVT masked.
    /// `None` where the CPU has no x2APIC.
    ///
    /// # Safety
    /// Ring 0, interrupts off, and nobody else drives this local APIC.
    #[must_use]
    pub unsafe fn enable() -> Option<Self> {
        const X2APIC: u32 = 1 << 21;
        if cpuid(1, 0).ecx & X2APIC == 0 {
            return None;
        }
        // SAFETY: CPUID shows a local APIC, so IA32_APIC_BASE exists.
        let base = unsafe { read_msr(msr::IA32_APIC_BASE) };
        // From "disabled" the way leads through xAPIC mode (SDM "x2APIC State Transitions").
        // SAFETY: as above; the base address is kept.
        unsafe { write_msr(msr::IA32_APIC_BASE, base | APIC_BASE_ENABLE) };
        // SAFETY: CPUID shows x2APIC.
        unsafe { write_msr(msr::IA32_APIC_BASE, base | APIC_BASE_ENABLE | APIC_BASE_EXTD) };
        // SAFETY: the local APIC is in x2APIC mode now.
        let id = ApicId(unsafe { read_msr(msr::IA32_X2APIC_APICID) } as u32);
        let apic = Self { id, of_this_cpu: PhantomData };
        apic.reset();
        Some(apic)
    }

    /// The local APIC of the CPU that calls, which [`Self::enable`] has switched to x2APIC mode.
    #[must_use]
    pub fn current() -> Self {
        // SAFETY: every CPU enables its x2APIC before it does anything else.
        let id = ApicId(unsafe { read_msr(msr::IA32_X2APIC_APICID) } as u32);
        Self { id, of_this_cpu: PhantomData }
    }

    /// This CPU's identifier.
    #[must_use]
    pub fn id(self) -> ApicId {
        self.id
    }

    /// Software-enables the APIC with every local source masked, the timer as after a CPU reset, and no vector below 32 let
    /// through.
    pub fn reset(self) {
        let lvts =
            [msr::IA32_X2APIC_LVT_LINT0, msr::IA32_X2APIC_LVT_LINT1, msr::IA32_X2APIC_LVT_ERROR];
        // SAFETY: `self` proves x2APIC mode; the value has no reserved bit.
        unsafe { write_msr(msr::IA32_X2APIC_SIVR, SIVR_ENABLE | SPURIOUS_VECTOR) };
        // SAFETY: as above.
        unsafe { write_msr(msr::IA32_X2APIC_TPR, HOST_PRIORITY) };
        for lvt in lvts {
            // SAFETY: these three exist in every local APIC.
            unsafe { write_msr(lvt, LVT_MASKED) };
        }
        // SAFETY: whoever has armed it does not run any more.
        unsafe { write_timer(AFTER_RESET) };
        // SAFETY: `self` proves x2APIC mode.
        let version = unsafe { read_msr(msr::IA32_X2APIC_VERSION) };
        for lvt in further_entries(version) {
            // SAFETY: as above; the version says that it is there.
            let value = unsafe { read_msr(lvt) };
            if let Some(masked) = masked(value) {
                // SAFETY: as above; only the mask changes.
                unsafe { write_msr(lvt, masked) };
            }
        }
    }

    /// Accepts every vector (TPR = 0), as after a CPU reset: a guest takes the APIC over.
    pub fn accept_all(self) {
        // SAFETY: `self` proves x2APIC mode; the value has no reserved bit.
        unsafe { write_msr(msr::IA32_X2APIC_TPR, 0) };
    }

    /// Sends `vector` to this CPU itself (SDM "SELF IPI Register").
    pub fn self_ipi(self, vector: Vector) {
        // SAFETY: `self` proves x2APIC mode.
        unsafe { write_msr(msr::IA32_X2APIC_SELF_IPI, u64::from(vector.0)) };
    }

    /// Sends `vector` to another CPU, fixed delivery (SDM "Interrupt Command Register (ICR)").
    pub fn send(self, to: ApicId, vector: Vector) {
        // SAFETY: `self` proves x2APIC mode; physical destination, fixed, edge.
        unsafe {
            write_msr(msr::IA32_X2APIC_ICR, u64::from(to.0) << 32 | 1 << 14 | u64::from(vector.0));
        }
    }

    /// Brings the host back on another CPU, by an NMI.
    pub fn send_nmi(self, to: ApicId) {
        const NMI: u64 = 4 << 8 | 1 << 14;
        // SAFETY: `self` proves x2APIC mode.
        unsafe { write_msr(msr::IA32_X2APIC_ICR, u64::from(to.0) << 32 | NMI) };
    }

    /// Sleeps for up to about a millisecond: HLT, woken by this CPU's own timer or by anything else.
    /// The timer's registers are left as after a CPU reset.
    ///
    /// # Safety
    /// The exception handlers are installed, no guest's timer is armed on this CPU, and interrupts
    /// may be taken (on AMD-V: GIF is set).
    pub unsafe fn idle(self) {
        const MILLISECOND: u64 = 1_000_000;
        // SAFETY: the caller vouches for all of it.
        unsafe { self.sleep(sleep::nmis(), MILLISECOND) };
    }

    /// Sleeps for up to `ticks` of this CPU's own timer, about a nanosecond each on most machines, or until
    /// anything else comes; not at all where an NMI has come since [`sleep::nmis`] said `seen`.
    ///
    /// # Safety
    /// As for [`Self::idle`].
    pub unsafe fn sleep(self, seen: u32, ticks: u64) {
        const WAKE_VECTOR: u64 = 0xf0;
        // SAFETY: the timer is nobody's, says the caller.
        unsafe {
            write_timer([
                (msr::IA32_X2APIC_DIV_CONF, DIVIDE_BY_1),
                (msr::IA32_X2APIC_LVT_TIMER, WAKE_VECTOR),
                (msr::IA32_X2APIC_INIT_COUNT, ticks),
            ]);
        }
        // SAFETY: as the caller promises.
        if unsafe { sleep::sleep(seen, true) }.is_some() {
            self.eoi();
        }
        // SAFETY: as above.
        unsafe { write_timer(AFTER_RESET) };
        // Where something else has ended the sleep the timer may have run out since: a guest that starts on this CPU would
        // be interrupted by that.
        const MOST: u32 = 256;
        for _ in 0..MOST {
            // SAFETY: `self` proves x2APIC mode; the eight IRRs exist.
            let requested = unsafe { read_msr(msr::IA32_X2APIC_IRR0 + (WAKE_VECTOR / 32) as u32) };
            if requested >> (WAKE_VECTOR % 32) & 1 == 0 {
                break;
            }
            // SAFETY: the caller vouches for the handlers.
            unsafe { exceptions::take_interrupt() };
            self.eoi();
        }
    }

    /// Ends every interrupt in service and takes every requested one, so that nothing of a guest's
    /// is left in this APIC.
    ///
    /// # Safety
    /// As for [`Self::idle`].
    pub unsafe fn drain(self) {
        self.reset();
        self.accept_all();
        const MAX_INTERRUPTS: u32 = 1024;
        for _ in 0..MAX_INTERRUPTS {
            let pending = (0..8).any(|word| {
                // SAFETY: `self` proves x2APIC mode; the eight ISRs exist.
                let in_service = unsafe { read_msr(msr::IA32_X2APIC_ISR0 + word) };
                // SAFETY: as above, for the eight IRRs.
                let requested = unsafe { read_msr(msr::IA32_X2APIC_IRR0 + word) };
                in_service | requested != 0
            });
            if !pending {
                break;
            }
            self.eoi();
            // SAFETY: as in `idle`.
            unsafe { exceptions::take_interrupt() };
        }
        // SAFETY: `self` proves x2APIC mode; the value has no reserved bit.
        unsafe { write_msr(msr::IA32_X2APIC_TPR, HOST_PRIORITY) };
    }

    /// Ends the highest interrupt in service.
    pub fn eoi(self) {
        // SAFETY: `self` proves x2APIC mode; zero is the one value allowed.
        unsafe { write_msr(msr::IA32_X2APIC_EOI, 0) };
    }
}

/// The timer of a CPU after its reset (SDM "Local APIC State After Power-Up or Reset"): a guest that comes finds nothing of what
/// the host has counted.
const AFTER_RESET: [(u32, u64); 3] = [
    (msr::IA32_X2APIC_LVT_TIMER, LVT_MASKED),
    (msr::IA32_X2APIC_INIT_COUNT, 0),
    (msr::IA32_X2APIC_DIV_CONF, 0),
];

/// Writes registers of this CPU's timer.
///
/// # Safety
/// The local APIC is in x2APIC mode, and the timer is nobody's.
unsafe fn write_timer(steps: [(u32, u64); 3]) {
    for (register, value) in steps {
        // SAFETY: as the caller promises; they exist in every local APIC.
        unsafe { write_msr(register, value) };
    }
}

/// The entries of the local vector table that not every local APIC has, of one with this version register: that of
/// performance counters, the thermal one, and that of corrected machine checks (SDM "Local APIC Version Register").
fn further_entries(version: u64) -> impl Iterator<Item = u32> {
    let last = version >> 16 & 0xff;
    [
        (4, msr::IA32_X2APIC_LVT_PMI),
        (5, msr::IA32_X2APIC_LVT_THERMAL),
        (6, msr::IA32_X2APIC_LVT_CMCI),
    ]
    .into_iter()
    .filter(move |(index, _)| *index <= last)
    .map(|(_, lvt)| lvt)
}

/// What to write so that the entry lets nothing through; nothing where it is the firmware's own, a system management
/// interrupt, as the thermal one may be: without it the machine may get too hot.
const fn masked(value: u64) -> Option<u64> {
    const DELIVERY_MODE: u64 = 7 << 8;
    const SMI: u64 = 2 << 8;
    const STATUS: u64 = 1 << 12;
    if value & DELIVERY_MODE == SMI || value & LVT_MASKED != 0 {
        return None;
    }
    Some(value & !STATUS | LVT_MASKED)
}

/// The local APIC's timer as a counter, with no interrupt at its end (SDM "APIC Timer").
#[derive(Debug)]
pub struct ApicTimer(());

impl ApicTimer {
    /// The timer of this CPU.
    ///
    /// # Safety
    /// No guest's timer is armed on this CPU.
    #[must_use]
    pub unsafe fn new(_: LocalApic) -> Self {
        Self(())
    }

    fn write(&mut self, register: u32, value: u64) {
        // SAFETY: a `LocalApic` proves x2APIC mode; the timer is nobody's, said `new`'s caller.
        unsafe { write_msr(register, value) };
    }
}

impl Drop for ApicTimer {
    fn drop(&mut self) {
        // SAFETY: a `LocalApic` proves x2APIC mode; the timer is nobody's, said `new`'s caller.
        unsafe { write_timer(AFTER_RESET) };
    }
}

impl Counter for ApicTimer {
    fn bits(&self) -> u32 {
        32
    }

    fn start(&mut self) -> Result<(), &'static str> {
        self.write(msr::IA32_X2APIC_LVT_TIMER, LVT_MASKED);
        self.write(msr::IA32_X2APIC_DIV_CONF, DIVIDE_BY_1);
        self.write(msr::IA32_X2APIC_INIT_COUNT, u64::from(u32::MAX));
        Ok(())
    }

    fn reading(&mut self) -> Reading {
        // SAFETY: as for `write`; it counts down.
        bracketed(|| u64::from(!unsafe { read_msr(msr::IA32_X2APIC_CUR_COUNT) } as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_that_is_there_is_masked_but_the_firmwares_own() {
        let entries = |last: u64| further_entries(last << 16 | 0x15).count();
        assert_eq!([3, 4, 5, 6].map(entries), [0, 1, 2, 3]);
        assert_eq!(masked(0xfe), Some(0x1_00fe), "a vector");
        assert_eq!(masked(0x1400), Some(0x1_0400), "an NMI that waits");
        assert_eq!(masked(0x200), None, "a system management interrupt");
        assert_eq!(masked(0x1_00fe), None, "masked already");
    }
}
