//! What CPUID tells the guest: the physical CPU's answer, less what a guest cannot have.
//!
//! Invariant: no feature is shown whose registers the guest cannot use ([`crate::msr`]), and none
//! that the CPU does not have. Where a leaf is not known here it reads as zero. The hypervisor
//! leaves carry KVM's signature, as stock kernels use x2APIC without interrupt remapping only then
//! (Linux, `arch/x86/kernel/kvm.c`); what Nexit itself has to say is at 0x4000_0100.

use alloc::vec::Vec;

use arch::ApicId;
use arch::machine::{CpuidResult, Machine};

use crate::counters::{COUNTERS, Counter, ExitCounters};

/// First leaf of the KVM-compatible hypervisor range.
pub const KVM_BASE: u32 = 0x4000_0000;
/// First leaf of Nexit's own range: highest leaf in EAX, "NexitHypervi" in EBX, ECX, EDX.
pub const NEXIT_BASE: u32 = 0x4000_0100;
/// The exit counters: subleaf 0 total in EAX (low) and EBX, number of reasons in ECX; subleaf n + 1
/// the count of reason n in EAX (low) and EBX.
pub const NEXIT_COUNTERS: u32 = 0x4000_0101;
const HYPERVISOR_LEAVES_END: u32 = 0x4001_0000;

/// KVM_FEATURE_CLOCKSOURCE2 and KVM_FEATURE_CLOCKSOURCE_STABLE_BIT.
const KVM_CLOCK: u32 = 1 << 3 | 1 << 24;

/// Whose CPU it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Vendor {
    /// Intel, and those that follow its manual.
    Intel,
    /// AMD and Hygon.
    Amd,
}

impl Vendor {
    /// From CPUID leaf 0.
    #[must_use]
    pub fn of(machine: &impl Machine) -> Self {
        match machine.cpuid(0, 0).ebx.to_le_bytes() {
            [b'A', b'u', b't', b'h'] | [b'H', b'y', b'g', b'o'] => Self::Amd,
            _ => Self::Intel,
        }
    }
}

/// Bits of a CPUID register.
const fn bits<const N: usize>(list: [u32; N]) -> u32 {
    let mut mask = 0;
    let mut index = 0;
    while index < N {
        mask |= 1 << list[index];
        index += 1;
    }
    mask
}

