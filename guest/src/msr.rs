//! The MSRs outside the local APIC: which pass, and what the others do.
//!
//! Invariant: whatever [`crate::cpuid`] shows has its MSRs here; every other MSR raises #GP, which
//! operating systems expect of an MSR that is not there. Nothing that the guest writes reaches a
//! physical MSR but through [`passes`]. The local APIC's registers are `eli`'s.

use arch::machine::{GuestMemory, Machine};
use arch::msr::{
    IA32_APIC_BASE, IA32_ARCH_CAPABILITIES, IA32_BIOS_SIGN_ID, IA32_DEBUGCTL, IA32_EFER,
    IA32_FEATURE_CONTROL, IA32_FMASK, IA32_FS_BASE, IA32_KERNEL_GS_BASE, IA32_MCG_CAP,
    IA32_MCG_STATUS, IA32_MISC_ENABLE, IA32_PAT, IA32_STAR, IA32_SYSENTER_CS, IA32_SYSENTER_EIP,
    IA32_TIME_STAMP_COUNTER, IA32_TSC_ADJUST, IA32_TSC_AUX, IA32_XSS, MsrPass,
};
use arch::register::{Cr0, Efer};
use arch::vcpu::Vcpu;

use crate::cpuid::Vendor;
use crate::mtrr::Mtrrs;

const IA32_PLATFORM_ID: u32 = 0x17;
const IA32_SPEC_CTRL: u32 = 0x48;
const IA32_PRED_CMD: u32 = 0x49;
const IA32_FLUSH_CMD: u32 = 0x10b;
const IA32_XFD: u32 = 0x1c4;
const IA32_XFD_ERR: u32 = 0x1c5;
const KVM_WALL_CLOCK_NEW: u32 = 0x4b56_4d00;
const KVM_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
const SYSCFG: u32 = 0xc001_0010;
const HWCR: u32 = 0xc001_0015;
const NB_CFG: u32 = 0xc001_001f;
const INTERRUPT_PENDING: u32 = 0xc001_0055;
const DE_CFG: u32 = 0xc001_1029;

/// Enabled, in x2APIC mode from the first instruction on, so that 0xFEE00000 is never touched.
const APIC_BASE: u64 = 0xfee0_0c00;
const APIC_BASE_BSP: u64 = 1 << 8;
/// Branch trace and PEBS are not there. Whether fast strings are on is the CPU's: without bit 0 Linux drops
/// ERMS, and clears pages otherwise.
const MISC_ENABLE: u64 = 1 << 11 | 1 << 12;
const FAST_STRINGS: u64 = 1;
/// IA32_FEATURE_CONTROL: locked, with VMX off.
const FEATURE_CONTROL_LOCKED: u64 = 1;
/// HWCR: the TSC runs at the P0 frequency always.
const HWCR_TSC_FREQUENCY_SELECT: u64 = 1 << 24;
/// The "not affected" answers and hints that promise no further MSR (SDM "IA32_ARCH_CAPABILITIES").
const ARCH_CAPABILITIES_SHOWN: u64 =
    0x1f | 1 << 5 | 1 << 6 | 1 << 8 | 7 << 13 | 1 << 17 | 3 << 19 | 1 << 24 | 3 << 26 | 1 << 62;
/// AMD: FFXSR, TCE, automatic IBRS, each with the CPUID bit that announces it.
const AMD_EFER: [(u64, u32, EferFeature); 3] = [
    (1 << 14, 0x8000_0001, EferFeature::Edx(25)),
    (1 << 15, 0x8000_0001, EferFeature::Ecx(17)),
    (1 << 21, 0x8000_0021, EferFeature::Eax(8)),
];

#[derive(Clone, Copy)]
enum EferFeature {
    Eax(u32),
    Ecx(u32),
    Edx(u32),
}

