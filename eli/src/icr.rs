//! The interrupt command register: who is to get which interprocessor interrupt
//! (SDM "Interrupt Command Register (ICR)", "ICR Operation in x2APIC Mode").

use arch::{ApicId, Vector};

/// Kind of an interprocessor interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IpiKind {
    /// The vector, to every destination.
    Fixed,
    /// The vector, to one of the destinations.
    LowestPriority,
    /// Non-maskable interrupt.
    Nmi,
    Init,
    /// Start-up: the vector is the number of the page to start at.
    Startup,
}

/// A set of CPUs, as an interrupt names it. [`Addressing::accepts`] says who is in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Destination {
    /// The sender.
    Own,
    /// Every CPU of the guest.
    All,
    /// Every CPU but the sender.
    Others,
    /// One CPU, or all of them by the broadcast identifier 0xFFFFFFFF.
    Physical(ApicId),
    /// Logical: each CPU compares it with its own logical identifier, by the rules of its own mode.
    /// xAPIC mode and messages give 8 bits of it.
    Logical(u32),
}

impl Destination {
    /// What 32 bits name: the destination of x2APIC mode.
    #[must_use]
    pub const fn of_word(field: u32, logical: bool) -> Self {
        if logical { Self::Logical(field) } else { Self::Physical(ApicId(field)) }
    }

    /// What 8 bits name: the destination of xAPIC mode, of a message and of an I/O APIC's line.
    #[must_use]
    pub const fn of_byte(field: u8, logical: bool) -> Self {
        match (logical, field) {
            (true, set) => Self::Logical(set as u32),
            (false, u8::MAX) => Self::All,
            (false, id) => Self::Physical(ApicId(id as u32)),
        }
    }
}

/// What of a local APIC decides which interrupts it takes. The guest's other CPUs look at it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Addressing(u64);

impl Addressing {
    /// Switched on, in IA32_APIC_BASE and in SVR.
    const ENABLED: u64 = 1 << 0;
    const X2APIC: u64 = 1 << 1;
    const CLUSTER_MODEL: u64 = 1 << 2;
    /// The logical identifier of xAPIC mode.
    const LDR: u32 = 8;
    const ID: u32 = 32;

    /// `ldr` and `dfr` are those of xAPIC mode.
    pub(crate) const fn new(id: ApicId, enabled: bool, x2apic: bool, ldr: u32, dfr: u32) -> Self {
        let enabled = if enabled { Self::ENABLED } else { 0 };
        let x2apic = if x2apic { Self::X2APIC } else { 0 };
        let model = if dfr >> 28 == 0xf { 0 } else { Self::CLUSTER_MODEL };
        let flags = enabled | x2apic | model;
        Self((id.0 as u64) << Self::ID | (ldr as u64 >> 24) << Self::LDR | flags)
    }

    /// What [`Self::bits`] gave.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// As a number.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether it takes vectors.
    #[must_use]
    pub const fn enabled(self) -> bool {
        self.0 & Self::ENABLED != 0
    }

    /// Whether it is in x2APIC mode.
    #[must_use]
    pub const fn in_x2apic_mode(self) -> bool {
        self.0 & Self::X2APIC != 0
    }

    const fn id(self) -> ApicId {
        ApicId((self.0 >> Self::ID) as u32)
    }

    /// Whether it is in the set; `sender` if it sends.
    #[must_use]
    #[inline]
    pub const fn accepts(self, destination: Destination, sender: bool) -> bool {
        match destination {
            Destination::Own => sender,
            Destination::All => true,
            Destination::Others => !sender,
            Destination::Physical(id) => id.0 == self.id().0 || id.0 == u32::MAX,
            Destination::Logical(u32::MAX) => true,
            Destination::Logical(set) if self.0 & Self::X2APIC != 0 => {
                let own = logical_id(self.id());
                set >> 16 == own >> 16 && set & own & 0xffff != 0
            }
            Destination::Logical(set) => set <= 0xff && self.accepts_byte(set as u8),
        }
    }

