//! What each kind of guest is told, on a CPU that has everything.

use super::bits::OSPKE;
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
    policy.answer(leaf, subleaf, vcpu, &machine)
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

/// Each bit by its own: a list of hidden or shown bits that loses one is noticed.
#[test]
fn of_a_cpu_that_has_everything_a_guest_is_shown_these_bits_and_no_others() {
    let hidden = |vendor, leaf, subleaf| {
        let CpuidResult { eax, ebx, ecx, edx } = ask(vendor, &[0], 0, leaf, subleaf);
        [!eax, !ebx, !ecx, !edx]
    };
    const ALL: u32 = !0;
    // OSXSAVE and OSPKE follow CR4; transactions are not shown where all abort; a guest of one CPU is no multi-core.
    let expected = [
        ((1, 0), [None, None, Some(0x0804_cdfc), Some(0xb064_4080)]),
        ((6, 0), [Some(!4), Some(ALL), Some(ALL), Some(ALL)]),
        ((7, 0), [None, Some(0x0200_d816), Some(0xe1bf_20b0), Some(0x403e_bae3)]),
        ((7, 1), [Some(0xff5f_e3c8), Some(ALL), Some(ALL), Some(0xfff7_bacf)]),
        ((0x8000_0001, 0), [None, None, Some(0x7d88_b60e), Some(0x0000_4080)]),
        ((0x8000_0021, 0), [Some(0x87ff_fe98), Some(ALL), Some(!6), Some(ALL)]),
    ];
    for (vendor, ebx) in [(Vendor::Intel, 0x8af0_2dfa), (Vendor::Amd, 0x8ae0_2dfa)] {
        let sizes = ((0x8000_0008, 0), [None, Some(ebx), None, None]);
        for ((leaf, subleaf), registers) in expected.into_iter().chain([sizes]) {
            let found = hidden(vendor, leaf, subleaf).into_iter().zip(registers);
            for (at, (found, expected)) in found.enumerate() {
                let wrong = expected.map_or(0, |expected| found ^ expected);
                assert_eq!(wrong, 0, "{vendor:?}: leaf {leaf:#x}.{subleaf}, register {at}");
            }
        }
    }
}

#[test]
fn no_feature_is_shown_whose_msrs_the_guest_does_not_have() {
    for vendor in [Vendor::Intel, Vendor::Amd] {
        let one = ask(vendor, &[0], 0, 1, 0);
        assert_eq!(one.ecx & (1 << 10 | 1 << 14), 0, "L1 context ID, xTPR: IA32_MISC_ENABLE");
        let seven = ask(vendor, &[0], 0, 7, 0);
        assert_eq!(seven.edx & 1 << 9, 0, "SRBDS_CTRL: IA32_MCU_OPT_CTRL");
        assert_eq!(seven.edx & 1 << 11, 0, "RTM_ALWAYS_ABORT: TSX_FORCE_ABORT or IA32_TSX_CTRL");
        assert_eq!(seven.edx & 1 << 13, 0, "TSX_FORCE_ABORT");
        assert_eq!(seven.ebx & (1 << 4 | 1 << 11), 0, "no transactions where all abort");
        assert_ne!(seven.edx & 1 << 10, 0, "MD_CLEAR is VERW's and has no MSR");
        assert_eq!(ask(vendor, &[0], 0, 0x8000_0001, 0).ecx >> 30 & 1, 0, "address masks: DRn");
        assert_eq!(ask(vendor, &[0], 0, 0x8000_0021, 0).eax >> 31, 0, "SRSO_MSR_FIX: BP_CFG");
    }
    // A bit that says that something is missing is there where it is, whatever the CPU has.
    let mut amd = machine(Vendor::Amd);
    amd.cpuid.insert((0x8000_0008, 0), CpuidResult::default());
    let policy = CpuidPolicy::new(vec![ApicId(0)], &amd);
    assert_eq!(policy.answer(0x8000_0008, 0, 0, &amd).ebx, 1 << 20, "EFER.LMSLE is #GP");
    let mut machine = machine(Vendor::Intel);
    let edx = !(1 << 11);
    machine.cpuid.insert((7, 0), CpuidResult { eax: 2, ebx: !0, ecx: !0, edx });
    let policy = CpuidPolicy::new(vec![ApicId(0)], &machine);
    let ebx = policy.answer(7, 0, 0, &machine).ebx;
    assert_eq!(ebx & (1 << 4 | 1 << 11), 1 << 4 | 1 << 11, "transactions that may succeed");
}

