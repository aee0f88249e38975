//! Root and context entries: which domain a function's DMA goes to
//! (VT-d specification "Root Entry" and "Context Entry", legacy mode).

use arch::{Bdf, Hpa};

/// Bytes of a root or context entry.
const ENTRY_SIZE: u64 = 16;
/// P: present.
const PRESENT: u64 = 1 << 0;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A 128-bit entry: low and high half.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ContextEntry {
    pub(super) low: u64,
    pub(super) high: u64,
}

impl ContextEntry {
    /// Requests go through the second-stage table at `table` (translation type 00), which has
    /// `levels` levels; cached translations carry `domain`.
    pub(super) const fn new(table: Hpa, levels: u8, domain: u16) -> Self {
        // AW, address width: 1 is 39 bits (3 levels), 2 is 48 bits (4 levels).
        let address_width = levels as u64 - 2;
        Self { low: table.as_u64() & ADDRESS | PRESENT, high: (domain as u64) << 8 | address_width }
    }
}

/// The low half of the root entry that leads to the context table at `table`.
pub(super) const fn root_entry(table: Hpa) -> u64 {
    table.as_u64() & ADDRESS | PRESENT
}

/// Where in the root table the entry for a bus is.
pub(super) const fn root_offset(bus: u8) -> u64 {
    bus as u64 * ENTRY_SIZE
}

/// Where in its bus's context table the entry for a function is.
pub(super) const fn context_offset(function: Bdf) -> u64 {
    (function.requester_id() as u64 & 0xff) * ENTRY_SIZE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_the_specifications_bits() {
        let entry = ContextEntry::new(Hpa::new(0x1234_5000), 4, 7);
        assert_eq!(entry, ContextEntry { low: 0x1234_5001, high: 0x702 });
        assert_eq!(ContextEntry::new(Hpa::new(0), 3, 1).high, 0x101);
        assert_eq!(root_entry(Hpa::new(0x9000)), 0x9001);
    }

    #[test]
    fn slots_are_indexed_by_bus_and_by_device_and_function() {
        let function = Bdf::new(3, 31, 7);
        assert_eq!(root_offset(function.bus()), 0x30);
        assert_eq!(context_offset(function), 0xff0);
    }
}
