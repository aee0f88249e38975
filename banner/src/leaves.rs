//! Every leaf of CPUID that says something.

use arch::machine::CpuidResult;

use crate::Cpuid;

/// More leaves of a range, and more subleaves of a leaf, than any CPU has.
const MAX_LEAVES: u32 = 0x40;

/// Hands `each` every leaf and subleaf that is not all zero (SDM "CPUID—CPU Identification"; APM volume 3,
/// "CPUID Instruction"; leaves from 0x40000000 on are those of a hypervisor below).
pub fn leaves(cpuid: impl Cpuid, each: &mut dyn FnMut(u32, u32, CpuidResult)) {
    const HYPERVISOR: u32 = 1 << 31;
    let below = cpuid(1, 0).ecx & HYPERVISOR != 0;
    for (first, is_there) in [(0, true), (0x4000_0000, below), (0x8000_0000, true)] {
        let last = if is_there { cpuid(first, 0).eax } else { 0 };
        if last < first {
            continue;
        }
        for leaf in first..=last.min(first + MAX_LEAVES) {
            for subleaf in 0..MAX_LEAVES {
                let answer = cpuid(leaf, subleaf);
                if answer != CpuidResult::default() {
                    each(leaf, subleaf, answer);
                }
                if is_last(leaf, subleaf, answer, cpuid(leaf, 0)) {
                    break;
                }
            }
        }
    }
}

/// Whether no subleaf comes behind this one. `first` is subleaf 0.
fn is_last(leaf: u32, subleaf: u32, answer: CpuidResult, first: CpuidResult) -> bool {
    match leaf {
        // Caches, until there is no more.
        4 | 0x8000_001d => answer.eax & 0x1f == 0,
        // Levels of the topology, until there is no more.
        0xb | 0x1f | 0x8000_0026 => answer.ecx & 0xff00 == 0,
        // Subleaf 0 says how many.
        7 | 0x14 | 0x17 | 0x18 | 0x1d | 0x20 | 0x23 | 0x24 => subleaf >= first.eax,
        // A bit for each component of the state.
        0xd => subleaf + 1 >= MAX_LEAVES,
        // A bit for each resource.
        0xf | 0x10 | 0x12 => subleaf >= 3,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(cpuid: impl Cpuid) -> Vec<(u32, u32)> {
        let mut found = Vec::new();
        leaves(cpuid, &mut |leaf, subleaf, _| found.push((leaf, subleaf)));
        found
    }

    #[test]
    fn leaves_are_read_as_far_as_they_say_something() {
        let cpuid = |leaf: u32, subleaf: u32| CpuidResult {
            eax: match (leaf, subleaf) {
                (0, _) => 0xb,
                (4, 0..3) => 1,
                (7, 0) => 1,
                (0xb, 0..2) => 5,
                (0x8000_0000, _) => 0x8000_0001,
                _ => 0,
            },
            ebx: u32::from(matches!(leaf, 1 | 7 | 0x8000_0001 | 0x8000_0002)),
            ecx: if leaf == 0xb && subleaf < 2 { (subleaf + 1) << 8 } else { 0 },
            edx: 0,
        };
        let expected = [
            (0, 0),
            (1, 0),
            (4, 0),
            (4, 1),
            (4, 2),
            (7, 0),
            (7, 1),
            (0xb, 0),
            (0xb, 1),
            (0x8000_0000, 0),
            (0x8000_0001, 0),
        ];
        assert_eq!(found(cpuid), expected);
    }

    #[test]
    fn a_cpu_that_says_ones_everywhere_ends_too() {
        let ones = u32::MAX;
        let cpuid = |_: u32, _: u32| CpuidResult { eax: ones, ebx: ones, ecx: ones, edx: ones };
        assert!(found(cpuid).len() < 3 * 65 * 64);
        assert!(found(|_, _| CpuidResult::default()).is_empty());
    }
}
