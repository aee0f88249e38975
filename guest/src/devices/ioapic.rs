//! The virtual I/O APIC: 16 or 24 redirection entries behind the index and data registers of its page.
//!
//! The guest's entries are what it wrote; what they mean for the machine is the caller's to do, on
//! every entry that [`IoApic::write`] gives back. Remote IRR reads as clear, and the EOI register does nothing:
//! level lines are ended by the EOI broadcast in the machine's own I/O APIC. (Intel 82093AA data sheet, "Register Description"; 100-Series PCH
//! data sheet, "EOI Register".)

use alloc::vec::Vec;

use arch::Vector;
use arch::interrupt::TriggerMode;

/// Guest-physical address of the page.
pub const BASE: u64 = 0xfec0_0000;
/// Its APIC identifier in the MADT and in its own ID register.
pub const ID: u8 = 0;
/// Inputs for the lines of the ISA bus; global system interrupts begin with 0.
pub const ISA_INPUTS: u32 = 16;
/// Inputs of a guest that also has lines of PCI.
pub const INPUTS: u32 = 24;

/// The version that has an EOI register.
const VERSION: u32 = 0x20;
const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;
const FIRST_ENTRY: u8 = 0x10;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RedirectionEntry(pub u64);

impl RedirectionEntry {
    /// After reset: masked.
    pub const MASKED: Self = Self(1 << 16);
    /// What software may write: neither delivery status (12) nor Remote IRR (14).
    const WRITABLE: u64 = 0xff00_0000_0001_afff;

    #[must_use]
    pub const fn vector(self) -> Vector {
        Vector(self.0 as u8)
    }

    /// Delivery mode is *fixed* or *lowest priority*: the modes that carry a vector. The others are
    /// not delivered to a guest.
    #[must_use]
    pub const fn delivers_vector(self) -> bool {
        matches!(self.0 >> 8 & 7, 0 | 1)
    }

    /// The destination is a logical one.
    #[must_use]
    pub const fn logical(self) -> bool {
        self.0 & 1 << 11 != 0
    }

    /// The destination: an APIC identifier, or a logical one.
    #[must_use]
    pub const fn destination(self) -> u8 {
        (self.0 >> 56) as u8
    }

    /// Trigger mode.
    #[must_use]
    pub const fn trigger(self) -> TriggerMode {
        if self.0 & 1 << 15 != 0 { TriggerMode::Level } else { TriggerMode::Edge }
    }

    #[must_use]
    pub const fn masked(self) -> bool {
        self.0 & 1 << 16 != 0
    }
}

/// The registers.
#[derive(Clone, Debug)]
pub struct IoApic {
    select: u8,
    id: u8,
    entries: Vec<RedirectionEntry>,
}

impl IoApic {
    /// Its state after reset.
    #[must_use]
    pub fn new(inputs: u32) -> Self {
        let entries = alloc::vec![RedirectionEntry::MASKED; inputs as usize];
        Self { select: 0, id: ID, entries }
    }

    /// The entry of a global system interrupt.
    #[must_use]
    pub fn entry(&self, gsi: u32) -> Option<RedirectionEntry> {
        self.entries.get(gsi as usize).copied()
    }

    /// Reads the 32-bit register at `offset` in the page. What is no register reads as 0.
    #[must_use]
    pub fn read(&self, offset: u64) -> u32 {
        match (offset, self.select) {
            (IOREGSEL, select) => u32::from(select),
            // ID and arbitration ID.
            (IOWIN, 0 | 2) => u32::from(self.id) << 24,
            (IOWIN, 1) => VERSION | (self.entries.len() as u32).wrapping_sub(1) << 16,
            (IOWIN, select) => {
                let entry = self.entries.get(entry_index(select)).map_or(0, |entry| entry.0);
                (entry >> (32 * (select & 1))) as u32
            }
            _ => 0,
        }
    }

    /// Writes the 32-bit register at `offset` in the page. The input whose entry is another now, with that.
    pub fn write(&mut self, offset: u64, value: u32) -> Option<(u32, RedirectionEntry)> {
        match (offset, self.select) {
            (IOREGSEL, _) => self.select = value as u8,
            (IOWIN, 0) => self.id = (value >> 24) as u8 & 0x0f,
            (IOWIN, select) => return self.write_entry(select, value),
            _ => {}
        }
        None
    }