#[test]
fn an_instruction_that_no_guest_can_execute_is_not_shown() {
    let machine = machine(Vendor::Intel);
    let bits = |withheld| {
        let policy = CpuidPolicy::new(vec![ApicId(0)], &machine).without(withheld);
        let ask = |leaf, subleaf| policy.answer(leaf, subleaf, 0, &machine);
        let seven = ask(7, 0);
        let (rdtscp, rdpid) = (ask(0x8000_0001, 0).edx >> 27 & 1, seven.ecx >> 22 & 1);
        let xsaves = ask(0xd, 1).eax >> 3 & 1;
        assert_eq!(policy.xsaves(&machine), xsaves != 0);
        [rdtscp, rdpid, seven.ebx >> 10 & 1, xsaves]
    };
    let none = Withheld::default();
    assert_eq!(bits(none), [1, 1, 1, 1]);
    assert_eq!(bits(Withheld { rdtscp: true, ..none }), [0, 0, 1, 1]);
    assert_eq!(bits(Withheld { invpcid: true, ..none }), [1, 1, 0, 1]);
    assert_eq!(bits(Withheld { xsaves: true, ..none }), [1, 1, 1, 0]);
}

#[test]
fn a_guest_may_set_the_bits_of_cr4_of_what_it_is_shown_and_no_other() {
    const SHOWN: u64 = 0x0077_0fff;
    // LA57, VMXE, SMXE, KL, CET, PKS, UINTR, LASS, LAM_SUP, FRED.
    const HIDDEN: u64 = 1 << 12 | 1 << 13 | 1 << 14 | 0x1b88_0000 | 1 << 32;
    for vendor in [Vendor::Intel, Vendor::Amd] {
        let mut machine = machine(vendor);
        let policy = CpuidPolicy::new(vec![ApicId(0)], &machine);
        assert_eq!(policy.cr4(&machine), GuestCr4 { allowed: SHOWN, hidden: HIDDEN });
        // Without UMIP, PCIDE, SMEP and protection keys; and with no leaf 7 at all, nor another for it.
        machine
            .cpuid
            .insert((1, 0), CpuidResult { ecx: !(1 << 17), edx: !0, ..Default::default() });
        machine.cpuid.insert((7, 0), CpuidResult { ebx: !(1 << 7), ..Default::default() });
        let fewer = policy.cr4(&machine);
        let allowed = SHOWN & !(1 << 11 | 1 << 17 | 1 << 20 | 1 << 22);
        assert_eq!(fewer, GuestCr4 { allowed, hidden: 1 << 13 | 1 << 14 });
        machine.cpuid.insert((0, 0), CpuidResult { eax: 6, ..machine.cpuid(0, 0) });
        machine.cpuid.insert((7, 0), CpuidResult { eax: !0, ebx: !0, ecx: !0, edx: !0 });
        assert_eq!(policy.cr4(&machine).hidden, 1 << 13 | 1 << 14, "another leaf's answer");
    }
}

#[test]
fn user_state_of_xsave_is_shown_and_supervisor_state_is_not() {
    let all = CpuidResult { eax: !0, ebx: !0, ecx: !0, edx: !0 };
    assert_eq!(ask(Vendor::Intel, &[0], 0, 0xd, 1), CpuidResult { ecx: 0, edx: 0, ..all });
    assert_eq!(ask(Vendor::Intel, &[0], 0, 0xd, 2), CpuidResult::default());
    let avx = CpuidResult { eax: 256, ebx: 576, ecx: 0, edx: 0 };
    let mut machine = machine(Vendor::Intel);
    machine.cpuid.insert((0xd, 2), avx);
    let policy = CpuidPolicy::new(vec![ApicId(0)], &machine);
    assert_eq!(policy.answer(0xd, 2, 0, &machine), avx);
}

/// What announces a component of XCR0: leaf, subleaf, register of four, bit (SDM "XSAVE-Supported Features and State-Component
/// Bitmaps"; APM "Lightweight Profiling").
const ANNOUNCED: [(u64, u32, u32, usize, u32); 8] = [
    (1 << 2, 1, 0, 2, 28),
    (3 << 3, 7, 0, 1, 14),
    (7 << 5, 7, 0, 1, 16),
    (1 << 9, 7, 0, 2, 3),
    (3 << 17, 7, 0, 3, 24),
    (1 << 19, 7, 1, 3, 21),
    (1 << 62, 0x8000_0001, 0, 2, 15),
    (3, 1, 0, 3, 25),
];

