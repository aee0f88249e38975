//! Sleep that an NMI ends, whenever it comes.
//!
//! An NMI cannot be held back, so it may come between the last look at what there is to do and HLT, which would
//! then wait for another. Two things see to that: NMIs are counted, and the sleeper says how many there were
//! before it looked; and the handler ends a sleep that it finds between the comparison and HLT.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::exceptions;

/// NMIs that the host has taken, on whatever CPU: one that was for another makes a CPU look once more.
static NMIS: AtomicU32 = AtomicU32::new(0);

global_asm!(
    ".pushsection .text.nexit, \"ax\"",
    // edi: NMIs that were seen; esi: not 0 to let interrupts through, which also end the sleep.
    ".globl nexit_sleep, nexit_look, nexit_awake", // another of the compiler's units may ask for them
    "nexit_sleep:",
    "    xor eax, eax", // the handler of an interrupt puts its vector there
    "nexit_look:",
    "    cmp dword ptr [rip + {nmis}], edi",
    "    jne nexit_awake",
    "    test esi, esi",
    "    jz 2f",
    "    sti", // takes effect behind HLT's first moment: no interrupt comes between the two
    "2:  hlt",
    "nexit_awake:",
    "    cli",
    "    ret",
    ".popsection",
    nmis = sym NMIS,
);

unsafe extern "sysv64" {
    fn nexit_sleep(seen: u32, interrupts: u32) -> u64;
    fn nexit_look();
    fn nexit_awake();
}

/// Says how many NMIs there were: before a look at what there is to do, for [`sleep`].
#[must_use]
pub fn nmis() -> u32 {
    NMIS.load(Ordering::Acquire)
}

/// Sleeps until an NMI comes, or not at all where one has come since [`nmis`] said `seen`. With
/// `interrupts` an interrupt ends it, too: its vector. It is still in service in the local APIC.
///
/// # Safety
/// Ring 0, interrupts off, and the exception handlers are installed; those of interrupts, too, where they are let
/// through. On AMD-V GIF is set.
pub unsafe fn sleep(seen: u32, interrupts: bool) -> Option<u8> {
    // SAFETY: the caller vouches for the handlers; the function changes no register that its caller keeps.
    exceptions::taken(unsafe { nexit_sleep(seen, u32::from(interrupts)) })
}

/// Notes an NMI that came at `rip`; returns where to go on.
pub(crate) fn at_nmi(rip: u64) -> u64 {
    NMIS.fetch_add(1, Ordering::Release);
    let start = nexit_look as *const () as u64;
    let end = nexit_awake as *const () as u64;
    if (start..end).contains(&rip) { end } else { rip }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_nmi_at_any_instruction_before_hlt_ends_the_sleep_and_elsewhere_changes_nothing() {
        let (start, end) = (nexit_look as *const () as u64, nexit_awake as *const () as u64);
        // SAFETY: the bytes before `nexit_awake` are the function's, and HLT is the last of them.
        let last = unsafe { *((end - 1) as *const u8) };
        assert_eq!(last, 0xf4, "HLT is the last instruction before it");
        assert!(start < end);
        let seen = nmis();
        for rip in start..end {
            assert_eq!(at_nmi(rip), end);
        }
        for rip in [0, start - 1, end, end + 1, u64::MAX] {
            assert_eq!(at_nmi(rip), rip);
        }
        assert_ne!(nmis(), seen, "who has looked before looks again");
    }
}
