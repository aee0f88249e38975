//! What trials leave in a CPU, and how it comes back to what it was: so the next trial finds the same ground.

use core::arch::asm;

use arch::msr;
use cpu::instructions::{cpuid, read_msr, write_msr};
use payload::trap::LIMIT;

use crate::processor::{self, start_timer};

/// What a CPU shall have between trials.
#[derive(Clone, Copy)]
pub(crate) struct State {
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    apic_base: u64,
    /// XCR0, where there is one.
    extended: Option<u32>,
}

const EFER: u32 = 0xc000_0080;
const PAT: u32 = 0x277;

/// Lets the CPU use all of its registers, and notes how it is.
pub(crate) fn begin() -> State {
    const OSFXSR_AND_EXCEPTIONS: u64 = 0x600;
    const OSXSAVE: u64 = 1 << 18;
    let leaf = cpuid(1, 0).ecx;
    let (xsave, avx) = (leaf >> 26 & 1 != 0, leaf >> 28 & 1 != 0);
    let further = OSFXSR_AND_EXCEPTIONS | if xsave { OSXSAVE } else { 0 };
    let extended = xsave.then_some(if avx { 7 } else { 3 });
    // SAFETY: every 64-bit CPU has SSE and x87; XSAVE is there.
    unsafe {
        asm!(
            "mov {0}, cr4", "or {0}, {1}", "mov cr4, {0}",
            "mov {0}, cr0", "and {0}, ~0xc", "or {0}, 0x22", "mov cr0, {0}", "fninit",
            out(reg) _, in(reg) further
        );
    }
    let mut state = State { cr0: 0, cr3: 0, cr4: 0, efer: 0, apic_base: 0, extended };
    state.set_extended();
    // SAFETY: reads.
    unsafe {
        asm!(
            "mov {}, cr0", "mov {}, cr3", "mov {}, cr4",
            out(reg) state.cr0, out(reg) state.cr3, out(reg) state.cr4
        );
    }
    // SAFETY: both exist in every 64-bit CPU.
    state.efer = unsafe { read_msr(EFER) };
    // SAFETY: as above.
    state.apic_base = unsafe { read_msr(msr::IA32_APIC_BASE) };
    start_timer();
    state
}

impl State {
    pub(crate) fn cr0(&self) -> u64 {
        self.cr0
    }

    pub(crate) fn cr4(&self) -> u64 {
        self.cr4
    }

    fn set_extended(&self) {
        if let Some(value) = self.extended {
            // SAFETY: CR4.OSXSAVE is set, and the CPU has these.
            unsafe { asm!("xsetbv", in("ecx") 0, in("eax") value, in("edx") 0) };
        }
    }

    /// After any trial.
    pub(crate) fn back(&self) {
        let (cr0, cr3, cr4, dr7): (u64, u64, u64, u64);
        // SAFETY: reads; #DB of the last trial's breakpoints comes back.
        unsafe {
            asm!(
                "mov {}, cr0", "mov {}, cr3", "mov {}, cr4", "mov {}, dr7",
                out(reg) cr0, out(reg) cr3, out(reg) cr4, out(reg) dr7
            );
        }
        if dr7 != 0x400 {
            // SAFETY: no breakpoint.
            unsafe { asm!("mov dr7, {}", in(reg) 0x400_u64) };
        }
        if cr4 != self.cr4 {
            // SAFETY: what it was.
            unsafe { asm!("mov cr4, {}", in(reg) self.cr4) };
        }
        if cr0 != self.cr0 {
            // SAFETY: as above.
            unsafe { asm!("mov cr0, {}", in(reg) self.cr0) };
        }
        if cr3 != self.cr3 {
            // SAFETY: as above.
            unsafe { asm!("mov cr3, {}", in(reg) self.cr3) };
        }
        // SAFETY: flat segments, and no interrupt is held back.
        unsafe {
            asm!(
                "mov ds, {0:e}", "mov es, {0:e}", "mov fs, {0:e}", "mov gs, {0:e}", "mov cr8, {1}",
                in(reg) 16, in(reg) 0_u64
            );
        }
        if self.extended.is_some_and(|value| value != xcr0()) {
            self.set_extended();
        }
    }

    /// After a trial that wrote this MSR.
    pub(crate) fn back_from_msr(&self, written: u32) {
        match written {
            // SAFETY: what it was.
            EFER => unsafe { write_msr(EFER, self.efer) },
            // SAFETY: as after reset.
            PAT => unsafe { write_msr(PAT, 0x0007_0406_0007_0406) },
            msr::IA32_APIC_BASE => self.back_to_x2apic(),
            0x800..=0x8ff | 0x6e0 => start_timer(),
            _ => {}
        }
    }

    /// From disabled or xAPIC mode.
    fn back_to_x2apic(&self) {
        const MODE: u64 = 3 << 10;
        const XAPIC: u64 = 2 << 10;
        // SAFETY: it exists.
        let now = unsafe { read_msr(msr::IA32_APIC_BASE) };
        if now == self.apic_base {
            return;
        }
        let steps: &[u64] = if now & MODE == MODE { &[0, XAPIC, MODE] } else { &[XAPIC, MODE] };
        for mode in steps {
            // SAFETY: the ways that the manual allows (SDM "x2APIC State Transitions").
            unsafe { write_msr(msr::IA32_APIC_BASE, self.apic_base & !MODE | mode) };
        }
        start_timer();
    }
}

fn xcr0() -> u32 {
    let low: u32;
    // SAFETY: CR4.OSXSAVE is set.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _) };
    low
}

/// After gates that were not there: nothing is in service, and the whole first table is in use.
pub(crate) fn back_to_gates(cpu: usize) {
    let [table, _] = processor::tables(cpu);
    table.load(LIMIT);
    end_all();
}

/// Ends what is in service.
pub(crate) fn end_all() {
    for _ in 0..64 {
        // SAFETY: x2APIC mode; the eight registers exist.
        let busy = (0..8).any(|word| unsafe { read_msr(msr::IA32_X2APIC_ISR0 + word) } != 0);
        if !busy {
            return;
        }
        // SAFETY: as above.
        unsafe { write_msr(msr::IA32_X2APIC_EOI, 0) };
    }
}
