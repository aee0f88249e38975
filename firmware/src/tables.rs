//! From the RSDP to the tables (ACPI Specification, "Root System Description Pointer (RSDP)",
//! "Root System Description Table (RSDT)", "Extended System Description Table (XSDT)").
//!
//! Invariant: every table in [`Tables`] lies in readable memory from end to end, with a length that
//! has room for its header.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use arch::Hpa;
use arch::bytes::{u16_at, u32_at, u64_at};

use crate::Memory;

/// Length of the header that all tables begin with ("System Description Table Header").
pub(crate) const HEADER: usize = 36;
/// No table of a real machine comes near.
const MAX_TABLE: u32 = 16 << 20;
const RSDP_SIGNATURE: &[u8] = b"RSD PTR ";
/// Length of the RSDP of ACPI 1.0, which the first checksum is over.
const RSDP_FIRST: usize = 20;
/// Length of the RSDP from ACPI 2.0 on.
const RSDP_WHOLE: usize = 36;

/// A signature, as it is written.
pub(crate) type Signature = [u8; 4];

/// What is wrong with a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Damage {
    Null,
    Unreadable(Hpa),
    Length(u32),
    Beyond(Hpa, u32),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("its address is 0"),
            Self::Unreadable(at) => write!(f, "its address {at} is in no memory"),
            Self::Length(length) => {
                write!(f, "it claims a length of {length} bytes, which no such table has")
            }
            Self::Beyond(at, length) => {
                write!(f, "its {length} bytes at {at} reach beyond memory")
            }
        }
    }
}

/// One table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table<'m> {
    pub(crate) bytes: &'m [u8],
}

impl<'m> Table<'m> {
    /// The table at `at`.
    pub(crate) fn at(at: Hpa, memory: Memory<'_, 'm>) -> Result<Self, Damage> {
        if at.as_u64() == 0 {
            return Err(Damage::Null);
        }
        let header = memory(at, HEADER).filter(|header| header.len() == HEADER);
        let header = header.ok_or(Damage::Unreadable(at))?;
        let length = u32_at(header, 4).unwrap_or(0);
        if !(HEADER as u32..=MAX_TABLE).contains(&length) {
            return Err(Damage::Length(length));
        }
        let bytes = memory(at, length as usize).filter(|bytes| bytes.len() == length as usize);
        bytes.map(|bytes| Self { bytes }).ok_or(Damage::Beyond(at, length))
    }

    pub(crate) fn signature(&self) -> Signature {
        self.bytes.first_chunk().copied().unwrap_or_default()
    }

    /// Whether the bytes add up to 0.
    pub(crate) fn adds_up(&self) -> bool {
        sum(self.bytes) == 0
    }
}

/// All tables that can be read.
#[derive(Debug)]
pub(crate) struct Tables<'m> {
    tables: Vec<Table<'m>>,
}

impl<'m> Tables<'m> {
    /// Follows the RSDP at `rsdp`, or else the one in the BIOS area.
    pub(crate) fn find(
        rsdp: Option<Hpa>,
        memory: Memory<'_, 'm>,
        notes: &mut Vec<String>,
    ) -> Result<Self, String> {
        let rsdp = rsdp.or_else(|| search_bios_area(memory)).ok_or_else(|| {
            String::from("the firmware has no ACPI tables: Nexit needs a machine with ACPI")
        })?;
        let first = memory(rsdp, RSDP_FIRST).filter(|bytes| bytes.starts_with(RSDP_SIGNATURE));
        let first = first.ok_or_else(|| {
            format!(
                "at {rsdp} there is no RSDP, so the ACPI tables are not found: update the firmware"
            )
        })?;
        if sum(first) != 0 {
            notes.push(String::from("the RSDP has a wrong checksum; it is used nevertheless"));
        }
        let (root, entry_size) = root(rsdp, first, memory, notes)?;
        let entries = root.bytes.get(HEADER..).unwrap_or(&[]).chunks_exact(entry_size);
        let addresses = entries.map(|entry| u64_at(entry, 0).or(u32_at(entry, 0).map(u64::from)));
        let name = name(root.signature());
        let mut tables = Vec::new();
        for (number, address) in addresses.enumerate() {
            match Table::at(Hpa::new(address.unwrap_or(0)), memory) {
                Ok(table) => tables.push(table),
                Err(damage) => {
                    notes.push(format!("entry {number} of the {name} is left out: {damage}"));
                }
            }
        }
        Ok(Self { tables })
    }

    /// All tables with this signature.
    pub(crate) fn all(&self, signature: Signature) -> impl Iterator<Item = Table<'m>> + '_ {
        self.tables.iter().copied().filter(move |table| table.signature() == signature)
    }

    /// The first table with this signature whose bytes add up to 0; where only a damaged one is there,
    /// that is noted.
    pub(crate) fn sound(&self, signature: Signature, notes: &mut Vec<String>) -> Option<Table<'m>> {
        let sound = self.all(signature).find(Table::adds_up);
        if sound.is_none() && self.all(signature).next().is_some() {
            notes.push(format!("the {} is left out: its checksum is wrong", name(signature)));
        }
        sound
    }
}

