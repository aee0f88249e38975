//! What each CPU holds in CR4, IA32_EFER and IA32_PAT while the hypervisor runs on it, whatever the firmware left
//! there.
//!
//! What is decided is pure and tested on the host; the rest reads and writes. `boot`'s entry and [`crate::start`]
//! set CR0: no emulation, no task switched, so that FXSAVE never faults.

use arch::machine::CpuidResult;
use arch::msr::{IA32_EFER, IA32_MISC_ENABLE, IA32_PAT};
use arch::register::{Cr4, Efer};

use crate::instructions::{cpuid, read_msr, read_msr_checked, write_msr, write_msr_checked};

/// WB, WC, UC- and UC, twice: the PAT of a CPU after reset (SDM "IA32_PAT MSR"; APM "PAT Register") with write
/// combining where that has write-through, which nobody uses. The hypervisor's tables, nested ones on AMD-V
/// included, use entry 0 for write-back and entry 3 for uncached, and the own one entry 1 for the framebuffer.
const PAT: u64 = 0x0007_0106_0007_0106;

/// IA32_MISC_ENABLE: "XD bit disable" (SDM volume 4). With it CPUID shows no execute disable, and a write of
/// IA32_EFER.NXE raises #GP.
const XD_BIT_DISABLE: u64 = 1 << 34;

/// CPUID 0x80000001 EDX: execute disable.
const EXECUTE_DISABLE: u32 = 1 << 20;

/// This CPU has no execute disable, and it cannot be switched on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoExecuteDisable;

/// CR4 as the host holds it. Always with FXSAVE of XMM registers, without which a guest's vector store that the
/// hypervisor carries out would read as zeros. Where the CPU has it, with XSETBV; with #MC in place of a shutdown; and
/// so that the hypervisor can neither execute nor use a page that is a user's, of which its own table has none: what
/// leads it astray to such a table ends in a fault. Not CET: the compiler makes no ENDBR64, and a shadow stack would have
/// to be switched at each exit.
fn host_cr4(cr4: u64, cpuid: impl Fn(u32) -> CpuidResult) -> u64 {
    let (basic, extended) = (cpuid(1), cpuid(7));
    let there = [
        (basic.ecx >> 26, Cr4::OSXSAVE),
        (basic.edx >> 7, Cr4::MCE),
        (extended.ebx >> 7, Cr4::SMEP),
        (extended.ebx >> 20, Cr4::SMAP),
        (extended.ecx >> 2, Cr4::UMIP),
    ];
    let always = Cr4::OSFXSR.union(Cr4::OSXMMEXCPT);
    let wanted = there.into_iter().filter(|(bit, _)| bit & 1 != 0).map(|(_, of_cr4)| of_cr4);
    cr4 | wanted.fold(always, Cr4::union).bits()
}

/// IA32_EFER as the host holds it: with execute disable, and without AMD's fast FXSAVE, which leaves the XMM
/// registers out (APM "Extended Feature Enable Register (EFER)").
const fn host_efer(efer: u64) -> u64 {
    efer & !Efer::FFXSR.bits() | Efer::NXE.bits()
}

/// What to write to IA32_MISC_ENABLE so that there is execute disable; `None` where it is not what keeps it off.
const fn with_execute_disable(misc_enable: Option<u64>) -> Option<u64> {
    match misc_enable {
        Some(value) if value & XD_BIT_DISABLE != 0 => Some(value & !XD_BIT_DISABLE),
        _ => None,
    }
}

