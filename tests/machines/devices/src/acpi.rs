//! A DMAR table for a firmware that has none: a new RSDT with one table more, both in a window that only
//! reads (ACPI specification "Root System Description Table"; VT-d specification "DMA Remapping Reporting
//! Structure").

use crate::host::Host;
use crate::io_apic;
use crate::unit::UnitOptions;

/// Where the window is.
pub const WINDOW: u64 = 0xfed8_0000;
/// Bytes of it.
pub const WINDOW_SIZE: usize = 0x1000;
/// Bytes of an RSDP of revision 0, which is Bochs'.
pub const RSDP_SIZE: usize = 20;

const DMAR_OFFSET: usize = 0x800;
const HEADER_SIZE: usize = 36;
const MAX_TABLE: u32 = 0x8000;
const CHECKSUM: usize = 9;

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes)
}

/// Sets length and checksum of a table.
fn finish(table: &mut [u8]) {
    let length = table.len() as u32;
    if let Some(place) = table.get_mut(4..8) {
        place.copy_from_slice(&length.to_le_bytes());
    }
    table[CHECKSUM] = 0;
    table[CHECKSUM] = 0u8.wrapping_sub(sum(table));
}

fn read_table(host: &mut dyn Host, at: u32, signature: &[u8; 4]) -> Option<Vec<u8>> {
    let mut table = vec![0; HEADER_SIZE];
    let known = host.read(at.into(), &mut table) && table.starts_with(signature);
    let length = word(&table, 4)
        .filter(|length| known && (HEADER_SIZE as u32..=MAX_TABLE).contains(length))?;
    table.resize(length as usize, 0);
    (host.read(at.into(), &mut table) && sum(&table) == 0).then_some(table)
}

/// What the window holds, once `rsdp` is a valid one whose RSDT can be read; `rsdp` then names the new RSDT.
pub fn add_dmar(
    host: &mut dyn Host,
    rsdp: &mut [u8; RSDP_SIZE],
    unit: &UnitOptions,
) -> Option<Vec<u8>> {
    const RSDT: usize = 16;
    const RSDP_CHECKSUM: usize = 8;
    if !rsdp.starts_with(b"RSD PTR ") || sum(rsdp) != 0 {
        return None;
    }
    let mut rsdt = read_table(host, word(rsdp, RSDT)?, b"RSDT")?;
    let tables: Vec<u32> = rsdt[HEADER_SIZE..]
        .as_chunks::<4>()
        .0
        .iter()
        .map(|bytes| u32::from_le_bytes(*bytes))
        .collect();
    let madt = tables.iter().find_map(|table| read_table(host, *table, b"APIC"));
    let dmar = dmar(unit, &io_apics(&madt.unwrap_or_default()));
    rsdt.extend((WINDOW as u32 + DMAR_OFFSET as u32).to_le_bytes());
    finish(&mut rsdt);
    let mut window = vec![0; WINDOW_SIZE];
    window.get_mut(..rsdt.len()).filter(|_| rsdt.len() <= DMAR_OFFSET)?.copy_from_slice(&rsdt);
    window.get_mut(DMAR_OFFSET..DMAR_OFFSET + dmar.len())?.copy_from_slice(&dmar);

    rsdp[RSDT..].copy_from_slice(&(WINDOW as u32).to_le_bytes());
    rsdp[RSDP_CHECKSUM] = 0;
    rsdp[RSDP_CHECKSUM] = 0u8.wrapping_sub(sum(rsdp));
    Some(window)
}

/// IDs of the MADT's I/O APICs.
fn io_apics(madt: &[u8]) -> Vec<u8> {
    const FIRST_ENTRY: usize = 44;
    const IO_APIC: u8 = 1;
    let mut ids = Vec::new();
    let mut rest = madt.get(FIRST_ENTRY..).unwrap_or_default();
    while let [kind, length, ..] = *rest
        && length >= 2
    {
        ids.extend(rest.get(2).filter(|_| kind == IO_APIC));
        rest = rest.get(usize::from(length)..).unwrap_or_default();
    }
    ids
}

fn dmar(unit: &UnitOptions, io_apics: &[u8]) -> Vec<u8> {
    const IO_APIC_SCOPE: u8 = 3;
    let mut table = vec![0; 48];
    table[..4].copy_from_slice(b"DMAR");
    table[8] = 1;
    table[10..24].copy_from_slice(b"NEXIT TEST    ");
    table[36] = unit.address_width() - 1;
    table[37] = u8::from(unit.interrupt_remapping);
    // One DRHD, which has all functions of segment 0.
    let length = 16 + 8 * io_apics.len() as u16;
    table.extend([0, 0]);
    table.extend(length.to_le_bytes());
    table.extend([1, 0, 0, 0]);
    table.extend(unit.base.to_le_bytes());
    let [function, bus] = io_apic::REQUESTER.to_le_bytes();
    for id in io_apics {
        table.extend([IO_APIC_SCOPE, 8, 0, 0, *id, bus, function >> 3, function & 7]);
    }
    finish(&mut table);
    table
}

#[cfg(test)]
mod tests;
