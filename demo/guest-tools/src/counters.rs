//! The exit counters of the virtual CPU that this thread runs on, read through CPUID
//! (`docs/guest-interface.md`): leaf 0x4000_0100 is the signature, leaf 0x4000_0101 the counters.

use core::arch::x86_64::{__cpuid_count, CpuidResult};
use std::fmt;

/// Leaf that tells a Nexit guest from any other machine.
pub const SIGNATURE_LEAF: u32 = 0x4000_0100;
/// Leaf with the counters: subleaf 0 is the total, subleaf n + 1 is reason n.
pub const COUNTER_LEAF: u32 = 0x4000_0101;
/// EBX, ECX and EDX of [`SIGNATURE_LEAF`].
pub const SIGNATURE: [[u8; 4]; 3] = [*b"Nexi", *b"tHyp", *b"ervi"];

/// The reasons in the order of their subleaves (`docs/guest-interface.md`).
pub const REASONS: [&str; 21] = [
    "cpuid",
    "io",
    "msr",
    "descriptor_table",
    "nested_page_fault",
    "exception",
    "nmi",
    "external_interrupt",
    "interrupt_window",
    "preemption_timer",
    "halt",
    "triple_fault",
    "xsetbv",
    "cache_invalidate",
    "virtualization_instruction",
    "control_register",
    "init",
    "entry_failure",
    "unexpected",
    "eoi",
    "shadow_gate",
];

/// Where CPUID answers come from: the CPU, or a test.
pub trait Cpuid {
    /// The answer to `leaf` and `subleaf`.
    fn query(&mut self, leaf: u32, subleaf: u32) -> CpuidResult;
}

/// The CPU that this thread runs on.
#[derive(Debug, Default)]
pub struct ThisCpu;

impl Cpuid for ThisCpu {
    fn query(&mut self, leaf: u32, subleaf: u32) -> CpuidResult {
        __cpuid_count(leaf, subleaf)
    }
}

/// One reading of all counters of one virtual CPU.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Exits by reason, in the order of [`REASONS`]; a newer hypervisor may have more.
    pub by_reason: Vec<u64>,
    /// CPUID instructions that the reading took.
    pub queries: u64,
}

/// Reads the counters; `None` where the machine is not a Nexit guest.
pub fn read(cpu: &mut impl Cpuid) -> Option<Counters> {
    let signature = cpu.query(SIGNATURE_LEAF, 0);
    let words = [signature.ebx, signature.ecx, signature.edx];
    if words != SIGNATURE.map(u32::from_le_bytes) || signature.eax < COUNTER_LEAF {
        return None;
    }
    // A lying count must not keep the program here for ever.
    let reasons = cpu.query(COUNTER_LEAF, 0).ecx.min(256);
    let by_reason = (0..reasons).map(|reason| wide(cpu.query(COUNTER_LEAF, reason + 1))).collect();
    Some(Counters { by_reason, queries: u64::from(reasons) + 2 })
}

fn wide(answer: CpuidResult) -> u64 {
    u64::from(answer.eax) | u64::from(answer.ebx) << 32
}

/// What happened between two readings.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Difference {
    /// Exits of any reason, those of the program's own readings left out.
    pub total: u64,
    /// Exits by reason where there were any, own readings left out.
    pub by_reason: Vec<(String, u64)>,
    /// Exits of the readings themselves.
    pub own: u64,
}

impl Counters {
    /// The exits between `self` (the earlier reading) and `later`.
    ///
    /// Each counter is compared at the instant of its own reading. The total is their sum, not the
    /// hypervisor's: that would be of another instant, with exits that no reason has yet. From the earlier reading of one
    /// subleaf to the later reading of the same subleaf the program has executed exactly one
    /// reading's worth of CPUID, so that number is taken off the `cpuid` reason.
    #[must_use]
    pub fn until(&self, later: &Self) -> Difference {
        let own = later.queries;
        let pairs = self.by_reason.iter().zip(&later.by_reason).enumerate();
        let by_reason: Vec<_> = pairs
            .filter_map(|(index, (before, after))| {
                let spent = if index == 0 { own } else { 0 };
                let count = after.wrapping_sub(*before).saturating_sub(spent);
                (count > 0).then(|| (name(index), count))
            })
            .collect();
        Difference { total: by_reason.iter().map(|(_, count)| count).sum(), by_reason, own }
    }
}

impl Difference {
    /// Adds the exits of another virtual CPU in the same window.
    pub fn add(&mut self, other: Self) {
        self.total += other.total;
        self.own += other.own;
        for (reason, count) in other.by_reason {
            match self.by_reason.iter_mut().find(|(known, _)| *known == reason) {
                Some((_, sum)) => *sum += count,
                None => self.by_reason.push((reason, count)),
            }
        }
    }

