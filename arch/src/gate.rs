//! Gate descriptors of an interrupt descriptor table
//! (SDM "64-Bit Mode IDT" and "IDT Descriptors").

/// Size in bytes of a gate in IA-32e mode.
pub const GATE_SIZE_64: usize = 16;
/// Size in bytes of a gate in 32-bit protected mode.
pub const GATE_SIZE_32: usize = 8;
/// Offset of the byte that holds P, DPL and type, in both forms.
pub const GATE_FLAGS_OFFSET: usize = 5;
/// The present bit in that byte.
pub const GATE_PRESENT: u8 = 1 << 7;

/// The two gate formats that have a present bit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GateFormat {
    /// 8 bytes each (protected mode, compatibility does not exist for gates).
    Bits32,
    /// 16 bytes each (IA-32e mode).
    Bits64,
}

impl GateFormat {
    /// Bytes of a gate.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::Bits32 => GATE_SIZE_32,
            Self::Bits64 => GATE_SIZE_64,
        }
    }
}
