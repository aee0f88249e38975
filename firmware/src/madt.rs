//! CPUs and interrupt controllers (ACPI Specification, "Multiple APIC Description Table (MADT)").

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use acpi::sdt::madt::{Madt, MadtEntry};
use arch::bytes::u32_at;
use arch::{ApicId, Hpa};

use crate::structures::Structure;

/// Length of the table before its first entry.
const HEADER: usize = 44;
/// Kind and least length of the entries that are read.
const LOCAL_APIC: (u8, usize) = (0, 8);
const IO_APIC: (u8, usize) = (1, 12);
const INTERRUPT_SOURCE_OVERRIDE: (u8, usize) = (2, 10);
const LOCAL_X2APIC: (u8, usize) = (9, 16);
/// The CPU can be used. One that is only "online capable" is not there yet.
const ENABLED: u32 = 1 << 0;

/// An I/O APIC as the MADT names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IoApicEntry {
    /// Its identifier.
    pub id: u8,
    /// Its register page.
    pub address: Hpa,
    /// The global system interrupt of its first input.
    pub first_gsi: u32,
}

/// An interrupt of the ISA bus that is not wired as on the first PCs ("Interrupt Source Override
/// Structure").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InterruptOverride {
    /// The number on the ISA bus.
    pub irq: u8,
    /// The global system interrupt that it drives.
    pub gsi: u32,
    /// Active when low.
    pub active_low: bool,
    /// Level-triggered.
    pub level: bool,
}

/// What the table says.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Interrupts {
    pub(crate) cpus: Vec<ApicId>,
    pub(crate) io_apics: Vec<IoApicEntry>,
    pub(crate) overrides: Vec<InterruptOverride>,
    pub(crate) has_8259: bool,
}

/// Reads the table.
pub(crate) fn read(table: &[u8], notes: &mut Vec<String>) -> Interrupts {
    let mut interrupts = Interrupts::default();
    let whole = whole_entries(table, notes);
    let Some(madt) = whole.and_then(|bytes| Structure::<Madt>::new(&bytes)) else {
        notes.push(format!("the MADT has {} bytes, which is too short", table.len()));
        return interrupts;
    };
    interrupts.has_8259 = madt.get().supports_8259();
    for entry in madt.get().entries() {
        interrupts.add(&entry, notes);
    }
    interrupts
}

/// The table with those entries alone that are whole and are read.
fn whole_entries(table: &[u8], notes: &mut Vec<String>) -> Option<Vec<u8>> {
    let mut whole = table.get(..HEADER)?.to_vec();
    let mut offset = HEADER;
    while let Some([kind, length]) = table.get(offset..).and_then(|rest| rest.first_chunk()) {
        let (kind, length) = (*kind, usize::from(*length));
        let Some(entry) = table.get(offset..offset + length).filter(|_| length >= 2) else {
            notes.push(format!(
                "the MADT ends at its offset {offset}: an entry of type {kind} there claims {length} \
                 bytes"
            ));
            break;
        };
        let known = [LOCAL_APIC, IO_APIC, INTERRUPT_SOURCE_OVERRIDE, LOCAL_X2APIC];
        if let Some((_, least)) = known.iter().find(|known| known.0 == kind) {
            if length < *least {
                notes.push(format!(
                    "the MADT's entry of type {kind} at its offset {offset} is left out: it has \
                     {length} bytes where {least} are needed"
                ));
            } else {
                whole.extend(entry);
            }
        }
        offset += length;
    }
    let length = whole.len() as u32;
    whole.get_mut(4..8)?.copy_from_slice(&length.to_le_bytes());
    debug_assert_eq!(u32_at(&whole, 4), Some(length));
    Some(whole)
}

impl Interrupts {
    #[expect(clippy::wildcard_enum_match_arm, reason = "the MADT has many more kinds of entries")]
    fn add(&mut self, entry: &MadtEntry<'_>, notes: &mut Vec<String>) {
        match entry {
            MadtEntry::LocalApic(cpu) if cpu.flags & ENABLED != 0 => {
                // 0xff is every CPU's (SDM "Determining IPI Destination").
                if cpu.apic_id == u8::MAX {
                    refuse_broadcast(notes, "local APIC", 0xff, u32::from(cpu.processor_id));
                } else {
                    self.add_cpu(ApicId(u32::from(cpu.apic_id)));
                }
            }
            MadtEntry::LocalX2Apic(cpu) if cpu.flags & ENABLED != 0 => {
                let (id, uid) = (cpu.x2apic_id, cpu.processor_uid);
                if id == u32::MAX {
                    refuse_broadcast(notes, "local x2APIC", id, uid);
                } else {
                    self.add_cpu(ApicId(id));
                }
            }
            MadtEntry::IoApic(entry) => self.add_io_apic(
                IoApicEntry {
                    id: entry.io_apic_id,
                    address: Hpa::new(u64::from(entry.io_apic_address)),
                    first_gsi: entry.global_system_interrupt_base,
                },
                notes,
            ),
            MadtEntry::InterruptSourceOverride(entry) if entry.bus == 0 && entry.irq < 16 => {
                // "MPS INTI Flags"; 0 is what the bus has: active high, edge-triggered.
                let flags = entry.flags;
                let (active_low, level) = (flags & 3 == 3, flags >> 2 & 3 == 3);
                let (irq, gsi) = (entry.irq, entry.global_system_interrupt);
                self.overrides.retain(|earlier| earlier.irq != irq);
                self.overrides.push(InterruptOverride { irq, gsi, active_low, level });
            }
            _ => {}
        }
    }

    /// Firmware may name a CPU in entries of both kinds, in any order.
    fn add_cpu(&mut self, id: ApicId) {
        if !self.cpus.contains(&id) {
            self.cpus.push(id);
        }
    }

    fn add_io_apic(&mut self, entry: IoApicEntry, notes: &mut Vec<String>) {
        if entry.address.as_u64() == 0 || !entry.address.is_aligned(16) {
            notes.push(format!(
                "I/O APIC {} of the MADT is left out: there is none at {}",
                entry.id, entry.address
            ));
        } else if self.io_apics.iter().any(|earlier| earlier.address == entry.address) {
            notes.push(format!("the MADT names the I/O APIC at {} twice", entry.address));
        } else {
            self.io_apics.push(entry);
        }
    }
}

fn refuse_broadcast(notes: &mut Vec<String>, what: &str, id: u32, uid: u32) {
    notes.push(format!(
        "the MADT's {what} entry of processor {uid} is left out: identifier {id:#x} means all CPUs"
    ));
}
