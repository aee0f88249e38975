//! Machines that tell their TSC's frequency, and machines that do not.

use std::boxed::Box;
use std::collections::BTreeMap;
use std::string::ToString;
use std::vec::Vec;

use arch::machine::CpuidResult;
use proptest::prelude::*;

use crate::interval::Interval;
use crate::script::{Script, Time};
use crate::window::{Fault, TARGET_PPM, tsc_by};
use crate::{Clock, Frequency, Refused, apic_timer_hz, tsc_frequency};

const TSC: u64 = 2_595_000_000;
const HPET: (&str, u64, u32) = ("HPET", 14_318_180, 32);
const ACPI_TIMER: (&str, u64, u32) = ("ACPI timer", 3_579_545, 24);
const PIT: (&str, u64, u32) = ("PIT", 1_193_182, 16);

fn clock(time: &Time, (name, hz, bits): (&'static str, u64, u32)) -> Script {
    Script::new(name, time, TSC, hz, bits)
}

fn absent(time: &Time, which: (&'static str, u64, u32)) -> Script {
    Script { refuses: Some("is not there"), ..clock(time, which) }
}

/// Interruptions as a script: `ticks` at every `each`-th moment.
fn now_and_then(each: u64, ticks: u64) -> Box<dyn FnMut() -> u64> {
    let mut moment = 0;
    Box::new(move || {
        moment += 1;
        if moment % each == 0 { ticks } else { 0 }
    })
}

type Leaves = BTreeMap<u32, CpuidResult>;

fn leaf(eax: u32, ebx: u32, ecx: u32) -> CpuidResult {
    CpuidResult { eax, ebx, ecx, edx: 0 }
}

/// A CPU whose leaf 0x15 claims this.
fn claiming(khz: u32) -> Leaves {
    [(0, leaf(0x16, 0, 0)), (0x15, leaf(1, khz, 1000)), (0x16, leaf(khz / 1000, 0, 0))].into()
}

fn ask(leaves: &Leaves, mut clocks: Vec<Script>) -> Result<Frequency, Refused> {
    let mut candidates: Vec<Clock<'_>> = clocks
        .iter_mut()
        .map(|script| Clock { name: script.name, hz: script.hz, counter: Some(script) })
        .collect();
    let answer =
        tsc_frequency(&|leaf| leaves.get(&leaf).copied().unwrap_or_default(), &mut candidates);
    for clock in clocks {
        assert!(clock.readings < 2_000_000, "{}: {} readings", clock.name, clock.readings);
    }
    answer
}

fn measured(clock: &mut Script) -> Result<Interval, Fault> {
    let hz = clock.hz;
    tsc_by(clock, hz)
}

fn without_cpuid(clocks: Vec<Script>) -> Result<Frequency, Refused> {
    ask(&Leaves::new(), clocks)
}

fn off_by_ppm(khz: u64) -> u64 {
    (khz * 1000).abs_diff(TSC) * 1_000_000 / TSC
}

#[test]
fn every_clock_of_a_quiet_machine_tells_the_frequency_alone() {
    for which in [HPET, ACPI_TIMER, PIT] {
        let time = Time::new();
        let answer = without_cpuid(Vec::from([clock(&time, which)])).unwrap();
        assert!(off_by_ppm(answer.khz) <= TARGET_PPM, "{answer:?}");
        assert!(answer.error_ppm.unwrap() <= TARGET_PPM, "{answer:?}");
        assert!(time.ticks() < TSC / 4, "{}: {} ticks", which.0, time.ticks());
        assert!(answer.source.starts_with(which.0) && answer.remarks.is_empty(), "{answer:?}");
    }
}

#[test]
fn an_exact_claim_that_a_clock_confirms_is_the_value() {
    let time = Time::new();
    let clocks = Vec::from([clock(&time, HPET), clock(&time, ACPI_TIMER), clock(&time, PIT)]);
    let answer = ask(&claiming(2_595_000), clocks).unwrap();
    assert_eq!(answer.khz, 2_595_000);
    assert!(answer.source.starts_with("CPUID leaf 0x15; "), "{}", answer.source);
    assert!(answer.source.contains("HPET agrees within ") && !answer.source.contains("ACPI"));
    assert!(answer.remarks.is_empty());
}

#[test]
fn a_claim_that_a_precise_measurement_excludes_is_not_used_and_that_is_said() {
    for claim in [2_595_000 * 98 / 100, 2_595_000 * 65 / 100, 50_000, 2_598_000] {
        let time = Time::new();
        let clocks = Vec::from([clock(&time, HPET), clock(&time, ACPI_TIMER)]);
        let answer = ask(&claiming(claim), clocks).unwrap();
        assert!(off_by_ppm(answer.khz) <= TARGET_PPM, "{answer:?}");
        assert!(answer.source.starts_with("HPET within "), "{answer:?}");
        assert!(answer.remarks[0].contains("CPUID leaf 0x15 gives"), "{answer:?}");
    }
}

#[test]
fn a_measurement_in_doubt_does_not_override_a_claim() {
    // Each reading takes half a second, now before the count is read and now after it.
    for claim in [2_595_000 * 93 / 100, 2_595_000, 2_595_000 * 107 / 100] {
        let time = Time::new();
        let hpet = Script { interruption: now_and_then(2, TSC / 2), ..clock(&time, HPET) };
        let answer = ask(&claiming(claim), Vec::from([hpet])).unwrap();
        assert_eq!(answer.khz, u64::from(claim), "{answer:?}");
        assert!(answer.error_ppm.unwrap() > 70_000, "{answer:?}");
    }
}

#[test]
fn a_claim_far_off_counts_while_the_doubt_is_as_large() {
    // Each interruption as long as all before it, always on the same side of the counter's reading.
    for (side, percent) in [(2, 65), (0, 135)] {
        let time = Time::new();
        let (mut moment, mut ticks) = (0, 2);
        let growing = Box::new(move || {
            moment += 1;
            ticks = if moment % 3 == side { ticks * 2 } else { ticks };
            if moment % 3 == side { ticks } else { 0 }
        });
        let hpet = Script { interruption: growing, bits: 63, ..clock(&time, HPET) };
        let answer = ask(&claiming(2_595_000 * percent / 100), Vec::from([hpet])).unwrap();
        assert_eq!(answer.khz, u64::from(2_595_000 * percent / 100), "{answer:?}");
        assert!(answer.error_ppm.unwrap() > 350_000, "{answer:?}");
    }
}

#[test]
fn an_interruption_at_any_one_moment_moves_nothing() {
    for moment in (1..120).chain(800..810) {
        for ticks in [TSC / 100, TSC, 20 * TSC] {
            let time = Time::new();
            let mut now = 0;
            let once = Box::new(move || {
                now += 1;
                if now == moment { ticks } else { 0 }
            });
            let timer = Script { interruption: once, ..clock(&time, ACPI_TIMER) };
            let answer = without_cpuid(Vec::from([timer])).unwrap();
            assert!(off_by_ppm(answer.khz) <= answer.error_ppm.unwrap(), "{moment}: {answer:?}");
            assert!(answer.error_ppm.unwrap() <= TARGET_PPM, "{moment}: {answer:?}");
        }
    }
}

#[test]
fn a_busy_boot_never_moves_the_tsc() {
    // 10 ms for somebody else's time slice at every 7th moment, 30 ms at every 1000th, …
    for (each, ticks) in [(7, TSC / 100), (1000, TSC * 3 / 100), (3, TSC / 1000), (1, 5000)] {
        for which in [HPET, ACPI_TIMER, PIT] {
            if which == PIT && [7, 3].contains(&each) {
                // It goes round in 55 ms: too often to be followed.
                continue;
            }
            let time = Time::new();
            let timer = Script { interruption: now_and_then(each, ticks), ..clock(&time, which) };
            let answer = without_cpuid(Vec::from([timer])).unwrap();
            assert!(off_by_ppm(answer.khz) <= answer.error_ppm.unwrap(), "{answer:?}");
        }
    }
}

#[test]
fn a_busy_beginning_costs_no_precision() {
    for which in [HPET, ACPI_TIMER] {
        let time = Time::new();
        let mut moment = 0;
        // 10 ms in every one of the first readings, then nothing.
        let beginning = Box::new(move || {
            moment += 1;
            if moment < 90 && moment % 3 == 2 { TSC / 100 } else { 0 }
        });
        let timer = Script { interruption: beginning, ..clock(&time, which) };
        let answer = without_cpuid(Vec::from([timer])).unwrap();
        assert!(answer.error_ppm.unwrap() <= TARGET_PPM, "{answer:?}");
        assert!(off_by_ppm(answer.khz) <= TARGET_PPM, "{answer:?}");
    }
}

#[test]
fn a_timer_of_24_bits_is_measured_across_its_wrap() {
    let time = Time::new();
    let mut timer = clock(&time, ACPI_TIMER);
    // The wrap comes 10 ms after the first reading.
    let to_wrap = (u128::from(TSC) * (1 << 24) / 3_579_545) as u64 - TSC / 100;
    let mut first = Some(to_wrap);
    timer.interruption = Box::new(move || first.take().unwrap_or(0));
    timer.cost = TSC / 100_000;
    let answer = without_cpuid(Vec::from([timer])).unwrap();
    assert!(time.ticks() > to_wrap + TSC / 50, "the window ended before the wrap");
    assert!(off_by_ppm(answer.khz) <= answer.error_ppm.unwrap(), "{answer:?}");
}

#[test]
fn a_clock_that_jumps_is_not_taken_to_be_finer_than_it_is() {
    let time = Time::new();
    let timer = Script { jumps_by: 4096, ..clock(&time, HPET) };
    let answer = without_cpuid(Vec::from([timer])).unwrap();
    assert!(off_by_ppm(answer.khz) <= answer.error_ppm.unwrap(), "{answer:?}");
}

#[test]
fn a_clock_that_does_not_count_is_left_at_once() {
    let time = Time::new();
    let mut gated = Script { real_hz: 0, ..clock(&time, PIT) };
    assert_eq!(measured(&mut gated), Err(Fault::Still));
    assert!(time.ticks() < TSC / 50, "{} ticks", time.ticks());
    let answer = without_cpuid(Vec::from([gated, clock(&time, HPET)])).unwrap();
    assert!(answer.source.starts_with("HPET"));
    assert_eq!(answer.remarks, ["PIT does not count: it is not used"]);
}

#[test]
fn a_clock_that_stops_or_changes_its_rate_or_has_another_is_found_out() {
    let time = Time::new();
    let mut stops = Script { stops_after: TSC / 500, ..clock(&time, ACPI_TIMER) };
    assert!(matches!(measured(&mut stops), Err(Fault::Uneven | Fault::Implausible(_))));
    for real_hz in [HPET.1 / 1000, HPET.1 * 1000] {
        let mut other = Script { real_hz, ..clock(&time, HPET) };
        assert!(matches!(measured(&mut other), Err(Fault::Implausible(_))), "{real_hz}");
    }
    let mut no_tsc = Script { interruption: Box::new(|| 0), cost: 0, ..clock(&time, HPET) };
    no_tsc.tsc_hz = 1000;
    assert!(measured(&mut no_tsc).is_err(), "a TSC of a thousand ticks a second");
    assert!(time.ticks() < TSC, "{} ticks", time.ticks());
}

#[test]
fn two_clocks_that_disagree_are_settled_by_a_third_or_not_at_all() {
    let time = Time::new();
    let slow = || Script { real_hz: HPET.1 * 97 / 100, ..clock(&time, HPET) };
    let answer =
        without_cpuid(Vec::from([slow(), clock(&time, ACPI_TIMER), clock(&time, PIT)])).unwrap();
    assert!(answer.source.starts_with("ACPI timer"), "{answer:?}");
    assert!(answer.source.contains("PIT agrees"), "{answer:?}");
    assert!(answer.remarks[0].starts_with("HPET gives"), "{answer:?}");
    let claimed = ask(&claiming(2_595_000), Vec::from([slow(), clock(&time, ACPI_TIMER)])).unwrap();
    assert_eq!(claimed.khz, 2_595_000);
    assert!(claimed.remarks[0].starts_with("HPET gives"), "{claimed:?}");
    let refusal = without_cpuid(Vec::from([slow(), clock(&time, ACPI_TIMER), absent(&time, PIT)]));
    let text = refusal.unwrap_err().to_string();
    assert!(text.contains("HPET: 267") && text.contains("ACPI timer: 259"), "{text}");
}

#[test]
fn without_a_clock_a_claim_is_taken_and_nothing_is_refused_by_name() {
    let time = Time::new();
    let none = || Vec::from([absent(&time, HPET), absent(&time, ACPI_TIMER), absent(&time, PIT)]);
    let claimed = ask(&claiming(2_400_000), none()).unwrap();
    assert_eq!((claimed.khz, claimed.error_ppm), (2_400_000, None));
    assert!(claimed.source.contains("no clock to check it by"));
    let text = without_cpuid(none()).unwrap_err().to_string();
    for part in [
        "CPUID leaf 0x15: is not there",
        "CPUID leaf 0x40000010: is not there, as no hypervisor is below",
        "CPUID leaf 0x16: is not there",
        "HPET: is not there",
        "ACPI timer: is not there",
        "PIT: is not there",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn leaf_15_without_a_crystal_says_about_how_much_and_a_clock_says_it_exactly() {
    let mut leaves = claiming(2_595_000);
    leaves.insert(0x15, leaf(2, 216, 0));
    leaves.insert(0x16, leaf(2_600, 0, 0));
    let time = Time::new();
    let answer = ask(&leaves, Vec::from([clock(&time, HPET)])).unwrap();
    assert!(answer.source.starts_with("HPET within "), "{answer:?}");
    assert!(answer.source.contains("CPUID leaf 0x16 agrees"), "{answer:?}");
    assert!(off_by_ppm(answer.khz) <= TARGET_PPM);
    let alone = ask(&leaves, Vec::from([absent(&time, HPET)])).unwrap();
    assert_eq!((alone.khz, alone.error_ppm), (2_600_000, Some(10_000)));
}

#[test]
fn a_hypervisors_leaf_counts_only_where_that_hypervisor_defines_it() {
    let text = |bytes: &[u8; 12]| {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        CpuidResult { eax: 0x4000_0010, ebx: word(0), ecx: word(4), edx: word(8) }
    };
    let with = |signature: &[u8; 12]| {
        let leaves = [
            (1, leaf(0, 0, 1 << 31)),
            (0x4000_0000, text(signature)),
            (0x4000_0010, leaf(2_595_001, 1_000_000, 0)),
        ];
        let time = Time::new();
        ask(&leaves.into(), Vec::from([clock(&time, HPET)])).unwrap()
    };
    for signature in [b"VMwareVMware", b"KVMKVMKVM\0\0\0"] {
        assert_eq!(with(signature).khz, 2_595_001);
        assert!(with(signature).source.starts_with("CPUID leaf 0x40000010; HPET agrees"));
    }
    for signature in [b"TCGTCGTCGTCG", b"Microsoft Hv", b"XenVMMXenVMM"] {
        assert!(with(signature).source.starts_with("HPET within"));
    }
}

#[test]
fn the_local_apics_timer_is_measured_by_the_tsc() {
    for timer_hz in [24_000_000, 100_000_000, 1_000_000_000, TSC] {
        let time = Time::new();
        let mut timer = clock(&time, ("local APIC timer", timer_hz, 32));
        let hz = apic_timer_hz(&mut timer, TSC / 1000).unwrap();
        assert!(hz.abs_diff(timer_hz) <= timer_hz / 10_000, "{hz} for {timer_hz}");
        timer.real_hz = 0;
        assert_eq!(apic_timer_hz(&mut timer, TSC / 1000), None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    /// Whatever interrupts the readings, wherever, and however fast all is.
    #[test]
    fn the_true_frequency_is_always_within_the_interval(
        tsc_hz in 20_000_000u64..10_000_000_000,
        which in 0usize..3,
        jumps_by in 1u64..8,
        cost_ns in 1u64..100_000,
        odds in 1u64..2000,
        longest_us in 0u64..50_000,
        mut seed in 1u64..,
    ) {
        let (name, hz, bits) = [HPET, ACPI_TIMER, PIT][which];
        let time = Time::new();
        let mut timer = Script::new(name, &time, tsc_hz, hz, bits);
        timer.jumps_by = jumps_by;
        timer.cost = (u128::from(tsc_hz) * u128::from(cost_ns) / 1_000_000_000) as u64;
        let longest = (u128::from(tsc_hz) * u128::from(longest_us) / 1_000_000) as u64;
        timer.interruption = Box::new(move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            if seed % odds == 0 { (seed >> 20) % (longest + 1) } else { 0 }
        });
        match tsc_by(&mut timer, hz) {
            Ok(interval) => prop_assert!(
                interval.low <= tsc_hz && tsc_hz <= interval.high, "{interval:?} for {tsc_hz}"
            ),
            Err(fault) => prop_assert_eq!(fault, Fault::Interrupted),
        }
    }
}
