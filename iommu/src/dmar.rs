//! The firmware's DMA remapping reporting table (VT-d specification "BIOS Considerations").
//!
//! Invariant: a [`Dmar`] has been checked from end to end, so that its iterators see only complete structures
//! and terminate. No byte is trusted before that. Incomplete structures are ignored and counted
//! ([`Dmar::left_out`]), unless one could be a unit: a unit that stays off lets every function behind
//! it reach all memory.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::ops::RangeInclusive;

use arch::address::HpaRange;
use arch::bytes::{u16_at, u32_at, u64_at};
use arch::iommu::IommuError;
use arch::{Bdf, Hpa};

/// Returns the buses behind a PCI bridge (secondary to subordinate), from its configuration space;
/// `None` if the function is not a bridge.
pub type Bridges<'a> = &'a (dyn Fn(Bdf) -> Option<RangeInclusive<u8>> + Sync);

/// As far as a unit's fault records can lie ("Fault Recording Registers").
pub const UNIT_REGISTERS: u64 = 0x5000;
/// Length of the table before its first structure.
const HEADER: usize = 48;
const DRHD: u16 = 0;
const RMRR: u16 = 1;
const SCOPE_BRIDGE: u8 = 2;
const SCOPE_ENDPOINT: u8 = 1;
const SCOPE_IO_APIC: u8 = 3;

/// A problem of a table.
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
    /// A device scope of the unit at this offset is too short, or reaches beyond it.
    WrongScope {
        /// Offset of the structure in the table.
        offset: usize,
    },
    /// A unit's registers cannot be there.
    WrongRegisters(Hpa),
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
                write!(f, "the unit at offset {offset} has a device scope of a wrong length")?;
            }
            Self::WrongRegisters(at) => {
                write!(f, "it names a unit whose registers are at {at} (is VT-d off in setup?)")?;
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
    /// All bytes of the table up to the end of its last whole structure, header included.
    table: &'a [u8],
    /// Parts that are not whole.
    left_out: usize,
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
    /// Of the structure that it stands in.
    segment: u16,
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
            let target = Bdf::new(bus, device, function).in_segment(self.segment);
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
                    || target.segment() == function.segment()
                        && bridges(target).is_some_and(|buses| buses.contains(&function.bus()))
            }
            _ => false,
        }
    }
}

impl<'a> Drhd<'a> {
    fn scopes(&self) -> impl Iterator<Item = Scope<'a>> + use<'a> {
        scopes(self.segment, self.scopes)
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
        let mut dmar = Self { table, left_out: 0 };
        let mut offset = HEADER;
        while offset < table.len() {
            match structure_at(table, offset) {
                Ok(structure) => {
                    dmar.check(offset, structure)?;
                    offset += structure.len();
                }
                Err(wrong) if may_hide_a_unit(table.get(offset..)) => return Err(wrong),
                Err(_) => {
                    dmar.left_out += 1;
                    dmar.table = table.get(..offset).unwrap_or(table);
                    break;
                }
            }
        }
        dmar.units().next().map(|_| dmar).ok_or(DmarError::NoUnit)
    }

    fn check(&mut self, offset: usize, structure: &[u8]) -> Result<(), DmarError> {
        let kind = u16_at(structure, 0);
        let Some(first) = first_scope(kind) else { return Ok(()) };
        let scopes = structure.get(first..).ok_or(DmarError::WrongScope { offset })?;
        let wrong = wrong_scopes(scopes);
        if kind == Some(DRHD) {
            let registers = Hpa::new(u64_at(structure, 8).unwrap_or(0));
            if registers.as_u64() == 0 || registers.page_offset() != 0 {
                return Err(DmarError::WrongRegisters(registers));
            }
            if wrong.beyond {
                return Err(DmarError::WrongScope { offset });
            }
        }
        self.left_out += wrong.without_path + usize::from(wrong.beyond);
        Ok(())
    }

    /// How many parts of the table are not whole and were left out: none of them can be a unit.
    #[must_use]
    pub const fn left_out(&self) -> usize {
        self.left_out
    }

    /// Whether the firmware asks that software should not switch x2APIC mode on (flag
    /// `X2APIC_OPT_OUT`).
    #[must_use]
    pub fn x2apic_opt_out(&self) -> bool {
        self.table.get(37).is_some_and(|flags| flags & 2 != 0)
    }

    /// Whether the platform supports interrupt remapping (flag `INTR_REMAP`).
    #[must_use]
    pub fn interrupt_remapping(&self) -> bool {
        self.table.get(37).is_some_and(|flags| flags & 1 != 0)
    }

    /// [`Dmar::interrupt_remapping`] as a question that can be answered with no.
    ///
    /// # Errors
    /// The platform does not.
    pub fn check_remapping(&self) -> Result<(), IommuError> {
        let what = "interrupt remapping, says the firmware's DMAR table: enable it in setup";
        if self.interrupt_remapping() { Ok(()) } else { Err(IommuError::Missing(what)) }
    }

    /// The problem of a unit whose registers would overlap RAM: the end of a sentence.
    #[must_use]
    pub fn unit_in_ram(&self, is_ram: impl Fn(HpaRange) -> bool) -> Option<String> {
        let range = |unit: &Drhd<'_>| HpaRange { start: unit.registers, length: UNIT_REGISTERS };
        let at = self.units().find(|unit| is_ram(range(unit)))?.registers;
        Some(format!("the firmware's DMAR table names a unit at {at}, where RAM is"))
    }

