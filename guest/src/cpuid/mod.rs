//! The guest's CPUID: the physical CPU's answer without features that a guest cannot have.
//!
//! Invariant: a feature is shown only if the CPU has it and the guest can use its registers ([`crate::msr`]). Unknown
//! leaves read as zero. The hypervisor leaves carry KVM's signature, because without it stock kernels do not use
//! x2APIC unless they have interrupt remapping (Linux, `arch/x86/kernel/kvm.c`). Nexit's own leaves are at 0x4000_0100.

mod answers;
mod bits;
mod cr4;
mod ratio;

use alloc::vec::Vec;

use arch::ApicId;
use arch::machine::{CpuidResult, Machine};
use arch::register::GuestCr4;
use arch::vcpu::Withheld;

pub use answers::Answers;
pub use bits::SYSCALL;
use bits::{
    CMP_LEGACY, HIDDEN_1_ECX, HIDDEN_1_EDX, HIDDEN_7_EBX, HIDDEN_7_ECX, HIDDEN_81_ECX,
    HIDDEN_81_EDX, HTT, HYPERVISOR, INVARIANT_TSC, INVPCID, LMSLE_UNSUPPORTED, MTRR, OSXSAVE,
    RDPID, RDTSCP, RTM_ALWAYS_ABORT, SHOWN_6_EAX, SHOWN_7_1_EAX, SHOWN_7_1_EDX, SHOWN_7_EDX,
    SHOWN_88_EBX, SHOWN_8021_EAX, SHOWN_8021_ECX, SHOWN_XCR0, TSC_DEADLINE, TSX, X2APIC, XSAVES,
};

use crate::counters::{COUNTERS, Counter, ExitCounters};

/// First leaf of the KVM-compatible hypervisor range.
pub const KVM_BASE: u32 = 0x4000_0000;
/// First leaf of Nexit's own range: highest leaf in EAX, "NexitHypervi" in EBX, ECX, EDX.
pub const NEXIT_BASE: u32 = 0x4000_0100;
/// The exit counters: subleaf 0 total in EAX (low) and EBX, number of reasons in ECX; subleaf n + 1
/// the count of reason n in EAX (low) and EBX.
pub const NEXIT_COUNTERS: u32 = 0x4000_0101;
const HYPERVISOR_LEAVES_END: u32 = 0x4001_0000;

/// What XSAVE saves, which follows XCR0.
pub const EXTENDED_STATE: u32 = 0xd;
/// The leaf of extended features.
pub const FEATURES: u32 = 0x8000_0001;

/// KVM_FEATURE_CLOCKSOURCE2 and KVM_FEATURE_CLOCKSOURCE_STABLE_BIT.
const KVM_CLOCK: u32 = 1 << 3 | 1 << 24;

/// Whether `value` has in XCR0 only components that are shown. The CPU knows the rest of the rules.
#[must_use]
pub const fn may_be_in_xcr0(value: u64) -> bool {
    value & !(SHOWN_XCR0 as u64) == 0
}

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

/// What one guest is told.
#[derive(Clone, Debug)]
pub struct CpuidPolicy {
    vendor: Vendor,
    apic_ids: Vec<ApicId>,
    tsc_khz: u32,
    apic_timer_hz: Option<u64>,
    tsc_deadline: bool,
    kvmclock: bool,
    withheld: Withheld,
}

impl CpuidPolicy {
    /// For a guest with these APIC identifiers. The KVM clock is offered on AMD CPUs,
    /// which have no leaf for the TSC's frequency; on Intel CPUs that leaf is filled in.
    #[must_use]
    pub fn new(apic_ids: Vec<ApicId>, machine: &impl Machine) -> Self {
        let vendor = Vendor::of(machine);
        Self {
            vendor,
            apic_ids,
            tsc_khz: u32::try_from(machine.tsc_khz()).unwrap_or(u32::MAX),
            apic_timer_hz: machine.apic_timer_hz(),
            tsc_deadline: machine.cpuid(1, 0).ecx & TSC_DEADLINE != 0,
            kvmclock: vendor == Vendor::Amd,
            withheld: Withheld::default(),
        }
    }

    /// The same without these instructions.
    #[must_use]
    pub fn without(self, withheld: Withheld) -> Self {
        Self { withheld, ..self }
    }

    /// Whether the guest is offered the KVM clock.
    #[must_use]
    pub fn kvmclock(&self) -> bool {
        self.kvmclock
    }

    /// Whether its local APIC's timer has the mode with a deadline.
    #[must_use]
    pub const fn has_deadlines(&self) -> bool {
        self.tsc_deadline
    }

