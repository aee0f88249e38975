//! All of it together.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use acpi::sdt::hpet::HpetTable;
use arch::{ApicId, Hpa};

use crate::fadt::{self, Block, Fixed, PmTimer, Register, Reset, SoftOff};
use crate::madt::{self, InterruptOverride, IoApicEntry};
use crate::mcfg::{self, EcamWindow};
use crate::origin::Origin;
use crate::serial::{self, SerialPort};
use crate::structures::Structure;
use crate::tables::{Table, Tables};
use crate::{Memory, aml};

/// Why the machine cannot be used: a sentence.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FirmwareError(String);

impl fmt::Display for FirmwareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl core::error::Error for FirmwareError {}

/// What the tables say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlatformTables {
    /// Local APIC identifiers of the CPUs that can be used, in the tables' order, each once:
    /// `cpus = [0]` in the configuration is the first.
    pub cpus: Vec<ApicId>,
    /// In the tables' order.
    pub io_apics: Vec<IoApicEntry>,
    /// Interrupts of the ISA bus that are wired otherwise; the others have their own number.
    pub overrides: Vec<InterruptOverride>,
    /// All windows to configuration space; empty where there are only the ports.
    pub ecam: Vec<EcamWindow>,
    /// Registers of the HPET.
    pub hpet: Option<Hpa>,
    /// The ACPI timer.
    pub pm_timer: Option<PmTimer>,
    /// Serial ports that the firmware names, its console first.
    pub serial: Vec<SerialPort>,
    /// The manufacturer of the tables.
    pub origins: Vec<Origin>,
    /// Registers of the ACPI hardware, but for its timer and the registers that reset and switch off.
    pub acpi_blocks: Vec<Block>,
    /// How to switch the machine off.
    pub soft_off: Option<SoftOff>,
    /// How to reset the machine.
    pub reset: Option<Reset>,
    /// All bytes of the DMAR table, or why there are none: the end of a sentence.
    pub dmar: Result<Vec<u8>, String>,
    /// There is a real-time clock at ports 0x70 and 0x71. (Nothing says whether there is a PIT.)
    pub has_rtc: bool,
    /// There are 8259s.
    pub has_8259: bool,
    /// No ACPI hardware of the PC's: neither PM1 registers nor the ACPI timer.
    pub hardware_reduced: bool,
    /// What was left out and why, a sentence each.
    pub notes: Vec<String>,
}

impl PlatformTables {
    /// Reads the tables that the RSDP at `rsdp` leads to, or without it the one in the BIOS area.
    ///
    /// # Errors
    /// When no usable CPU is found in them.
    pub fn read(rsdp: Option<Hpa>, memory: Memory<'_, '_>) -> Result<Self, FirmwareError> {
        let mut notes = Vec::new();
        let tables = Tables::find(rsdp, memory, &mut notes).map_err(FirmwareError)?;
        let interrupts = tables
            .sound(*b"APIC", &mut Vec::new())
            .or_else(|| {
                let damaged = tables.all(*b"APIC").next()?;
                notes.push(String::from("the MADT has a wrong checksum; it is used nevertheless"));
                Some(damaged)
            })
            .map(|madt| madt::read(madt.bytes, &mut notes));
        let Some(interrupts) = interrupts.filter(|madt| !madt.cpus.is_empty()) else {
            return Err(no_cpus(&notes));
        };
        let fixed = tables.sound(*b"FACP", &mut notes).and_then(|fadt| fadt::read(fadt.bytes));
        if fixed.is_none() {
            notes.push(String::from("the machine cannot be switched off: it has no FADT"));
        }
        let dsdt = fixed.as_ref().and_then(|fixed| fixed.dsdt);
        let types =
            fixed.as_ref().and_then(|fixed| sleep_types(fixed, &tables, memory, &mut notes));
        let ecam = tables.sound(*b"MCFG", &mut notes);
        Ok(Self {
            ecam: ecam.map(|mcfg| mcfg::read(mcfg.bytes, &mut notes)).unwrap_or_default(),
            hpet: tables.sound(*b"HPET", &mut notes).and_then(|table| hpet(table, &mut notes)),
            serial: serial_ports(&tables, &mut notes),
            origins: Origin::of(&tables, dsdt, memory),
            pm_timer: fixed.as_ref().and_then(|fixed| fixed.pm_timer),
            soft_off: fixed.as_ref().and_then(|fixed| fixed.soft_off(types, &mut notes)),
            reset: fixed.as_ref().and_then(|fixed| fixed.reset),
            acpi_blocks: fixed.as_ref().map(|fixed| fixed.blocks.clone()).unwrap_or_default(),
            dmar: dmar(&tables),
            has_rtc: fixed.as_ref().is_none_or(|fixed| fixed.has_rtc),
            has_8259: interrupts.has_8259,
            hardware_reduced: fixed.is_some_and(|fixed| fixed.hardware_reduced),
            cpus: interrupts.cpus,
            io_apics: interrupts.io_apics,
            overrides: interrupts.overrides,
            notes,
        })
    }