/// The MSRs that pass on every CPU. One that the CPU lacks raises #GP by itself.
const PASSES: [MsrPass; 8] = [
    both(IA32_SYSENTER_CS, IA32_SYSENTER_EIP),
    both(IA32_STAR, IA32_FMASK),
    both(IA32_FS_BASE, IA32_KERNEL_GS_BASE),
    both(IA32_TSC_AUX, IA32_TSC_AUX),
    // Read once a second by Linux; a write would move the TSC of the whole CPU.
    MsrPass { first: IA32_TSC_ADJUST, last: IA32_TSC_ADJUST, read: true, write: false },
    both(IA32_SPEC_CTRL, IA32_PRED_CMD),
    MsrPass { first: IA32_FLUSH_CMD, last: IA32_FLUSH_CMD, read: false, write: true },
    both(IA32_XFD, IA32_XFD_ERR),
];

const fn both(first: u32, last: u32) -> MsrPass {
    MsrPass { first, last, read: true, write: true }
}

/// The MSRs that a guest may use without an exit, those of the local APIC aside: state of its own
/// that the CPU, which is the guest's alone, may keep.
#[must_use]
pub const fn passes() -> &'static [MsrPass] {
    &PASSES
}

/// What an access comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MsrOutcome {
    /// The value read.
    Value(u64),
    /// Written.
    Done,
    /// #GP(0): the value or the access is not allowed.
    GeneralProtection,
    /// #GP(0): there is no such MSR.
    Unknown,
}

/// The KVM clock's zero: the same on all CPUs of a guest, so that they agree on the time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClockBase {
    /// TSC at which the guest's clock is 0.
    pub tsc: u64,
}

/// One vCPU's MSRs.
#[derive(Clone, Debug)]
pub struct Msrs {
    vendor: Vendor,
    boot_processor: bool,
    clock: Option<ClockBase>,
    mtrrs: Mtrrs,
    hwcr: u64,
    nb_cfg: u64,
    system_time: u64,
    wall_clock: u64,
}

impl Msrs {
    /// After reset. `clock` is there where the guest is offered the KVM clock
    /// ([`crate::cpuid::CpuidPolicy::kvmclock`]).
    #[must_use]
    pub fn new(vendor: Vendor, boot_processor: bool, clock: Option<ClockBase>) -> Self {
        Self {
            vendor,
            boot_processor,
            clock,
            mtrrs: Mtrrs::default(),
            hwcr: HWCR_TSC_FREQUENCY_SELECT,
            nb_cfg: 0,
            system_time: 0,
            wall_clock: 0,
        }
    }

    /// Whether a write of this MSR makes the hypervisor write to the guest's memory.
    #[must_use]
    pub const fn writes_memory(msr: u32) -> bool {
        matches!(msr, KVM_SYSTEM_TIME_NEW | KVM_WALL_CLOCK_NEW)
    }

    /// RDMSR.
    pub fn read(&self, msr: u32, vcpu: &impl Vcpu, machine: &mut impl Machine) -> MsrOutcome {
        if let Some(value) = self.mtrrs.read(msr) {
            return MsrOutcome::Value(value);
        }
        let value = match msr {
            IA32_TIME_STAMP_COUNTER => machine.tsc(),
            IA32_APIC_BASE => self.apic_base(),
            IA32_PAT => vcpu.pat(),
            IA32_EFER => vcpu.efer(),
            IA32_TSC_ADJUST | IA32_BIOS_SIGN_ID => machine.read_msr(msr).unwrap_or(0),
            IA32_MCG_CAP | IA32_MCG_STATUS | IA32_DEBUGCTL | IA32_XSS => 0,
            IA32_ARCH_CAPABILITIES => match machine.read_msr(msr) {
                Some(real) => real & ARCH_CAPABILITIES_SHOWN,
                None => return MsrOutcome::GeneralProtection,
            },
            KVM_SYSTEM_TIME_NEW if self.clock.is_some() => self.system_time,
            KVM_WALL_CLOCK_NEW if self.clock.is_some() => self.wall_clock,
            _ => return self.read_of_vendor(msr, machine),
        };
        MsrOutcome::Value(value)
    }

