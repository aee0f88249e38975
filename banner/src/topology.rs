//! Packages, cores and threads: CPUID says how many bits of an APIC identifier number each
//! (SDM "Hierarchical Mapping of CPUID Extended Topology Leaf"; APM volume 3, "Extended Topology Enumeration").

use crate::Cpuid;
use core::fmt;

/// Where in an APIC identifier its core and its package begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Topology {
    core_shift: u32,
    package_shift: u32,
    hybrid: bool,
}

/// How many there are of each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    pub packages: usize,
    pub cores: usize,
    pub threads: usize,
}

impl Topology {
    /// Asks the CPU that calls; `None` where it does not say. The leaves are read here and not by
    /// `raw_cpuid`, which panics at a level that it does not know.
    #[must_use]
    pub fn read(cpuid: impl Cpuid) -> Option<Self> {
        const V2: u32 = 0x1f;
        const V1: u32 = 0xb;
        const HYBRID: u32 = 1 << 15;
        let most = cpuid(0, 0).eax;
        let hybrid = most >= 7 && cpuid(7, 0).edx & HYBRID != 0;
        let leaf = |leaf| if most >= leaf { levels(&cpuid, leaf, hybrid) } else { None };
        let (core_shift, package_shift) = leaf(V2).or_else(|| leaf(V1))?;
        Some(Self { core_shift, package_shift, hybrid })
    }

    /// Counts the CPUs with these APIC identifiers.
    #[must_use]
    pub fn count(self, identifiers: impl Iterator<Item = u32> + Clone) -> Counts {
        // As many as differ from all before them.
        let distinct = |shift| {
            let above = |id: u32| id.checked_shr(shift).unwrap_or(0);
            let is_new = |&(index, id): &(usize, u32)| {
                !identifiers.clone().take(index).any(|before| above(before) == above(id))
            };
            identifiers.clone().enumerate().filter(is_new).count()
        };
        Counts {
            packages: distinct(self.package_shift),
            cores: distinct(self.core_shift),
            threads: distinct(0),
        }
    }

    /// The number of the core of the CPU with this APIC identifier, its package's included.
    #[must_use]
    pub fn core(self, id: u32) -> u32 {
        id.checked_shr(self.core_shift).unwrap_or(0)
    }

    /// Its cores are of several kinds.
    #[must_use]
    pub const fn hybrid(self) -> bool {
        self.hybrid
    }
}

/// The shifts behind the level of threads and behind the last level.
fn levels(cpuid: &impl Cpuid, leaf: u32, hybrid: bool) -> Option<(u32, u32)> {
    /// More levels than any CPU has.
    const MAX_LEVELS: u32 = 8;
    const THREADS: u32 = 1;
    let mut core_shift = 0;
    let mut package_shift = None;
    for subleaf in 0..MAX_LEVELS {
        let level = cpuid(leaf, subleaf);
        let kind = level.ecx >> 8 & 0xff;
        if kind == 0 || level.ebx & 0xffff == 0 {
            break;
        }
        let shift = level.eax & 0x1f;
        // The shift says how identifiers are numbered, the count how many threads this core can have. If that is one
        // (no threads, or switched off; Bochs' shift is never 0), each is a core by itself. In a hybrid other cores may
        // have more.
        if kind == THREADS && (level.ebx & 0xffff > 1 || hybrid) {
            core_shift = shift;
        }
        package_shift = Some(shift);
    }
    package_shift.map(|package_shift| (core_shift, package_shift))
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for (count, what) in
            [(self.packages, "package"), (self.cores, "core"), (self.threads, "thread")]
        {
            let plural = if count == 1 { "" } else { "s" };
            write!(f, "{comma}{count} {what}{plural}")?;
            comma = ", ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch::machine::CpuidResult;

    /// Levels as (kind, shift).
    fn cpu(leaf: u32, levels: &'static [(u32, u32)]) -> impl Cpuid {
        move |asked, subleaf| match (asked, levels.get(subleaf as usize)) {
            (0, _) => CpuidResult { eax: leaf, ..CpuidResult::default() },
            (asked, Some((kind, shift))) if asked == leaf => CpuidResult {
                eax: *shift,
                ebx: 1 << shift,
                ecx: kind << 8 | subleaf,
                ..CpuidResult::default()
            },
            _ => CpuidResult::default(),
        }
    }

    fn counts(leaf: u32, levels: &'static [(u32, u32)], identifiers: &[u32]) -> String {
        let topology = Topology::read(cpu(leaf, levels)).unwrap();
        topology.count(identifiers.iter().copied()).to_string()
    }

    #[test]
    fn threads_share_a_core_and_cores_a_package() {
        let all: Vec<u32> = (0..16).collect();
        assert_eq!(counts(0xb, &[(1, 1), (2, 3)], &all), "2 packages, 8 cores, 16 threads");
        assert_eq!(counts(0xb, &[(1, 0), (2, 4)], &all), "1 package, 16 cores, 16 threads");
        // A hybrid: a core of two threads, then four of one each, which firmware numbers in steps.
        let hybrid = [0, 1, 8, 10, 12, 14];
        assert_eq!(counts(0x1f, &[(1, 1), (2, 7)], &hybrid), "1 package, 5 cores, 6 threads");
    }

    #[test]
    fn a_core_of_one_thread_has_no_sibling_however_identifiers_are_numbered() {
        let cpuid = |hybrid: bool| {
            move |leaf: u32, subleaf: u32| match (leaf, subleaf) {
                (0, _) => CpuidResult { eax: 0xb, ..CpuidResult::default() },
                (7, _) => CpuidResult { edx: u32::from(hybrid) << 15, ..CpuidResult::default() },
                (0xb, 0) => CpuidResult { eax: 1, ebx: 1, ecx: 1 << 8, edx: 0 },
                (0xb, 1) => CpuidResult { eax: 4, ebx: 4, ecx: 2 << 8, edx: 0 },
                _ => CpuidResult::default(),
            }
        };
        let cores = |hybrid| {
            let topology = Topology::read(cpuid(hybrid)).unwrap();
            topology.count(0..4).cores
        };
        assert_eq!((cores(false), cores(true)), (4, 2));
    }

    #[test]
    fn levels_that_nobody_knows_yet_count_to_the_package() {
        // Modules, tiles, dies, and die groups (6).
        let levels = &[(1, 1), (2, 3), (3, 4), (5, 5), (6, 6)];
        assert_eq!(counts(0x1f, levels, &[0, 63, 64]), "2 packages, 3 cores, 3 threads");
    }

    #[test]
    fn a_cpu_that_does_not_say_is_not_guessed_at() {
        assert_eq!(Topology::read(cpu(0xb, &[])), None);
        assert_eq!(Topology::read(cpu(0xa, &[(1, 1)])), None);
        // Levels without end end.
        let endless = |_: u32, _: u32| CpuidResult { eax: 0x1f, ebx: 1, ecx: 2 << 8, edx: 0 };
        assert!(Topology::read(endless).is_some());
    }
}
