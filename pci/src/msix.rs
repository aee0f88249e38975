//! The MSI-X capability, and the table that a guest sees in place of the real one (PCI Local Bus
//! Specification, "MSI-X Capability and Table Structures").
//!
//! Invariant: the guest's accesses reach this table only; no access goes past its end. The real
//! table is written by the hypervisor alone.

use core::ops::Range;

use arch::interrupt::MsiMessage;
use arch::machine::ConfigSpace;
use arch::{Bdf, Width};

use crate::bar::Bar;
use crate::capability::EXTENDED;

/// Length of the capability.
pub const LENGTH: u16 = 12;
/// Size of a table entry in bytes.
pub const ENTRY_SIZE: u64 = 16;
/// Offset of Vector Control in an entry.
pub const VECTOR_CONTROL: u64 = 12;
/// Vector Control: Mask Bit.
pub const ENTRY_MASKED: u32 = 1;

/// Message Control: the bits that software writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MsixControl(u16);

impl MsixControl {
    const ENABLE: u16 = 1 << 15;
    const FUNCTION_MASK: u16 = 1 << 14;

    /// The writable bits of a register value.
    #[must_use]
    pub const fn new(value: u16) -> Self {
        Self(value & (Self::ENABLE | Self::FUNCTION_MASK))
    }

    /// The bits, at their places in the register.
    #[must_use]
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Whether entries raise interrupts, or keep them pending while they or the function are masked.
    #[must_use]
    pub const fn enabled(self) -> bool {
        self.0 & Self::ENABLE != 0
    }

    /// Whether unmasked entries raise interrupts: enabled, and the function not masked.
    #[must_use]
    pub const fn live(self) -> bool {
        self.0 == Self::ENABLE
    }
}

/// A place in one of the function's memory BARs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BarOffset {
    /// Index of the BAR (BIR), 0 to 5.
    pub bar: u8,
    /// Offset in bytes, a multiple of 8.
    pub offset: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MsixCapability {
    /// Its offset in configuration space.
    pub offset: u16,
    /// Number of table entries, 1 to 2048.
    pub entries: u16,
    /// Where the table is.
    pub table: BarOffset,
    /// Where the pending-bit array is.
    pub pending: BarOffset,
}

impl MsixCapability {
    /// Reads the capability at `offset` of `function`; `None` where it names a BAR that there
    /// cannot be.
    #[must_use]
    pub fn read(space: &impl ConfigSpace, function: Bdf, offset: u16) -> Option<Self> {
        let place = |at: u16| {
            let value = space.read(function, offset + at, Width::Dword);
            let bar = value as u8 & 7;
            (bar < 6).then_some(BarOffset { bar, offset: u64::from(value & !7) })
        };
        let control = space.read(function, offset + 2, Width::Word) as u16;
        Some(Self { offset, entries: (control & 0x7ff) + 1, table: place(4)?, pending: place(8)? })
    }

    /// The same; `None` too where the table does not lie in one of the function's memory BARs, or the capability not
    /// in configuration space.
    #[must_use]
    pub fn read_within(
        space: &impl ConfigSpace,
        function: Bdf,
        offset: u16,
        bars: &[Option<Bar>; 6],
    ) -> Option<Self> {
        if offset + LENGTH > EXTENDED {
            return None;
        }
        let msix = Self::read(space, function, offset)?;
        let bar = bars.get(usize::from(msix.table.bar))?.as_ref()?;
        (bar.is_memory() && msix.table_range().end <= bar.size).then_some(msix)
    }

    /// The bytes of the table in its BAR.
    #[must_use]
    pub fn table_range(&self) -> Range<u64> {
        self.table.offset..self.table.offset + u64::from(self.entries) * ENTRY_SIZE
    }

    /// The 4 KiB pages of its BAR that the table touches, in bytes.
    #[must_use]
    pub fn table_pages(&self) -> Range<u64> {
        let table = self.table_range();
        table.start & !0xfff..(table.end + 0xfff) & !0xfff
    }
}

