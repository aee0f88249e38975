//! The guest's ACPI tables: RSDP, XSDT, FADT, FACS, MADT, SRAT, MCFG and DSDT.
//!
//! The full fixed hardware is described, not the hardware-reduced profile, as legacy devices (ISA
//! IDE, the RTC) have interrupts only there. Invariant: what the tables name exists – the registers
//! are those of [`crate::devices`], the windows those of [`crate::memory_map`].
//! (ACPI Specification, "ACPI Software Programming Model".)

use alloc::vec::Vec;

use arch::msr::PortRange;
use arch::{ApicId, Gpa};
use config::Uart;

use crate::aml::{self, Space};
use crate::devices::{ioapic, power, rtc, uart};
use crate::load::Blob;
use crate::memory_map::{ACPI_TABLES, Ecam, MemoryMap};

const SCI: u8 = 9;
const HEADER_SIZE: usize = 36;
const CHECKSUM_OFFSET: usize = 9;
const CREATOR: &[u8; 4] = b"NXIT";
/// Tables begin at multiples of this; the FACS asks for it.
const ALIGNMENT: usize = 64;
const RSDP_SIZE: usize = 36;
const FADT_SIZE: usize = 276;
const FACS_SIZE: usize = 64;

/// FADT flags: WBINVD, C1 works, no power or sleep button and no RTC wake in the fixed hardware,
/// RESET_REG. The PM timer counts as one of 24 bits, which the machine's may be.
const FADT_FLAGS: u32 = 1 << 0 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 10;
/// IAPC_BOOT_ARCH: legacy devices, no 8042, no VGA, no ASPM.
const BOOT_ARCHITECTURE: u16 = 1 << 0 | 1 << 2 | 1 << 4;
/// The C2 and C3 latencies that mean "not there".
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;
const CENTURY: u8 = 0x32;

/// What the tables are built from.
#[derive(Clone, Copy, Debug)]
pub struct Parameters<'a> {
    /// The vCPUs' APIC identifiers, boot processor first.
    pub apic_ids: &'a [ApicId],
    /// The guest's memory map.
    pub memory: &'a MemoryMap,
    /// Width of physical addresses (CPUID 0x80000008 EAX bits 7:0).
    pub physical_address_bits: u8,
    /// The interrupt pins that are wired to its I/O APIC.
    pub pins: &'a [InterruptPin],
    /// The UART that it has of the machine.
    pub uart: Option<Uart>,
    /// It has 8259s.
    pub legacy: bool,
    /// The machine's PM timer, where the guest reads that; else it has a virtual one.
    pub pm_timer: Option<PortRange>,
}

/// Where an interrupt pin of the PCI bus leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InterruptPin {
    /// Device number.
    pub device: u8,
    /// 1 is INTA.
    pub pin: u8,
    /// Input of the I/O APIC.
    pub input: u8,
}

/// The tables and where they go. The RSDP is their first byte, at [`ACPI_TABLES`].
#[must_use]
pub fn tables(parameters: Parameters<'_>) -> Blob {
    let mut area = Area { bytes: Vec::from([0; RSDP_SIZE]) };
    let dsdt = area.add(dsdt(parameters));
    let facs = area.add(facs());
    let timer = parameters.pm_timer.map_or(power::PM_TIMER, |ports| ports.first);
    let mut pointers = Vec::from([
        area.add(fadt(dsdt, facs, timer)),
        area.add(madt(parameters)),
        area.add(srat(parameters)),
    ]);
    if let Some(ecam) = parameters.memory.ecam() {
        pointers.push(area.add(mcfg(ecam)));
    }
    let body: Vec<u8> = pointers.iter().flat_map(|at| at.as_u64().to_le_bytes()).collect();
    let xsdt = area.add(table(b"XSDT", 1, &body));
    let rsdp = rsdp(xsdt);
    area.bytes.splice(..rsdp.len(), rsdp);
    Blob { at: ACPI_TABLES, bytes: area.bytes }
}

/// The tables' bytes as they grow.
struct Area {
    bytes: Vec<u8>,
}

