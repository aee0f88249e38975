//! Which unit it is: what its capability registers say.

use super::registers::{FAULT_RECORDS, FRCD, IVA};

/// A unit's properties.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnitOptions {
    /// Where its registers are.
    pub base: u64,
    /// CM: it keeps entries that are not present, too.
    pub caching_mode: bool,
    /// Levels of its second-stage tables, 3 or 4.
    pub levels: u8,
    /// Whether tables may have pages of 2 MiB and 1 GiB.
    pub superpages: bool,
    /// EIM: destinations of 32 bits, which x2APIC mode needs.
    pub extended_interrupt_mode: bool,
    /// IR: it remaps interrupts.
    pub interrupt_remapping: bool,
    /// C: its walks see the CPU's caches. What a driver does about it cannot be seen from here.
    pub coherent: bool,
    /// RWBF: writes to tables must be flushed out of a buffer before an invalidation.
    pub write_buffer: bool,
    /// Ticks from a write of the queue's tail to the work.
    pub delay: u64,
    /// Whether it ever looks at its queue.
    pub answers: bool,
    /// The firmware left translation, remapping and the queue on.
    pub left_on: bool,
    /// The firmware left IQE and ICE set in FSTS.
    pub left_error: bool,
    /// Whether every access to its registers is logged.
    pub trace: bool,
}

impl Default for UnitOptions {
    fn default() -> Self {
        Self {
            base: 0xfed9_0000,
            caching_mode: false,
            levels: 4,
            superpages: true,
            extended_interrupt_mode: true,
            interrupt_remapping: true,
            coherent: true,
            write_buffer: false,
            delay: 200,
            answers: true,
            left_on: false,
            left_error: false,
            trace: false,
        }
    }
}

impl UnitOptions {
    /// Bits of the widest DMA address.
    #[must_use]
    pub const fn address_width(&self) -> u8 {
        if self.levels == 3 { 39 } else { 48 }
    }

    /// CAP (VT-d specification "Capability Register").
    #[must_use]
    pub fn capability(&self) -> u64 {
        const DOMAINS_256: u64 = 2;
        const PAGE_SELECTIVE: u64 = 1 << 39;
        const DRAINS: u64 = 3 << 54;
        // The table's levels, by their number less two.
        let widths = if self.levels == 3 { 1 << 1 } else { 1 << 1 | 1 << 2 };
        let superpages = if self.superpages { 3 } else { 0 };
        let largest_mask = 18;
        DOMAINS_256
            | u64::from(self.write_buffer) << 4
            | u64::from(self.caching_mode) << 7
            | widths << 8
            | u64::from(self.address_width() - 1) << 16
            | u64::from(FRCD / 16) << 24
            | superpages << 34
            | PAGE_SELECTIVE
            | (FAULT_RECORDS as u64 - 1) << 40
            | largest_mask << 48
            | DRAINS
    }

    /// ECAP (VT-d specification "Extended Capability Register").
    #[must_use]
    pub fn extended_capability(&self) -> u64 {
        const QUEUE: u64 = 1 << 1;
        const PASS_THROUGH: u64 = 1 << 6;
        const LARGEST_HANDLE_MASK: u64 = 15 << 20;
        u64::from(self.coherent)
            | QUEUE
            | u64::from(self.interrupt_remapping) << 3
            | u64::from(self.interrupt_remapping && self.extended_interrupt_mode) << 4
            | PASS_THROUGH
            | u64::from(IVA / 16) << 8
            | LARGEST_HANDLE_MASK
    }
}