    /// The MSRs that only one vendor has and that Linux reads without expecting a #GP.
    fn read_of_vendor(&self, msr: u32, machine: &mut impl Machine) -> MsrOutcome {
        let value = match (self.vendor, msr) {
            (Vendor::Intel, IA32_PLATFORM_ID) => 0,
            (Vendor::Intel, IA32_FEATURE_CONTROL) => FEATURE_CONTROL_LOCKED,
            (Vendor::Intel, IA32_MISC_ENABLE) => {
                MISC_ENABLE | machine.read_msr(msr).unwrap_or(0) & FAST_STRINGS
            }
            (Vendor::Amd, SYSCFG | INTERRUPT_PENDING) => 0,
            (Vendor::Amd, HWCR) => self.hwcr,
            (Vendor::Amd, NB_CFG) => self.nb_cfg,
            // Whether LFENCE is serializing must be the truth.
            (Vendor::Amd, DE_CFG) => machine.read_msr(msr).unwrap_or(0),
            _ => return MsrOutcome::Unknown,
        };
        MsrOutcome::Value(value)
    }

    /// WRMSR.
    pub fn write(
        &mut self,
        msr: u32,
        value: u64,
        vcpu: &mut impl Vcpu,
        machine: &mut impl Machine,
        memory: &mut impl GuestMemory,
    ) -> MsrOutcome {
        if let Some(allowed) = self.mtrrs.write(msr, value) {
            return done_if(allowed);
        }
        match msr {
            // The TSC is the machine's; a guest that would set it keeps the one that it has.
            IA32_TIME_STAMP_COUNTER | IA32_TSC_ADJUST => MsrOutcome::Done,
            IA32_APIC_BASE => done_if(value == self.apic_base()),
            IA32_PAT => write_pat(value, vcpu),
            IA32_EFER => self.write_efer(value, vcpu, machine),
            // Written before CPUID, to make it fill the revision in; and features that are not there.
            IA32_BIOS_SIGN_ID | IA32_DEBUGCTL => MsrOutcome::Done,
            // XRSTORS loads MSRs that do not pass: of a component that is not enabled, none. Processor
            // Trace writes to physical addresses, user interrupts go to any local APIC.
            IA32_MCG_STATUS | IA32_XSS => done_if(value == 0),
            KVM_SYSTEM_TIME_NEW => self.write_system_time(value, machine, memory),
            KVM_WALL_CLOCK_NEW => self.write_wall_clock(value, machine, memory),
            _ => self.write_of_vendor(msr, value),
        }
    }

    fn write_of_vendor(&mut self, msr: u32, value: u64) -> MsrOutcome {
        match (self.vendor, msr) {
            (Vendor::Intel, IA32_MISC_ENABLE)
            | (Vendor::Amd, SYSCFG | INTERRUPT_PENDING | DE_CFG) => {}
            (Vendor::Amd, HWCR) => self.hwcr = value,
            (Vendor::Amd, NB_CFG) => self.nb_cfg = value,
            (Vendor::Intel, IA32_FEATURE_CONTROL) => return MsrOutcome::GeneralProtection,
            _ => return MsrOutcome::Unknown,
        }
        MsrOutcome::Done
    }

    fn apic_base(&self) -> u64 {
        APIC_BASE | if self.boot_processor { APIC_BASE_BSP } else { 0 }
    }

    /// EFER: reserved bits and a change of LME while paging is on are refused; LMA is the CPU's
    /// (APM "Extended Feature Enable Register (EFER)").
    fn write_efer(&self, value: u64, vcpu: &mut impl Vcpu, machine: &impl Machine) -> MsrOutcome {
        let mut allowed = Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE;
        if self.vendor == Vendor::Amd {
            for (bit, leaf, feature) in AMD_EFER {
                let answer = machine.cpuid(leaf, 0);
                let has = match feature {
                    EferFeature::Eax(n) => answer.eax & 1 << n != 0,
                    EferFeature::Ecx(n) => answer.ecx & 1 << n != 0,
                    EferFeature::Edx(n) => answer.edx & 1 << n != 0,
                };
                if has {
                    allowed |= Efer::from_bits_retain(bit);
                }
            }
        }
        let (old, new) = (Efer::from_bits_retain(vcpu.efer()), Efer::from_bits_retain(value));
        let paging = Cr0::from_bits_retain(vcpu.cr0()).contains(Cr0::PG);
        let changes_mode = (old ^ new).contains(Efer::LME);
        if value & !allowed.bits() != 0 || paging && changes_mode {
            return MsrOutcome::GeneralProtection;
        }
        vcpu.set_efer(((new - Efer::LMA) | (old & Efer::LMA)).bits());
        MsrOutcome::Done
    }

