//! Fixed hardware: how the machine is switched off and reset, its timer, what it lacks
//! (ACPI Specification, "Fixed ACPI Description Table (FADT)").

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use acpi::AcpiError;
use acpi::address::{AddressSpace, GenericAddress};
use acpi::sdt::fadt::Fadt;
use arch::Hpa;

use crate::structures::Structure;

/// Where a register is. Never port 0 or address 0, which mean that there is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Register {
    /// At an I/O port.
    Port(u16),
    Memory(Hpa),
}

/// A PM1 control register, and the value of its field SLP_TYP for the soft-off state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pm1Control {
    pub register: Register,
    /// SLP_TYP.
    pub sleep_type: u8,
}

/// How to switch the machine off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SoftOff {
    /// By PM1a_CNT, and PM1b_CNT where that exists ("PM1 Control Registers").
    Pm1 {
        /// PM1a_CNT.
        a: Pm1Control,
        /// PM1b_CNT.
        b: Option<Pm1Control>,
    },
    /// By the sleep control register of a hardware-reduced machine ("Sleep Control and Status
    /// Registers").
    SleepControl {
        register: Register,
        /// SLP_TYP.
        sleep_type: u8,
    },
}

impl SoftOff {
    /// The registers that are written.
    pub fn registers(&self) -> impl Iterator<Item = Register> + use<> {
        let (first, second) = match self {
            Self::Pm1 { a, b } => (a.register, b.map(|b| b.register)),
            Self::SleepControl { register, .. } => (*register, None),
        };
        [Some(first), second].into_iter().flatten()
    }
}

/// How to reset the machine ("Reset Register").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reset {
    /// The register, of one byte.
    pub register: Register,
    /// What to write.
    pub value: u8,
}

/// The ACPI timer ("Power Management Timer").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PmTimer {
    /// The first of its four ports.
    pub port: u16,
    /// It counts 32 bits, not 24.
    pub is_32_bit: bool,
}

/// Registers of the ACPI hardware, which are the system's and no device's ("PM1 Event Grouping", "PM2 Control",
/// "General-Purpose Event Register Blocks", "System Control Interrupt and SMI Command Port").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Block {
    /// Ends a sentence.
    pub name: &'static str,
    /// The first of them.
    pub register: Register,
    /// Never 0.
    pub bytes: u8,
}

/// What the table says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Fixed {
    pub(crate) dsdt: Option<Hpa>,
    pub(crate) pm_timer: Option<PmTimer>,
    pub(crate) reset: Option<Reset>,
    pub(crate) has_rtc: bool,
    pub(crate) hardware_reduced: bool,
    pub(crate) blocks: Vec<Block>,
    /// PM1a_CNT and PM1b_CNT.
    pm1_control: (Option<Register>, Option<Register>),
    sleep_control: Option<Register>,
}

/// Reads the table.
pub(crate) fn read(table: &[u8]) -> Option<Fixed> {
    /// The first revision in which IAPC_BOOT_ARCH means something.
    const WITH_BOOT_FLAGS: u8 = 3;
    /// PM1_EVT_LEN to GPE1_BLK_LEN.
    const BLOCK_LENGTHS: core::ops::Range<usize> = 88..94;
    let own_lengths = table.get(BLOCK_LENGTHS).and_then(|lengths| lengths.try_into().ok());
    let mut table = table.to_vec();
    // The `acpi` crate makes bits of these in a byte, and nothing here asks it for them.
    let lengths = table.iter_mut().take(BLOCK_LENGTHS.end).skip(BLOCK_LENGTHS.start);
    lengths.for_each(|length| *length = (*length).min(31));
    let structure = Structure::<Fadt>::new(&table)?;
    let fadt = structure.get();
    let (flags, boot_flags) = (fadt.flags, fadt.iapc_boot_arch);
    let hardware_reduced = flags.system_is_hw_reduced_acpi();
    let optional = |found: Result<Option<GenericAddress>, AcpiError>| found.ok().flatten();
    let timer = optional(fadt.pm_timer_block()).and_then(register);
    let reset = fadt.reset_register().ok().and_then(register);
    let pm1a = fadt.pm1a_control_block().ok().and_then(register);
    let pm1b = optional(fadt.pm1b_control_block()).and_then(register);
    Some(Fixed {
        dsdt: fadt.dsdt_address().ok().map(|at| Hpa::new(at as u64)),
        pm_timer: match timer {
            Some(Register::Port(port)) if !hardware_reduced && port <= u16::MAX - 3 => {
                Some(PmTimer { port, is_32_bit: flags.pm_timer_is_32_bit() })
            }
            _ => None,
        },
        reset: reset
            .filter(|_| flags.supports_system_reset_via_fadt())
            .map(|register| Reset { register, value: fadt.reset_value }),
        has_rtc: fadt.header.revision < WITH_BOOT_FLAGS
            || !boot_flags.use_time_and_alarm_namespace_for_rtc(),
        hardware_reduced,
        blocks: if hardware_reduced {
            Vec::new()
        } else {
            blocks(&fadt, own_lengths.unwrap_or_default())
        },
        // What a hardware-reduced machine has there means nothing.
        pm1_control: if hardware_reduced { (None, None) } else { (pm1a, pm1b) },
        sleep_control: optional(fadt.sleep_control_register()).and_then(register),
    })
}