/// An entry of the virtual table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MsixEntry([u8; ENTRY_SIZE as usize]);

impl Default for MsixEntry {
    /// As after reset: masked.
    fn default() -> Self {
        let mut bytes = [0; ENTRY_SIZE as usize];
        bytes[VECTOR_CONTROL as usize] = ENTRY_MASKED as u8;
        Self(bytes)
    }
}

impl MsixEntry {
    /// The guest's message.
    #[must_use]
    pub fn message(&self) -> MsiMessage {
        let [a0, a1, a2, a3, a4, a5, a6, a7, d0, d1, d2, d3, ..] = self.0;
        MsiMessage {
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            data: u32::from_le_bytes([d0, d1, d2, d3]),
        }
    }

    /// Whether the guest masks it.
    #[must_use]
    pub fn masked(&self) -> bool {
        u32::from(self.0[VECTOR_CONTROL as usize]) & ENTRY_MASKED != 0
    }
}

/// What is written to a real entry so that it sends `message`, or with `None` nothing: offsets and dwords, in order. It is
/// masked while it changes, so the function never sends half a message.
pub fn entry_writes(message: Option<MsiMessage>) -> impl Iterator<Item = (u64, u32)> {
    let filled = message.map(|MsiMessage { address, data }| {
        [(0, address as u32), (4, (address >> 32) as u32), (8, data), (VECTOR_CONTROL, 0)]
    });
    core::iter::once((VECTOR_CONTROL, ENTRY_MASKED)).chain(filled.into_iter().flatten())
}

/// The virtual table, over storage that the caller provides (one entry for each real one).
#[derive(Clone, Debug)]
pub struct MsixTable<S>(S);

impl<S: AsRef<[MsixEntry]> + AsMut<[MsixEntry]>> MsixTable<S> {
    /// A table as after reset.
    pub fn new(mut entries: S) -> Self {
        entries.as_mut().fill(MsixEntry::default());
        Self(entries)
    }

    /// Entry `index`.
    #[must_use]
    pub fn entry(&self, index: u16) -> Option<&MsixEntry> {
        self.0.as_ref().get(usize::from(index))
    }

    /// Reads `width` bytes at `offset` from the table's start. Bytes past the end read as ones.
    #[must_use]
    pub fn read(&self, offset: u64, width: Width) -> u64 {
        (0..u64::from(width.bytes())).fold(0, |value, i| {
            let byte = locate(offset, i)
                .and_then(|(entry, byte)| self.0.as_ref().get(entry).map(|e| e.0[byte]))
                .unwrap_or(0xff);
            value | u64::from(byte) << (8 * i)
        })
    }

    /// Writes `width` bytes of `value` at `offset` from the table's start; bytes past the end are
    /// dropped. Returns the entries that were touched.
    pub fn write(&mut self, offset: u64, width: Width, value: u64) -> Range<u16> {
        let count = self.0.as_ref().len();
        for i in 0..u64::from(width.bytes()) {
            if let Some((entry, byte)) = locate(offset, i)
                && let Some(entry) = self.0.as_mut().get_mut(entry)
            {
                entry.0[byte] = (value >> (8 * i)) as u8;
            }
        }
        let last = offset.saturating_add(u64::from(width.bytes()) - 1) / ENTRY_SIZE;
        let clamp = |index: u64| index.min(count as u64) as u16;
        clamp(offset / ENTRY_SIZE)..clamp(last + 1)
    }
}

