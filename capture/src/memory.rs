//! Memory with the ACPI tables of a capture in it, for `firmware`.
//!
//! Where the capture has the RSDP, and where it leads to, every table is where the machine has it, so that
//! what is wrong with pointers is seen. Else (Linux names neither) an RSDP and an XSDT are made that lead
//! to the tables, and tables without an address get one where no memory is.

use std::collections::BTreeMap;

use arch::Hpa;
use arch::bytes::{u32_at, u64_at};

use crate::Table;

/// What an RSDP begins with.
pub(crate) const RSDP_SIGNATURE: &[u8] = b"RSD PTR ";
/// Length of the header that all tables begin with.
const HEADER: usize = 36;
/// Above all memory that machines have.
const MADE_UP: u64 = 1 << 45;

/// The tables by their addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableMemory {
    pieces: BTreeMap<u64, Vec<u8>>,
    rsdp: u64,
}

impl TableMemory {
    /// Each at its own place, where they say where that is and lead to one another; or else at made-up places.
    #[must_use]
    pub fn new(tables: &[Table]) -> Self {
        Self::as_found(tables).unwrap_or_else(|| Self::made_up(tables))
    }

    /// Where the RSDP is.
    #[must_use]
    pub fn rsdp(&self) -> Hpa {
        Hpa::new(self.rsdp)
    }

    /// `length` bytes at `at`, if they all are there.
    #[must_use]
    pub fn bytes(&self, at: Hpa, length: usize) -> Option<&[u8]> {
        let at = at.as_u64();
        let (start, piece) = self.pieces.range(..=at).next_back()?;
        let from = usize::try_from(at - start).ok()?;
        piece.get(from..from.checked_add(length)?)
    }

    /// What the firmware's tables say.
    ///
    /// # Errors
    /// As [`firmware::PlatformTables::read`].
    pub fn platform(&self) -> Result<firmware::PlatformTables, firmware::FirmwareError> {
        firmware::PlatformTables::read(Some(self.rsdp()), &|at, length| self.bytes(at, length))
    }

    /// Each at its own place, if all have one and the RSDP leads to a root table there.
    fn as_found(tables: &[Table]) -> Option<Self> {
        let placed = |table: &Table| Some((table.address?, table.bytes.0.clone()));
        let pieces: BTreeMap<u64, Vec<u8>> = tables.iter().map(placed).collect::<Option<_>>()?;
        let (rsdp, bytes) = pieces.iter().find(|(_, bytes)| bytes.starts_with(RSDP_SIGNATURE))?;
        let root = |at: Option<u64>| at.is_some_and(|at| pieces.contains_key(&at));
        let leads = root(u64_at(bytes, 24)) || root(u32_at(bytes, 16).map(u64::from));
        let rsdp = *rsdp;
        leads.then_some(Self { pieces, rsdp })
    }

    fn made_up(tables: &[Table]) -> Self {
        let mut memory = Self { pieces: BTreeMap::new(), rsdp: MADE_UP };
        let mut next = MADE_UP + 0x1_0000;
        let mut entries = Vec::new();
        let is_root = |bytes: &[u8]| {
            [RSDP_SIGNATURE, b"RSDT", b"XSDT"].iter().any(|root| bytes.starts_with(root))
        };
        let dsdt = tables.iter().find_map(|table| dsdt_of(&table.bytes.0));
        for table in tables.iter().filter(|table| !is_root(&table.bytes.0)) {
            let bytes = table.bytes.0.clone();
            let is_dsdt = bytes.starts_with(b"DSDT");
            let own = if is_dsdt { table.address.or(dsdt) } else { table.address };
            let at = own.filter(|at| *at != 0).unwrap_or(next);
            if own.is_none() {
                next = (next + bytes.len().max(HEADER) as u64).next_multiple_of(64);
            }
            // The XSDT does not name the DSDT and the FACS; the FADT does.
            if !is_dsdt && !bytes.starts_with(b"FACS") {
                entries.extend(at.to_le_bytes());
            }
            memory.pieces.insert(at, bytes);
        }
        memory.add_root(&entries);
        memory
    }

    fn add_root(&mut self, entries: &[u8]) {
        let root = MADE_UP + 0x100;
        let mut xsdt = vec![0; HEADER];
        xsdt[..4].copy_from_slice(b"XSDT");
        xsdt[8] = 1;
        xsdt.extend(entries);
        let length = xsdt.len() as u32;
        xsdt[4..8].copy_from_slice(&length.to_le_bytes());
        xsdt[9] = complement(&xsdt);
        self.pieces.insert(root, xsdt);
        let mut rsdp = RSDP_SIGNATURE.to_vec();
        rsdp.extend(*b"\0NEXIT \x02\0\0\0\0");
        rsdp.extend(36_u32.to_le_bytes());
        rsdp.extend(root.to_le_bytes());
        rsdp.extend([0; 4]);
        rsdp[8] = complement(&rsdp[..20]);
        rsdp[32] = complement(&rsdp);
        self.pieces.insert(self.rsdp, rsdp);
    }
}

/// What makes the bytes add up to 0.
fn complement(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte))
}

/// Where a FADT says that the DSDT is (ACPI Specification, "Fixed ACPI Description Table (FADT)": X_DSDT,
/// and DSDT where that is 0 or not there).
fn dsdt_of(table: &[u8]) -> Option<u64> {
    if !table.starts_with(b"FACP") {
        return None;
    }
    let wide = u64_at(table, 140).filter(|at| *at != 0);
    wide.or_else(|| u32_at(table, 40).map(u64::from)).filter(|at| *at != 0)
}