    /// Whether the guest is shown XSAVES, and with it IA32_XSS.
    #[must_use]
    pub fn xsaves(&self, machine: &impl Machine) -> bool {
        self.answer(EXTENDED_STATE, 1, 0, machine).eax & XSAVES != 0
    }

    /// The CPU's vendor.
    #[must_use]
    pub fn vendor(&self) -> Vendor {
        self.vendor
    }

    /// The bits of CR4 that the guest may set, and those that this CPU has beside them.
    #[must_use]
    pub fn cr4(&self, machine: &impl Machine) -> GuestCr4 {
        let of_cpu = cr4::bits(|leaf, subleaf| {
            // A CPU answers a leaf that it does not have with another's.
            let there = leaf <= machine.cpuid(0, 0).eax && subleaf <= machine.cpuid(leaf, 0).eax;
            if there { machine.cpuid(leaf, subleaf) } else { CpuidResult::default() }
        });
        let shown = cr4::bits(|leaf, subleaf| self.answer(leaf, subleaf, 0, machine));
        let allowed = shown | of_cpu & cr4::HARMLESS;
        GuestCr4 { allowed, hidden: of_cpu & !allowed }
    }

    /// The answer to CPUID of vCPU `vcpu`; [`NEXIT_COUNTERS`] and the bits that mirror CR4 aside.
    #[must_use]
    pub fn answer(
        &self,
        leaf: u32,
        subleaf: u32,
        vcpu: usize,
        machine: &impl Machine,
    ) -> CpuidResult {
        match leaf {
            KVM_BASE..HYPERVISOR_LEAVES_END => self.hypervisor(leaf),
            0..KVM_BASE => self.basic(leaf, subleaf, vcpu, machine),
            0x8000_0000..=0x8000_ffff => self.extended(leaf, subleaf, vcpu, machine),
            _ => CpuidResult::default(),
        }
    }