/// Leaf 1 ECX, hidden: DTES64, MONITOR, DS-CPL, VMX, SMX, EIST, TM2, SDBG, PDCM, DCA.
const HIDDEN_1_ECX: u32 = bits([2, 3, 4, 5, 6, 7, 8, 11, 15, 18]);
const X2APIC: u32 = 1 << 21;
const OSXSAVE: u32 = 1 << 27;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX, hidden: MCE, MCA, PSN, DS, ACPI, HTT (set anew), TM, PBE.
const HIDDEN_1_EDX: u32 = bits([7, 14, 18, 21, 22, 28, 29, 31]);
const MTRR: u32 = 1 << 12;
const HTT: u32 = 1 << 28;
/// Leaf 6 EAX, shown: ARAT.
const SHOWN_6_EAX: u32 = bits([2]);
/// Leaf 7.0 EBX, hidden: SGX, PQM, MPX, PQE, PT.
const HIDDEN_7_EBX: u32 = bits([2, 12, 14, 15, 25]);
/// Leaf 7.0 ECX, hidden: OSPKE (set anew), WAITPKG, CET_SS, TME, LA57, KL, BUS_LOCK_DETECT, ENQCMD,
/// SGX_LC, PKS.
const HIDDEN_7_ECX: u32 = bits([4, 5, 7, 13, 16, 23, 24, 29, 30, 31]);
const PKU: u32 = 1 << 3;
const OSPKE: u32 = 1 << 4;
/// Leaf 7.0 EDX, hidden: UINTR, HYBRID, PCONFIG, ARCH_LBR, CET_IBT, IA32_CORE_CAPABILITIES.
const HIDDEN_7_EDX: u32 = bits([5, 15, 18, 19, 20, 30]);
/// Leaf 7.1 EAX, shown: SHA512, SM3, SM4, AVX-VNNI, AVX512_BF16, fast REP MOVSB/STOSB/CMPSB,
/// AMX-FP16, AVX-IFMA.
const SHOWN_7_1_EAX: u32 = bits([0, 1, 2, 4, 5, 10, 11, 12, 21, 23]);
/// Leaf 7.1 EDX, shown: AVX-VNNI-INT8, AVX-NE-CONVERT, AMX-COMPLEX, AVX-VNNI-INT16, PREFETCHI,
/// AVX10.
const SHOWN_7_1_EDX: u32 = bits([4, 5, 8, 10, 14, 19]);
/// Leaf 0x80000001 ECX, hidden: SVM, extended APIC, OSVW, IBS, SKINIT, WDT, LWP, NodeId, core and
/// northbridge counters, breakpoint extension, performance TSC, LLC counters, MONITORX.
const HIDDEN_81_ECX: u32 = bits([2, 3, 9, 10, 12, 13, 15, 19, 23, 24, 26, 27, 28, 29]);
const CMP_LEGACY: u32 = 1 << 1;
/// Leaf 0x80000001 EDX, hidden: MCE, MCA.
const HIDDEN_81_EDX: u32 = bits([7, 14]);
const INVARIANT_TSC: u32 = 1 << 8;
/// Leaf 0x80000008 EBX, shown: CLZERO, XSAVEERPTR, WBNOINVD, IBPB, IBRS, STIBP and their hints,
/// SSBD, SSB_NO, PSFD, BTC_NO, IBPB_RET.
const SHOWN_88_EBX: u32 = bits([0, 2, 9, 12, 14, 15, 16, 17, 18, 19, 24, 26, 28, 29, 30]);
/// Leaf 0x80000021 EAX, shown: LFENCE always serializing, null selector clears base, automatic
/// IBRS, SRSO_NO and the other "not affected" answers.
const SHOWN_8021_EAX: u32 = bits([2, 6, 8, 27, 28, 29, 30, 31]);

/// CR4.PKE and CR4.OSXSAVE, which two CPUID bits mirror.
const CR4_PKE: u64 = 1 << 22;
const CR4_OSXSAVE: u64 = 1 << 18;

/// What one guest is told.
#[derive(Clone, Debug)]
pub struct CpuidPolicy {
    vendor: Vendor,
    apic_ids: Vec<ApicId>,
    tsc_khz: u32,
    kvmclock: bool,
}

/// The CPU that asks.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    /// Number of the vCPU in its guest.
    pub vcpu: usize,
    /// Its CR4 as the guest sees it.
    pub cr4: u64,
    /// Its exit counters.
    pub counters: &'a ExitCounters,
}

/// First leaf of the extended range.
const EXTENDED: u32 = 0x8000_0000;
/// The leaves whose answer depends neither on the subleaf nor on what the guest does: bit n for leaf n
/// and for leaf 0x8000_0000 + n. CR4.OSXSAVE changes leaf 1, XCR0 leaf 0xD.
const CONSTANT: u32 = !bits([1, 4, 7, 0xb, 0xd, 0xf, 0x10, 0x12, 0x14]) & 0x7f_ffff;
const CONSTANT_EXTENDED: u32 = !bits([0x1d]);

/// What one vCPU is told of those leaves: prepared, as guests ask often, and as the CPUID of a
/// hypervisor that is itself a guest is an exit of its own.
#[derive(Clone, Debug)]
pub struct Answers {
    basic: [CpuidResult; 32],
    extended: [CpuidResult; 32],
    /// Leaf 1 while the guest has CR4.OSXSAVE set.
    with_osxsave: CpuidResult,
}