    /// All remapping units, in the table's order.
    pub fn units(&self) -> impl Iterator<Item = Drhd<'a>> + Clone + use<'a> {
        self.structures(DRHD).filter_map(|structure| {
            Some(Drhd {
                include_all: structure.get(4)? & 1 != 0,
                segment: u16_at(structure, 6)?,
                registers: Hpa::new(u64_at(structure, 8)?),
                scopes: structure.get(16..)?,
            })
        })
    }

    /// The unit that remaps `function`: the one of its segment that names it or a bridge above it, else
    /// the one that covers all others there.
    #[must_use]
    pub fn drhd_for(&self, function: Bdf, bridges: Bridges<'_>) -> Option<Drhd<'a>> {
        let mut units = self.units().filter(|unit| unit.segment == function.segment());
        let mut others = units.clone().filter(|unit| unit.include_all);
        let named = units.find(|unit| {
            !unit.include_all && unit.scopes().any(|scope| scope.covers(function, bridges))
        });
        named.or_else(|| others.next())
    }

    /// The requester that the interrupts of the I/O APIC with identifier `id` carry.
    #[must_use]
    pub fn ioapic_requester(&self, id: u8, bridges: Bridges<'_>) -> Option<Bdf> {
        self.units()
            .flat_map(|unit| unit.scopes())
            .find(|scope| scope.kind == SCOPE_IO_APIC && scope.enumeration == id)?
            .resolve(bridges)
    }

    /// The identifiers in this table of the I/O APICs that the MADT lists as `identifiers`, in the same order; `None`
    /// if there is none. They should be equal. If firmware numbers them differently and one remains in each table,
    /// the two are the same.
    #[must_use]
    pub fn ioapic_names(&self, identifiers: &[u8]) -> Vec<Option<u8>> {
        let own: Vec<u8> = self
            .units()
            .flat_map(|unit| unit.scopes())
            .filter(|scope| scope.kind == SCOPE_IO_APIC)
            .map(|scope| scope.enumeration)
            .collect();
        let mut left = own.iter().filter(|name| !identifiers.contains(name));
        let left = left.next().filter(|_| left.next().is_none());
        let strangers = identifiers.iter().filter(|id| !own.contains(id)).count();
        let name =
            |id: &u8| own.contains(id).then_some(*id).or(left.copied().filter(|_| strangers == 1));
        identifiers.iter().map(name).collect()
    }

    /// Memory that the firmware wants `function` to keep reaching (RMRR, "Reserved Memory Region
    /// Reporting Structure"). Such a function cannot be assigned.
    #[must_use]
    pub fn rmrr_for(&self, function: Bdf, bridges: Bridges<'_>) -> Option<HpaRange> {
        self.structures(RMRR).find_map(|structure| {
            let (start, last) = (u64_at(structure, 8)?, u64_at(structure, 16)?);
            let mut scopes = scopes(u16_at(structure, 6)?, structure.get(24..)?);
            let named = scopes.any(|scope| scope.covers(function, bridges));
            let length = last.saturating_sub(start).saturating_add(1);
            named.then_some(HpaRange { start: Hpa::new(start), length })
        })
    }

    fn structures(&self, kind: u16) -> impl Iterator<Item = &'a [u8]> + Clone + use<'a> {
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

/// Offset of the device scopes in a structure of this kind; `None` for kinds that are skipped.
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

/// Whether an incomplete structure, or the bytes after it, could be a unit. Zeroes to the end are not, nor is a
/// structure of another kind whose length exceeds the table.
fn may_hide_a_unit(rest: Option<&[u8]>) -> bool {
    let rest = rest.unwrap_or(&[]);
    let length = u16_at(rest, 2).map_or(0, usize::from);
    let zeroes = rest.iter().all(|byte| *byte == 0);
    let another = u16_at(rest, 0).is_some_and(|kind| kind != DRHD) && length > rest.len();
    !zeroes && !another
}

/// The first scope and the bytes behind it; the path may be empty.
fn split_scope(segment: u16, bytes: &[u8]) -> Option<(Scope<'_>, &[u8])> {
    let length = usize::from(*bytes.get(1)?);
    let (scope, rest) = bytes.split_at_checked(length)?;
    let path = scope.get(6..).filter(|path| path.len().is_multiple_of(2))?;
    let (kind, enumeration, start_bus) = (*scope.first()?, *scope.get(4)?, *scope.get(5)?);
    Some((Scope { kind, enumeration, segment, start_bus, path }, rest))
}

/// Problems of a structure's scopes.
struct WrongScopes {
    /// Scopes that name nothing.
    without_path: usize,
    /// One has an impossible length; it and the following ones are not read.
    beyond: bool,
}

fn wrong_scopes(mut bytes: &[u8]) -> WrongScopes {
    let mut wrong = WrongScopes { without_path: 0, beyond: false };
    while !bytes.is_empty() && !wrong.beyond {
        match split_scope(0, bytes) {
            Some((scope, rest)) => {
                wrong.without_path += usize::from(scope.path.is_empty());
                bytes = rest;
            }
            None => wrong.beyond = true,
        }
    }
    wrong
}

fn scopes(segment: u16, mut bytes: &[u8]) -> impl Iterator<Item = Scope<'_>> {
    core::iter::from_fn(move || {
        let (scope, rest) = split_scope(segment, bytes)?;
        bytes = rest;
        Some(scope)
    })
}

#[cfg(test)]
pub(crate) mod tests;
