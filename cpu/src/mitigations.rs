//! Against what a CPU does ahead of its program: what it says of itself, and what Nexit does then (docs/side-channels.md).
//!
//! Pure. The sources are SDM volume 4 ("IA32_ARCH_CAPABILITIES"), Intel's articles on each of these, APM volume 3 ("CPUID
//! Fn8000_0008", "Fn8000_0021", "Fn8000_000A") and AMD's "Software Techniques for Managing Speculation".

use arch::machine::CpuidResult;

/// IA32_SPEC_CTRL.IBRS: indirect branches are not predicted by what less privileged code has taught.
const IBRS: u64 = 1 << 0;

/// What a CPU says of its speculation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Said {
    /// CPUID leaf 7.
    pub structured: CpuidResult,
    /// CPUID leaf 0x80000008, 0x8000000A and 0x80000021.
    pub sizes: CpuidResult,
    pub virtualization: CpuidResult,
    pub extended: CpuidResult,
    /// IA32_ARCH_CAPABILITIES; 0 where there is none.
    pub arch_capabilities: u64,
    /// It is one of AMD's (or Hygon's), which have no IA32_ARCH_CAPABILITIES.
    pub is_amd: bool,
}

/// What is done on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Mitigations {
    /// VERW at each entry: its buffers keep what went through them (MDS, TAA, MMIO stale data, RFDS, TSA).
    pub clear_buffers: bool,
    /// The first-level data cache is emptied at each entry (L1 terminal fault).
    pub flush_first_level: bool,
    /// The return-stack buffer is filled behind each exit. Not where indirect branches are open to the guest anyway.
    pub fill_returns: bool,
    /// The host's IA32_SPEC_CTRL, where the CPU switches it at entries and exits by itself.
    pub host_control: Option<u64>,
    /// IA32_EFER.AIBRSE: AMD's automatic IBRS.
    pub automatic_ibrs: bool,
}

impl Mitigations {
    /// What is to be done on a CPU that says this.
    #[must_use]
    pub const fn of(said: &Said) -> Self {
        if said.is_amd { Self::of_amd(said) } else { Self::of_intel(said) }
    }

    const fn of_intel(said: &Said) -> Self {
        let Said { structured: CpuidResult { ebx, edx, .. }, arch_capabilities, .. } = *said;
        let (rdcl_no, ibrs_all) = (bit(arch_capabilities, 0), bit(arch_capabilities, 1));
        // SKIP_L1DFL_VMENTRY.
        let skip_flush = bit(arch_capabilities, 3);
        let (mds_no, taa_no) = (bit(arch_capabilities, 5), bit(arch_capabilities, 8));
        let (rtm, md_clear) = (ebx >> 11 & 1 != 0, edx >> 10 & 1 != 0);
        let (ibrs, l1d_flush) = (edx >> 26 & 1 != 0, edx >> 28 & 1 != 0);
        // SBDR_SSDP_NO, FBSDP_NO, PSDP_NO; FB_CLEAR.
        let mmio_free = arch_capabilities >> 13 & 7 == 7;
        let mmio = bit(arch_capabilities, 17) && !mmio_free;
        // RFDS_NO, RFDS_CLEAR.
        let rfds = bit(arch_capabilities, 28) && !bit(arch_capabilities, 27);
        let buffers = !mds_no || rtm && !taa_no || mmio || rfds;
        // PBRSB_NO.
        let returns_are_safe = ibrs_all && bit(arch_capabilities, 24);
        Self {
            clear_buffers: md_clear && buffers,
            flush_first_level: l1d_flush && !rdcl_no && !skip_flush,
            fill_returns: ibrs && !returns_are_safe,
            host_control: if ibrs { Some(IBRS) } else { None },
            automatic_ibrs: false,
        }
    }

    const fn of_amd(said: &Said) -> Self {
        let Said { sizes, virtualization, extended, .. } = *said;
        // VERW_CLEAR; TSA_SQ_NO, TSA_L1_NO.
        let verw_clear = extended.eax >> 5 & 1 != 0;
        let tsa_free = extended.ecx >> 1 & 3 == 3;
        let automatic_ibrs = extended.eax >> 8 & 1 != 0;
        // Bit 20 of the last: IA32_SPEC_CTRL is virtual, so that the host's comes back at an exit.
        let (ibrs, switched) = (sizes.ebx >> 14 & 1 != 0, virtualization.edx >> 20 & 1 != 0);
        let host_ibrs = ibrs && switched && !automatic_ibrs;
        Self {
            clear_buffers: verw_clear && !tsa_free,
            flush_first_level: false,
            fill_returns: host_ibrs,
            host_control: if host_ibrs { Some(IBRS) } else { None },
            automatic_ibrs,
        }
    }
}