impl Answers {
    /// The answer to `leaf`; `None` where only the policy knows. `cr4` is the guest's.
    #[inline(always)]
    #[must_use]
    pub fn get(&self, leaf: u32, cr4: impl Fn() -> u64) -> Option<&CpuidResult> {
        let Some(answer) = self.basic.get(leaf as usize) else {
            let index = leaf.wrapping_sub(EXTENDED);
            let answer = self.extended.get(index as usize)?;
            return (CONSTANT_EXTENDED >> index & 1 != 0).then_some(answer);
        };
        if CONSTANT >> leaf & 1 != 0 {
            return Some(answer);
        }
        (leaf == 1).then(|| if cr4() & CR4_OSXSAVE != 0 { &self.with_osxsave } else { answer })
    }
}

impl CpuidPolicy {
    /// For a guest whose vCPUs have these APIC identifiers. The KVM clock is offered on AMD CPUs,
    /// which have no leaf that tells the TSC's frequency; on Intel's that leaf is filled in.
    #[must_use]
    pub fn new(apic_ids: Vec<ApicId>, machine: &impl Machine) -> Self {
        let vendor = Vendor::of(machine);
        Self {
            vendor,
            apic_ids,
            tsc_khz: u32::try_from(machine.tsc_khz()).unwrap_or(u32::MAX),
            kvmclock: vendor == Vendor::Amd,
        }
    }

    /// Whether the guest is offered the KVM clock.
    #[must_use]
    pub fn kvmclock(&self) -> bool {
        self.kvmclock
    }

    /// Whose CPU it is.
    #[must_use]
    pub fn vendor(&self) -> Vendor {
        self.vendor
    }

    /// What vCPU `vcpu` is told of the leaves whose answer never changes.
    #[must_use]
    pub fn answers(&self, vcpu: usize, machine: &impl Machine) -> Answers {
        let counters = ExitCounters::new();
        let answer =
            |leaf, cr4| self.answer(leaf, 0, Asker { vcpu, cr4, counters: &counters }, machine);
        Answers {
            basic: core::array::from_fn(|leaf| answer(leaf as u32, 0)),
            extended: core::array::from_fn(|leaf| answer(EXTENDED | leaf as u32, 0)),
            with_osxsave: answer(1, CR4_OSXSAVE),
        }
    }

    /// The answer to CPUID.
    #[must_use]
    pub fn answer(
        &self,
        leaf: u32,
        subleaf: u32,
        asker: Asker<'_>,
        machine: &impl Machine,
    ) -> CpuidResult {
        match leaf {
            KVM_BASE..HYPERVISOR_LEAVES_END => self.hypervisor(leaf, subleaf, asker.counters),
            0..KVM_BASE => self.basic(leaf, subleaf, asker, machine),
            0x8000_0000..=0x8000_ffff => self.extended(leaf, subleaf, asker, machine),
            _ => CpuidResult::default(),
        }
    }

    fn basic(
        &self,
        leaf: u32,
        subleaf: u32,
        asker: Asker<'_>,
        machine: &impl Machine,
    ) -> CpuidResult {
        let real = machine.cpuid(leaf, subleaf);
        let highest = self.highest_basic_leaf(machine);
        match leaf {
            0 => CpuidResult { eax: highest, ..real },
            _ if leaf > highest => CpuidResult::default(),
            1 => self.features(real, asker),
            0xd => extended_state(subleaf, real),
            // Cache descriptors, TLB parameters, tiles, AVX10: as the CPU is.
            2 | 0x18 | 0x1d | 0x1e | 0x24 => real,
            4 => self.intel_cache(real),
            6 => CpuidResult { eax: real.eax & SHOWN_6_EAX, ..CpuidResult::default() },
            7 => structured_features(subleaf, real, asker.cr4),
            0xb | 0x1f => self.topology(subleaf, asker.vcpu),
            0x15 if self.vendor == Vendor::Intel => self.tsc_ratio(real),
            0x16 if self.vendor == Vendor::Intel => self.frequencies(real),
            _ => CpuidResult::default(),
        }
    }

