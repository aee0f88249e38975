//! The interrupt command register: who is to get which interprocessor interrupt
//! (SDM "Interrupt Command Register (ICR)", "ICR Operation in x2APIC Mode").

use arch::{ApicId, Vector};

use crate::apic::GpFault;

/// Kind of an interprocessor interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IpiKind {
    /// The vector, to every destination.
    Fixed,
    /// The vector, to one of the destinations.
    LowestPriority,
    /// Non-maskable interrupt.
    Nmi,
    /// INIT.
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
    /// Kind.
    pub kind: IpiKind,
    /// Vector; of meaning for fixed, lowest priority and start-up.
    pub vector: Vector,
    /// To whom.
    pub destination: Destination,
}

/// A fixed interrupt to CPUs that are named one by one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FixedIpi {
    /// Its vector, 32 or above.
    pub vector: Vector,
    /// Bit n for the CPU with identifier n.
    pub cpus: u64,
}

/// Bits of the low half that are defined; bit 12 was the delivery status of xAPIC mode and is
/// ignored.
pub(crate) const DEFINED: u32 = 0x000c_dfff;

impl IcrRequest {
    /// What a write of `value` in x2APIC mode asks for; `None` for what no CPU takes notice of (SMI,
    /// INIT de-assert, reserved delivery modes).
    pub(crate) fn decode(value: u64) -> Result<Option<Self>, GpFault> {
        if value as u32 & !DEFINED != 0 {
            return Err(GpFault);
        }
        let field = (value >> 32) as u32;
        let logical = value & 1 << 11 != 0;
        let destination = if logical {
            Destination::Logical(field)
        } else {
            Destination::Physical(ApicId(field))
        };
        Ok(Self::with_destination(value as u32, destination))
    }

    /// The same as [`Self::decode`] for the most frequent kind; `None` for every other, and for
    /// identifiers above 63.
    #[inline(always)]
    #[must_use]
    pub fn decode_fixed(value: u64) -> Option<FixedIpi> {
        const LOGICAL: u64 = 1 << 11;
        // Vector, destination mode, delivery status, level: what is left is 0.
        const FREE: u32 = 0x58ff;
        let (vector, field) = (Vector(value as u8), (value >> 32) as u32);
        if value as u32 & !FREE != 0 || !vector.is_external() {
            return None;
        }
        let cpus = if value & LOGICAL == 0 {
            1_u64.checked_shl(field)?
        } else {
            u64::from(field & 0xffff).checked_shl((field >> 16).checked_mul(16)?)?
        };
        Some(FixedIpi { vector, cpus })
    }

    /// The same for the low half of the register, with the destination field already decoded.
    pub(crate) fn with_destination(low: u32, destination: Destination) -> Option<Self> {
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
    use proptest::prelude::*;

    #[test]
    fn linux_start_up_sequence_is_understood() {
        let request = |kind, vector, destination| {
            Ok(Some(IcrRequest { kind, vector: Vector(vector), destination }))
        };
        let to_1 = Destination::Physical(ApicId(1));
        assert_eq!(IcrRequest::decode(0x1_0000_c500), request(IpiKind::Init, 0, to_1));
        assert_eq!(IcrRequest::decode(0x1_0000_8500), Ok(None), "INIT de-assert");
        assert_eq!(IcrRequest::decode(0x1_0000_0699), request(IpiKind::Startup, 0x99, to_1));
        assert_eq!(
            IcrRequest::decode(0x400),
            request(IpiKind::Nmi, 0, Destination::Physical(ApicId(0)))
        );
        assert_eq!(
            IcrRequest::decode(0x3_0000_08fb),
            request(IpiKind::Fixed, 0xfb, Destination::Logical(3))
        );
        assert_eq!(
            IcrRequest::decode(0xc_00fc),
            request(IpiKind::Fixed, 0xfc, Destination::Others)
        );
    }

    proptest! {
        #[test]
        fn the_short_way_names_the_same_cpus(vector: u8, logical: bool, field: u32, shift in 0_u32..32) {
            let value = u64::from(field >> shift) << 32 | u64::from(logical) << 11 | u64::from(vector);
            let Some(ipi) = IcrRequest::decode_fixed(value) else { return Ok(()) };
            let request = IcrRequest::decode(value).unwrap().unwrap();
            prop_assert_eq!((request.kind, request.vector), (IpiKind::Fixed, ipi.vector));
            for id in 0..64 {
                let apic = Addressing::new(ApicId(id), true, true, 0, 0);
                let named = apic.accepts(request.destination, false);
                prop_assert_eq!(ipi.cpus >> id & 1 != 0, named);
            }
        }

        #[test]
        fn reserved_bits_fault_and_nothing_else(value: u64) {
            let reserved = value & 0xfff3_2000 != 0;
            prop_assert_eq!(IcrRequest::decode(value).is_err(), reserved);
        }
    }
}
