//! Answers that are ready before the guest asks: guests ask often, and the CPUID of a hypervisor that is
//! itself a guest is an exit of its own.
//!
//! Invariant: a row is what the policy says, but for the two bits that mirror CR4.OSXSAVE (18) and CR4.PKE
//! (22), which are added when the guest asks. XCR0, which leaf 0xD follows, changes by an exit only, which prepares the leaf again.

use alloc::vec;
use alloc::vec::Vec;

use arch::machine::{CpuidResult, Machine};

use super::bits::{APIC, OSPKE, OSXSAVE, PKU};
use super::{CpuidPolicy, EXTENDED_STATE, FEATURES, KVM_BASE, NEXIT_BASE, Vendor};

/// The first 32 leaves of each range have a row.
const ROWS: usize = 128;
/// Of these leaves subleaves are ready, too.
const WITH_SUBLEAVES: [u32; 5] = [4, 7, 0xb, EXTENDED_STATE, 0x8000_001d];
/// Their subleaves from 1 on.
type Further = [CpuidResult; 4];

/// What an answer depends on. In this order two of three are told by one comparison.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
enum Kind {
    /// The leaf alone.
    #[default]
    Constant,
    /// CR4.OSXSAVE.
    Osxsave,
    Subleaf,
    /// The subleaf; in subleaf 0 CR4.PKE.
    SubleafAndOspke,
    /// Whether the CPU is in 64-bit mode: the policy is asked.
    Mode,
}

#[derive(Clone, Copy, Debug, Default)]
struct Row {
    /// In subleaf 0.
    answer: CpuidResult,
    kind: Kind,
    /// Where the other subleaves are, if they are ready.
    further: u32,
}

/// What one vCPU is told.
#[derive(Clone, Debug)]
pub struct Answers {
    /// Not on the stack, which is small.
    rows: Vec<Row>,
    further: [Further; WITH_SUBLEAVES.len()],
    /// Leaves that show a local APIC.
    with_apic: &'static [u32],
}

impl Answers {
    /// What `policy` tells vCPU `vcpu`.
    #[must_use]
    pub fn new(policy: &CpuidPolicy, vcpu: usize, machine: &impl Machine) -> Self {
        let with_apic = if policy.vendor() == Vendor::Amd { &[1, FEATURES][..] } else { &[1] };
        let (rows, further) = (vec![Row::default(); ROWS], Default::default());
        let mut answers = Self { rows, further, with_apic };
        for row in 0..ROWS as u32 {
            answers.prepare(row.rotate_right(2), policy, vcpu, machine);
        }
        answers
    }

    /// Asks the policy for `leaf` once more.
    pub fn prepare(
        &mut self,
        leaf: u32,
        policy: &CpuidPolicy,
        vcpu: usize,
        machine: &impl Machine,
    ) {
        let Some(row) = self.rows.get_mut(row(leaf) as usize) else { return };
        row.answer = policy.answer(leaf, 0, vcpu, machine);
        let place = WITH_SUBLEAVES.iter().position(|with| *with == leaf);
        row.further = place.map_or(u32::MAX, |place| place as u32);
        let further = place.and_then(|place| self.further.get_mut(place));
        row.kind = match leaf {
            1 => Kind::Osxsave,
            7 if row.answer.ecx & PKU != 0 => Kind::SubleafAndOspke,
            FEATURES if policy.vendor() == Vendor::Intel => Kind::Mode,
            0x18 | 0x1d..=0x1f => Kind::Subleaf,
            _ if further.is_some() => Kind::Subleaf,
            _ => Kind::Constant,
        };
        if let Some(further) = further {
            *further = [1, 2, 3, 4].map(|subleaf| policy.answer(leaf, subleaf, vcpu, machine));
        }
    }

    /// Whether a local APIC is shown: not while the guest has switched it off in IA32_APIC_BASE (SDM "Enabling or
    /// Disabling the Local APIC"; APM "Local APIC Enable").
    pub fn show_apic(&mut self, on: bool) {
        for leaf in self.with_apic {
            if let Some(row) = self.rows.get_mut(row(*leaf) as usize) {
                row.answer.edx = row.answer.edx & !APIC | if on { APIC } else { 0 };
            }
        }
    }

    /// The answer, and bits to add to its ECX; `None` where only the policy knows. `cr4` is the guest's.
    ///
    /// If-chain ordered by frequency; measured faster than a jump table.
    #[inline(always)]
    #[must_use]
    pub fn get(
        &self,
        leaf: u32,
        subleaf: impl Fn() -> u32,
        cr4: impl Fn() -> u64,
    ) -> Option<(&CpuidResult, u32)> {
        let number = row(leaf);
        let Some(row) = self.rows.get(number as usize) else {
            // Most are leaves at which guests look for other hypervisors.
            let empty =
                number & row(0xffff_0000) == row(KVM_BASE) && number & row(!1) != row(NEXIT_BASE);
            return empty.then_some((const { &NOTHING }, 0));
        };
        if row.kind < Kind::Osxsave {
            return Some((&row.answer, 0));
        }
        if row.kind == Kind::Osxsave {
            return Some((&row.answer, (cr4() << 9) as u32 & OSXSAVE));
        }
        let subleaf = subleaf();
        if subleaf != 0 {
            let further = self.further.get(row.further as usize)?.get(subleaf as usize - 1)?;
            return Some((further, 0));
        }
        if row.kind < Kind::SubleafAndOspke {
            return Some((&row.answer, 0));
        }
        (row.kind == Kind::SubleafAndOspke).then(|| (&row.answer, (cr4() >> 18) as u32 & OSPKE))
    }
}

const NOTHING: CpuidResult = CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };

/// The number of a leaf's row, if that is below [`ROWS`]: the range, bits 31:30, goes lowest.
const fn row(leaf: u32) -> u32 {
    leaf.rotate_left(2)
}