    /// Fills the vCPU's time page, once: the TSC never changes its rate, so the page stays right.
    /// (Linux, `Documentation/virt/kvm/x86/msr.rst`, MSR_KVM_SYSTEM_TIME_NEW.)
    fn write_system_time(
        &mut self,
        value: u64,
        machine: &impl Machine,
        memory: &mut impl GuestMemory,
    ) -> MsrOutcome {
        let Some(clock) = self.clock else { return MsrOutcome::Unknown };
        self.system_time = value;
        if value & 1 == 0 {
            return MsrOutcome::Done;
        }
        let (multiplier, shift) = nanoseconds_per_tick(machine.tsc_khz());
        let mut page = [0; 32];
        // version (even: complete), padding, TSC at …, … this time, multiplier, shift, flags
        // (bit 0: the same on all CPUs).
        let fields: [&[u8]; 7] = [
            &2u32.to_le_bytes(),
            &[0; 4],
            &clock.tsc.to_le_bytes(),
            &[0; 8],
            &multiplier.to_le_bytes(),
            &shift.to_le_bytes(),
            &[1],
        ];
        for (to, from) in page.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        done_if(memory.write(arch::Gpa::new(value & !1), &page).is_ok())
    }

    /// Fills the wall-clock structure: the time of day at the clock's zero.
    fn write_wall_clock(
        &mut self,
        value: u64,
        machine: &impl Machine,
        memory: &mut impl GuestMemory,
    ) -> MsrOutcome {
        let Some(clock) = self.clock else { return MsrOutcome::Unknown };
        self.wall_clock = value;
        let since = machine.tsc().wrapping_sub(clock.tsc) / (machine.tsc_khz().max(1) * 1000);
        let seconds = machine.unix_time().saturating_sub(since) as u32;
        let mut bytes = [0; 12];
        let fields = [2u32.to_le_bytes(), seconds.to_le_bytes()];
        for (to, from) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *to = from;
        }
        done_if(memory.write(arch::Gpa::new(value), &bytes).is_ok())
    }
}

fn done_if(allowed: bool) -> MsrOutcome {
    if allowed { MsrOutcome::Done } else { MsrOutcome::GeneralProtection }
}

/// PAT: every byte is a memory type (SDM "IA32_PAT MSR").
fn write_pat(value: u64, vcpu: &mut impl Vcpu) -> MsrOutcome {
    let valid = value.to_le_bytes().into_iter().all(|kind| matches!(kind, 0 | 1 | 4..=7));
    if valid {
        vcpu.set_pat(value);
    }
    done_if(valid)
}