#[test]
fn a_component_of_xcr0_is_shown_if_its_feature_is_and_may_be_set_then() {
    for vendor in [Vendor::Intel, Vendor::Amd] {
        let mut machine = machine(vendor);
        for component in 2..64 {
            // One behind the other, the larger the number: the highest that is shown is AMX's.
            let its = CpuidResult { eax: 8, ebx: 576 + 8 * component, ecx: 4, edx: 0 };
            machine.cpuid.insert((0xd, component), its);
        }
        let policy = CpuidPolicy::new(vec![ApicId(0)], &machine);
        let ask = |leaf, subleaf| policy.answer(leaf, subleaf, 0, &machine);
        let announced = ANNOUNCED.iter().filter(|(_, leaf, subleaf, register, bit)| {
            let CpuidResult { eax, ebx, ecx, edx } = ask(*leaf, *subleaf);
            [eax, ebx, ecx, edx][*register] >> bit & 1 != 0
        });
        let announced = announced.fold(0, |all, (components, ..)| all | components);
        let zero = ask(0xd, 0);
        assert_eq!(u64::from(zero.edx) << 32 | u64::from(zero.eax), announced, "{vendor:?}");
        assert_eq!((zero.ebx, zero.ecx), (!0, 576 + 8 * 19), "what is saved now, and at most");
        for component in 2..64 {
            let there = announced >> component & 1 != 0;
            assert_eq!(ask(0xd, component).eax, if there { 8 } else { 0 }, "{component}");
            assert_eq!(may_be_in_xcr0(3 | 1 << component), there, "{component}");
        }
        assert_eq!(ask(0xd, 64 + 2), CpuidResult::default());
        // Without MPX there is a hole in the area; without all of them it has its oldest part.
        for (eax, expected) in [(0x1f, 576 + 8 * 3), (0x1b, 576)] {
            machine.cpuid.insert((0xd, 0), CpuidResult { eax, ecx: 1088, ..Default::default() });
            assert_eq!(policy.answer(0xd, 0, 0, &machine).ecx, expected);
        }
        // Where nothing is hidden the CPU's own is taken, as Bochs says nothing of component 9.
        for real in
            [CpuidResult { eax: 0x207, ecx: 0xac0, ..Default::default() }, Default::default()]
        {
            machine.cpuid.insert((0xd, 0), real);
            assert_eq!(policy.answer(0xd, 0, 0, &machine), real);
        }
    }
}

#[test]
fn osxsave_and_ospke_follow_the_guests_cr4() {
    const CR4_OSXSAVE: u64 = 1 << 18;
    const CR4_PKE: u64 = 1 << 22;
    let mut machine = machine(Vendor::Intel);
    let policy = CpuidPolicy::new(vec![ApicId(0)], &machine);
    let answers = Answers::new(&policy, 0, &machine);
    let added = |leaf, subleaf, cr4| answers.get(leaf, || subleaf, || cr4).unwrap().1;
    for cr4 in [0, CR4_OSXSAVE, CR4_PKE, !(CR4_OSXSAVE | CR4_PKE), !0] {
        let osxsave = if cr4 & CR4_OSXSAVE != 0 { OSXSAVE } else { 0 };
        let ospke = if cr4 & CR4_PKE != 0 { OSPKE } else { 0 };
        assert_eq!([added(1, 0, cr4), added(1, 5, cr4)], [osxsave; 2]);
        assert_eq!([added(7, 0, cr4), added(7, 1, cr4), added(0, 0, cr4)], [ospke, 0, 0]);
    }
    machine.cpuid.insert((7, 0), CpuidResult::default());
    let answers = Answers::new(&policy, 0, &machine);
    assert_eq!(answers.get(7, || 0, || !0).unwrap().1, 0, "no protection keys");
}

