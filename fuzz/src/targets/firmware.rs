//! ACPI tables.

use std::collections::BTreeSet;

use ::firmware::PlatformTables;
use arch::{Bdf, Hpa};
use capture::{Table, TableMemory};
use iommu::dmar::Dmar;

use crate::input::Input;

const SIGNATURES: [&[u8; 4]; 10] =
    [b"APIC", b"FACP", b"DSDT", b"SSDT", b"MCFG", b"HPET", b"SPCR", b"DBG2", b"DMAR", b"FACS"];
const HEADER: usize = 36;
/// Bits of a table's first byte, beside the index of its signature.
const WRONG_SUM: u8 = 0x80;
const WRONG_LENGTH: u8 = 0x40;
/// The most tables of an input.
const MAX_TABLES: usize = 16;

/// Makes the bytes add up to 0 by the one at `at`.
fn seal(bytes: &mut [u8], at: usize) {
    bytes[at] = 0;
    bytes[at] = bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte));
}

/// Signature and flags, length of the body, revision, body. The rest of the header is put right.
fn table(input: &mut Input<'_>) -> Vec<u8> {
    let kind = input.byte();
    let length = usize::from(input.word() & 0x3ff);
    let mut table = vec![0; HEADER];
    table[..4].copy_from_slice(SIGNATURES[usize::from(kind & 0xf) % SIGNATURES.len()]);
    table[8] = input.byte();
    table.extend_from_slice(input.bytes(length));
    let length = if kind & WRONG_LENGTH == 0 { table.len() as u32 } else { input.dword() };
    table[4..8].copy_from_slice(&length.to_le_bytes());
    if kind & WRONG_SUM == 0 {
        seal(&mut table, 9);
    }
    table
}

fn check(platform: Result<PlatformTables, ::firmware::FirmwareError>) {
    match platform {
        Ok(platform) => {
            let each: BTreeSet<u32> = platform.cpus.iter().map(|id| id.0).collect();
            assert!(!platform.cpus.is_empty() && each.len() == platform.cpus.len());
            let _ = platform.resets();
            (0..=255).for_each(|irq| _ = platform.isa_line(irq));
            if let Some(soft_off) = &platform.soft_off {
                assert!(soft_off.registers().count() <= 8);
            }
            assert!(platform.serial.iter().all(|port| !port.is_in_ram(|_| false)));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

pub(super) fn acpi(input: &[u8]) {
    let mut input = Input(input);
    let mut tables = Vec::new();
    while !input.is_empty() && tables.len() < MAX_TABLES {
        tables.push(Table::new(None, table(&mut input)));
    }
    check(TableMemory::new(&tables).platform());
}

/// The RSDP, the root table that it leads to, and the tables that this one names add up.
pub(super) fn acpi_memory(input: &[u8]) {
    let mut bytes = input.to_vec();
    if bytes.len() < HEADER {
        return;
    }
    bytes[..8].copy_from_slice(b"RSD PTR ");
    bytes[15] = 2;
    bytes[20..24].copy_from_slice(&36_u32.to_le_bytes());
    let root = u64::from_le_bytes(bytes[24..32].try_into().unwrap());
    seal_table(&mut bytes, root);
    for entry in 0..MAX_TABLES as u64 {
        let at = root.wrapping_add(HEADER as u64 + 8 * entry);
        let named = usize::try_from(at).ok().and_then(|at| bytes.get(at..at.checked_add(8)?));
        let Some(named) = named.and_then(|bytes| bytes.try_into().ok()) else { break };
        seal_table(&mut bytes, u64::from_le_bytes(named));
    }
    seal(&mut bytes[..20], 8);
    seal(&mut bytes[..36], 32);
    let memory = |at: Hpa, length: usize| {
        let at = usize::try_from(at.as_u64()).ok()?;
        bytes.get(at..at.checked_add(length)?)
    };
    check(PlatformTables::read(Some(Hpa::new(0)), &memory));
}

/// Puts the checksum of the table at `at` right, if the table is there.
fn seal_table(bytes: &mut [u8], at: u64) {
    let Ok(at) = usize::try_from(at) else { return };
    let Some(rest) = bytes.get_mut(at..).filter(|rest| at >= HEADER && rest.len() >= HEADER) else {
        return;
    };
    let length = u32::from_le_bytes([rest[4], rest[5], rest[6], rest[7]]) as usize;
    if let Some(table) = rest.get_mut(..length).filter(|table| table.len() >= HEADER) {
        seal(table, 9);
    }
}

pub(super) fn dmar(input: &[u8]) {
    let mut input = Input(input);
    let asked = input.array::<6>();
    let flags = input.byte();
    let mut table = vec![0; HEADER];
    table[..4].copy_from_slice(b"DMAR");
    table.extend_from_slice(input.0);
    let length = if flags & WRONG_LENGTH == 0 { table.len() as u32 } else { u32::from(flags) };
    table[4..8].copy_from_slice(&length.to_le_bytes());
    if flags & WRONG_SUM == 0 {
        seal(&mut table, 9);
    }
    let bridges = |bridge: Bdf| (bridge.device() == asked[4] & 31).then_some(asked[5]..=255);
    let Ok(dmar) = Dmar::parse(&table) else { return };
    let bound = table.len() / 16;
    assert!(dmar.units().count() <= bound && dmar.left_out() <= bound * 16);
    let _ = (dmar.x2apic_opt_out(), dmar.interrupt_remapping(), dmar.check_remapping());
    for function in asked[..4].chunks(2) {
        let function = Bdf::new(function[0], function[1] >> 3, function[1] & 7);
        if let Some(unit) = dmar.drhd_for(function, &bridges) {
            assert!(dmar.units().any(|other| other == unit));
        }
        let _ = dmar.rmrr_for(function, &bridges);
    }
    let _ = dmar.unit_in_ram(|range| range.length > 1 << 20);
    let _ = dmar.ioapic_requester(asked[0], &bridges);
    assert_eq!(dmar.ioapic_names(&asked).len(), asked.len());
}
