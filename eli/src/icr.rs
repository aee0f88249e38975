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

/// A set of CPUs, as an interrupt names it. [`crate::VirtualApic::accepts`] says who is in it.
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
    /// x2APIC logical: cluster in bits 31:16, members in bits 15:0.
    Logical(u32),
    /// xAPIC logical, flat or cluster as each CPU's DFR says.
    LogicalXapic(u8),
}

impl Destination {
    /// Whether the CPU with identifier `id`, in x2APIC mode, is in the set; `sender` if it sends.
    /// Logical identifiers follow from `id` there (SDM "Deriving Logical x2APIC ID from the Local
    /// x2APIC ID"); a CPU in xAPIC's flat model is taken to have its own bit.
    #[must_use]
    pub const fn includes(self, id: ApicId, sender: bool) -> bool {
        match self {
            Self::Own => sender,
            Self::All => true,
            Self::Others => !sender,
            Self::Physical(other) => other.0 == id.0 || other.0 == u32::MAX,
            Self::Logical(set) => {
                let own = logical_id(id);
                set == u32::MAX || set >> 16 == own >> 16 && set & own & 0xffff != 0
            }
            Self::LogicalXapic(set) => id.0 < 8 && set >> id.0 & 1 != 0,
        }
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

    /// Whether the vector of this request cannot be sent (SDM "Error Handling", "Send Illegal
    /// Vector").
    pub(crate) const fn illegal_vector(&self) -> bool {
        matches!(self.kind, IpiKind::Fixed | IpiKind::LowestPriority) && self.vector.0 < 16
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
        fn reserved_bits_fault_and_nothing_else(value: u64) {
            let reserved = value & 0xfff3_2000 != 0;
            prop_assert_eq!(IcrRequest::decode(value).is_err(), reserved);
        }
    }
}