/// Hands `each` the bytes of the RSDP, of the root tables, and of every table that they and the FADT lead
/// to, with their addresses.
pub fn each_table<'m>(
    rsdp: Option<Hpa>,
    memory: Memory<'_, 'm>,
    each: &mut dyn FnMut(Hpa, &'m [u8]),
) {
    /// No machine has as many tables.
    const MAX_ENTRIES: usize = 1024;
    let Some(rsdp) = rsdp.or_else(|| search_bios_area(memory)) else { return };
    let Some(first) = memory(rsdp, RSDP_FIRST) else { return };
    let whole = memory(rsdp, RSDP_WHOLE).filter(|_| first.get(15).is_some_and(|it| *it >= 2));
    each(rsdp, whole.unwrap_or(first));
    let xsdt = whole.and_then(|whole| u64_at(whole, 24));
    let rsdt = u32_at(first, 16).map(u64::from);
    let mut known: Vec<Hpa> = Vec::new();
    for (root, entry_size) in [(xsdt, 8), (rsdt, 4)] {
        let root = Hpa::new(root.unwrap_or(0));
        let Ok(table) = Table::at(root, memory) else { continue };
        each(root, table.bytes);
        let entries = table.bytes.get(HEADER..).unwrap_or(&[]).chunks_exact(entry_size);
        for entry in entries.take(MAX_ENTRIES) {
            let at = Hpa::new(u64_at(entry, 0).or(u32_at(entry, 0).map(u64::from)).unwrap_or(0));
            let Ok(table) = Table::at(at, memory) else { continue };
            let fadt = Some(table.bytes).filter(|_| table.signature() == *b"FACP");
            let dsdt = fadt.and_then(crate::fadt::read).and_then(|fadt| fadt.dsdt);
            for at in core::iter::once(at).chain(dsdt).filter(|at| !known.contains(at)) {
                if let Ok(table) = Table::at(at, memory) {
                    each(at, table.bytes);
                }
            }
            known.extend(core::iter::once(at).chain(dsdt));
        }
    }
}

/// The XSDT, or where it cannot be used the RSDT; and the size of its entries.
fn root<'m>(
    rsdp: Hpa,
    first: &[u8],
    memory: Memory<'_, 'm>,
    notes: &mut Vec<String>,
) -> Result<(Table<'m>, usize), String> {
    let revision = first.get(15).copied().unwrap_or(0);
    if revision >= 2 {
        let whole = memory(rsdp, RSDP_WHOLE).unwrap_or(&[]);
        match root_table(u64_at(whole, 24).unwrap_or(0), *b"XSDT", memory, notes) {
            Ok(table) => return Ok((table, 8)),
            Err(why) => notes.push(format!("the RSDT is used, as the XSDT cannot be: {why}")),
        }
    }
    let address = u64::from(u32_at(first, 16).unwrap_or(0));
    root_table(address, *b"RSDT", memory, notes)
        .map(|table| (table, 4))
        .map_err(|why| format!("the firmware's RSDT cannot be used: {why}; update the firmware"))
}

fn root_table<'m>(
    address: u64,
    signature: Signature,
    memory: Memory<'_, 'm>,
    notes: &mut Vec<String>,
) -> Result<Table<'m>, String> {
    let table = Table::at(Hpa::new(address), memory).map_err(|damage| format!("{damage}"))?;
    if table.signature() != signature {
        return Err(format!("what lies at {address:#x} has another signature"));
    }
    if !table.adds_up() {
        let name = name(signature);
        notes.push(format!("the {name} has a wrong checksum; it is used nevertheless"));
    }
    Ok(table)
}

/// The RSDP of a BIOS (ACPI Specification, "Finding the RSDP on IA-PC Systems").
fn search_bios_area(memory: Memory<'_, '_>) -> Option<Hpa> {
    const EBDA_SEGMENT: Hpa = Hpa::new(0x40e);
    const LOWEST_EBDA: u64 = 0x8_0000;
    const CONVENTIONAL_END: u64 = 0xa_0000;
    let ebda = memory(EBDA_SEGMENT, 2).and_then(|bytes| u16_at(bytes, 0)).unwrap_or(0);
    let ebda = u64::from(ebda) << 4;
    let is_ebda = (LOWEST_EBDA..CONVENTIONAL_END - 1024).contains(&ebda);
    let ebda = if is_ebda { ebda..ebda + 1024 } else { 0..0 };
    let mut places = ebda.chain(0xe_0000..0x10_0000).step_by(16);
    places.find_map(|at| {
        let bytes = memory(Hpa::new(at), RSDP_FIRST)?;
        (bytes.starts_with(RSDP_SIGNATURE) && sum(bytes) == 0).then_some(Hpa::new(at))
    })
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// How people call the table.
pub(crate) fn name(signature: Signature) -> String {
    match &signature {
        b"APIC" => String::from("MADT"),
        b"FACP" => String::from("FADT"),
        _ => String::from_utf8_lossy(&signature).into_owned(),
    }
}