    /// Exits of the reason `key`.
    #[must_use]
    pub fn of(&self, key: &str) -> u64 {
        self.by_reason.iter().find(|(name, _)| name == key).map_or(0, |(_, count)| *count)
    }
}

impl fmt::Display for Difference {
    /// `exits=2 interrupt_exits=0 nmi=2 own_cpuid=23`: the total, the exits that an interrupt or
    /// its EOI caused (named even when there are none), every other reason that occurred, and the
    /// program's own readings.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "exits={} external_interrupt={} eoi={} shadow_gate={}",
            self.total,
            self.of("external_interrupt"),
            self.of("eoi"),
            self.of("shadow_gate")
        )?;
        for (reason, count) in &self.by_reason {
            if !["external_interrupt", "eoi", "shadow_gate"].contains(&reason.as_str()) {
                write!(f, " {reason}={count}")?;
            }
        }
        write!(f, " own_cpuid={}", self.own)
    }
}

fn name(index: usize) -> String {
    REASONS.get(index).map_or_else(|| format!("reason_{index}"), |known| (*known).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hypervisor that counts as the documentation says: every query is one exit, counted before
    /// it is answered.
    struct Fake {
        counts: Vec<u64>,
        signature: [[u8; 4]; 3],
    }

    impl Fake {
        fn new() -> Self {
            Self { counts: vec![0; REASONS.len()], signature: SIGNATURE }
        }
    }

    impl Cpuid for Fake {
        fn query(&mut self, leaf: u32, subleaf: u32) -> CpuidResult {
            self.counts[0] += 1;
            let [ebx, ecx, edx] = self.signature.map(u32::from_le_bytes);
            let value = match (leaf, subleaf) {
                (SIGNATURE_LEAF, _) => return CpuidResult { eax: COUNTER_LEAF, ebx, ecx, edx },
                (COUNTER_LEAF, 0) => self.counts.iter().sum(),
                (_, subleaf) => self.counts[subleaf as usize - 1],
            };
            let ecx = if subleaf == 0 { self.counts.len() as u32 } else { 0 };
            CpuidResult { eax: value as u32, ebx: (value >> 32) as u32, ecx, edx: 0 }
        }
    }

    #[test]
    fn a_quiet_window_has_no_exits_but_its_own() {
        let mut cpu = Fake::new();
        let before = read(&mut cpu).unwrap();
        let after = read(&mut cpu).unwrap();
        let difference = before.until(&after);
        assert_eq!((difference.total, difference.by_reason.len()), (0, 0));
        assert_eq!(difference.own, REASONS.len() as u64 + 2);
    }

    #[test]
    fn every_exit_in_the_window_is_seen_under_its_reason() {
        let mut cpu = Fake::new();
        let before = read(&mut cpu).unwrap();
        cpu.counts[7] += 10_000;
        cpu.counts[19] += 1 << 33;
        cpu.counts[0] += 5;
        let difference = before.until(&read(&mut cpu).unwrap());
        assert_eq!(difference.of("external_interrupt"), 10_000);
        assert_eq!(difference.of("eoi"), 1 << 33);
        assert_eq!(difference.of("cpuid"), 5);
        assert_eq!(difference.total, 10_005 + (1 << 33));
    }

    #[test]
    fn exits_during_a_reading_do_not_part_the_total_from_the_reasons() {
        struct Lively(Fake);
        impl Cpuid for Lively {
            fn query(&mut self, leaf: u32, subleaf: u32) -> CpuidResult {
                self.0.counts[2] += u64::from(subleaf % 5);
                self.0.query(leaf, subleaf)
            }
        }
        let mut cpu = Lively(Fake::new());
        let before = read(&mut cpu).unwrap();
        let difference = before.until(&read(&mut cpu).unwrap());
        assert!(difference.of("msr") > 0);
        assert_eq!(difference.total, difference.of("msr"));
    }

    #[test]
    fn another_hypervisor_is_not_taken_for_ours() {
        let mut cpu = Fake::new();
        cpu.signature[0] = *b"KVMK";
        assert_eq!(read(&mut cpu), None);
    }

    #[test]
    fn interrupt_exits_are_named_even_when_there_are_none() {
        let text = Difference { own: 3, ..Difference::default() }.to_string();
        assert_eq!(text, "exits=0 external_interrupt=0 eoi=0 shadow_gate=0 own_cpuid=3");
    }
}
