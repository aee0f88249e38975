//! Machine check on page size change (CVE-2018-12207): on a CPU that has this erratum, a guest that changes the size of a
//! page while it fetches instructions from it can stop the whole machine, if the extended page table maps the place by a
//! large page. So there none from which instructions may be fetched is large. The decision is 0060.

use arch::PageSize;
use arch::msr::IA32_ARCH_CAPABILITIES;
use cpu::instructions::{cpuid, read_msr};

/// IA32_ARCH_CAPABILITIES: IF_PSCHANGE_MC_NO, the CPU has not the erratum (SDM volume 4).
const NO_MACHINE_CHECK_ON_PAGE_SIZE_CHANGE: u64 = 1 << 6;

/// The largest page of an extended page table from which a guest may fetch instructions, where the table has pages up to
/// `largest`. A CPU that does not say that it is free of the erratum is taken to have it.
#[must_use]
pub fn largest_executable_page(largest: PageSize, arch_capabilities: Option<u64>) -> PageSize {
    let said = arch_capabilities.unwrap_or(0) & NO_MACHINE_CHECK_ON_PAGE_SIZE_CHANGE != 0;
    if said { largest } else { PageSize::Size4K }
}

/// IA32_ARCH_CAPABILITIES of this CPU, if it has it.
///
/// # Safety
/// Ring 0.
#[must_use]
pub unsafe fn arch_capabilities() -> Option<u64> {
    const HAS_IT: u32 = 1 << 29;
    let there = cpuid(0, 0).eax >= 7 && cpuid(7, 0).edx & HAS_IT != 0;
    // SAFETY: ring 0, says the caller, and CPUID shows it.
    there.then(|| unsafe { read_msr(IA32_ARCH_CAPABILITIES) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_that_does_not_say_that_it_is_free_of_the_erratum_has_no_large_executable_page() {
        const SKYLAKE: Option<u64> = None;
        const CASCADE_LAKE: Option<u64> = Some(0x2b);
        const ICE_LAKE: Option<u64> = Some(0xeb);
        for (what, said, largest) in [
            ("no such MSR", SKYLAKE, PageSize::Size4K),
            ("an MSR without the bit", CASCADE_LAKE, PageSize::Size4K),
            ("an MSR with it", ICE_LAKE, PageSize::Size1G),
        ] {
            assert_eq!(largest_executable_page(PageSize::Size1G, said), largest, "{what}");
        }
        assert_eq!(largest_executable_page(PageSize::Size2M, ICE_LAKE), PageSize::Size2M);
    }
}