    fn write_entry(&mut self, select: u8, value: u32) -> Option<(u32, RedirectionEntry)> {
        let index = entry_index(select);
        let entry = self.entries.get_mut(index)?;
        let shift = 32 * (select & 1);
        let kept = entry.0 & !(0xffff_ffff << shift);
        let new = RedirectionEntry((kept | u64::from(value) << shift) & RedirectionEntry::WRITABLE);
        (core::mem::replace(entry, new) != new).then_some((index as u32, new))
    }
}

/// The entry that a value of IOREGSEL names; out of range where it names none.
fn entry_index(select: u8) -> usize {
    select.checked_sub(FIRST_ENTRY).map_or(usize::MAX, |half| usize::from(half / 2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn write(ioapic: &mut IoApic, register: u8, value: u32) -> Option<(u32, RedirectionEntry)> {
        assert_eq!(ioapic.write(IOREGSEL, register.into()), None);
        ioapic.write(IOWIN, value)
    }

    fn read(ioapic: &mut IoApic, register: u8) -> u32 {
        ioapic.write(IOREGSEL, register.into());
        ioapic.read(IOWIN)
    }

    #[test]
    fn it_has_24_masked_inputs_and_an_eoi_register() {
        let mut ioapic = IoApic::new(INPUTS);
        assert_eq!(read(&mut ioapic, 1), 0x0017_0020);
        assert!((0..24).all(|gsi| ioapic.entry(gsi).unwrap().masked()));
        assert_eq!(ioapic.entry(24), None);
        let mut smaller = IoApic::new(ISA_INPUTS);
        assert_eq!((read(&mut smaller, 1), smaller.entry(16)), (0x000f_0020, None));
        assert_eq!(read(&mut smaller, 0x30), 0, "no register");
        assert_eq!(ioapic.write(0x40, 0x31), None, "EOI");
    }

    #[test]
    fn linux_routes_the_uart_edge_triggered_to_a_cpu() {
        let mut ioapic = IoApic::new(INPUTS);
        write(&mut ioapic, 0x10 + 2 * 4 + 1, 0x0100_0000);
        let (gsi, new) = write(&mut ioapic, 0x10 + 2 * 4, 0x0000_0024).unwrap();
        assert_eq!((gsi, new.masked()), (4, false));
        assert_eq!((new.vector(), new.destination()), (Vector(0x24), 1));
        assert!(new.delivers_vector() && !new.logical());
        assert_eq!(new.trigger(), TriggerMode::Edge);
        assert_eq!(write(&mut ioapic, 0x10 + 2 * 4, 0x0000_0024), None);
    }

    #[test]
    fn fields_decode_as_the_data_sheet_has_them() {
        let entry = RedirectionEntry(0x0f00_0000_0000_a931);
        assert!(entry.logical() && entry.delivers_vector());
        assert_eq!((entry.trigger(), entry.destination()), (TriggerMode::Level, 0x0f));
        assert!(!RedirectionEntry(0x400).delivers_vector(), "NMI");
        assert!(!RedirectionEntry(0x700).delivers_vector(), "ExtINT");
    }

    proptest! {
        #[test]
        fn entries_are_what_was_written_without_the_read_only_bits(
            writes in proptest::collection::vec((any::<u8>(), any::<u32>()), 0..64)
        ) {
            let mut ioapic = IoApic::new(INPUTS);
            let mut model = [0x1_0000u64; INPUTS as usize];
            for (register, value) in writes {
                let effect = write(&mut ioapic, register, value);
                if (0x10..0x40).contains(&register) {
                    let place = &mut model[usize::from(register - 0x10) / 2];
                    let old = *place;
                    *place = if register & 1 == 0 {
                        *place >> 32 << 32 | u64::from(value & 0x1_afff)
                    } else {
                        *place & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32
                    };
                    prop_assert_eq!(old != *place, effect.is_some());
                } else {
                    prop_assert_eq!(effect, None);
                }
            }
            for (gsi, entry) in model.iter().enumerate() {
                prop_assert_eq!(ioapic.entry(gsi as u32), Some(RedirectionEntry(*entry)));
                prop_assert_eq!(read(&mut ioapic, 0x10 + 2 * gsi as u8), *entry as u32);
            }
        }
    }
}