    fn basic(&self, leaf: u32, subleaf: u32, vcpu: usize, machine: &impl Machine) -> CpuidResult {
        let real = machine.cpuid(leaf, subleaf);
        let highest = self.highest_basic_leaf(machine);
        match leaf {
            0 => CpuidResult { eax: highest, ..real },
            _ if leaf > highest => CpuidResult::default(),
            1 => self.features(real, vcpu),
            EXTENDED_STATE => self.extended_state(subleaf, machine),
            // Cache descriptors, TLB parameters, tiles, AVX10: as the CPU is.
            2 | 0x18 | 0x1d | 0x1e | 0x24 => real,
            4 => self.intel_cache(real),
            6 => CpuidResult { eax: real.eax & SHOWN_6_EAX, ..CpuidResult::default() },
            7 => self.structured_features(subleaf, real),
            0xb | 0x1f => self.topology(subleaf, vcpu),
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

    fn features(&self, real: CpuidResult, vcpu: usize) -> CpuidResult {
        let ecx = real.ecx & !(HIDDEN_1_ECX | OSXSAVE) | X2APIC | HYPERVISOR;
        let mut edx = real.edx & !HIDDEN_1_EDX | MTRR;
        if self.count() > 1 {
            edx |= HTT;
        }
        let ebx = real.ebx & 0xffff | self.count().min(255) << 16 | self.apic_id(vcpu) << 24;
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

    /// Leaf 0x15: crystal clock × EBX / EAX is the TSC's frequency. The CPU's own values are passed on
    /// if they give that frequency.
    fn tsc_ratio(&self, real: CpuidResult) -> CpuidResult {
        const PER_MILLE: u64 = 1000;
        let near = |told: u64, hz: u64| told.abs_diff(hz) <= hz / PER_MILLE;
        let told = u64::from(real.ecx) * u64::from(real.ebx) / u64::from(real.eax.max(1));
        let timer_agrees = self.apic_timer_hz.is_none_or(|hz| near(real.ecx.into(), hz));
        if near(told, u64::from(self.tsc_khz) * 1000) && timer_agrees {
            return real;
        }
        ratio::made_up(self.tsc_khz, self.apic_timer_hz, self.tsc_deadline)
    }

    /// Leaf 0x16 in MHz: base and highest frequency, and the bus frequency if the CPU gives none.
    fn frequencies(&self, real: CpuidResult) -> CpuidResult {
        let mhz = (self.tsc_khz / 1000).min(0xffff);
        let bus = if real.ecx & 0xffff == 0 { 100 } else { real.ecx & 0xffff };
        CpuidResult { eax: mhz, ebx: mhz, ecx: bus, edx: 0 }
    }

    fn extended(
        &self,
        leaf: u32,
        subleaf: u32,
        vcpu: usize,
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
            0x8000_001e if topology_extensions => {
                CpuidResult { eax: self.x2apic_id(vcpu), ebx: vcpu as u32, ecx: 0, edx: 0 }
            }
            0x8000_0021 => {
                let (eax, ecx) = (real.eax & SHOWN_8021_EAX, real.ecx & SHOWN_8021_ECX);
                CpuidResult { eax, ecx, ..CpuidResult::default() }
            }
            _ => CpuidResult::default(),
        }
    }

    fn extended_features(&self, real: CpuidResult) -> CpuidResult {
        let mut ecx = real.ecx & !(HIDDEN_81_ECX | CMP_LEGACY);
        let rdtscp = if self.withheld.rdtscp { RDTSCP } else { 0 };
        let mut edx = real.edx & !(HIDDEN_81_EDX | rdtscp);
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
        let ebx = real.ebx & SHOWN_88_EBX;
        let (ebx, ecx) = match self.vendor {
            Vendor::Intel => (ebx, 0),
            Vendor::Amd => {
                let cores = self.id_bits() << 12 | (self.count() - 1).min(255);
                (ebx | LMSLE_UNSUPPORTED, cores)
            }
        };
        CpuidResult { eax: real.eax, ebx, ecx, edx: 0 }
    }

    /// Leaf 0x8000001D, as [`Self::intel_cache`] without the number of cores.
    fn amd_cache(&self, real: CpuidResult) -> CpuidResult {
        let cache = self.intel_cache(real);
        CpuidResult { eax: cache.eax & 0x3ff_ffff, ..cache }
    }

    /// Leaf 0xD: the CPU's own, without the components that IA32_XSS enables (subleaf 1 ECX and EDX; components
    /// with ECX bit 0 set) and those of features that are not shown.
    fn extended_state(&self, subleaf: u32, machine: &impl Machine) -> CpuidResult {
        let real = machine.cpuid(EXTENDED_STATE, subleaf);
        match subleaf {
            // One that has but these knows best how far they reach.
            0 if real.eax & !SHOWN_XCR0 | real.edx == 0 => real,
            0 => {
                let eax = real.eax & SHOWN_XCR0;
                // How far they reach from the area's beginning, where the oldest two and a header have 576 bytes.
                let further = (2..32).filter(|component| eax >> component & 1 != 0);
                let ecx = further.fold(576, |most, component| {
                    let its = machine.cpuid(EXTENDED_STATE, component);
                    most.max(its.ebx.saturating_add(its.eax))
                });
                CpuidResult { eax, ebx: real.ebx, ecx, edx: 0 }
            }
            1 => {
                let withheld = if self.withheld.xsaves { XSAVES } else { 0 };
                CpuidResult { eax: real.eax & !withheld, ecx: 0, edx: 0, ..real }
            }
            2..32 if real.ecx & 1 == 0 && SHOWN_XCR0 >> subleaf & 1 != 0 => real,
            _ => CpuidResult::default(),
        }
    }

    /// Leaf 7.
    fn structured_features(&self, subleaf: u32, real: CpuidResult) -> CpuidResult {
        match subleaf {
            0 => {
                // Transactions that always abort, and may be switched off by an MSR that a guest does not have.
                let aborts = if real.edx & RTM_ALWAYS_ABORT != 0 { TSX } else { 0 };
                let invpcid = if self.withheld.invpcid { INVPCID } else { 0 };
                let rdpid = if self.withheld.rdtscp { RDPID } else { 0 };
                CpuidResult {
                    eax: real.eax.min(2),
                    ebx: real.ebx & !(HIDDEN_7_EBX | aborts | invpcid),
                    ecx: real.ecx & !(HIDDEN_7_ECX | rdpid),
                    edx: real.edx & SHOWN_7_EDX,
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

    fn hypervisor(&self, leaf: u32) -> CpuidResult {
        match leaf {
            KVM_BASE => signature(KVM_BASE + 1, *b"KVMKVMKVM\0\0\0"),
            0x4000_0001 => CpuidResult {
                eax: if self.kvmclock { KVM_CLOCK } else { 0 },
                ..CpuidResult::default()
            },
            NEXIT_BASE => signature(NEXIT_COUNTERS, *b"NexitHypervi"),
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

fn signature(highest: u32, text: [u8; 12]) -> CpuidResult {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = text;
    CpuidResult {
        eax: highest,
        ebx: u32::from_le_bytes([a, b, c, d]),
        ecx: u32::from_le_bytes([e, f, g, h]),
        edx: u32::from_le_bytes([i, j, k, l]),
    }
}

/// The answer to leaf [`NEXIT_COUNTERS`].
#[must_use]
pub fn exit_count(subleaf: u32, counters: &ExitCounters) -> CpuidResult {
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
mod tests;