#[test]
fn each_leaf_that_shows_a_local_apic_follows_it() {
    for (vendor, leaves) in [(Vendor::Intel, [true, false]), (Vendor::Amd, [true, true])] {
        let mut machine = machine(vendor);
        if vendor == Vendor::Intel {
            let none = CpuidResult { edx: !bits::APIC, ..machine.cpuid(0x8000_0001, 0) };
            machine.cpuid.insert((0x8000_0001, 0), none);
        }
        let policy = CpuidPolicy::new(vec![ApicId(0)], &machine);
        let mut answers = Answers::new(&policy, 0, &machine);
        for on in [true, false, true] {
            answers.show_apic(on);
            let shown = [1, 0x8000_0001].map(|leaf| {
                let answer = answers.get(leaf, || 0, || 0);
                answer.is_some_and(|(answer, _)| answer.edx & bits::APIC != 0)
            });
            assert_eq!(shown, leaves.map(|has| has && on), "{vendor:?}");
        }
    }
}

#[test]
fn what_is_ready_is_what_the_policy_says() {
    for vendor in [Vendor::Intel, Vendor::Amd] {
        let mut machine = machine(vendor);
        let (zero, first) = (machine.cpuid(0, 0), machine.cpuid(0x8000_0000, 0));
        for leaf in (1..0x30).chain(0x8000_0001..0x8000_0030) {
            let with = matches!(leaf, 4 | 7 | 0xb | 0xd | 0x18 | 0x1d..=0x1f | 0x8000_001d);
            for subleaf in 0..8 {
                let ebx = leaf << 4 | if with { subleaf } else { 0 };
                machine.cpuid.insert((leaf, subleaf), CpuidResult { eax: !0, ebx, ecx: 8, edx: 7 });
            }
        }
        for subleaf in 0..8 {
            machine.cpuid.insert((0, subleaf), CpuidResult { eax: 0x20, ..zero });
            machine.cpuid.insert((0x8000_0000, subleaf), first);
        }
        let policy = CpuidPolicy::new(vec![ApicId(0), ApicId(1)], &machine);
        let answers = Answers::new(&policy, 1, &machine);
        for range in [0, KVM_BASE, NEXIT_BASE, 0x4000_ff00, 0x8000_0000, 0xc000_0000] {
            for (leaf, subleaf) in (0..0x60).flat_map(|n| (0..8).map(move |s| (range + n, s))) {
                if let Some((answer, _)) = answers.get(leaf, || subleaf, || 0) {
                    let policys = policy.answer(leaf, subleaf, 1, &machine);
                    assert_eq!(*answer, policys, "{vendor:?} {leaf:#x}.{subleaf}");
                    assert_ne!(leaf, NEXIT_COUNTERS);
                }
            }
        }
        for (leaf, subleaf) in [(7, 1), (0xb, 1), (0xd, 4), (0x8000_001d, 3), (0x4000_0200, 0)] {
            assert!(answers.get(leaf, || subleaf, || 0).is_some(), "{leaf:#x}.{subleaf}");
        }
    }
}

#[test]
fn nothing_is_claimed_that_the_cpu_lacks() {
    let mut machine = machine(Vendor::Amd);
    for leaf in [1, 6, 7, 0x8000_0001, 0x8000_0007] {
        machine.cpuid.insert((leaf, 0), CpuidResult::default());
    }
    let policy = CpuidPolicy::new(vec![ApicId(0)], &machine);
    let answer = |leaf| policy.answer(leaf, 0, 0, &machine);
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
    assert_eq!(policy.answer(0x15, 0, 0, &machine), real, "a CPU that tells the truth");
    for (timer_hz, passes) in [(24_000_000, true), (1_000_000_000, false)] {
        machine.apic_timer_hz = Some(timer_hz);
        let policy = CpuidPolicy::new(vec![ApicId(0)], &machine);
        let told = policy.answer(0x15, 0, 0, &machine);
        assert_eq!(told == real, passes, "{told:?}: the timer counts {timer_hz} in a second");
        assert_eq!(u64::from(told.ecx), timer_hz);
    }
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
    let mut counters = ExitCounters::new();
    counters.count(Counter::Cpuid);
    counters.count(Counter::Eoi);
    counters.count(Counter::Eoi);
    let read = |subleaf| {
        let answer = exit_count(subleaf, &counters);
        (answer.eax, answer.ebx, answer.ecx)
    };
    assert_eq!(read(0), (3, 0, 25));
    assert_eq!(
        (read(1), read(20), read(21), read(23)),
        ((1, 0, 0), (2, 0, 0), (0, 0, 0), (0, 0, 0))
    );
}

proptest! {
    #[test]
    fn any_leaf_has_an_answer(leaf: u32, subleaf: u32, amd: bool) {
        ask(if amd { Vendor::Amd } else { Vendor::Intel }, &[0], 0, leaf, subleaf);
    }
}
