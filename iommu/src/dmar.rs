//! The firmware's DMA remapping reporting table (VT-d specification "BIOS Considerations").
//!
//! Invariant: a [`Dmar`] has been checked from end to end, so that its iterators meet whole structures
//! only and end. Nothing in the bytes is trusted before that.

use core::fmt;
use core::ops::RangeInclusive;

use arch::address::HpaRange;
use arch::bytes::{u16_at, u32_at, u64_at};
use arch::{Bdf, Hpa};

/// Gives the buses behind a PCI bridge (secondary to subordinate), from its configuration space;
/// `None` for what is no bridge.
pub type Bridges<'a> = &'a (dyn Fn(Bdf) -> Option<RangeInclusive<u8>> + Sync);

/// Length of the table before its first structure.
const HEADER: usize = 48;
const DRHD: u16 = 0;
const RMRR: u16 = 1;
const SCOPE_BRIDGE: u8 = 2;
const SCOPE_ENDPOINT: u8 = 1;
const SCOPE_IO_APIC: u8 = 3;

/// What is wrong with a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DmarError {
    /// The table is longer than the bytes that hold it, or too short to be one.
    Truncated {
        /// Bytes that there are.
        bytes: usize,
        /// Bytes that there should be.
        length: usize,
    },
    /// The signature is not `DMAR`.
    WrongSignature,
    /// The bytes do not add up to 0.
    WrongChecksum,
    /// The structure at this offset is too short, or reaches beyond the table.
    WrongStructure {
        /// Offset in the table.
        offset: usize,
        /// Length that it claims.
        length: usize,
    },
    /// A device scope of the structure at this offset is too short, or reaches beyond it.
    WrongScope {
        /// Offset of the structure in the table.
        offset: usize,
    },
    /// The table names no remapping unit.
    NoUnit,
}

impl fmt::Display for DmarError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the firmware's DMAR table cannot be used: ")?;
        match self {
            Self::Truncated { bytes, length } => {
                write!(f, "it has {bytes} bytes where {length} are needed")?;
            }
            Self::WrongSignature => f.write_str("its signature is not DMAR")?,
            Self::WrongChecksum => f.write_str("its checksum is wrong")?,
            Self::WrongStructure { offset, length } => {
                write!(f, "the structure at offset {offset} claims {length} bytes")?;
            }
            Self::WrongScope { offset } => {
                write!(f, "the structure at offset {offset} has a device scope of a wrong length")?;
            }
            Self::NoUnit => f.write_str("it names no remapping unit")?,
        }
        f.write_str("; update the firmware")
    }
}

impl core::error::Error for DmarError {}

/// A checked DMAR table.
#[derive(Clone, Copy, Debug)]
pub struct Dmar<'a> {
    /// All bytes of the table, header included.
    table: &'a [u8],
}

/// A remapping unit (DRHD, "DMA Remapping Hardware Unit Definition Structure").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Drhd<'a> {
    /// It covers every function of its segment that no other unit names.
    pub include_all: bool,
    /// PCI segment.
    pub segment: u16,
    /// Where its registers are.
    pub registers: Hpa,
    scopes: &'a [u8],
}

/// A device scope entry ("Device Scope Structure").
#[derive(Clone, Copy, Debug)]
struct Scope<'a> {
    kind: u8,
    /// For an I/O APIC its identifier.
    enumeration: u8,
    start_bus: u8,
    /// Device and function, for each hop.
    path: &'a [u8],
}

impl Scope<'_> {
    /// The function that the path leads to.
    fn resolve(&self, bridges: Bridges<'_>) -> Option<Bdf> {
        let mut bus = self.start_bus;
        let mut hops = self.path.chunks_exact(2).peekable();
        loop {
            let &[device, function] = hops.next()? else { return None };
            let target = Bdf::new(bus, device, function);
            if hops.peek().is_none() {
                return Some(target);
            }
            bus = *bridges(target)?.start();
        }
    }

    fn covers(&self, function: Bdf, bridges: Bridges<'_>) -> bool {
        let Some(target) = self.resolve(bridges) else { return false };
        match self.kind {
            SCOPE_ENDPOINT => target == function,
            SCOPE_BRIDGE => {
                target == function
                    || bridges(target).is_some_and(|buses| buses.contains(&function.bus()))
            }
            _ => false,
        }
    }
}

