//! The tables, walked as an operating system does and read by `iasl`.

use super::*;
use crate::memory_map::{ACPI_TABLES_SIZE, DEFAULT_ECAM};
use std::collections::BTreeMap;
use std::process::Command;

const IDS: [ApicId; 3] = [ApicId(0), ApicId(3), ApicId(300)];

const PINS: [InterruptPin; 2] =
    [InterruptPin { device: 5, pin: 1, input: 21 }, InterruptPin { device: 30, pin: 4, input: 16 }];

fn built(memory: u64, ecam: Option<Ecam>) -> Vec<u8> {
    let memory = MemoryMap::new(memory, ecam);
    let blob = tables(Parameters {
        apic_ids: &IDS,
        memory: &memory,
        physical_address_bits: 40,
        pins: &PINS,
        uart: Some(Uart::Com2),
        legacy: ecam.is_none(),
        pm_timer: ecam.map(|_| PortRange { first: 0xb008, last: 0xb00b }),
    });
    assert_eq!(blob.at, ACPI_TABLES);
    assert!(blob.bytes.len() as u64 <= ACPI_TABLES_SIZE);
    blob.bytes
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Walks the tables as an operating system does, checking every checksum on the way.
fn walk(area: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let offset = |address: u64| (address - ACPI_TABLES.as_u64()) as usize;
    let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |s, b| s.wrapping_add(*b));
    assert_eq!(&area[..8], b"RSD PTR ");
    assert_eq!((sum(&area[..20]), sum(&area[..36])), (0, 0));
    let mut found = BTreeMap::new();
    let mut read = |at: usize| {
        let bytes = area[at..at + u32_at(area, at + 4) as usize].to_vec();
        assert_eq!(sum(&bytes), 0);
        found.insert(String::from_utf8(bytes[..4].to_vec()).unwrap(), bytes.clone());
        bytes
    };
    let xsdt = read(offset(u64_at(area, 24)));
    for entry in xsdt[36..].chunks(8) {
        let table = read(offset(u64_at(entry, 0)));
        if &table[..4] == b"FACP" {
            read(offset(u64_at(&table, 140)));
            let facs = offset(u32_at(&table, 36).into());
            assert_eq!((&area[facs..facs + 4], facs % 64), (&b"FACS"[..], 0));
            assert_eq!(u64_at(&table, 140), u32_at(&table, 40).into());
        }
    }
    found
}

#[test]
fn every_table_is_reached_and_sums_to_zero() {
    let with = walk(&built(512 << 20, Some(DEFAULT_ECAM)));
    assert_eq!(with.keys().collect::<Vec<_>>(), ["APIC", "DSDT", "FACP", "MCFG", "SRAT", "XSDT"]);
    let without = walk(&built(512 << 20, None));
    assert!(!without.contains_key("MCFG"));
}

#[test]
fn the_fadt_is_the_full_profile_in_acpi_mode() {
    let fadt = walk(&built(512 << 20, None)).remove("FACP").unwrap();
    assert_eq!((fadt.len(), fadt[8]), (276, 6));
    assert_eq!(u32_at(&fadt, 112) & 1 << 20, 0, "not hardware-reduced");
    assert_eq!(u32_at(&fadt, 48), 0, "no SMI_CMD: always in ACPI mode");
    assert_eq!((u32_at(&fadt, 56), u32_at(&fadt, 64), u32_at(&fadt, 76)), (0x600, 0x604, 0x608));
    assert_eq!(fadt[88..92], [4, 2, 0, 4]);
    assert_eq!(u32_at(&fadt, 112) & 1 << 8, 0, "24 bits of the timer are promised");
    assert_eq!((u64_at(&fadt, 120), fadt[128]), (0xcf9, 6));
    assert_eq!(fadt[109] & 2, 0, "no 8042");
}

#[test]
fn the_machines_timer_stands_in_both_fields_of_the_fadt() {
    let fadt = walk(&built(512 << 20, Some(DEFAULT_ECAM))).remove("FACP").unwrap();
    assert_eq!((u32_at(&fadt, 76), u64_at(&fadt, 212)), (0xb008, 0xb008));
}

