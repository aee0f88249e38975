//! What a function or the I/O APIC reaches the rest of the machine by: through the unit, where there is
//! one.

use crate::host::{Host, Interrupt};
use crate::unit::Unit;
use crate::unit::remapping::compatibility;
use crate::unit::translation::{Transfer, pages_of};

/// The way to memory and to the CPUs.
pub struct Bus<'a> {
    /// The emulator.
    pub host: &'a mut dyn Host,
    /// The unit in between.
    pub unit: Option<&'a mut Unit>,
}

impl Bus<'_> {
    /// DMA of `source`. False where a part of it was refused.
    pub fn dma(&mut self, source: u16, address: u64, mut transfer: Transfer<'_>) -> bool {
        if let Some(unit) = &mut self.unit {
            return unit.dma(self.host, source, address, transfer);
        }
        let parts = pages_of(address, transfer.length());
        parts.fold(true, |all, (at, part)| all & transfer.carry_out(self.host, at, part))
    }

    /// A message of `source`. False where it was refused.
    pub fn message(&mut self, source: u16, address: u64, data: u32) -> bool {
        const INTERRUPT_RANGE: u64 = 0xfee;
        if address >> 20 != INTERRUPT_RANGE {
            return self.dma(source, address, Transfer::Write(&data.to_le_bytes()));
        }
        if let Some(unit) = &mut self.unit {
            return unit.message(self.host, source, address, data);
        }
        self.deliver(compatibility(address, data));
        true
    }

    /// Straight to the local APICs.
    pub fn deliver(&mut self, interrupt: Interrupt) {
        self.host.deliver(interrupt);
    }
}