impl<'a> Dmar<'a> {
    /// Checks the table.
    ///
    /// # Errors
    /// When a length, the signature or the checksum is wrong, or the table names no unit.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DmarError> {
        let length = u32_at(bytes, 4).map_or(HEADER, |length| (length as usize).max(HEADER));
        let truncated = DmarError::Truncated { bytes: bytes.len(), length };
        let table = bytes.get(..length).ok_or(truncated)?;
        if !table.starts_with(b"DMAR") {
            return Err(DmarError::WrongSignature);
        }
        if table.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)) != 0 {
            return Err(DmarError::WrongChecksum);
        }
        let mut offset = HEADER;
        while offset < table.len() {
            let structure = structure_at(table, offset)?;
            if let Some(first) = first_scope(u16_at(structure, 0)) {
                let scopes = structure.get(first..);
                let wrong = DmarError::WrongScope { offset };
                check_scopes(scopes.ok_or(wrong)?).ok_or(wrong)?;
            }
            offset += structure.len();
        }
        let dmar = Self { table };
        dmar.units().next().map(|_| dmar).ok_or(DmarError::NoUnit)
    }

    /// Whether the platform supports interrupt remapping (flag `INTR_REMAP`).
    #[must_use]
    pub fn interrupt_remapping(&self) -> bool {
        self.table.get(37).is_some_and(|flags| flags & 1 != 0)
    }

    /// All remapping units, in the table's order.
    pub fn units(&self) -> impl Iterator<Item = Drhd<'a>> + use<'a> {
        self.structures(DRHD).filter_map(|structure| {
            Some(Drhd {
                include_all: structure.get(4)? & 1 != 0,
                segment: u16_at(structure, 6)?,
                registers: Hpa::new(u64_at(structure, 8)?),
                scopes: structure.get(16..)?,
            })
        })
    }

    /// The unit that remaps `function` (of segment 0): the one that names it or a bridge above it,
    /// else the one that covers all others.
    #[must_use]
    pub fn drhd_for(&self, function: Bdf, bridges: Bridges<'_>) -> Option<Drhd<'a>> {
        let mut units = self.units().filter(|unit| unit.segment == 0);
        let named = units.find(|unit| {
            !unit.include_all && scopes(unit.scopes).any(|scope| scope.covers(function, bridges))
        });
        let mut others = self.units().filter(|unit| unit.segment == 0 && unit.include_all);
        named.or_else(|| others.next())
    }

    /// The requester that the interrupts of the I/O APIC with identifier `id` carry.
    #[must_use]
    pub fn ioapic_requester(&self, id: u8, bridges: Bridges<'_>) -> Option<Bdf> {
        self.units()
            .filter(|unit| unit.segment == 0)
            .flat_map(|unit| scopes(unit.scopes))
            .find(|scope| scope.kind == SCOPE_IO_APIC && scope.enumeration == id)?
            .resolve(bridges)
    }

    /// Memory that the firmware wants `function` to keep reaching (RMRR, "Reserved Memory Region
    /// Reporting Structure"). Such a function cannot be assigned.
    #[must_use]
    pub fn rmrr_for(&self, function: Bdf, bridges: Bridges<'_>) -> Option<HpaRange> {
        self.structures(RMRR).find_map(|structure| {
            let (start, last) = (u64_at(structure, 8)?, u64_at(structure, 16)?);
            let named = u16_at(structure, 6)? == 0
                && scopes(structure.get(24..)?).any(|scope| scope.covers(function, bridges));
            let length = last.saturating_sub(start).saturating_add(1);
            named.then_some(HpaRange { start: Hpa::new(start), length })
        })
    }

    fn structures(&self, kind: u16) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let table = self.table;
        let mut offset = HEADER;
        core::iter::from_fn(move || {
            let structure = structure_at(table, offset).ok()?;
            offset += structure.len();
            Some(structure)
        })
        .filter(move |structure| u16_at(structure, 0) == Some(kind))
    }
}

/// Where the device scopes of a structure of this kind begin; `None` for the kinds that are skipped.
fn first_scope(kind: Option<u16>) -> Option<usize> {
    match kind? {
        DRHD => Some(16),
        RMRR => Some(24),
        _ => None,
    }
}

fn structure_at(table: &[u8], offset: usize) -> Result<&[u8], DmarError> {
    let rest = table.get(offset..).unwrap_or(&[]);
    let length = u16_at(rest, 2).map_or(0, usize::from);
    let wrong = DmarError::WrongStructure { offset, length };
    if length < 4 { Err(wrong) } else { rest.get(..length).ok_or(wrong) }
}

/// The first scope and the bytes behind it.
fn split_scope(bytes: &[u8]) -> Option<(Scope<'_>, &[u8])> {
    let length = usize::from(*bytes.get(1)?);
    let (scope, rest) = bytes.split_at_checked(length)?;
    let path = scope.get(6..).filter(|path| !path.is_empty() && path.len().is_multiple_of(2))?;
    let (kind, enumeration, start_bus) = (*scope.first()?, *scope.get(4)?, *scope.get(5)?);
    Some((Scope { kind, enumeration, start_bus, path }, rest))
}

fn check_scopes(mut bytes: &[u8]) -> Option<()> {
    while !bytes.is_empty() {
        (_, bytes) = split_scope(bytes)?;
    }
    Some(())
}

fn scopes(mut bytes: &[u8]) -> impl Iterator<Item = Scope<'_>> {
    core::iter::from_fn(move || {
        let (scope, rest) = split_scope(bytes)?;
        bytes = rest;
        Some(scope)
    })
}

#[cfg(test)]
pub(crate) mod tests;
