//! The guest's ACPI tables: RSDP, XSDT, FADT, FACS, MADT, SRAT, MCFG and DSDT.
//!
//! The full fixed hardware is described, not the hardware-reduced profile, as legacy devices (ISA
//! IDE, the RTC) have interrupts only there. Invariant: what the tables name exists – the registers
//! are those of [`crate::devices`], the windows those of [`crate::memory_map`].
//! (ACPI Specification, "ACPI Software Programming Model".)

mod dsdt;

use alloc::vec::Vec;

use arch::msr::PortRange;
use arch::{ApicId, Gpa};
use config::Uart;

use crate::devices::{ioapic, power};
use crate::load::{Blob, put};
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
    let dsdt = area.add(dsdt::dsdt(parameters));
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

#[cfg(test)]
mod tests;