/// Lets this CPU use the hypervisor's page tables: execute disable and the memory types that they are written for.
///
/// # Errors
/// There is no execute disable. Nothing that matters has changed then.
///
/// # Safety
/// Ring 0, and the exception handlers of [`crate::exceptions`] are installed. The page tables in use map all that is
/// used by PAT entry 0, or by entries that stay as they are.
pub unsafe fn prepare_paging() -> Result<(), NoExecuteDisable> {
    let has_it = || cpuid(0x8000_0001, 0).edx & EXECUTE_DISABLE != 0;
    if !has_it() {
        // SAFETY: ring 0 with handlers, says the caller; a CPU without the MSR says so.
        let value = with_execute_disable(unsafe { read_msr_checked(IA32_MISC_ENABLE) });
        // SAFETY: as above; only the bit that hides execute disable changes.
        if !value.is_some_and(|value| unsafe { write_msr_checked(IA32_MISC_ENABLE, value) })
            || !has_it()
        {
            return Err(NoExecuteDisable);
        }
    }
    // SAFETY: every CPU in long mode has IA32_EFER.
    let efer = unsafe { read_msr(IA32_EFER) };
    // SAFETY: as above; CPUID shows execute disable.
    unsafe { write_msr(IA32_EFER, host_efer(efer)) };
    // SAFETY: every CPU in long mode has IA32_PAT.
    if unsafe { read_msr(IA32_PAT) } != PAT {
        // SAFETY: ring 0. Nothing stays in the caches or the TLB of what another type was for, entry 0 aside, of
        // which the caller speaks (SDM "Programming the PAT").
        unsafe { core::arch::asm!("wbinvd", options(nostack, preserves_flags)) };
        // SAFETY: each byte is a memory type.
        unsafe { write_msr(IA32_PAT, PAT) };
        // SAFETY: as for the first; the same table again.
        unsafe {
            core::arch::asm!("wbinvd", "mov {0}, cr3", "mov cr3, {0}", out(reg) _, options(nostack));
        }
    }
    Ok(())
}

/// Sets CR4: this CPU can save a guest's extended state and carry out its XSETBV, and is held to what the hypervisor
/// itself does.
///
/// # Safety
/// Ring 0, and the page table in use has no user pages.
pub unsafe fn set_cr4() {
    let highest = cpuid(0, 0).eax;
    let known = |leaf| if leaf <= highest { cpuid(leaf, 0) } else { CpuidResult::default() };
    let cr4: u64;
    // SAFETY: ring 0, says the caller.
    unsafe { core::arch::asm!("mov {}, cr4", out(reg) cr4, options(nostack, nomem)) };
    let cr4 = host_cr4(cr4, known);
    // SAFETY: as above; every CPU in long mode has FXSAVE and SSE, and the others are there where CPUID shows them. The
    // hypervisor itself uses no extended state.
    unsafe { core::arch::asm!("mov cr4, {}", in(reg) cr4, options(nostack, nomem)) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fxsave_saves_the_vector_registers_whatever_the_firmware_left() {
        const OSFXSR_AND_OSXMMEXCPT: u64 = 3 << 9;
        let none = |_| CpuidResult::default();
        assert_eq!(host_cr4(0x20, none), 0x20 | OSFXSR_AND_OSXMMEXCPT);
        let fast_fxsave = 1 << 14;
        assert_eq!(host_efer(0x500 | fast_fxsave), 0xd00);
    }

    #[test]
    fn the_host_holds_itself_to_what_the_cpu_can_check() {
        let all = |leaf| match leaf {
            1 => CpuidResult { ecx: 1 << 26, edx: 1 << 7, ..CpuidResult::default() },
            7 => CpuidResult { ebx: 1 << 7 | 1 << 20, ecx: 1 << 2, ..CpuidResult::default() },
            _ => CpuidResult::default(),
        };
        let (osxsave, mce, smep, smap, umip) = (1 << 18, 1 << 6, 1 << 20, 1 << 21, 1 << 11);
        assert_eq!(host_cr4(0x20, all), 0x620 | osxsave | mce | smep | smap | umip);
        let few = |leaf| CpuidResult { ebx: u32::from(leaf == 7) << 7, ..CpuidResult::default() };
        assert_eq!(host_cr4(0x20, few), 0x620 | smep);
    }

    #[test]
    fn execute_disable_is_switched_on_where_one_bit_hides_it() {
        assert_eq!(with_execute_disable(Some(1 << 34 | 0x85_0089)), Some(0x85_0089));
        assert_eq!(with_execute_disable(Some(0x85_0089)), None, "something else hides it");
        assert_eq!(with_execute_disable(None), None, "a CPU without the MSR");
    }

    #[test]
    fn the_entries_that_the_page_tables_name_are_write_back_write_combining_and_uncached() {
        let types = PAT.to_le_bytes();
        assert_eq!((types[0], types[1], types[3]), (6, 1, 0));
    }
}