impl Area {
    fn add(&mut self, table: Vec<u8>) -> Gpa {
        let offset = self.bytes.len().next_multiple_of(ALIGNMENT);
        self.bytes.resize(offset, 0);
        self.bytes.extend(table);
        ACPI_TABLES.wrapping_add(offset as u64)
    }
}

/// The byte that makes the sum of all of them 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

fn put(bytes: &mut [u8], offset: usize, field: &[u8]) {
    for (to, from) in bytes.iter_mut().skip(offset).zip(field) {
        *to = *from;
    }
}

/// A table with its header.
fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let length = (HEADER_SIZE + body.len()) as u32;
    let mut bytes = [
        &signature[..],
        &length.to_le_bytes(),
        &[revision, 0],
        b"NEXIT NEXIT   ",
        &1u32.to_le_bytes(),
        CREATOR,
        &1u32.to_le_bytes(),
        body,
    ]
    .concat();
    let sum = checksum(&bytes);
    put(&mut bytes, CHECKSUM_OFFSET, &[sum]);
    bytes
}

fn rsdp(xsdt: Gpa) -> Vec<u8> {
    let mut bytes =
        [b"RSD PTR \0NEXIT ", &[2][..], &[0; 4], &(RSDP_SIZE as u32).to_le_bytes()].concat();
    let sum = checksum(&bytes[..20]);
    put(&mut bytes, 8, &[sum]);
    bytes.extend(xsdt.as_u64().to_le_bytes());
    bytes.extend([0; 4]);
    let sum = checksum(&bytes);
    put(&mut bytes, 32, &[sum]);
    bytes
}

fn facs() -> Vec<u8> {
    let mut bytes = Vec::from([0; FACS_SIZE]);
    put(&mut bytes, 0, b"FACS");
    put(&mut bytes, 4, &(FACS_SIZE as u32).to_le_bytes());
    put(&mut bytes, 32, &[2]);
    bytes
}

/// A generic address structure of system I/O space: `bits` wide, accessed as `access` bytes
/// (1: byte, 2: word, 3: doubleword).
fn port(port: u16, bits: u8, access: u8) -> [u8; 12] {
    let [low, high] = port.to_le_bytes();
    [1, bits, 0, access, low, high, 0, 0, 0, 0, 0, 0]
}

fn fadt(dsdt: Gpa, facs: Gpa, timer: u16) -> Vec<u8> {
    let mut body = Vec::from([0; FADT_SIZE - HEADER_SIZE]);
    // Offsets are those of the specification, which count the header.
    let mut field = |offset: usize, bytes: &[u8]| put(&mut body, offset - HEADER_SIZE, bytes);
    field(36, &(facs.as_u64() as u32).to_le_bytes());
    field(40, &(dsdt.as_u64() as u32).to_le_bytes());
    field(46, &[SCI]);
    field(56, &power::PM1A_EVENT.to_le_bytes());
    field(64, &power::PM1A_CONTROL.to_le_bytes());
    field(76, &timer.to_le_bytes());
    field(88, &[4, 2, 0, 4]);
    field(96, &NO_C2.to_le_bytes());
    field(98, &NO_C3.to_le_bytes());
    field(108, &[CENTURY]);
    field(109, &BOOT_ARCHITECTURE.to_le_bytes());
    field(112, &FADT_FLAGS.to_le_bytes());
    field(116, &port(power::RESET, 8, 1));
    field(128, &[power::RESET_VALUE]);
    field(131, &[3]);
    field(140, &dsdt.as_u64().to_le_bytes());
    field(148, &port(power::PM1A_EVENT, 32, 2));
    field(172, &port(power::PM1A_CONTROL, 16, 2));
    field(208, &port(timer, 32, 3));
    table(b"FACP", 6, &body)
}

