//! Segment registers and descriptor-table registers.

use crate::address::Gva;

/// Names a segment register. The first six are in the order in which instructions encode them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum SegmentRegister {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
    Ldtr,
    Tr,
}

impl SegmentRegister {
    /// All eight.
    pub const ALL: [Self; 8] =
        [Self::Es, Self::Cs, Self::Ss, Self::Ds, Self::Fs, Self::Gs, Self::Ldtr, Self::Tr];
}

/// Access rights in the layout of a VMCS access-rights field (SDM "Guest Register State",
/// "Format of Access Rights"): descriptor bits 40–47 in bits 0–7, bits 52–55 in bits 12–15,
/// bit 16 = unusable. The SVM back end converts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AccessRights(pub u32);

impl AccessRights {
    /// The register holds nothing usable (a null selector).
    pub const UNUSABLE: Self = Self(1 << 16);

    /// Flat 64-bit code: present, ring 0, execute/read, accessed, L.
    pub const CODE64: Self = Self(0xa09b);
    /// Flat 32-bit code: present, ring 0, execute/read, accessed, D, G.
    pub const CODE32: Self = Self(0xc09b);
    /// Flat data: present, ring 0, read/write, accessed, B, G.
    pub const DATA32: Self = Self(0xc093);
    /// Real-mode code: present, execute/read, accessed.
    pub const CODE16: Self = Self(0x009b);
    /// Real-mode data: present, read/write, accessed.
    pub const DATA16: Self = Self(0x0093);
    /// Busy 64-bit (or 32-bit) TSS, present.
    pub const TSS_BUSY: Self = Self(0x008b);

    /// 64-bit code segment.
    #[must_use]
    pub const fn long(self) -> bool {
        self.0 & 1 << 13 != 0
    }

    /// Default operand size is 32 bits.
    #[must_use]
    pub const fn default_32(self) -> bool {
        self.0 & 1 << 14 != 0
    }

    /// Descriptor privilege level.
    #[must_use]
    pub const fn dpl(self) -> u8 {
        (self.0 >> 5) as u8 & 3
    }

    /// Nothing usable is loaded.
    #[must_use]
    pub const fn unusable(self) -> bool {
        self.0 & 1 << 16 != 0
    }
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// Base address.
    pub base: u64,
    /// Limit in bytes (already scaled by the granularity bit).
    pub limit: u32,
    /// Access rights.
    pub access: AccessRights,
}

impl Segment {
    /// A null selector.
    pub const NULL: Self = Self { selector: 0, base: 0, limit: 0, access: AccessRights::UNUSABLE };
}

/// GDTR or IDTR.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DescriptorTable {
    /// Linear address of the table.
    pub base: Gva,
    /// Offset of the table's last byte.
    pub limit: u16,
}

/// Which descriptor-table register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DescriptorTableRegister {
    /// Global descriptor table.
    Gdtr,
    /// Interrupt descriptor table.
    Idtr,
}
