//! What the firmware's ACPI tables say about this machine.
//!
//! The `acpi` crate finds the tables and knows the common ones; the DMAR table goes to `iommu` as
//! bytes.

use alloc::vec::Vec;

use acpi::address::AddressSpace;
use acpi::rsdp::Rsdp;
use acpi::sdt::SdtHeader;
use acpi::sdt::fadt::Fadt;
use acpi::sdt::hpet::HpetInfo;
use acpi::sdt::madt::{Madt, MadtEntry};
use acpi::sdt::mcfg::Mcfg;
use acpi::{AcpiTables, Handler, PciAddress, PhysicalMapping};
use arch::msr::PortRange;
use arch::{ApicId, Hpa};
use cpu::config_space::Ecam;
use cpu::physical;
use guest::devices::{Devices, power};

use crate::refusal::{Refusal, refuse};

/// An I/O APIC as the MADT names it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IoApicEntry {
    pub(crate) id: u8,
    pub(crate) address: Hpa,
    pub(crate) first_gsi: u32,
}

/// How to switch the machine off: the value for PM1a_CNT.SLP_TYP of state S5.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SoftOff {
    pub(crate) pm1a_control: u16,
    pub(crate) sleep_type: u8,
}

/// What the tables say.
pub(crate) struct Platform {
    /// Local APIC identifiers of the CPUs that can be used, in the tables' order: `cpus = [0]` in the
    /// configuration is the first.
    pub(crate) cpus: Vec<ApicId>,
    pub(crate) io_apics: Vec<IoApicEntry>,
    pub(crate) ecam: Option<Ecam>,
    pub(crate) hpet: Option<Hpa>,
    pub(crate) dmar: Option<Vec<u8>>,
    pub(crate) soft_off: Option<SoftOff>,
    pub(crate) pm_timer: Option<PortRange>,
}