/// The factor by which the guest gets nanoseconds from TSC ticks: `(ticks << shift) × multiplier
/// >> 32`, the multiplier as large as fits in 32 bits.
fn nanoseconds_per_tick(tsc_khz: u64) -> (u32, i8) {
    let mut hz = tsc_khz.max(1).saturating_mul(1000);
    let mut shift = 0i8;
    while hz > 2_000_000_000 {
        hz >>= 1;
        shift -= 1;
    }
    while hz <= 1_000_000_000 {
        hz <<= 1;
        shift += 1;
    }
    (((1_000_000_000u64 << 32) / hz) as u32, shift)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{FakeMachine, FakeMemory, FakeVcpu};
    use arch::machine::CpuidResult;
    use proptest::prelude::*;

    struct Rig {
        msrs: Msrs,
        vcpu: FakeVcpu,
        machine: FakeMachine,
        memory: FakeMemory,
    }

    impl Rig {
        fn new(vendor: Vendor) -> Self {
            Self {
                msrs: Msrs::new(vendor, true, Some(ClockBase { tsc: 1_000_000 })),
                vcpu: FakeVcpu::default(),
                machine: FakeMachine::default(),
                memory: FakeMemory(vec![0; 8192]),
            }
        }
        fn read(&mut self, msr: u32) -> MsrOutcome {
            self.msrs.read(msr, &self.vcpu, &mut self.machine)
        }
        fn write(&mut self, msr: u32, value: u64) -> MsrOutcome {
            self.msrs.write(msr, value, &mut self.vcpu, &mut self.machine, &mut self.memory)
        }
    }

    use MsrOutcome::{Done, GeneralProtection, Unknown, Value};

    #[test]
    fn what_linux_reads_without_expecting_a_fault_is_there() {
        let mut intel = Rig::new(Vendor::Intel);
        intel.machine.msrs.insert(0x1a0, 0x85_0889);
        for (msr, value) in [
            (0x10, 5_000_000),
            (0x17, 0),
            (0x1b, 0xfee0_0d00),
            (0x3a, 1),
            (0x3b, 0),
            (0x8b, 0),
            (0xfe, 0x400),
            (0x179, 0),
            (0x1a0, 0x1801),
            (0x277, 0x0007_0406_0007_0406),
            (0x2ff, 0x806),
        ] {
            assert_eq!(intel.read(msr), Value(value), "{msr:#x}");
        }
        let mut amd = Rig::new(Vendor::Amd);
        for (msr, value) in [(HWCR, 1 << 24), (SYSCFG, 0), (NB_CFG, 0), (DE_CFG, 0)] {
            assert_eq!(amd.read(msr), Value(value), "{msr:#x}");
            assert_eq!(intel.read(msr), Unknown, "{msr:#x}");
        }
    }

    #[test]
    fn an_application_processor_does_not_read_the_boot_bit() {
        let msrs = Msrs::new(Vendor::Intel, false, None);
        let (vcpu, mut machine) = (FakeVcpu::default(), FakeMachine::default());
        assert_eq!(msrs.read(0x1b, &vcpu, &mut machine), Value(0xfee0_0c00));
    }

    #[test]
    fn arch_capabilities_are_the_cpus_own_less_what_needs_more_msrs() {
        let mut rig = Rig::new(Vendor::Intel);
        assert_eq!(rig.read(0x10a), GeneralProtection);
        rig.machine.msrs.insert(0x10a, 1 << 62 | 1 << 21 | 1 << 7 | 1);
        assert_eq!(rig.read(0x10a), Value(1 << 62 | 1));
        assert_eq!(rig.write(0x10a, 0), Unknown);
    }

    #[test]
    fn what_is_not_there_faults_and_writes_nothing_physical() {
        let mut rig = Rig::new(Vendor::Intel);
        for msr in [0xe7, 0xe8, 0x186, 0x38f, 0x480, 0x570, 0xc001_0114, 0x4000_0000] {
            assert_eq!(rig.read(msr), Unknown, "{msr:#x}");
            assert_eq!(rig.write(msr, 0), Unknown, "{msr:#x}");
        }
        assert_eq!(rig.write(0x3b, 5), Done);
        assert_eq!(rig.write(0x3a, 5), GeneralProtection);
        assert!(rig.machine.msrs.is_empty());
    }

    #[test]
    fn efer_takes_what_the_cpu_has_and_keeps_lma() {
        let mut rig = Rig::new(Vendor::Amd);
        assert_eq!(rig.write(IA32_EFER, 0x901), Done);
        assert_eq!(rig.read(IA32_EFER), Value(0x901));
        assert_eq!(rig.write(IA32_EFER, 1 << 12), GeneralProtection, "SVME");
        assert_eq!(rig.write(IA32_EFER, 1 << 14), GeneralProtection, "FFXSR without CPUID bit");
        let features = CpuidResult { edx: 1 << 25, ..CpuidResult::default() };
        rig.machine.cpuid.insert((0x8000_0001, 0), features);
        assert_eq!(rig.write(IA32_EFER, 1 << 14 | 0x100), Done);
        rig.vcpu.state.efer = 0x500;
        rig.vcpu.state.cr0 = 0x8000_0011;
        assert_eq!(rig.write(IA32_EFER, 0x901), Done);
        assert_eq!(rig.read(IA32_EFER), Value(0xd01), "LMA is not the guest's to clear");
        assert_eq!(rig.write(IA32_EFER, 0x401), GeneralProtection, "LME while paging");
    }

    #[test]
    fn the_clock_page_gives_the_time_since_the_base() {
        for khz in [1_000, 999_999, 1_000_000, 2_496_123, 5_300_000] {
            let mut rig = Rig::new(Vendor::Amd);
            rig.machine.tsc_khz = khz;
            assert_eq!(rig.write(KVM_SYSTEM_TIME_NEW, 0x1001), Done);
            let page = &rig.memory.0[0x1000..0x1020];
            let word = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().unwrap());
            assert_eq!((word(0), word(8), page[29]), (2, 1_000_000, 1));
            let ticks = khz * 1000 * 10;
            let shift = page[28] as i8;
            let shifted = if shift < 0 { ticks >> -shift } else { ticks << shift };
            let ns = ((u128::from(shifted) * u128::from(word(24))) >> 32) as u64;
            assert!(ns.abs_diff(10_000_000_000) < 1000, "{khz} kHz: {ns}");
        }
    }

    #[test]
    fn the_wall_clock_is_the_time_of_day_at_the_base() {
        let mut rig = Rig::new(Vendor::Amd);
        rig.machine.tsc = 1_000_000 + 7 * 2_000_000_000;
        assert_eq!(rig.write(KVM_WALL_CLOCK_NEW, 0x40), Done);
        assert_eq!(rig.memory.0[0x44..0x48], 999_999_993u32.to_le_bytes());
    }

    #[test]
    fn the_clock_is_refused_outside_ram_and_where_it_is_not_offered() {
        let mut rig = Rig::new(Vendor::Amd);
        assert_eq!(rig.write(KVM_SYSTEM_TIME_NEW, 0x1ff1), GeneralProtection);
        assert_eq!(rig.write(KVM_SYSTEM_TIME_NEW, 0), Done);
        rig.msrs = Msrs::new(Vendor::Intel, true, None);
        assert_eq!(rig.write(KVM_SYSTEM_TIME_NEW, 0x1001), Unknown);
        assert_eq!(rig.read(KVM_WALL_CLOCK_NEW), Unknown);
    }

    #[test]
    fn no_supervisor_state_can_be_enabled_through_which_xrstors_would_load_an_msr() {
        let mut rig = Rig::new(Vendor::Intel);
        for component in 0..64 {
            assert_eq!(rig.write(IA32_XSS, 1 << component), GeneralProtection, "{component}");
        }
        assert_eq!((rig.write(IA32_XSS, 0), rig.read(IA32_XSS)), (Done, Value(0)));
        assert!(rig.machine.msrs.is_empty());
    }

    #[test]
    fn performance_counters_aperf_and_xss_do_not_pass() {
        for msr in [0xda0, 0xe7, 0xe8, 0xc1, 0x186, 0x10, 0x1b, 0x277, 0xc000_0080, 0x3a] {
            let hit = passes().iter().any(|pass| (pass.first..=pass.last).contains(&msr));
            assert!(!hit, "{msr:#x}");
        }
    }

    proptest! {
        #[test]
        fn pat_takes_memory_types_and_nothing_else(value: u64) {
            let mut rig = Rig::new(Vendor::Intel);
            let valid = value.to_le_bytes().iter().all(|b| [0, 1, 4, 5, 6, 7].contains(b));
            prop_assert_eq!(rig.write(IA32_PAT, value) == Done, valid);
            prop_assert_eq!(rig.vcpu.pat == value, valid);
        }

        #[test]
        fn any_access_is_answered(msr: u32, value: u64, amd: bool) {
            let mut rig = Rig::new(if amd { Vendor::Amd } else { Vendor::Intel });
            for msr in [msr, msr & 0x3ff, 0xc001_0000 | msr & 0x11ff] {
                let wrote = rig.write(msr, value);
                prop_assert!(!matches!(wrote, Value(_)));
                prop_assert!(rig.read(msr) != Done);
            }
        }
    }
}