    /// A logical destination in xAPIC mode, by the model in DFR (SDM "Logical Destination Mode").
    const fn accepts_byte(self, set: u8) -> bool {
        let own = (self.0 >> Self::LDR) as u8;
        if self.0 & Self::CLUSTER_MODEL == 0 {
            return own & set != 0;
        }
        let cluster = set >> 4;
        (cluster == own >> 4 || cluster == 15) && own & set & 15 != 0
    }
}

/// LDR in x2APIC mode.
pub(crate) const fn logical_id(id: ApicId) -> u32 {
    (id.0 >> 4) << 16 | 1 << (id.0 & 15)
}

/// An interprocessor interrupt that the guest wants to send. `vector` needs a grant
/// ([`crate::Reason::Ipi`]) for the first two kinds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IcrRequest {
    pub kind: IpiKind,
    /// Vector; of meaning for fixed, lowest priority and start-up.
    pub vector: Vector,
    /// To whom.
    pub destination: Destination,
}

const DELIVERY_MODE: u32 = 7 << 8;
const SHORTHAND: u32 = 3 << 18;
/// Destination mode: logical.
pub(crate) const LOGICAL: u32 = 1 << 11;
/// Bits of the low half that are defined; bit 12 was the delivery status of xAPIC mode and is
/// ignored.
pub(crate) const DEFINED: u32 = 0x000c_dfff;

impl IcrRequest {
    /// What a write of the low half asks for, with the destination field decoded as the mode has it; `None` for what no
    /// CPU takes notice of (SMI, INIT de-assert, reserved delivery modes).
    #[inline(always)]
    pub(crate) fn decode(low: u32, destination: Destination) -> Option<Self> {
        // Most are fixed, and for the destination.
        if low & (DELIVERY_MODE | SHORTHAND) == 0 {
            return Some(Self { kind: IpiKind::Fixed, vector: Vector(low as u8), destination });
        }
        let level_deassert = low & 1 << 15 != 0 && low & 1 << 14 == 0;
        let kind = match low >> 8 & 7 {
            0 => IpiKind::Fixed,
            1 => IpiKind::LowestPriority,
            4 => IpiKind::Nmi,
            5 if !level_deassert => IpiKind::Init,
            6 => IpiKind::Startup,
            _ => return None,
        };
        let destination = match low >> 18 & 3 {
            0 => destination,
            1 => Destination::Own,
            2 => Destination::All,
            _ => Destination::Others,
        };
        Some(Self { kind, vector: Vector(low as u8), destination })
    }

    /// Whether it is for the vector, rather than an NMI, INIT or start-up.
    #[must_use]
    pub const fn has_vector(&self) -> bool {
        matches!(self.kind, IpiKind::Fixed | IpiKind::LowestPriority)
    }

    /// Whether the vector of this request cannot be sent (SDM "Error Handling", "Send Illegal
    /// Vector").
    pub(crate) const fn illegal_vector(&self) -> bool {
        self.has_vector() && self.vector.0 < 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A write in x2APIC mode.
    fn decode(value: u64) -> Option<IcrRequest> {
        let low = value as u32;
        IcrRequest::decode(low, Destination::of_word((value >> 32) as u32, low & LOGICAL != 0))
    }

    #[test]
    fn linux_start_up_sequence_is_understood() {
        let request = |kind, vector, destination| {
            Some(IcrRequest { kind, vector: Vector(vector), destination })
        };
        let to = |id| Destination::Physical(ApicId(id));
        assert_eq!(decode(0x1_0000_c500), request(IpiKind::Init, 0, to(1)));
        assert_eq!(decode(0x1_0000_8500), None, "INIT de-assert");
        assert_eq!(decode(0x1_0000_0699), request(IpiKind::Startup, 0x99, to(1)));
        assert_eq!(decode(0x400), request(IpiKind::Nmi, 0, to(0)));
        let logical = request(IpiKind::Fixed, 0xfb, Destination::Logical(3));
        assert_eq!(decode(0x3_0000_08fb), logical);
        assert_eq!(decode(0xc_00fc), request(IpiKind::Fixed, 0xfc, Destination::Others));
    }
}
