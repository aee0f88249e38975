//! An I/O APIC of version 0x20 whose messages go through the unit (I/O APIC data sheet; VT-d specification
//! "Interrupt Requests in Remappable Format: I/OxAPIC").

use crate::bus::Bus;
use crate::host::Interrupt;
use crate::unit::remapping::remappable_address;

/// Redirection entries.
pub const PINS: usize = 24;
/// Its requester, as the DMAR table names it: f0:1f.0.
pub const REQUESTER: u16 = 0xf0f8;

const DELIVERY_STATUS: u64 = 1 << 12;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// Bit 48: the entry holds an index of the remapping table.
const REMAPPABLE: u64 = 1 << 48;
const EXT_INT: u8 = 7;

/// The I/O APIC.
#[derive(Debug)]
pub struct IoApic {
    id: u8,
    select: u8,
    entries: [u64; PINS],
    /// Levels of the lines.
    lines: u32,
    /// Edges that have not been sent.
    edges: u32,
}

impl IoApic {
    /// One with this ID.
    #[must_use]
    pub const fn new(id: u8) -> Self {
        Self { id, select: 0, entries: [MASKED; PINS], lines: 0, edges: 0 }
    }

    /// A reset of the machine.
    pub const fn reset(&mut self) {
        *self = Self { lines: self.lines, ..Self::new(self.id) };
    }

    /// Reads its window.
    #[must_use]
    pub fn read(&self, offset: u32) -> u32 {
        match (offset, self.select) {
            (0x00, select) => select.into(),
            (0x10, 0) => u32::from(self.id) << 24,
            (0x10, 1) => (PINS as u32 - 1) << 16 | 0x20,
            (0x10, select) => {
                let entry = self.pin_selected().and_then(|pin| self.entries.get(pin)).copied();
                (entry.unwrap_or(0) >> (32 * (select & 1))) as u32
            }
            _ => 0,
        }
    }

    pub fn write(&mut self, bus: &mut Bus<'_>, offset: u32, value: u32) {
        match (offset, self.select) {
            (0x00, _) => self.select = value as u8,
            (0x10, 0) => self.id = (value >> 24) as u8,
            (0x10, select) => {
                if let Some(pin) = self.pin_selected() {
                    self.write_entry(pin, select & 1 != 0, value);
                    self.serve(bus, pin);
                }
            }
            // The EOI register.
            (0x40, _) => self.end_of_interrupt(bus, value as u8),
            _ => {}
        }
    }

    fn pin_selected(&self) -> Option<usize> {
        let pin = usize::from(self.select.checked_sub(0x10)?) / 2;
        (pin < PINS).then_some(pin)
    }

    fn write_entry(&mut self, pin: usize, upper: bool, value: u32) {
        const READ_ONLY: u64 = DELIVERY_STATUS | REMOTE_IRR;
        let Some(entry) = self.entries.get_mut(pin) else { return };
        *entry = if upper {
            *entry & 0xffff_ffff | u64::from(value) << 32
        } else {
            *entry & (0xffff_ffff << 32 | READ_ONLY) | u64::from(value) & !READ_ONLY
        };
        if *entry & LEVEL == 0 {
            *entry &= !REMOTE_IRR;
        }
    }

    /// A line's new level. The timer's, 0, is wired to pin 2.
    pub fn set_line(&mut self, bus: &mut Bus<'_>, line: u8, up: bool) {
        let pin = if line == 0 { 2 } else { usize::from(line) };
        let Some(entry) = self.entries.get(pin).copied() else { return };
        let bit = 1 << pin;
        let rises = up && self.lines & bit == 0;
        self.lines = if up { self.lines | bit } else { self.lines & !bit };
        if rises && entry & (LEVEL | MASKED) == 0 {
            self.edges |= bit;
        }
        self.serve(bus, pin);
    }

    /// A CPU ended a level-triggered interrupt with this vector.
    pub fn end_of_interrupt(&mut self, bus: &mut Bus<'_>, vector: u8) {
        for pin in 0..PINS {
            let Some(entry) = self.entries.get_mut(pin) else { continue };
            if *entry as u8 == vector && *entry & LEVEL != 0 {
                *entry &= !REMOTE_IRR;
                self.serve(bus, pin);
            }
        }
    }

    /// Sends a pin's message if it is time for one.
    fn serve(&mut self, bus: &mut Bus<'_>, pin: usize) {
        let bit = 1 << pin;
        let Some(entry) = self.entries.get_mut(pin) else { return };
        let level = *entry & LEVEL != 0;
        let wanted = if level {
            self.lines & bit != 0 && *entry & REMOTE_IRR == 0
        } else {
            self.edges & bit != 0
        };
        if *entry & MASKED != 0 || !wanted {
            return;
        }
        self.edges &= !bit;
        if level {
            *entry |= REMOTE_IRR;
        }
        send(bus, *entry, level);
    }
}

fn send(bus: &mut Bus<'_>, entry: u64, level: bool) {
    const COMPATIBILITY: u64 = 0xfee0_0000;
    let remaps = bus.unit.as_ref().is_some_and(|unit| unit.remaps_interrupts());
    let passes = bus.unit.as_ref().is_none_or(|unit| unit.passes_compatibility());
    if remaps && entry & REMAPPABLE != 0 {
        let index = (entry >> 49) as u16 & 0x7fff | ((entry >> 11 & 1) as u16) << 15;
        bus.message(REQUESTER, remappable_address(index), 0);
    } else if !passes {
        // The unit refuses it, and tells.
        bus.message(REQUESTER, COMPATIBILITY, 0);
    } else {
        let mode = (entry >> 8 & 7) as u8;
        let vector = if mode == EXT_INT { bus.host.legacy_vector() } else { entry as u8 };
        let destination = (entry >> 56) as u32;
        bus.deliver(Interrupt { vector, destination, mode, logical: entry & 1 << 11 != 0, level });
    }
}

#[cfg(test)]
mod tests;