    fn highest_basic_leaf(&self, machine: &impl Machine) -> u32 {
        let real = machine.cpuid(0, 0).eax;
        match self.vendor {
            Vendor::Intel => real.max(0x16),
            Vendor::Amd => real.max(0xb),
        }
    }

    fn features(&self, real: CpuidResult, asker: Asker<'_>) -> CpuidResult {
        let mut ecx = real.ecx & !(HIDDEN_1_ECX | OSXSAVE) | X2APIC | HYPERVISOR;
        if asker.cr4 & CR4_OSXSAVE != 0 {
            ecx |= OSXSAVE;
        }
        let mut edx = real.edx & !HIDDEN_1_EDX | MTRR;
        if self.count() > 1 {
            edx |= HTT;
        }
        let ebx = real.ebx & 0xffff | self.count().min(255) << 16 | self.apic_id(asker.vcpu) << 24;
        CpuidResult { ebx, ecx, edx, ..real }
    }

    /// Leaf 4: the first two levels belong to one vCPU, the others to all.
    fn intel_cache(&self, real: CpuidResult) -> CpuidResult {
        if real.eax & 0x1f == 0 {
            return CpuidResult::default();
        }
        let last = self.ids_per_package() - 1;
        let sharing = if real.eax >> 5 & 7 >= 3 { last } else { 0 };
        CpuidResult { eax: real.eax & 0x3fff | sharing << 14 | last.min(63) << 26, ..real }
    }

    /// Leaves 0xB and 0x1F: one thread a core, all cores in one package.
    fn topology(&self, subleaf: u32, vcpu: usize) -> CpuidResult {
        let (shift, count, kind) = match subleaf {
            0 => (0, 1, 1),
            1 => (self.id_bits(), self.count(), 2),
            _ => (0, 0, 0),
        };
        let edx = self.x2apic_id(vcpu);
        CpuidResult { eax: shift, ebx: count, ecx: kind << 8 | subleaf & 0xff, edx }
    }

    /// Leaf 0x15: crystal clock × EBX / EAX is the TSC's frequency. What the CPU says is passed on
    /// where it agrees with the measured frequency to 1 %; else the crystal is given as the TSC
    /// itself. Linux takes the local APIC's timer to run at the crystal's frequency, which matters
    /// only where there is no TSC-deadline mode.
    fn tsc_ratio(&self, real: CpuidResult) -> CpuidResult {
        let hz = u64::from(self.tsc_khz) * 1000;
        let told = u64::from(real.ecx) * u64::from(real.ebx) / u64::from(real.eax.max(1));
        if told.abs_diff(hz) <= hz / 100 {
            return real;
        }
        match u32::try_from(hz) {
            Ok(ecx) => CpuidResult { eax: 1, ebx: 1, ecx, edx: 0 },
            Err(_) => CpuidResult { eax: 1, ebx: 2, ecx: (hz / 2) as u32, edx: 0 },
        }
    }

    /// Leaf 0x16 in MHz: base and highest frequency, and the bus where the CPU does not tell.
    fn frequencies(&self, real: CpuidResult) -> CpuidResult {
        let mhz = (self.tsc_khz / 1000).min(0xffff);
        let bus = if real.ecx & 0xffff == 0 { 100 } else { real.ecx & 0xffff };
        CpuidResult { eax: mhz, ebx: mhz, ecx: bus, edx: 0 }
    }

