//! The bits of CPUID that a guest is shown, or that are kept from it. Where bits are *hidden*, the CPU's
//! others show; where they are *shown*, they alone do.

/// Bits of a CPUID register.
pub(super) const fn bits<const N: usize>(list: [u32; N]) -> u32 {
    let mut mask = 0;
    let mut index = 0;
    while index < N {
        mask |= 1 << list[index];
        index += 1;
    }
    mask
}

/// Leaf 1 ECX, hidden: DTES64, MONITOR, DS-CPL, VMX, SMX, EIST, TM2, CNXT-ID, SDBG, xTPR, PDCM, DCA.
pub(super) const HIDDEN_1_ECX: u32 = bits([2, 3, 4, 5, 6, 7, 8, 10, 11, 14, 15, 18]);
pub(super) const X2APIC: u32 = 1 << 21;
pub(super) const TSC_DEADLINE: u32 = 1 << 24;
pub(super) const OSXSAVE: u32 = 1 << 27;
pub(super) const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX, hidden: MCE, MCA, PSN, DS, ACPI, HTT (set again), TM, PBE.
pub(super) const HIDDEN_1_EDX: u32 = bits([7, 14, 18, 21, 22, 28, 29, 31]);
pub(super) const APIC: u32 = 1 << 9;
pub(super) const MTRR: u32 = 1 << 12;
pub(super) const HTT: u32 = 1 << 28;
/// Leaf 6 EAX, shown: ARAT.
pub(super) const SHOWN_6_EAX: u32 = bits([2]);
/// Leaf 7.0 EBX, hidden: TSC_ADJUST, SGX, PQM, MPX, PQE, PT. A TSC that a guest moves would have to be moved back for
/// the TSC deadline, which passes.
pub(super) const HIDDEN_7_EBX: u32 = bits([1, 2, 12, 14, 15, 25]);
pub(super) const INVPCID: u32 = 1 << 10;
/// Leaf 7.0 EBX: HLE, RTM.
pub(super) const TSX: u32 = bits([4, 11]);
/// Leaf 7.0 ECX, hidden: OSPKE (set again), WAITPKG, CET_SS, TME, LA57, MAWAU (of MPX), KL, BUS_LOCK_DETECT, ENQCMD,
/// SGX_LC, PKS.
pub(super) const HIDDEN_7_ECX: u32 =
    bits([4, 5, 7, 13, 16, 17, 18, 19, 20, 21, 23, 24, 29, 30, 31]);
pub(super) const PKU: u32 = 1 << 3;
pub(super) const RDPID: u32 = 1 << 22;
/// Leaf 0xD, shown: the components of XCR0 whose features are shown, x87, SSE, AVX, AVX-512 (3), PKRU, AMX (2). Not those of
/// MPX (3 and 4), APX (19) and LWP (62).
pub(super) const SHOWN_XCR0: u32 = bits([0, 1, 2, 5, 6, 7, 9, 17, 18]);
/// Leaf 0xD.1 EAX.
pub(super) const XSAVES: u32 = 1 << 3;
pub(super) const OSPKE: u32 = 1 << 4;
/// Leaf 7.0 EDX, shown: AVX512_4VNNIW, AVX512_4FMAPS, fast short REP MOV, AVX512_VP2INTERSECT, MD_CLEAR, SERIALIZE,
/// TSXLDTRK, AMX-BF16, AVX512_FP16, AMX-TILE, AMX-INT8, and what IA32_SPEC_CTRL, IA32_PRED_CMD, IA32_FLUSH_CMD and
/// IA32_ARCH_CAPABILITIES are for. Not SRBDS_CTRL (9), RTM_ALWAYS_ABORT (11) and TSX_FORCE_ABORT (13), whose MSRs
/// the guest does not have.
pub(super) const SHOWN_7_EDX: u32 =
    bits([2, 3, 4, 8, 10, 14, 16, 22, 23, 24, 25, 26, 27, 28, 29, 31]);
pub(super) const RTM_ALWAYS_ABORT: u32 = 1 << 11;
/// Leaf 7.1 EAX, shown: SHA512, SM3, SM4, AVX-VNNI, AVX512_BF16, fast REP MOVSB/STOSB/CMPSB,
/// AMX-FP16, AVX-IFMA.
pub(super) const SHOWN_7_1_EAX: u32 = bits([0, 1, 2, 4, 5, 10, 11, 12, 21, 23]);
/// Leaf 7.1 EDX, shown: AVX-VNNI-INT8, AVX-NE-CONVERT, AMX-COMPLEX, AVX-VNNI-INT16, PREFETCHI,
/// AVX10.
pub(super) const SHOWN_7_1_EDX: u32 = bits([4, 5, 8, 10, 14, 19]);
/// Leaf 0x80000001 ECX, hidden: SVM, extended APIC, OSVW, IBS, SKINIT, WDT, LWP, NodeId, core and
/// northbridge counters, breakpoint extensions, performance TSC, LLC counters, MONITORX.
pub(super) const HIDDEN_81_ECX: u32 =
    bits([2, 3, 9, 10, 12, 13, 15, 19, 23, 24, 26, 27, 28, 29, 30]);
pub(super) const CMP_LEGACY: u32 = 1 << 1;
/// Leaf 0x80000001 EDX: on Intel in 64-bit mode alone.
pub const SYSCALL: u32 = 1 << 11;
/// Leaf 0x80000001 EDX, hidden: MCE, MCA.
pub(super) const HIDDEN_81_EDX: u32 = bits([7, 14]);
pub(super) const RDTSCP: u32 = 1 << 27;
pub(super) const INVARIANT_TSC: u32 = 1 << 8;
/// Leaf 0x80000008 EBX, shown: CLZERO, XSAVEERPTR, WBNOINVD, IBPB, IBRS, STIBP and their hints,
/// SSBD, SSB_NO, PSFD, BTC_NO, IBPB_RET.
pub(super) const SHOWN_88_EBX: u32 =
    bits([0, 2, 9, 12, 14, 15, 16, 17, 18, 19, 24, 26, 28, 29, 30]);
/// The same of an AMD CPU, set: without it EFER.LMSLE would be there.
pub(super) const LMSLE_UNSUPPORTED: u32 = 1 << 20;
/// Leaf 0x80000021 EAX, shown: breakpoints of data do not nest, writes of FS.base and its kin do not serialize (a CPU
/// without these bits promises more), LFENCE always serializing, VERW clears, null selector clears base, automatic IBRS,
/// SRSO_NO and the other "not affected" answers. Not bit 31, whose BP_CFG the guest does not have.
pub(super) const SHOWN_8021_EAX: u32 = bits([0, 1, 2, 5, 6, 8, 27, 28, 29, 30]);
/// Leaf 0x80000021 ECX, shown: TSA_SQ_NO, TSA_L1_NO.
pub(super) const SHOWN_8021_ECX: u32 = bits([1, 2]);
