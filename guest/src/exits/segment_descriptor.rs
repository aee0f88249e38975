//! Segment descriptors as they lie in memory (SDM "Segment Descriptors", "System Descriptor Types", "Code- and
//! Data-Segment Descriptor Types"; "Segment Descriptor Tables in IA-32e Mode"). Pure.

use arch::segment::{AccessRights, Segment};

/// S and type fields of the descriptors that can be loaded.
pub(super) mod kind {
    /// 16-bit TSS, available; only without IA-32e mode.
    pub(in super::super) const AVAILABLE_TSS_16: u8 = 1;
    pub(in super::super) const LDT: u8 = 2;
    /// 32-bit TSS, in IA-32e mode 64-bit TSS; available.
    pub(in super::super) const AVAILABLE_TSS: u8 = 9;
    /// Beside the type of a TSS: its task runs, or is to be returned to.
    pub(in super::super) const BUSY: u8 = 2;
    /// S: code or data.
    pub(in super::super) const CODE_OR_DATA: u8 = 0x10;
    /// Beside [`CODE_OR_DATA`]: code.
    pub(in super::super) const CODE: u8 = 8;
    /// Of code: it runs at its caller's privilege.
    pub(in super::super) const CONFORMING: u8 = 4;
    /// Of code: readable; of data: writable.
    pub(in super::super) const READABLE_OR_WRITABLE: u8 = 2;
    /// A segment register has been loaded with it.
    pub(in super::super) const ACCESSED: u8 = 1;
}

/// Descriptor of a system segment: 16 bytes in 64-bit mode, else 8 and zeros
/// (SDM "Segment Descriptors"; "Segment Descriptor Tables in IA-32e Mode").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Descriptor(pub(super) u128);

impl Descriptor {
    /// Where in the descriptor the byte with P, DPL, S and type is.
    pub(super) const ACCESS_BYTE: u64 = 5;
    const GRANULARITY: u128 = 1 << 55;

    const fn bits(self, low: u32, count: u32) -> u64 {
        (self.0 >> low & ((1 << count) - 1)) as u64
    }

    /// S and type.
    pub(super) const fn kind(self) -> u8 {
        self.bits(40, 5) as u8
    }

    /// What stands in the upper half where the lower one has S and type; zero in a valid one.
    pub(super) const fn upper_kind(self) -> u8 {
        self.bits(64 + 40, 5) as u8
    }

    pub(super) const fn present(self) -> bool {
        self.bits(47, 1) != 0
    }

    pub(super) const fn base(self) -> u64 {
        self.bits(16, 24) | self.bits(56, 40) << 24
    }

    pub(super) const fn dpl(self) -> u8 {
        self.bits(45, 2) as u8
    }

    /// Offset of the last byte.
    pub(super) const fn limit(self) -> u32 {
        let limit = (self.bits(0, 16) | self.bits(48, 4) << 16) as u32;
        if self.0 & Self::GRANULARITY != 0 { limit << 12 | 0xfff } else { limit }
    }

    pub(super) const fn access_byte(self) -> u8 {
        self.bits(40, 8) as u8
    }

    /// With other bits of the type set, too.
    pub(super) const fn with_kind(self, bits: u8) -> Self {
        Self(self.0 | (bits as u128) << 40)
    }

    pub(super) const fn segment(self, selector: u16) -> Segment {
        let access = self.bits(40, 8) | self.bits(52, 4) << 12;
        Segment {
            selector,
            base: self.base(),
            limit: self.limit(),
            access: AccessRights(access as u32),
        }
    }
}