/// The blocks that a table names and that have a length. Each address comes from the longer field, where that has one.
fn blocks(fadt: &Fadt, lengths: [u8; 6]) -> Vec<Block> {
    const EVENTS: &str = "the ACPI event registers (PM1_EVT)";
    const CONTROL: &str = "the ACPI control registers (PM1_CNT)";
    const GENERAL: &str = "the ACPI general-purpose events (GPE)";
    let optional = |found: Result<Option<GenericAddress>, AcpiError>| found.ok().flatten();
    let command = GenericAddress {
        address_space: AddressSpace::SystemIo,
        bit_width: 8,
        bit_offset: 0,
        access_size: 0,
        address: fadt.smi_cmd_port.into(),
    };
    let [events, control, control_2, _timer, general_0, general_1] = lengths;
    let blocks = [
        (EVENTS, fadt.pm1a_event_block().ok(), events),
        (EVENTS, optional(fadt.pm1b_event_block()), events),
        (CONTROL, fadt.pm1a_control_block().ok(), control),
        (CONTROL, optional(fadt.pm1b_control_block()), control),
        ("the ACPI control register PM2_CNT", optional(fadt.pm2_control_block()), control_2),
        (GENERAL, optional(fadt.gpe0_block()), general_0),
        (GENERAL, optional(fadt.gpe1_block()), general_1),
        ("the port that calls the firmware (SMI_CMD)", Some(command), 1),
    ];
    let used = |(name, address, bytes): (_, Option<GenericAddress>, u8)| {
        let register = address.and_then(register).filter(|_| bytes != 0)?;
        Some(Block { name, register, bytes })
    };
    blocks.into_iter().filter_map(used).collect()
}

impl Fixed {
    /// How to switch off, where `\_S5` has these values; else a note says why it cannot be.
    pub(crate) fn soft_off(
        &self,
        types: Option<(u8, u8)>,
        notes: &mut Vec<String>,
    ) -> Option<SoftOff> {
        let without = "the machine cannot be switched off";
        let Some((first, second)) = types else {
            notes.push(format!("{without}: neither DSDT nor SSDTs have \\_S5 as a plain package"));
            return None;
        };
        let found = match (self.pm1_control, self.sleep_control) {
            ((Some(a), b), _) => {
                let a = Pm1Control { register: a, sleep_type: first };
                let b = b.map(|register| Pm1Control { register, sleep_type: second });
                Some(SoftOff::Pm1 { a, b })
            }
            (_, Some(register)) => Some(SoftOff::SleepControl { register, sleep_type: first }),
            _ => None,
        };
        if found.is_none() {
            notes.push(format!("{without}: the FADT has neither PM1a_CNT nor SLEEP_CONTROL_REG"));
        }
        found
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "registers elsewhere are not used")]
fn register(address: GenericAddress) -> Option<Register> {
    match address.address_space {
        _ if address.address == 0 => None,
        AddressSpace::SystemIo => u16::try_from(address.address).ok().map(Register::Port),
        AddressSpace::SystemMemory => Some(Register::Memory(Hpa::new(address.address))),
        _ => None,
    }
}
