//! Answers that are ready before the guest asks.

use arch::machine::{CpuidResult, Machine};

use super::bits::bits;
use super::{Asker, CR4_OSXSAVE, CpuidPolicy};
use crate::counters::ExitCounters;

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
}