    fn extended(
        &self,
        leaf: u32,
        subleaf: u32,
        asker: Asker<'_>,
        machine: &impl Machine,
    ) -> CpuidResult {
        let real = machine.cpuid(leaf, subleaf);
        if leaf > machine.cpuid(0x8000_0000, 0).eax {
            return CpuidResult::default();
        }
        let topology_extensions = machine.cpuid(0x8000_0001, 0).ecx & 1 << 22 != 0;
        match leaf {
            // Highest leaf and vendor, name, caches, TLBs for 1 GiB pages.
            0x8000_0000 | 0x8000_0002..=0x8000_0006 | 0x8000_0019 | 0x8000_001a => real,
            0x8000_0001 => self.extended_features(real),
            0x8000_0007 => CpuidResult { edx: real.edx & INVARIANT_TSC, ..CpuidResult::default() },
            0x8000_0008 => self.sizes(real),
            0x8000_001d if topology_extensions => self.amd_cache(real),
            0x8000_001e if topology_extensions => CpuidResult {
                eax: self.x2apic_id(asker.vcpu),
                ebx: asker.vcpu as u32,
                ecx: 0,
                edx: 0,
            },
            0x8000_0021 => CpuidResult { eax: real.eax & SHOWN_8021_EAX, ..CpuidResult::default() },
            _ => CpuidResult::default(),
        }
    }

    fn extended_features(&self, real: CpuidResult) -> CpuidResult {
        let mut ecx = real.ecx & !(HIDDEN_81_ECX | CMP_LEGACY);
        let mut edx = real.edx & !HIDDEN_81_EDX;
        if self.vendor == Vendor::Amd {
            edx |= MTRR;
            if self.count() > 1 {
                ecx |= CMP_LEGACY;
            }
        }
        CpuidResult { ecx, edx, ..real }
    }

    /// Leaf 0x80000008: address sizes as they are, and how many cores there are.
    fn sizes(&self, real: CpuidResult) -> CpuidResult {
        let ecx = match self.vendor {
            Vendor::Intel => 0,
            Vendor::Amd => self.id_bits() << 12 | (self.count() - 1).min(255),
        };
        CpuidResult { eax: real.eax, ebx: real.ebx & SHOWN_88_EBX, ecx, edx: 0 }
    }

    /// Leaf 0x8000001D, as [`Self::intel_cache`].
    fn amd_cache(&self, real: CpuidResult) -> CpuidResult {
        if real.eax & 0x1f == 0 {
            return CpuidResult::default();
        }
        let sharing = if real.eax >> 5 & 7 >= 3 { self.ids_per_package() - 1 } else { 0 };
        CpuidResult { eax: real.eax & 0x3fff | sharing << 14, ..real }
    }

    fn hypervisor(&self, leaf: u32, subleaf: u32, counters: &ExitCounters) -> CpuidResult {
        match leaf {
            KVM_BASE => signature(KVM_BASE + 1, *b"KVMKVMKVM\0\0\0"),
            0x4000_0001 => CpuidResult {
                eax: if self.kvmclock { KVM_CLOCK } else { 0 },
                ..CpuidResult::default()
            },
            NEXIT_BASE => signature(NEXIT_COUNTERS, *b"NexitHypervi"),
            NEXIT_COUNTERS => exit_count(subleaf, counters),
            _ => CpuidResult::default(),
        }
    }

    /// Number of vCPUs, at least 1.
    fn count(&self) -> u32 {
        (self.apic_ids.len() as u32).max(1)
    }

    /// Bits that hold every APIC identifier of the guest: its identifiers need not be 0, 1, 2 …
    fn id_bits(&self) -> u32 {
        let highest = self.apic_ids.iter().map(|id| id.0).max().unwrap_or(0);
        32 - highest.leading_zeros()
    }

    /// How many APIC identifiers the package spans, 4095 at most (a field of 12 bits).
    fn ids_per_package(&self) -> u32 {
        1 << self.id_bits().min(12)
    }

    fn x2apic_id(&self, vcpu: usize) -> u32 {
        self.apic_ids.get(vcpu).map_or(0, |id| id.0)
    }

    fn apic_id(&self, vcpu: usize) -> u32 {
        self.x2apic_id(vcpu) & 0xff
    }
}

/// Leaf 0xD: the CPU's own, without what IA32_XSS would enable (subleaf 1 ECX and EDX; components
/// whose ECX bit 0 is set).
fn extended_state(subleaf: u32, real: CpuidResult) -> CpuidResult {
    match subleaf {
        0 => real,
        1 => CpuidResult { ecx: 0, edx: 0, ..real },
        _ if real.ecx & 1 != 0 => CpuidResult::default(),
        _ => real,
    }
}