#[test]
fn the_madt_lists_each_cpu_in_the_form_that_fits_its_identifier() {
    let madt = walk(&built(512 << 20, None)).remove("APIC").unwrap();
    let mut entries = Vec::new();
    let mut rest = &madt[44..];
    while let [kind, length, ..] = rest {
        entries.push((*kind, rest[..usize::from(*length)].to_vec()));
        rest = &rest[usize::from(*length)..];
    }
    let kinds: Vec<u8> = entries.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [0, 0, 9, 1, 2, 2]);
    assert_eq!((entries[0].1[3], entries[1].1[3]), (0, 3));
    assert_eq!((u32_at(&entries[2].1, 4), u32_at(&entries[2].1, 12)), (300, 2));
    assert_eq!(u32_at(&entries[3].1, 4), 0xfec0_0000);
    assert_eq!((entries[4].1[3], u32_at(&entries[4].1, 4)), (0, 2), "the timer is at input 2");
}

#[test]
fn the_madt_says_whether_there_are_8259s() {
    for (ecam, flags) in [(None, 1), (Some(DEFAULT_ECAM), 0)] {
        assert_eq!(u32_at(&walk(&built(512 << 20, ecam))["APIC"], 40), flags);
    }
}

#[test]
fn the_srat_has_every_cpu_and_all_ram_in_one_domain() {
    let srat = walk(&built(5 << 30, Some(DEFAULT_ECAM))).remove("SRAT").unwrap();
    let (cpus, ram) = srat[48..].split_at(3 * 24);
    for (entry, id) in cpus.chunks(24).zip(IDS) {
        assert_eq!((entry[0], entry[1], u32_at(entry, 4)), (2, 24, 0));
        assert_eq!((u32_at(entry, 8), u32_at(entry, 12)), (id.0, 1));
    }
    let map = MemoryMap::new(5 << 30, Some(DEFAULT_ECAM));
    assert_eq!(ram.len(), 40 * map.ram().len());
    for (entry, run) in ram.chunks(40).zip(map.ram()) {
        assert_eq!((entry[0], entry[1], u32_at(entry, 2), u32_at(entry, 28)), (1, 40, 0, 1));
        assert_eq!((u64_at(entry, 8), u64_at(entry, 16)), (run.start.as_u64(), run.length));
    }
}

#[test]
fn mcfg_names_the_one_bus_in_the_ecam_window() {
    let ecam = Ecam { base: Gpa::new(0xb000_0000), buses: 256 };
    let mcfg = walk(&built(512 << 20, Some(ecam))).remove("MCFG").unwrap();
    assert_eq!((u64_at(&mcfg, 44), mcfg[54], mcfg[55]), (0xb000_0000, 0, 0));
    assert_eq!(mcfg.len(), 60);
}

/// `iasl` reads every table without a complaint, and what it makes of the DSDT compiles again
/// without error and says what is meant.
#[test]
fn iasl_understands_the_tables() {
    if Command::new("iasl").arg("-v").output().is_err() {
        eprintln!("SKIPPED: iasl is not installed (package acpica-tools)");
        return;
    }
    let folder = std::env::temp_dir().join(format!("nexit-acpi-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let run = |arguments: &[&str]| {
        let output = Command::new("iasl").args(arguments).current_dir(&folder).output();
        let output = output.unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(output.status.success(), "{arguments:?}: {text}");
        text
    };
    for (name, bytes) in walk(&built(3 << 30, Some(DEFAULT_ECAM))) {
        let file = format!("{name}.aml");
        std::fs::write(folder.join(&file), bytes).unwrap();
        run(&["-d", &file]);
        let source = std::fs::read_to_string(folder.join(format!("{name}.dsl"))).unwrap();
        for complaint in ["Invalid", "Incorrect", "should be", "Error"] {
            assert!(!source.contains(complaint), "{name}: {source}");
        }
    }
    let source = std::fs::read_to_string(folder.join("DSDT.dsl")).unwrap();
    let packed = source.split_whitespace().collect::<String>();
    assert!(packed.contains("0x0005FFFF,Zero,Zero,0x15"), "_PRT: {source}");
    assert!(packed.contains("0x001EFFFF,0x03,Zero,0x10"), "_PRT: {source}");
    for part in [
        "PNP0A08",
        "PNP0A03",
        "PNP0501",
        "(COM2)",
        "0x02F8",
        "PNP0C02",
        "_S5",
        "QWordMemory",
        "00000000FEBFFFFF",
    ] {
        assert!(source.contains(part), "{part}: {source}");
    }
    let compiled = run(&["-p", "again", "DSDT.dsl"]);
    assert!(compiled.contains("0 Errors") || compiled.contains("successful"), "{compiled}");
    std::fs::remove_dir_all(&folder).unwrap();
}