/// Local APICs, x2APIC structures where an identifier needs one, the I/O APIC, and the two lines
/// that are not wired as on the ISA bus: the timer, and the SCI (level, active high). The flags have
/// PCAT_COMPAT alone: there are 8259s, too.
fn madt(parameters: Parameters<'_>) -> Vec<u8> {
    let flags = u32::from(parameters.legacy);
    let mut body = [0xfee0_0000u32.to_le_bytes(), flags.to_le_bytes()].concat();
    for (uid, id) in parameters.apic_ids.iter().enumerate() {
        let enabled = 1u32.to_le_bytes();
        match u8::try_from(id.0) {
            Ok(short) if short < 255 => {
                body.extend([0, 8, uid as u8, short]);
                body.extend(enabled);
            }
            _ => {
                body.extend([9, 16, 0, 0]);
                body.extend(id.0.to_le_bytes());
                body.extend(enabled);
                body.extend((uid as u32).to_le_bytes());
            }
        }
    }
    body.extend([1, 12, ioapic::ID, 0]);
    body.extend((ioapic::BASE as u32).to_le_bytes());
    body.extend([0; 4]);
    body.extend([2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
    body.extend([2, 10, 0, SCI, SCI, 0, 0, 0, 0x0d, 0]);
    table(b"APIC", 4, &body)
}

/// All CPUs and all RAM in proximity domain 0. Without this table Linux looks for an AMD northbridge at every
/// device number, by two port accesses each.
fn srat(parameters: Parameters<'_>) -> Vec<u8> {
    const ENABLED: u32 = 1;
    let mut body = [&1u32.to_le_bytes()[..], &[0; 8]].concat();
    for id in parameters.apic_ids {
        body.extend([2, 24, 0, 0, 0, 0, 0, 0]);
        body.extend([id.0, ENABLED, 0, 0].map(u32::to_le_bytes).concat());
    }
    for ram in parameters.memory.ram() {
        body.extend([1, 40, 0, 0, 0, 0, 0, 0]);
        body.extend([ram.start.as_u64(), ram.length].map(u64::to_le_bytes).concat());
        body.extend([0, ENABLED, 0, 0].map(u32::to_le_bytes).concat());
    }
    table(b"SRAT", 3, &body)
}

/// The guest's one bus, whatever the machine's window has room for: Linux probes every device number
/// of every bus that is named here, by two port accesses each.
fn mcfg(ecam: Ecam) -> Vec<u8> {
    let allocation = [&ecam.base.as_u64().to_le_bytes()[..], &[0; 8]];
    table(b"MCFG", 1, &[&[0; 8], &allocation.concat()[..]].concat())
}

fn dsdt(parameters: Parameters<'_>) -> Vec<u8> {
    let sleep = u32::from(power::SLEEP_TYPE_S5);
    let com1 = com(*b"COM1", 1, uart::PORTS, uart::GSI);
    let mut devices = Vec::from([host_bridge(parameters), com1, real_time_clock()]);
    if let Some(uart) = parameters.uart {
        let (name, uid) = match uart {
            Uart::Com2 => (*b"COM2", 2),
            Uart::Com4 => (*b"COM4", 4),
        };
        devices.push(com(name, uid, uart.ports(), uart.gsi()));
    }
    if let Some(ecam) = parameters.memory.ecam() {
        devices.push(motherboard(ecam));
    }
    let body = aml::terms(&[
        aml::name(b"_S5_", &aml::integers(&[sleep, sleep, 0, 0])),
        aml::scope(b"_SB_", &aml::terms(&devices)),
    ]);
    table(b"DSDT", 2, &body)
}

/// The PCI host bridge: all ports but those of the configuration mechanism, and the windows.
fn host_bridge(parameters: Parameters<'_>) -> Vec<u8> {
    let memory = parameters.memory;
    let mut ranges = Vec::from([
        aml::word_space(Space::Bus, 0, 0),
        aml::io(0xcf8, 8),
        aml::word_space(Space::Io, 0, 0xcf7),
        aml::word_space(Space::Io, 0xd00, 0xffff),
    ]);
    ranges.extend(memory.pci_windows().into_iter().map(|window| aml::memory(window, false)));
    let high = memory.high_pci_window(parameters.physical_address_bits);
    if high.length > 0 {
        ranges.push(aml::memory(high, false));
    }
    let body = aml::terms(&[
        aml::name(b"_HID", &aml::pnp_id(0x0a08)),
        aml::name(b"_CID", &aml::pnp_id(0x0a03)),
        aml::name(b"_UID", &aml::integer(0)),
        aml::name(b"_SEG", &aml::integer(0)),
        aml::name(b"_BBN", &aml::integer(0)),
        aml::name(b"_CRS", &aml::resources(&ranges)),
        aml::name(b"_PRT", &routing(parameters.pins)),
    ]);
    aml::device(b"PCI0", &body)
}

/// The package of `_PRT` (ACPI Specification, "_PRT (PCI Routing Table)"): pins count from 0 there,
/// and a source of 0 makes the last number a global system interrupt.
fn routing(pins: &[InterruptPin]) -> Vec<u8> {
    const ANY_FUNCTION: u32 = 0xffff;
    let entry = |pin: &InterruptPin| {
        let address = u32::from(pin.device) << 16 | ANY_FUNCTION;
        aml::integers(&[address, u32::from(pin.pin.saturating_sub(1)), 0, u32::from(pin.input)])
    };
    aml::package(&pins.iter().map(entry).collect::<Vec<_>>())
}

/// A 16550A UART.
fn com(name: [u8; 4], uid: u32, ports: PortRange, gsi: u32) -> Vec<u8> {
    let resources = [aml::io(ports.first, 8), aml::irq(gsi as u8)];
    let body = aml::terms(&[
        aml::name(b"_HID", &aml::pnp_id(0x0501)),
        aml::name(b"_UID", &aml::integer(uid)),
        aml::name(b"_CRS", &aml::resources(&resources)),
    ]);
    aml::device(&name, &body)
}

/// The RTC, which has no interrupt. Without 8259s Linux would not find it by itself.
fn real_time_clock() -> Vec<u8> {
    let body = aml::terms(&[
        aml::name(b"_HID", &aml::pnp_id(0x0b00)),
        aml::name(b"_CRS", &aml::resources(&[aml::io(rtc::PORTS.first, 2)])),
    ]);
    aml::device(b"RTC_", &body)
}

/// Reserves the ECAM window: Linux trusts MCFG only then.
fn motherboard(ecam: Ecam) -> Vec<u8> {
    let body = aml::terms(&[
        aml::name(b"_HID", &aml::pnp_id(0x0c02)),
        aml::name(b"_UID", &aml::integer(0)),
        aml::name(b"_CRS", &aml::resources(&[aml::memory(ecam.range(), true)])),
    ]);
    aml::device(b"MBRD", &body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory_map::{ACPI_TABLES_SIZE, DEFAULT_ECAM};
    use std::collections::BTreeMap;
    use std::process::Command;

    const IDS: [ApicId; 3] = [ApicId(0), ApicId(3), ApicId(300)];

    const PINS: [InterruptPin; 2] = [
        InterruptPin { device: 5, pin: 1, input: 21 },
        InterruptPin { device: 30, pin: 4, input: 16 },
    ];

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
        assert_eq!(
            with.keys().collect::<Vec<_>>(),
            ["APIC", "DSDT", "FACP", "MCFG", "SRAT", "XSDT"]
        );
        let without = walk(&built(512 << 20, None));
        assert!(!without.contains_key("MCFG"));
    }

    #[test]
    fn the_fadt_is_the_full_profile_in_acpi_mode() {
        let fadt = walk(&built(512 << 20, None)).remove("FACP").unwrap();
        assert_eq!((fadt.len(), fadt[8]), (276, 6));
        assert_eq!(u32_at(&fadt, 112) & 1 << 20, 0, "not hardware-reduced");
        assert_eq!(u32_at(&fadt, 48), 0, "no SMI_CMD: always in ACPI mode");
        assert_eq!(
            (u32_at(&fadt, 56), u32_at(&fadt, 64), u32_at(&fadt, 76)),
            (0x600, 0x604, 0x608)
        );
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
}