/// Leaf 7.
fn structured_features(subleaf: u32, real: CpuidResult, cr4: u64) -> CpuidResult {
    match subleaf {
        0 => {
            let mut ecx = real.ecx & !HIDDEN_7_ECX;
            if cr4 & CR4_PKE != 0 && ecx & PKU != 0 {
                ecx |= OSPKE;
            }
            CpuidResult {
                eax: real.eax.min(2),
                ebx: real.ebx & !HIDDEN_7_EBX,
                ecx,
                edx: real.edx & !HIDDEN_7_EDX,
            }
        }
        1 => CpuidResult {
            eax: real.eax & SHOWN_7_1_EAX,
            edx: real.edx & SHOWN_7_1_EDX,
            ..CpuidResult::default()
        },
        // Controls of IA32_SPEC_CTRL, which the guest has.
        2 => CpuidResult { edx: real.edx & 0x3f, ..CpuidResult::default() },
        _ => CpuidResult::default(),
    }
}

fn signature(highest: u32, text: [u8; 12]) -> CpuidResult {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = text;
    CpuidResult {
        eax: highest,
        ebx: u32::from_le_bytes([a, b, c, d]),
        ecx: u32::from_le_bytes([e, f, g, h]),
        edx: u32::from_le_bytes([i, j, k, l]),
    }
}

