//! What a guest's MSI or MSI-X message asks for (SDM "Message Signalled Interrupts").
//!
//! Invariant: only a fixed, edge-triggered interrupt with an external vector comes out. NMI, SMI,
//! INIT, ExtINT and level messages, and writes to anything but the interrupt address range, are
//! refused with a reason; the caller keeps such a message masked.

use core::fmt;

use arch::Vector;
use arch::interrupt::{ApicId, DeliveryMode, InterruptTarget, MsiMessage, TriggerMode};

/// An interrupt that the guest wants from its device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestInterrupt {
    /// The guest's vector, 32 to 255.
    pub vector: Vector,
    /// Where it goes, as the guest writes it: 8 bits, about its own local APICs.
    pub destination: u8,
    /// The destination is a logical one, else an APIC identifier (0xff: every CPU).
    pub logical: bool,
}

impl GuestInterrupt {
    /// The same interrupt to a physical CPU, with the guest's own vector.
    #[must_use]
    pub const fn target(self, destination: ApicId) -> InterruptTarget {
        InterruptTarget {
            vector: self.vector,
            destination,
            trigger: TriggerMode::Edge,
            delivery: DeliveryMode::Fixed,
        }
    }
}

/// Why a message stays masked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MessageRefused {
    /// The address is not in the interrupt address range.
    Address(u64),
    /// The delivery mode is neither fixed nor lowest priority.
    DeliveryMode(u8),
    /// The message is level-triggered.
    Level,
    /// The vector belongs to exceptions.
    Vector(Vector),
}

impl fmt::Display for MessageRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => {
                write!(f, "message address {address:#x} is not 0xfeexxxxx: no interrupt")
            }
            Self::DeliveryMode(mode) => {
                write!(f, "message delivery mode {mode} is not for devices: fixed (0) is")
            }
            Self::Level => f.write_str("the message is level-triggered: only edge is for devices"),
            Self::Vector(vector) => write!(f, "message vector {vector} belongs to exceptions"),
        }
    }
}

impl core::error::Error for MessageRefused {}

/// Decodes a message in the compatibility format. Lowest priority is taken as fixed.
///
/// # Errors
/// When the message is not one that a device may send; see [`MessageRefused`].
pub const fn decode(message: MsiMessage) -> Result<GuestInterrupt, MessageRefused> {
    let MsiMessage { address, data } = message;
    if address >> 20 != 0xfee {
        return Err(MessageRefused::Address(address));
    }
    let mode = (data >> 8) as u8 & 7;
    if mode > 1 {
        return Err(MessageRefused::DeliveryMode(mode));
    }
    if data & 1 << 15 != 0 {
        return Err(MessageRefused::Level);
    }
    let vector = Vector(data as u8);
    if !vector.is_external() {
        return Err(MessageRefused::Vector(vector));
    }
    let (destination, logical) = ((address >> 12) as u8, address & 1 << 2 != 0);
    Ok(GuestInterrupt { vector, destination, logical })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn linux_messages_decode() {
        let decoded = decode(MsiMessage { address: 0xfee0_1000, data: 0x4021 });
        let expected = GuestInterrupt { vector: Vector(0x21), destination: 1, logical: false };
        assert_eq!(decoded, Ok(expected));
        let decoded = decode(MsiMessage { address: 0xfee0_200c, data: 0x0122 });
        assert_eq!(decoded.map(|it| (it.destination, it.logical)), Ok((2, true)));
    }

    #[test]
    fn dangerous_messages_are_refused() {
        let refused = |address, data| decode(MsiMessage { address, data }).unwrap_err();
        assert_eq!(refused(0xfed0_0000, 0x41), MessageRefused::Address(0xfed0_0000));
        assert_eq!(refused(0x1_fee0_0000, 0x41), MessageRefused::Address(0x1_fee0_0000));
        for mode in 2..8 {
            assert_eq!(
                refused(0xfee0_0000, u32::from(mode) << 8 | 0x41),
                MessageRefused::DeliveryMode(mode)
            );
        }
        assert_eq!(refused(0xfee0_0000, 0x8041), MessageRefused::Level);
        assert_eq!(refused(0xfee0_0000, 0x0e), MessageRefused::Vector(Vector(14)));
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_external(low: u32, data: u32) {
            let address = u64::from(low) & 0xf_ffff | 0xfee0_0000;
            if let Ok(interrupt) = decode(MsiMessage { address, data }) {
                prop_assert!(interrupt.vector.is_external());
            }
        }
    }
}