impl Platform {
    /// Reads the tables that the RSDP leads to: the loader's, or else the one in the BIOS area.
    pub(crate) fn read(rsdp: Option<Hpa>) -> Result<Self, Refusal> {
        let rsdp = rsdp.or_else(search_bios_area).ok_or_else(|| {
            refuse!("the firmware has no ACPI tables: Nexit needs a machine with ACPI")
        })?;
        let broken = |what: &str, error: acpi::AcpiError| {
            refuse!("the firmware's ACPI {what} cannot be used ({error:?}): update the firmware")
        };
        // SAFETY: the RSDP's address comes from the loader or from the BIOS area, and was checked.
        let tables = unsafe { AcpiTables::from_rsdp(Identity, rsdp.as_u64() as usize) }
            .map_err(|error| broken("root tables", error))?;
        let mut platform = Self {
            cpus: Vec::new(),
            io_apics: Vec::new(),
            ecam: tables.find_table::<Mcfg>().and_then(|mcfg| ecam(&mcfg)),
            hpet: HpetInfo::new(&tables).ok().map(|hpet| Hpa::new(hpet.base_address as u64)),
            dmar: raw_table(&tables, *b"DMAR"),
            soft_off: tables.find_table::<Fadt>().and_then(|fadt| soft_off(&fadt)),
            pm_timer: tables.find_table::<Fadt>().and_then(|fadt| pm_timer(&fadt)),
        };
        platform.read_madt(&tables)?;
        Ok(platform)
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the MADT has many more kinds of entries")]
    fn read_madt(&mut self, tables: &AcpiTables<Identity>) -> Result<(), Refusal> {
        const ENABLED: u32 = 1;
        let madt = tables.find_table::<Madt>().ok_or_else(|| {
            refuse!("the firmware has no MADT table, so its CPUs are unknown: update the firmware")
        })?;
        for entry in madt.get().entries() {
            match entry {
                MadtEntry::LocalApic(cpu) if cpu.flags & ENABLED != 0 => {
                    self.cpus.push(ApicId(u32::from(cpu.apic_id)));
                }
                MadtEntry::LocalX2Apic(cpu) if cpu.flags & ENABLED != 0 => {
                    let id = ApicId(cpu.x2apic_id);
                    if !self.cpus.contains(&id) {
                        self.cpus.push(id);
                    }
                }
                MadtEntry::IoApic(io_apic) => self.io_apics.push(IoApicEntry {
                    id: io_apic.io_apic_id,
                    address: Hpa::new(u64::from(io_apic.io_apic_address)),
                    first_gsi: io_apic.global_system_interrupt_base,
                }),
                _ => {}
            }
        }
        Ok(())
    }
}

/// ACPI Specification, "Finding the RSDP on IA-PC Systems".
fn search_bios_area() -> Option<Hpa> {
    // SAFETY: the first MiB is identity-mapped and nobody writes it while the hypervisor boots.
    let found = unsafe { Rsdp::search_for_on_bios(Identity) }.ok()?;
    Some(Hpa::new(found.physical_start as u64))
}

fn ecam(mcfg: &Mcfg) -> Option<Ecam> {
    let entry = mcfg.entries().iter().find(|entry| entry.pci_segment_group == 0)?;
    Some(Ecam {
        base: Hpa::new(entry.base_address),
        first_bus: entry.bus_number_start,
        last_bus: entry.bus_number_end,
    })
}

/// The bytes of the table with this signature.
fn raw_table(tables: &AcpiTables<Identity>, signature: [u8; 4]) -> Option<Vec<u8>> {
    let (address, header) = tables
        .table_headers()
        .find(|(_, header)| header.signature.as_str().as_bytes() == signature)?;
    let length = header.length as usize;
    // SAFETY: the firmware's tables are RAM that nobody writes while the hypervisor boots.
    Some(unsafe { physical::bytes(Hpa::new(address as u64), length) }.to_vec())
}

/// Finds the `\_S5` package in the DSDT by its bytes: NameOp "_S5_" PackageOp PkgLength count, then
/// SLP_TYPa as a byte constant, zero or one (ACPI Specification, "\_Sx (System States)" and "AML
/// Byte Stream Byte Values").
fn soft_off(fadt: &Fadt) -> Option<SoftOff> {
    const BYTE_PREFIX: u8 = 0x0a;
    let pm1a_control = u16::try_from(fadt.pm1a_control_block().ok()?.address).ok()?;
    let dsdt = Hpa::new(fadt.dsdt_address().ok()? as u64);
    // SAFETY: as in `raw_table`.
    let header = unsafe { physical::bytes(dsdt, size_of::<SdtHeader>()) };
    let length = arch::bytes::u32_at(header, 4)? as usize;
    // SAFETY: as in `raw_table`.
    let body = unsafe { physical::bytes(dsdt, length) };
    let name = body.windows(5).position(|window| window == b"_S5_\x12")?;
    let package = body.get(name + 5..)?;
    let length_bytes = usize::from(package.first()? >> 6) + 1;
    let first = package.get(length_bytes + 1..)?;
    let sleep_type = match first {
        [BYTE_PREFIX, value, ..] => *value,
        [value @ (0 | 1), ..] => *value,
        _ => return None,
    };
    Some(SoftOff { pm1a_control, sleep_type })
}

/// The ports of the ACPI timer, which guests read without an exit; `None` where there is none, or where
/// a guest has a virtual device in its place (ACPI Specification, "PM Timer": it is read-only).
fn pm_timer(fadt: &Fadt) -> Option<PortRange> {
    let block = fadt.pm_timer_block().ok()??;
    let first = u16::try_from(block.address).ok()?;
    let ports = PortRange { first, last: first.checked_add(3)? };
    let free = first == power::PM_TIMER || !(first..=ports.last).any(Devices::claims);
    (free && block.address_space == AddressSpace::SystemIo).then_some(ports)
}

/// Physical memory through the identity map.
#[derive(Clone)]
struct Identity;

macro_rules! unused_by_static_tables {
    ($($read:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        $(fn $read(&self, $($argument: $type),*) $(-> $result)? {
            // Only the AML interpreter calls these, and it is not built in.
            $(let _ = $argument;)*
            $(<$result>::default())?
        })*
    };
}

impl Handler for Identity {
    unsafe fn map_physical_region<T>(
        &self,
        address: usize,
        size: usize,
    ) -> PhysicalMapping<Self, T> {
        PhysicalMapping {
            physical_start: address,
            virtual_start: physical::non_null(Hpa::new(address as u64))
                .unwrap_or(core::ptr::NonNull::dangling()),
            region_length: size,
            mapped_length: size,
            handler: self.clone(),
        }
    }

    fn unmap_physical_region<T>(_: &PhysicalMapping<Self, T>) {}

    unused_by_static_tables! {
        read_u8(address: usize) -> u8;
        read_u16(address: usize) -> u16;
        read_u32(address: usize) -> u32;
        read_u64(address: usize) -> u64;
        write_u8(address: usize, value: u8);
        write_u16(address: usize, value: u16);
        write_u32(address: usize, value: u32);
        write_u64(address: usize, value: u64);
        read_io_u8(port: u16) -> u8;
        read_io_u16(port: u16) -> u16;
        read_io_u32(port: u16) -> u32;
        write_io_u8(port: u16, value: u8);
        write_io_u16(port: u16, value: u16);
        write_io_u32(port: u16, value: u32);
        read_pci_u8(address: PciAddress, offset: u16) -> u8;
        read_pci_u16(address: PciAddress, offset: u16) -> u16;
        read_pci_u32(address: PciAddress, offset: u16) -> u32;
        write_pci_u8(address: PciAddress, offset: u16, value: u8);
        write_pci_u16(address: PciAddress, offset: u16, value: u16);
        write_pci_u32(address: PciAddress, offset: u16, value: u32);
        nanos_since_boot() -> u64;
        stall(microseconds: u64);
        sleep(milliseconds: u64);
    }
}
