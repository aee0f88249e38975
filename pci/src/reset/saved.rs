//! What a reset loses and the firmware, or bring-up, had set up.
//!
//! Not among it are the message registers of MSI and MSI-X: they are off after a reset, and what they
//! held was for the last owner's interrupts. They are programmed when the next owner does.

use alloc::vec::Vec;

use arch::machine::ConfigSpace;
use arch::{Bdf, Width};

use crate::capability::{self, Capability, capabilities, extended_capabilities};
use crate::header::{BAR0, BAR5, CACHE_LINE_SIZE, HEADER_TYPE, INTERRUPT_LINE, MULTI_FUNCTION};

/// Registers of one function, in the order in which they are written back.
#[derive(Debug)]
pub(crate) struct Saved {
    function: Bdf,
    registers: Vec<Register>,
}

#[derive(Clone, Copy, Debug)]
struct Register {
    offset: u16,
    width: Width,
    value: u32,
}

impl Saved {
    /// Reads what `function` has.
    pub(crate) fn read(space: &impl ConfigSpace, function: Bdf) -> Self {
        let mut saved = Self { function, registers: Vec::new() };
        // Those decide how many bits the BARs have.
        for capability in extended_capabilities(space, function) {
            if capability.id == capability::RESIZABLE_BAR {
                saved.keep_bar_sizes(space, capability.offset);
            }
        }
        saved.keep_header(space);
        for capability in capabilities(space, function) {
            saved.keep_capability(space, capability);
        }
        for capability in extended_capabilities(space, function) {
            saved.keep_extended(space, capability);
        }
        saved
    }

    /// Writes it back. The function does not decode meanwhile.
    pub(crate) fn restore(&self, space: &mut impl ConfigSpace) {
        for Register { offset, width, value } in &self.registers {
            space.write(self.function, *offset, *width, *value);
        }
    }

    #[cfg(test)]
    pub(super) fn offsets(&self) -> Vec<u16> {
        self.registers.iter().map(|register| register.offset).collect()
    }

    fn keep(&mut self, space: &impl ConfigSpace, offset: u16, width: Width) {
        let value = space.read(self.function, offset, width);
        self.registers.push(Register { offset, width, value });
    }

    fn keep_header(&mut self, space: &impl ConfigSpace) {
        const SECONDARY_BUS: u16 = 0x18;
        const IO_WINDOW: u16 = 0x1c;
        const WINDOWS: core::ops::Range<u16> = 0x20..0x34;
        const BRIDGE_CONTROL: u16 = 0x3e;
        self.keep(space, CACHE_LINE_SIZE, Width::Word);
        let kind = space.read(self.function, HEADER_TYPE, Width::Byte) as u8 & !MULTI_FUNCTION;
        if kind == 1 {
            for offset in [BAR0, BAR0 + 4, SECONDARY_BUS] {
                self.keep(space, offset, Width::Dword);
            }
            // Its upper half is Secondary Status, which ones would clear.
            self.keep(space, IO_WINDOW, Width::Word);
            WINDOWS.step_by(4).for_each(|offset| self.keep(space, offset, Width::Dword));
            self.keep(space, BRIDGE_CONTROL, Width::Word);
        } else {
            (BAR0..=BAR5).step_by(4).for_each(|offset| self.keep(space, offset, Width::Dword));
        }
        self.keep(space, INTERRUPT_LINE, Width::Byte);
    }

    fn keep_capability(&mut self, space: &impl ConfigSpace, capability: Capability) {
        let Capability { id, offset } = capability;
        match id {
            capability::PCI_EXPRESS => self.keep_express(space, offset),
            // PCI-X Command ("PCI-X Capabilities List Item").
            capability::PCI_X => self.keep(space, offset + 2, Width::Word),
            _ => {}
        }
    }

    /// Device Control and Link Control, and the second ones ("PCI Express Capability Structure").
    fn keep_express(&mut self, space: &impl ConfigSpace, at: u16) {
        const INITIATE_FUNCTION_LEVEL_RESET: u32 = 1 << 15;
        const INTEGRATED_ENDPOINT: u32 = 9;
        const EVENT_COLLECTOR: u32 = 10;
        let flags = space.read(self.function, at + 2, Width::Word);
        let (version, kind) = (flags & 0xf, flags >> 4 & 0xf);
        let has_link = !matches!(kind, INTEGRATED_ENDPOINT | EVENT_COLLECTOR);
        let control = space.read(self.function, at + 8, Width::Word);
        let value = control & !INITIATE_FUNCTION_LEVEL_RESET;
        self.registers.push(Register { offset: at + 8, width: Width::Word, value });
        let second = version >= 2;
        let others = [(has_link, 0x10), (second, 0x28), (second && has_link, 0x30)];
        for (_, distance) in others.into_iter().filter(|(there, _)| *there) {
            self.keep(space, at + distance, Width::Word);
        }
    }

    fn keep_extended(&mut self, space: &impl ConfigSpace, capability: Capability) {
        let Capability { id, offset } = capability;
        let (distances, width): (&[u16], Width) = match id {
            // Masks, severities, and Advanced Error Capabilities and Control.
            capability::ADVANCED_ERROR_REPORTING => (&[0x08, 0x0c, 0x14, 0x18], Width::Dword),
            // ACS Control: isolation between the functions of one device rests on it.
            capability::ACCESS_CONTROL_SERVICES => (&[6], Width::Word),
            // The two maximum latencies.
            capability::LATENCY_TOLERANCE => (&[4], Width::Dword),
            // PTM Control.
            capability::PRECISION_TIME => (&[8], Width::Dword),
            _ => return,
        };
        distances.iter().for_each(|distance| self.keep(space, offset + distance, width));
    }

    /// Resizable BAR Control, of which the first says how many there are ("Resizable BAR Capability").
    fn keep_bar_sizes(&mut self, space: &impl ConfigSpace, at: u16) {
        const CONTROL: u16 = 8;
        const MAX_BARS: u16 = 6;
        let first = space.read(self.function, at + CONTROL, Width::Dword);
        let bars = (first >> 5 & 7) as u16;
        for bar in 0..bars.min(MAX_BARS) {
            let offset = at + CONTROL + 8 * bar;
            if offset < 0x1000 {
                self.keep(space, offset, Width::Dword);
            }
        }
    }
}
