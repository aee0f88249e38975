//! Checks the addresses in BARs, which are claims until then.
//!
//! Invariant: a function that passes [`Claims::check`] decodes no byte that has another owner, and only addresses that its
//! bridges forward to it.

use alloc::vec::Vec;
use core::fmt;

use arch::Bdf;
use arch::address::HpaRange;
use arch::machine::ConfigSpace;
use arch::msr::PortRange;

use crate::bar::Bar;
use crate::header::{Function, HeaderType};
use crate::record::Record;
use crate::window::Windows;

/// The owners of addresses that no BAR may claim; the strings end a sentence.
#[derive(Clone, Debug, Default)]
pub struct Owners {
    pub memory: Vec<(HpaRange, &'static str)>,
    pub ports: Vec<(PortRange, &'static str)>,
}

/// The BARs of all functions, and the owners of all other addresses.
#[derive(Clone, Debug)]
pub struct Claims {
    records: Vec<Record>,
    bridges: Vec<Bridge>,
    owners: Owners,
}

/// A bridge, and the addresses that it forwards to the buses behind it.
#[derive(Clone, Debug)]
struct Bridge {
    bdf: Bdf,
    buses: core::ops::RangeInclusive<u8>,
    windows: Windows,
}

/// Why a function cannot be given to a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadClaim {
    pub function: Bdf,
    pub bar: Bar,
    /// The problem with that.
    pub problem: Problem,
}

/// A problem of a BAR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Problem {
    /// It overlaps this, from its first address to its last.
    Owned(&'static str, u64, u64),
    /// It overlaps a BAR of this function.
    OtherBar(Bdf, u8),
    /// It lies outside of what this bridge sends on.
    OutsideBridge(Bdf),
}

impl fmt::Display for BadClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bdf, Bar { index, base, .. }) = (self.function, self.bar);
        let last = last(&self.bar);
        let what = if self.bar.is_memory() { "memory" } else { "ports" };
        write!(f, "{bdf} cannot be assigned: its BAR {index} ({what} {base:#x} to {last:#x}) ")?;
        match self.problem {
            Problem::Owned(who, first, last) => {
                write!(f, "overlaps {who} ({first:#x} to {last:#x})")?
            }
            Problem::OtherBar(other, index) => write!(f, "overlaps BAR {index} of {other}")?,
            Problem::OutsideBridge(bridge) => {
                write!(f, "is not in a window of its bridge {bridge}")?
            }
        }
        f.write_str(": update the firmware, or leave the device out")
    }
}

impl core::error::Error for BadClaim {}

/// Last address of a BAR; its size is not 0 and its end within 64 bits.
const fn last(bar: &Bar) -> u64 {
    bar.base + (bar.size - 1)
}

const fn overlap(bar: &Bar, first: u64, end: u64) -> bool {
    bar.base <= end && first <= last(bar)
}

impl Claims {
    /// Records the BARs of all functions, which are quiet, and reads the windows of their bridges.
    pub fn record(space: &mut impl ConfigSpace, functions: &[Function], owners: Owners) -> Self {
        let bridges = functions.iter().filter_map(|function| match function.header {
            HeaderType::Bridge { secondary: secondary @ 1.., subordinate } => Some(Bridge {
                bdf: function.bdf,
                buses: secondary..=subordinate,
                windows: Windows::read(space, function),
            }),
            HeaderType::Device | HeaderType::Bridge { .. } | HeaderType::Unknown(_) => None,
        });
        let bridges = bridges.collect();
        let records = functions.iter().map(|function| Record::take(space, function)).collect();
        Self { records, bridges, owners }
    }

    /// The record of a function.
    #[must_use]
    pub fn of(&self, function: Bdf) -> Option<&Record> {
        self.records.iter().find(|record| record.function == function)
    }

    /// Whether a guest may have the addresses of the BARs of `function`. A BAR without an address claims none.
    ///
    /// # Errors
    /// Names the first BAR that claims addresses with another owner.
    pub fn check(&self, function: Bdf) -> Result<(), BadClaim> {
        let Some(record) = self.of(function) else { return Ok(()) };
        for bar in record.bars.iter().flatten().filter(|bar| bar.base != 0) {
            let problem = self
                .owner(bar)
                .or_else(|| self.other_bar(record, bar))
                .or_else(|| self.bridge_around(function, bar));
            if let Some(problem) = problem {
                return Err(BadClaim { function, bar: *bar, problem });
            }
        }
        Ok(())
    }

    /// The I/O BAR that has one of `ports`, if its function is not among `own`.
    #[must_use]
    pub fn port_bar(&self, ports: PortRange, own: &[Bdf]) -> Option<(Bdf, Bar)> {
        let others = self.records.iter().filter(|record| !own.contains(&record.function));
        let mut bars =
            others.flat_map(|it| it.bars.into_iter().flatten().map(|bar| (it.function, bar)));
        bars.find(|(_, bar)| {
            !bar.is_memory() && bar.base != 0 && overlap(bar, ports.first.into(), ports.last.into())
        })
    }

    fn owner(&self, bar: &Bar) -> Option<Problem> {
        let owned = |first: u64, last: u64, who| {
            overlap(bar, first, last).then_some(Problem::Owned(who, first, last))
        };
        if bar.is_memory() {
            let mut memory = self.owners.memory.iter().filter(|(range, _)| range.length > 0);
            memory.find_map(|(range, who)| {
                let first = range.start.as_u64();
                owned(first, first.saturating_add(range.length - 1), *who)
            })
        } else {
            let mut ports = self.owners.ports.iter();
            ports.find_map(|(range, who)| owned(range.first.into(), range.last.into(), *who))
        }
    }

    /// Two BARs are in each other's way if at least one of them is decoded, or if it is unknown which will be. A BAR that is
    /// not decoded may hold any value.
    fn other_bar(&self, own: &Record, bar: &Bar) -> Option<Problem> {
        for other in &self.records {
            for theirs in other.bars.iter().flatten().filter(|theirs| theirs.base != 0) {
                let same = (other.function, theirs.index) == (own.function, bar.index);
                let counts = other.decodes(theirs) || !own.decodes(bar);
                let kin = theirs.is_memory() == bar.is_memory();
                if !same && counts && kin && overlap(bar, theirs.base, last(theirs)) {
                    return Some(Problem::OtherBar(other.function, theirs.index));
                }
            }
        }
        None
    }

    /// A bridge above the function that does not send all of the BAR to it.
    fn bridge_around(&self, function: Bdf, bar: &Bar) -> Option<Problem> {
        let above = |bridge: &&Bridge| {
            bridge.bdf.segment() == function.segment() && bridge.buses.contains(&function.bus())
        };
        let mut closed = self.bridges.iter().filter(above);
        closed
            .find(|bridge| !bridge.windows.contain(bar.is_memory(), bar.base, last(bar)))
            .map(|bridge| Problem::OutsideBridge(bridge.bdf))
    }
}

#[cfg(test)]
mod tests;