fn exit_count(subleaf: u32, counters: &ExitCounters) -> CpuidResult {
    let (count, ecx) = match subleaf.checked_sub(1) {
        None => (counters.total(), COUNTERS as u32),
        Some(reason) => match Counter::ALL.get(reason as usize) {
            Some(counter) => (counters.get(*counter), 0),
            None => (0, 0),
        },
    };
    CpuidResult { eax: count as u32, ebx: (count >> 32) as u32, ecx, edx: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeMachine;
    use proptest::prelude::*;

    /// A CPU that has every feature there could be.
    fn machine(vendor: Vendor) -> FakeMachine {
        let mut machine = FakeMachine { tsc_khz: 2_496_123, ..FakeMachine::default() };
        let all = CpuidResult { eax: !0, ebx: !0, ecx: !0, edx: !0 };
        for leaf in (1..0x30).chain(0x8000_0001..0x8000_0030) {
            for subleaf in 0..4 {
                machine.cpuid.insert((leaf, subleaf), all);
            }
        }
        let name = match vendor {
            Vendor::Intel => *b"Genu",
            Vendor::Amd => *b"Auth",
        };
        let ebx = u32::from_le_bytes(name);
        machine.cpuid.insert((0, 0), CpuidResult { eax: 0xd, ebx, ..all });
        machine.cpuid.insert((0x8000_0000, 0), CpuidResult { eax: 0x8000_0021, ebx, ..all });
        machine
    }

    fn ask(vendor: Vendor, ids: &[u32], vcpu: usize, leaf: u32, subleaf: u32) -> CpuidResult {
        let machine = machine(vendor);
        let policy = CpuidPolicy::new(ids.iter().map(|id| ApicId(*id)).collect(), &machine);
        let counters = ExitCounters::new();
        policy.answer(leaf, subleaf, Asker { vcpu, cr4: 0, counters: &counters }, &machine)
    }

    #[test]
    fn virtualization_monitor_counters_and_machine_check_are_hidden() {
        for vendor in [Vendor::Intel, Vendor::Amd] {
            let one = ask(vendor, &[0], 0, 1, 0);
            assert_eq!(one.ecx & (1 << 5 | 1 << 3 | 1 << 27), 0);
            assert_eq!(one.ecx & (X2APIC | HYPERVISOR), X2APIC | HYPERVISOR);
            assert_eq!(one.edx & (1 << 7 | 1 << 14 | HTT), 0);
            assert_eq!(one.edx & MTRR, MTRR);
            assert_eq!(ask(vendor, &[0], 0, 0xa, 0), CpuidResult::default());
            assert_eq!(ask(vendor, &[0], 0, 6, 0), CpuidResult { eax: 4, ..Default::default() });
            assert_eq!(ask(vendor, &[0], 0, 0x8000_0001, 0).ecx & 4, 0);
            assert_eq!(ask(vendor, &[0], 0, 0x8000_000a, 0), CpuidResult::default());
            assert_eq!(ask(vendor, &[0], 0, 0x8000_0022, 0), CpuidResult::default());
        }
    }

    #[test]
    fn user_state_of_xsave_is_shown_and_supervisor_state_is_not() {
        let all = CpuidResult { eax: !0, ebx: !0, ecx: !0, edx: !0 };
        assert_eq!(ask(Vendor::Intel, &[0], 0, 0xd, 0), all);
        assert_eq!(ask(Vendor::Intel, &[0], 0, 0xd, 1), CpuidResult { ecx: 0, edx: 0, ..all });
        assert_eq!(ask(Vendor::Intel, &[0], 0, 0xd, 2), CpuidResult::default());
        let avx = CpuidResult { eax: 256, ebx: 576, ecx: 0, edx: 0 };
        assert_eq!(extended_state(2, avx), avx);
    }

    #[test]
    fn osxsave_and_ospke_follow_the_guests_cr4() {
        let machine = machine(Vendor::Intel);
        let policy = CpuidPolicy::new(vec![ApicId(0)], &machine);
        let counters = ExitCounters::new();
        for cr4 in [0, CR4_OSXSAVE, CR4_PKE] {
            let asker = Asker { vcpu: 0, cr4, counters: &counters };
            let one = policy.answer(1, 0, asker, &machine);
            let seven = policy.answer(7, 0, asker, &machine);
            assert_eq!(one.ecx & OSXSAVE != 0, cr4 == CR4_OSXSAVE);
            assert_eq!(seven.ecx & OSPKE != 0, cr4 == CR4_PKE);
        }
    }

    #[test]
    fn nothing_is_claimed_that_the_cpu_lacks() {
        let mut machine = machine(Vendor::Amd);
        for leaf in [1, 6, 7, 0x8000_0001, 0x8000_0007] {
            machine.cpuid.insert((leaf, 0), CpuidResult::default());
        }
        let policy = CpuidPolicy::new(vec![ApicId(0)], &machine);
        let counters = ExitCounters::new();
        let asker = Asker { vcpu: 0, cr4: 0, counters: &counters };
        let answer = |leaf| policy.answer(leaf, 0, asker, &machine);
        assert_eq!(answer(0x8000_0007).edx, 0, "no invariant TSC");
        assert_eq!(answer(7), CpuidResult::default());
        assert_eq!(answer(6), CpuidResult::default());
        assert_eq!((answer(1).ecx, answer(1).edx), (X2APIC | HYPERVISOR, MTRR));
    }

    #[test]
    fn intel_guests_learn_the_tsc_frequency_and_amd_guests_have_the_kvm_clock() {
        assert_eq!(ask(Vendor::Intel, &[0], 0, 0, 0).eax, 0x16);
        let ratio = ask(Vendor::Intel, &[0], 0, 0x15, 0);
        let hz = u64::from(ratio.ecx) * u64::from(ratio.ebx) / u64::from(ratio.eax);
        assert_eq!(hz, 2_496_123_000);
        let mut machine = machine(Vendor::Intel);
        let real = CpuidResult { eax: 2, ebx: 208, ecx: 24_000_000, edx: 0 };
        machine.cpuid.insert((0x15, 0), real);
        machine.cpuid.insert((0, 0), CpuidResult { eax: 0x16, ..CpuidResult::default() });
        let policy = CpuidPolicy::new(vec![ApicId(0)], &machine);
        let counters = ExitCounters::new();
        let asker = Asker { vcpu: 0, cr4: 0, counters: &counters };
        assert_eq!(policy.answer(0x15, 0, asker, &machine), real, "a CPU that tells the truth");
        assert_eq!(ask(Vendor::Intel, &[0], 0, 0x16, 0).eax, 2496);
        assert_eq!(ask(Vendor::Intel, &[0], 0, 0x4000_0001, 0).eax, 0);
        assert_eq!(ask(Vendor::Amd, &[0], 0, 0, 0).eax, 0xd);
        assert_eq!(ask(Vendor::Amd, &[0], 0, 0x15, 0), CpuidResult::default());
        assert_eq!(ask(Vendor::Amd, &[0], 0, 0x4000_0001, 0).eax, 1 << 3 | 1 << 24);
    }

    #[test]
    fn topology_is_one_thread_a_core_with_the_guests_own_identifiers() {
        for (leaf, vendor) in [(0xb, Vendor::Intel), (0xb, Vendor::Amd)] {
            let threads = ask(vendor, &[0, 1, 4], 2, leaf, 0);
            assert_eq!((threads.eax, threads.ebx, threads.ecx, threads.edx), (0, 1, 0x100, 4));
            let cores = ask(vendor, &[0, 1, 4], 2, leaf, 1);
            assert_eq!((cores.eax, cores.ebx, cores.ecx, cores.edx), (3, 3, 0x201, 4));
            assert_eq!(ask(vendor, &[0, 1, 4], 2, leaf, 2).ebx, 0);
        }
        let one = ask(Vendor::Intel, &[0, 1, 4], 2, 1, 0);
        assert_eq!((one.ebx >> 24, one.ebx >> 16 & 0xff, one.edx & HTT), (4, 3, HTT));
        assert_eq!(ask(Vendor::Amd, &[0, 1], 1, 0x8000_0008, 0).ecx, 0x1001);
        assert_eq!(ask(Vendor::Amd, &[0, 1], 1, 0x8000_001e, 0).eax, 1);
    }

    #[test]
    fn the_hypervisor_leaves_carry_kvms_signature_and_nexits_own() {
        let text = |r: CpuidResult| [r.ebx, r.ecx, r.edx].map(u32::to_le_bytes).concat();
        let kvm = ask(Vendor::Intel, &[0], 0, KVM_BASE, 0);
        assert_eq!((kvm.eax, text(kvm)), (KVM_BASE + 1, b"KVMKVMKVM\0\0\0".to_vec()));
        let nexit = ask(Vendor::Intel, &[0], 0, NEXIT_BASE, 0);
        assert_eq!((nexit.eax, text(nexit)), (NEXIT_COUNTERS, b"NexitHypervi".to_vec()));
        assert_eq!(ask(Vendor::Intel, &[0], 0, 0x4000_0200, 0), CpuidResult::default());
    }

    #[test]
    fn a_guest_reads_its_exit_counters() {
        let machine = machine(Vendor::Intel);
        let policy = CpuidPolicy::new(vec![ApicId(0)], &machine);
        let mut counters = ExitCounters::new();
        counters.count(Counter::Cpuid);
        counters.count(Counter::Eoi);
        counters.count(Counter::Eoi);
        let read = |subleaf| {
            let asker = Asker { vcpu: 0, cr4: 0, counters: &counters };
            let answer = policy.answer(NEXIT_COUNTERS, subleaf, asker, &machine);
            (answer.eax, answer.ebx, answer.ecx)
        };
        assert_eq!(read(0), (3, 0, 21));
        assert_eq!(
            (read(1), read(20), read(21), read(22)),
            ((1, 0, 0), (2, 0, 0), (0, 0, 0), (0, 0, 0))
        );
    }

    proptest! {
        #[test]
        fn any_leaf_has_an_answer(leaf: u32, subleaf: u32, amd: bool) {
            ask(if amd { Vendor::Amd } else { Vendor::Intel }, &[0], 0, leaf, subleaf);
        }
    }
}
