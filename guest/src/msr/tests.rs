//! What a guest reads, what it may write, and KVM's clock.

use super::*;
use std::string::String;

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
            msrs: Msrs::new(vendor, Some(ClockBase { tsc: 1_000_000 }), true),
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
        (0x3a, 1),
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
fn the_processors_name_is_that_of_cpuid() {
    let mut rig = Rig::new(Vendor::Amd);
    for (leaf, text) in
        [(2, b"AMD EPYC 9654 96"), (3, b"-Core Processor "), (4, b"abcdefghijklmno\0")]
    {
        let [eax, ebx, ecx, edx] = core::array::from_fn(|word| {
            u32::from_le_bytes(core::array::from_fn(|byte| text[4 * word + byte]))
        });
        rig.machine.cpuid.insert((0x8000_0000 + leaf, 0), CpuidResult { eax, ebx, ecx, edx });
    }
    let read = |rig: &mut Rig| {
        let bytes = (NAME..=NAME_END).flat_map(|msr| {
            let Value(value) = rig.read(msr) else { panic!("{msr:#x}") };
            value.to_le_bytes()
        });
        String::from_utf8(bytes.collect()).unwrap()
    };
    const TEXT: &str = "AMD EPYC 9654 96-Core Processor abcdefghijklmno\0";
    assert_eq!(read(&mut rig), TEXT);
    assert_eq!(rig.write(NAME, 0), Done);
    assert_eq!(read(&mut rig), TEXT, "it stays");
    assert_eq!(Rig::new(Vendor::Intel).read(NAME), Unknown);
}

#[test]
fn what_nothing_announces_reads_0_and_ignores_writes() {
    let mut amd = Rig::new(Vendor::Amd);
    for msr in [0xc001_0055, 0xc001_0058, 0xc001_0111, 0xc001_0112, 0xc001_0113, 0x2a] {
        assert_eq!((amd.write(msr, !0), amd.read(msr)), (Done, Value(0)), "{msr:#x}");
    }
    for msr in [0xc001_1021, 0xc001_1022, 0xc001_1023, 0xc001_102a, 0xc001_102c] {
        assert_eq!((amd.write(msr, !0), amd.read(msr)), (Done, Value(0)), "{msr:#x}");
    }
    for msr in 0x1db..=0x1de {
        assert_eq!((amd.read(msr), amd.write(msr, 0)), (Value(0), Unknown), "{msr:#x}");
    }
    assert_eq!((amd.write(PATCH_LOADER, 0x1000), amd.read(PATCH_LOADER)), (Done, Unknown));
    let mut intel = Rig::new(Vendor::Intel);
    assert_eq!((intel.write(0x2a, !0), intel.read(0x2a)), (Done, Value(0)));
    assert_eq!(intel.read(0x1db), Unknown, "the model's");
    for msr in [0, 1] {
        let written = (intel.write(msr, 0), amd.write(msr, 1));
        assert_eq!((written, amd.read(msr)), ((Done, GeneralProtection), Value(0)), "{msr}");
    }
    assert!(amd.machine.msrs.is_empty() && intel.machine.msrs.is_empty());
    // A value here would have Linux believe that it can switch off speculative stores.
    assert_eq!((amd.write(0xc001_1020, 0), amd.read(0xc001_1020)), (Unknown, Unknown));
}

#[test]
fn arch_capabilities_are_the_cpus_own_less_what_needs_more_msrs() {
    let mut rig = Rig::new(Vendor::Intel);
    assert_eq!(rig.read(0x10a), GeneralProtection);
    rig.machine.msrs.insert(0x10a, 1 << 62 | 1 << 28 | 1 << 21 | 1 << 7 | 1);
    assert_eq!(rig.read(0x10a), Value(1 << 62 | 1 << 28 | 1));
    assert_eq!(rig.write(0x10a, 0), Unknown);
}

#[test]
fn what_is_not_there_faults_and_writes_nothing_physical() {
    let mut rig = Rig::new(Vendor::Intel);
    for msr in [0x3b, 0xe7, 0xe8, 0x186, 0x38f, 0x480, 0x570, 0xc001_0114, 0x4000_0000] {
        assert_eq!(rig.read(msr), Unknown, "{msr:#x}");
        assert_eq!(rig.write(msr, 0), Unknown, "{msr:#x}");
    }
    assert_eq!(rig.write(0x10, 5), Done);
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
    rig.msrs = Msrs::new(Vendor::Intel, None, true);
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
    // It comes with XSAVES.
    rig.msrs = Msrs::new(Vendor::Intel, None, false);
    assert_eq!((rig.write(IA32_XSS, 0), rig.read(IA32_XSS)), (Unknown, Unknown));
}

/// Each by its number: SDM "Model-Specific Registers (MSRs)", APM "MSR Cross-Reference".
#[test]
fn these_msrs_pass_and_no_others() {
    let both = |first, last| MsrPass { first, last, read: true, write: true };
    let expected = [
        both(0x174, 0x176),             // SYSENTER
        both(0xc000_0081, 0xc000_0084), // SYSCALL
        both(0xc000_0100, 0xc000_0102), // bases of FS and GS
        both(0xc000_0103, 0xc000_0103), // TSC_AUX
        both(0x48, 0x49),               // SPEC_CTRL, PRED_CMD
        MsrPass { first: 0x10b, last: 0x10b, read: false, write: true },
        both(0x1c4, 0x1c5), // XFD
    ];
    assert_eq!(passes(), expected);
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

#[test]
fn what_every_amd_cpu_has_without_saying_so_reads_0_and_takes_writes() {
    let (mut amd, mut intel) = (Rig::new(Vendor::Amd), Rig::new(Vendor::Intel));
    for msr in 0xc001_0000..=0xc001_0007 {
        assert_eq!((amd.write(msr, 0x53_0076), amd.read(msr)), (Done, Value(0)), "{msr:#x}");
        assert_eq!((intel.write(msr, 0), intel.read(msr)), (Unknown, Unknown), "{msr:#x}");
    }
    assert_eq!((amd.read(0xc001_0008), amd.read(0xc000_ffff)), (Unknown, Unknown));
}