/// Entry and byte in it of byte `i` of an access at `offset`.
fn locate(offset: u64, i: u64) -> Option<(usize, usize)> {
    let at = offset.checked_add(i)?;
    Some((usize::try_from(at / ENTRY_SIZE).ok()?, (at % ENTRY_SIZE) as usize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability;
    use crate::fake::FakeSpace;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    fn any_width() -> impl Strategy<Value = Width> {
        prop_oneof![Just(Width::Byte), Just(Width::Word), Just(Width::Dword), Just(Width::Qword)]
    }

    proptest! {
        #[test]
        fn any_accesses_act_as_on_plain_bytes(
            entries in 1usize..5,
            accesses in proptest::collection::vec((0u64..90, any_width(), any::<Option<u64>>()), 0..60),
        ) {
            let mut table = MsixTable::new(vec![MsixEntry::default(); entries]);
            let mut bytes: Vec<u8> = (0..entries * 16).map(|i| u8::from(i % 16 == 12)).collect();
            for (offset, width, write) in accesses {
                let range = offset..offset + u64::from(width.bytes());
                if let Some(value) = write {
                    let before = bytes.clone();
                    for (i, at) in range.enumerate() {
                        if let Some(byte) = bytes.get_mut(at as usize) {
                            *byte = (value >> (8 * i)) as u8;
                        }
                    }
                    let touched = table.write(offset, width, value);
                    for i in (0..bytes.len()).filter(|i| bytes[*i] != before[*i]) {
                        prop_assert!(touched.contains(&((i / 16) as u16)));
                    }
                    prop_assert!(usize::from(touched.end) <= entries);
                } else {
                    let naive = range.enumerate().fold(0, |value, (i, at)| {
                        value | u64::from(*bytes.get(at as usize).unwrap_or(&0xff)) << (8 * i)
                    });
                    prop_assert_eq!(table.read(offset, width), naive);
                }
            }
            for (index, naive) in bytes.chunks(16).enumerate() {
                let entry = table.entry(index as u16).unwrap();
                prop_assert_eq!(entry.masked(), naive[12] & 1 != 0);
                prop_assert_eq!(entry.message().address.to_le_bytes(), &naive[..8]);
                prop_assert_eq!(entry.message().data.to_le_bytes(), &naive[8..12]);
            }
            prop_assert_eq!(table.entry(entries as u16), None);
        }

        #[test]
        fn offsets_at_the_end_of_the_address_space_touch_nothing(back in 0u64..16, width in any_width()) {
            let mut table = MsixTable::new([MsixEntry::default(); 2]);
            prop_assert!(table.write(u64::MAX - back, width, 0).is_empty());
            prop_assert_eq!(table.read(u64::MAX - back, width), width.mask());
        }
    }

    #[test]
    fn the_capability_is_read_and_a_lying_one_refused() {
        const AT: Bdf = Bdf::new(0, 4, 0);
        let mut space = FakeSpace::default();
        let device = space.device(AT, 0x010802);
        device.capability(0x40, capability::MSI_X, &[0x40, 0, 0x08, 0x20, 0, 0, 0, 0x30, 0, 0]);
        let capability = MsixCapability::read(&space, AT, 0x40).unwrap();
        assert_eq!(capability.entries, 65);
        assert_eq!(capability.table, BarOffset { bar: 0, offset: 0x2008 });
        assert_eq!(capability.pending, BarOffset { bar: 0, offset: 0x3000 });
        assert_eq!(capability.table_range(), 0x2008..0x2418);
        assert_eq!(capability.table_pages(), 0x2000..0x3000);
        space.functions.get_mut(&AT).unwrap().bytes[0x44] = 7;
        assert_eq!(MsixCapability::read(&space, AT, 0x40), None);
    }

    #[test]
    fn a_real_entry_is_masked_first_and_unmasked_last() {
        let message = MsiMessage { address: 0x1_fee0_0010, data: 0x41 };
        let writes: Vec<_> = entry_writes(Some(message)).collect();
        assert_eq!(writes, [(12, 1), (0, 0xfee0_0010), (4, 1), (8, 0x41), (12, 0)]);
        assert_eq!(entry_writes(None).collect::<Vec<_>>(), [(12, 1)]);
    }

    #[test]
    fn live_means_enabled_and_not_masked() {
        assert!(MsixControl::new(0x803f).live());
        assert!(!MsixControl::new(0xc03f).live());
        assert!(!MsixControl::new(0x003f).live());
        assert!(MsixControl::new(0xc03f).enabled() && !MsixControl::new(0x403f).enabled());
    }
}