    /// What to write where to reset the machine, one after the other until it is. Where the FADT names no
    /// register, or that does nothing, a PC's chipset has one (PCH data sheet, "Reset Control Register"); a
    /// hardware-reduced machine has no such ports.
    #[must_use]
    pub fn resets(&self) -> Vec<Reset> {
        const RESET_CONTROL: Register = Register::Port(0xcf9);
        const SYSTEM_RESET: u8 = 2;
        const RESET_CPU: u8 = 4;
        let chipset = [SYSTEM_RESET, SYSTEM_RESET | RESET_CPU];
        let chipset = chipset.map(|value| Reset { register: RESET_CONTROL, value });
        let chipset = chipset.into_iter().filter(|_| !self.hardware_reduced);
        self.reset.into_iter().chain(chipset).collect()
    }

    /// How an interrupt of the ISA bus is wired.
    #[must_use]
    pub fn isa_line(&self, irq: u8) -> InterruptOverride {
        let moved = self.overrides.iter().find(|entry| entry.irq == irq).copied();
        let gsi = u32::from(irq);
        moved.unwrap_or(InterruptOverride { irq, gsi, active_low: false, level: false })
    }
}

fn no_cpus(notes: &[String]) -> FirmwareError {
    let mut sentence =
        String::from("the firmware's tables name no usable CPU (MADT): update the firmware");
    for note in notes {
        sentence.push_str("; ");
        sentence.push_str(note);
    }
    FirmwareError(sentence)
}

/// The values of `\_S5`, in the DSDT or else in an SSDT.
fn sleep_types(
    fixed: &Fixed,
    tables: &Tables<'_>,
    memory: Memory<'_, '_>,
    notes: &mut Vec<String>,
) -> Option<(u8, u8)> {
    let dsdt = fixed.dsdt.map(|at| {
        let table = Table::at(at, memory).map_err(|damage| format!("{damage}"))?;
        let sound = table.signature() == *b"DSDT" && table.adds_up();
        if sound { Ok(table) } else { Err(String::from("its signature or checksum is wrong")) }
    });
    let dsdt = dsdt.and_then(|found| {
        found.inspect_err(|damage| notes.push(format!("the DSDT is left out: {damage}"))).ok()
    });
    let ssdts = tables.all(*b"SSDT").filter(Table::adds_up);
    dsdt.into_iter().chain(ssdts).find_map(|table| aml::soft_off_types(table.bytes))
}

/// Ports that several tables name come once.
fn serial_ports(tables: &Tables<'_>, notes: &mut Vec<String>) -> Vec<SerialPort> {
    let spcr = tables.sound(*b"SPCR", notes).and_then(|table| serial::spcr(table.bytes, notes));
    let mut ports = Vec::from_iter(spcr);
    let dbg2 = tables.sound(*b"DBG2", notes).map(|table| serial::dbg2(table.bytes, notes));
    for port in dbg2.into_iter().flatten() {
        if ports.iter().all(|known| known.place != port.place) {
            ports.push(port);
        }
    }
    ports
}

fn hpet(table: Table<'_>, notes: &mut Vec<String>) -> Option<Hpa> {
    const SYSTEM_MEMORY: u8 = 0;
    let structure = Structure::<HpetTable>::new(table.bytes)?;
    let base = structure.get().base_address;
    let at = Hpa::new(base.address);
    if base.address_space == SYSTEM_MEMORY && base.address != 0 && at.is_aligned(1024) {
        return Some(at);
    }
    notes.push(format!("the HPET is left out: there is none at {at}"));
    None
}

fn dmar(tables: &Tables<'_>) -> Result<Vec<u8>, String> {
    let mut found = tables.all(*b"DMAR").peekable();
    if found.peek().is_none() {
        return Err(String::from(
            "the firmware has no DMAR table: enable VT-d in the firmware's setup",
        ));
    }
    let sound = found.find(Table::adds_up);
    sound.map(|table| table.bytes.to_vec()).ok_or_else(|| {
        String::from("the firmware's DMAR table has a wrong checksum: update the firmware")
    })
}
