//! Which BAR has which guest-physical addresses.
//!
//! Invariant: claims lie inside the guest's PCI windows (never on RAM, ECAM or the APICs) and do
//! not overlap. A guest that puts two BARs in one place reaches the first only.

use alloc::vec::Vec;

use arch::address::PAGE_SIZE;
use arch::{Bdf, Gpa};

use crate::memory_map::GpaRange;

/// A memory BAR: the physical function, and the index of its first register.
pub(super) type WindowOwner = (Bdf, u8);

/// The windows and what is in them.
#[derive(Debug)]
pub(super) struct Windows {
    windows: Vec<GpaRange>,
    claims: Vec<(WindowOwner, GpaRange)>,
}

impl Windows {
    /// Empty windows; up to `most` claims are made without allocating.
    pub(super) fn new(windows: Vec<GpaRange>, most: usize) -> Self {
        Self { windows, claims: Vec::with_capacity(most) }
    }

    /// Whether all of `range` lies in one window.
    pub(super) fn contain(&self, range: GpaRange) -> bool {
        self.windows.iter().any(|window| window.contains(range))
    }

    /// A place for a BAR of `size` bytes that has whole pages to itself and shares no byte with
    /// `taken`.
    pub(super) fn vacant(&self, size: u64, taken: &[GpaRange]) -> Option<Gpa> {
        let length = size.max(PAGE_SIZE);
        self.windows.iter().find_map(|window| {
            let mut from = window.start.as_u64();
            loop {
                let start = Gpa::new(from.checked_next_multiple_of(length)?);
                let place = GpaRange { start, length };
                if !window.contains(place) {
                    return None;
                }
                match taken.iter().find(|taken| taken.overlaps(place)) {
                    Some(taken) => from = taken.end(),
                    None => return Some(start),
                }
            }
        })
    }

    /// Makes room for `further` claims.
    pub(super) fn reserve(&mut self, further: usize) {
        self.claims.reserve(self.claims.len() + further);
    }

    /// Takes away what `owner` has and wants no more, or gives it what it wants now: what is to be
    /// unmapped or mapped, if anything.
    pub(super) fn sync_mapping(
        &mut self,
        owner: WindowOwner,
        wanted: Option<GpaRange>,
        give: bool,
    ) -> Option<GpaRange> {
        if give {
            return wanted.filter(|place| self.claim(owner, *place));
        }
        let place = self.claimed(owner).filter(|place| wanted != Some(*place))?;
        self.release(owner);
        Some(place)
    }

    /// Where `owner` is.
    fn claimed(&self, owner: WindowOwner) -> Option<GpaRange> {
        self.claims.iter().find(|claim| claim.0 == owner).map(|claim| claim.1)
    }

    /// Gives `range` to `owner`; `false` where it cannot be there or is somewhere already.
    fn claim(&mut self, owner: WindowOwner, range: GpaRange) -> bool {
        let taken = |claim: &(WindowOwner, GpaRange)| claim.0 == owner || claim.1.overlaps(range);
        let free = self.contain(range) && !self.claims.iter().any(taken);
        if free {
            self.claims.push((owner, range));
        }
        free
    }

    /// Takes away what `owner` has.
    fn release(&mut self, owner: WindowOwner) {
        self.claims.retain(|claim| claim.0 != owner);
    }

    /// Whose `gpa` is, and the offset from that BAR's start.
    pub(super) fn find(&self, gpa: Gpa) -> Option<(WindowOwner, u64)> {
        let at = gpa.as_u64();
        let (owner, range) =
            self.claims.iter().find(|(_, r)| (r.start.as_u64()..r.end()).contains(&at))?;
        Some((*owner, at - range.start.as_u64()))
    }
}