const fn bit(word: u64, bit: u32) -> bool {
    word >> bit & 1 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn intel(ebx: u32, edx: u32, arch_capabilities: u64) -> Said {
        let none = CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };
        Said {
            structured: CpuidResult { ebx, edx, ..none },
            sizes: none,
            virtualization: none,
            extended: none,
            arch_capabilities,
            is_amd: false,
        }
    }

    const fn amd(sizes_ebx: u32, svm_edx: u32, eax: u32, ecx: u32) -> Said {
        let none = CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };
        Said {
            structured: none,
            sizes: CpuidResult { ebx: sizes_ebx, ..none },
            virtualization: CpuidResult { edx: svm_edx, ..none },
            extended: CpuidResult { eax, ecx, ..none },
            arch_capabilities: 0,
            is_amd: true,
        }
    }

    const IBRS_OF_INTEL: u32 = 1 << 26 | 1 << 27 | 1 << 31;
    const MD_CLEAR: u32 = 1 << 10;
    const L1D_FLUSH: u32 = 1 << 28;
    const ARCH_CAPABILITIES: u32 = 1 << 29;
    const RTM: u32 = 1 << 11;
    /// RDCL_NO, IBRS_ALL, SKIP_L1DFL_VMENTRY, MDS_NO, IF_PSCHANGE_MC_NO, TSX_CTRL, TAA_NO.
    const ICE_LAKE_BITS: u64 = 0x1eb;
    /// SBDR_SSDP_NO, FBSDP_NO and PSDP_NO, FB_CLEAR, PBRSB_NO.
    const MMIO_FREE: u64 = 7 << 13;
    const FB_CLEAR: u64 = 1 << 17;
    const PBRSB_NO: u64 = 1 << 24;

    const NEW: u32 = IBRS_OF_INTEL | MD_CLEAR | L1D_FLUSH | ARCH_CAPABILITIES;
    const NONE: Mitigations = Mitigations {
        clear_buffers: false,
        flush_first_level: false,
        fill_returns: false,
        host_control: None,
        automatic_ibrs: false,
    };

    /// CPUs by what they say with a microcode that knows of it.
    #[test]
    fn each_generation_gets_what_it_says_that_it_needs() {
        let of_intel = Mitigations { host_control: Some(1), fill_returns: true, ..NONE };
        let cases = [
            ("before any microcode of 2018", intel(RTM, 0, 0), NONE),
            (
                "Skylake",
                intel(RTM, IBRS_OF_INTEL | MD_CLEAR | L1D_FLUSH, 0),
                Mitigations { clear_buffers: true, flush_first_level: true, ..of_intel },
            ),
            (
                "Cascade Lake, with TSX: TAA",
                intel(RTM, NEW, 0x2b),
                Mitigations { clear_buffers: true, ..of_intel },
            ),
            ("Cascade Lake, TSX off", intel(0, NEW, 0x2b), of_intel),
            (
                "Ice Lake, whose microcode of 2022 tells of MMIO stale data",
                intel(0, NEW, ICE_LAKE_BITS | FB_CLEAR),
                Mitigations { clear_buffers: true, ..of_intel },
            ),
            (
                "Sapphire Rapids",
                intel(RTM, NEW, ICE_LAKE_BITS | MMIO_FREE | FB_CLEAR | PBRSB_NO),
                Mitigations { fill_returns: false, ..of_intel },
            ),
            (
                "Gracemont: RFDS",
                intel(0, NEW, ICE_LAKE_BITS | MMIO_FREE | PBRSB_NO | 1 << 28),
                Mitigations { clear_buffers: true, fill_returns: false, ..of_intel },
            ),
            ("Zen 2", amd(1 << 12 | 1 << 14 | 1 << 15 | 1 << 24, 0x1bcff, 0, 0), NONE),
            (
                "Zen 3: IA32_SPEC_CTRL is switched",
                amd(1 << 12 | 1 << 14 | 1 << 15 | 1 << 24, 0x11_bcff, 1 << 5, 0),
                Mitigations { clear_buffers: true, ..of_intel },
            ),
            (
                "Zen 4: automatic IBRS",
                amd(1 << 12 | 1 << 14 | 1 << 15 | 1 << 24, 0x11_bcff, 1 << 5 | 1 << 8, 0),
                Mitigations { clear_buffers: true, automatic_ibrs: true, ..NONE },
            ),
            (
                "Zen 5: no TSA",
                amd(1 << 12 | 1 << 14, 0x11_bcff, 1 << 5 | 1 << 8, 3 << 1),
                Mitigations { automatic_ibrs: true, ..NONE },
            ),
        ];
        for (cpu, said, expected) in cases {
            assert_eq!(Mitigations::of(&said), expected, "{cpu}");
        }
    }
}
