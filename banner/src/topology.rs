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
        let of_leaves = || leaf(V2).or_else(|| leaf(V1));
        let (core_shift, package_shift) = of_leaves().or_else(|| levels_of_amd(&cpuid))?;
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

/// The same from AMD's own leaves, which CPUs have that lack the others (APM volume 3, "CPUID Fn8000_001E", "CPUID
/// Fn8000_0008"): threads of a core, of which there are one or two, and how many bits of an identifier number what is in
/// a package. A CPU that says nothing of its cores is not guessed at.
fn levels_of_amd(cpuid: &impl Cpuid) -> Option<(u32, u32)> {
    const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;
    if cpuid(0x8000_0000, 0).eax < 0x8000_001e
        || cpuid(0x8000_0001, 0).ecx & TOPOLOGY_EXTENSIONS == 0
    {
        return None;
    }
    let threads = (cpuid(0x8000_001e, 0).ebx >> 8 & 0xff) + 1;
    let core_shift = threads.next_power_of_two().trailing_zeros();
    let sizes = cpuid(0x8000_0008, 0).ecx;
    // Where the size of an identifier is not told, it is what the number of threads needs.
    let package_shift = match sizes >> 12 & 0xf {
        0 => ((sizes & 0xff) + 1).next_power_of_two().trailing_zeros(),
        bits => bits,
    };
    Some((core_shift, package_shift.max(core_shift)))
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
    fn amds_own_leaf_tells_threads_of_a_core_where_the_common_leaves_do_not() {
        // Leaf 0x80000001 ECX, 0x80000008 ECX, 0x8000001E EBX.
        let amd = |features: u32, sizes: u32, core: u32| {
            move |leaf, _: u32| {
                let (eax, ebx, ecx) = match leaf {
                    0x8000_0000 => (0x8000_001f, 0, 0),
                    0x8000_0001 => (0, 0, features),
                    0x8000_0008 => (0, 0, sizes),
                    0x8000_001e => (0, core, 0),
                    _ => (0, 0, 0),
                };
                CpuidResult { eax, ebx, ecx, edx: 0 }
            }
        };
        const TOPOLOGY: u32 = 1 << 22;
        let count = |topology: Topology| topology.count(0..16).to_string();
        for (cpu, features, sizes, core, expected) in [
            ("Zen with 8 cores", TOPOLOGY, 0x400f, 1 << 8, "1 package, 8 cores, 16 threads"),
            ("Zen 2, SMT off", TOPOLOGY, 0x7007, 0, "1 package, 16 cores, 16 threads"),
            ("Excavator", TOPOLOGY, 0x2003, 1 << 8, "4 packages, 8 cores, 16 threads"),
            ("no size of an identifier", TOPOLOGY, 0x7, 1 << 8, "2 packages, 8 cores, 16 threads"),
        ] {
            let topology = Topology::read(amd(features, sizes, core)).map(count);
            assert_eq!(topology.as_deref(), Some(expected), "{cpu}");
        }
        assert_eq!(
            Topology::read(amd(0, 0x400f, 1 << 8)),
            None,
            "before the leaf had this meaning"
        );
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
