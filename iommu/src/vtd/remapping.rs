//! Interrupt-remapping entries, and what devices and I/O APICs must be programmed with to use them
//! (VT-d specification "Interrupt Remapping", x2APIC mode).

use arch::Bdf;
use arch::Hpa;
use arch::interrupt::{DeliveryMode, InterruptTarget, MsiMessage, TriggerMode};
use arch::iommu::RemapIndex;

/// Bytes of an entry.
pub(super) const ENTRY_SIZE: u64 = 16;
/// Entries of the table that all units of a segment share.
pub(super) const ENTRIES: u16 = 4096;
/// IRTA.EIME: destinations are 32-bit x2APIC identifiers.
const EXTENDED_INTERRUPT_MODE: u64 = 1 << 11;

/// The value of the register IRTA for a table of `entries` (a power of two, 2 to 65536).
pub(super) const fn table_address(table: Hpa, entries: u32) -> u64 {
    // S, the table's size: 2^(S + 1) entries.
    let size = entries.trailing_zeros() as u64 - 1;
    table.as_u64() | EXTENDED_INTERRUPT_MODE | size
}

/// Low half of an entry, which holds all that changes: present, physical destination mode, no
/// redirection hint; so one 8-byte write changes a live entry from old to new.
pub(super) const fn entry_low(target: InterruptTarget) -> u64 {
    let trigger = match target.trigger {
        TriggerMode::Edge => 0,
        TriggerMode::Level => 1 << 4,
    };
    let delivery = match target.delivery {
        DeliveryMode::Fixed => 0,
        DeliveryMode::Nmi => 4 << 5,
    };
    1 | trigger | delivery | (target.vector.0 as u64) << 16 | (target.destination.0 as u64) << 32
}

/// High half of an entry: the request must carry exactly this source (SVT 01, SQ 00).
pub(super) const fn entry_high(source: Bdf) -> u64 {
    1 << 18 | source.requester_id() as u64
}

/// The message for a device, in the remappable format.
///
/// Sub-handle valid (SHV) is set and the data is 0: the unit adds the data to the index, so that a
/// function with several MSI messages, which counts up in the data, uses the entries that follow.
pub(super) const fn message(index: RemapIndex) -> MsiMessage {
    const FORMAT: u64 = 1 << 4;
    const SUB_HANDLE_VALID: u64 = 1 << 3;
    let index = index.0 as u64;
    let handle = (index & 0x7fff) << 5 | (index >> 15) << 2;
    MsiMessage { address: 0xfee0_0000 | FORMAT | SUB_HANDLE_VALID | handle, data: 0 }
}

/// The I/O APIC redirection entry, in the remappable format.
///
/// Its vector does not choose what is delivered, but must be the remapping entry's: the local APIC's
/// EOI broadcast finds a level-triggered line by it.
pub(super) const fn redirection(
    index: RemapIndex,
    target: InterruptTarget,
    active_low: bool,
) -> u64 {
    const FORMAT: u64 = 1 << 48;
    let index = index.0 as u64;
    let level = matches!(target.trigger, TriggerMode::Level);
    target.vector.0 as u64
        | (index >> 15) << 11
        | (active_low as u64) << 13
        | (level as u64) << 15
        | FORMAT
        | (index & 0x7fff) << 49
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch::interrupt::{ApicId, Vector};
    use proptest::prelude::*;

    const TARGET: InterruptTarget = InterruptTarget {
        vector: Vector(0x31),
        destination: ApicId(0x1_0002),
        trigger: TriggerMode::Edge,
        delivery: DeliveryMode::Fixed,
    };

    #[test]
    fn entries_have_the_specifications_bits() {
        assert_eq!(entry_low(TARGET), 0x0001_0002_0031_0001);
        let level = InterruptTarget { trigger: TriggerMode::Level, ..TARGET };
        assert_eq!(entry_low(level), 0x0001_0002_0031_0011);
        let nmi = InterruptTarget { delivery: DeliveryMode::Nmi, ..TARGET };
        assert_eq!(entry_low(nmi), 0x0001_0002_0031_0081);
        assert_eq!(entry_high(Bdf::new(0xf0, 0x1f, 0)), 0x4_f0f8);
        assert_eq!(table_address(Hpa::new(0x10_0000), 4096), 0x10_080b);
        assert_eq!(table_address(Hpa::new(0x10_0000), 256), 0x10_0807);
    }

    #[test]
    fn messages_carry_the_index_in_two_pieces() {
        assert_eq!(message(RemapIndex(0)), MsiMessage { address: 0xfee0_0018, data: 0 });
        assert_eq!(message(RemapIndex(5)).address, 0xfee0_00b8);
        assert_eq!(message(RemapIndex(0x8001)).address, 0xfee0_003c);
    }

    #[test]
    fn a_level_line_keeps_vector_trigger_and_polarity_in_the_io_apic() {
        let level = InterruptTarget { trigger: TriggerMode::Level, ..TARGET };
        assert_eq!(redirection(RemapIndex(3), level, true), 0x0007_0000_0000_a031);
        assert_eq!(redirection(RemapIndex(0x8000), TARGET, false), 0x0001_0000_0000_0831);
    }

    proptest! {
        /// What the unit computes from a message is the index it was made for.
        #[test]
        fn the_unit_reads_back_every_index(index: u16, active_low: bool) {
            let address = message(RemapIndex(index)).address;
            let handle = (address >> 5 & 0x7fff | (address >> 2 & 1) << 15) as u16;
            prop_assert_eq!(handle, index);
            prop_assert_eq!(address >> 20, 0xfee);
            let entry = redirection(RemapIndex(index), TARGET, active_low);
            prop_assert_eq!((entry >> 49 | (entry >> 11 & 1) << 15) as u16, index);
            prop_assert_eq!(entry & 0x700, 0);
        }
    }
}
