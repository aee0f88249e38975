//! Vectors, APIC identifiers, and how an interrupt is addressed.

use core::fmt;

use crate::vectors::VectorSet;

/// An interrupt or exception vector, 0 to 255.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vector(pub u8);

impl Vector {
    /// The first vector that external interrupts may use (SDM "Interrupt and Exception Vectors").
    pub const FIRST_EXTERNAL: Self = Self(32);

    /// Whether this vector is for external interrupts (32–255).
    #[must_use]
    pub const fn is_external(self) -> bool {
        self.0 >= Self::FIRST_EXTERNAL.0
    }

    /// Index into a table of 256.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for Vector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#04x}", self.0)
    }
}

impl fmt::Debug for Vector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vector({:#04x})", self.0)
    }
}

/// A local APIC's identifier (32 bits in x2APIC mode).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ApicId(pub u32);

impl ApicId {
    /// As a destination: every CPU (SDM "Broadcast/Self Delivery Mode", x2APIC; VT-d "Interrupt Remapping").
    pub const EVERY: Self = Self(0xffff_ffff);
}

impl fmt::Display for ApicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Trigger mode of an interrupt line or message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TriggerMode {
    /// Edge-triggered.
    Edge,
    /// Level-triggered.
    Level,
}

/// What a local APIC knows of the interrupts that have come. Its processor priority follows from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct InterruptRegisters {
    /// Interrupt request register.
    pub irr: VectorSet,
    /// In-service register.
    pub isr: VectorSet,
    /// Trigger mode register: set for level.
    pub tmr: VectorSet,
    /// Task-priority register; CR8 is its upper half.
    pub tpr: u8,
}

/// The two delivery modes that the hypervisor ever programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeliveryMode {
    /// Fixed: the vector, to the destination.
    Fixed,
    /// Non-maskable interrupt: the vector is ignored.
    Nmi,
}

/// Where an interrupt goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InterruptTarget {
    /// The vector; with exitless delivery the one that the guest chose.
    pub vector: Vector,
    /// The physical CPU.
    pub destination: ApicId,
    /// Trigger mode.
    pub trigger: TriggerMode,
    /// Delivery mode.
    pub delivery: DeliveryMode,
}

impl InterruptTarget {
    /// The destination where there are eight bits for it.
    fn short_destination(&self) -> Option<u64> {
        u8::try_from(self.destination.0).ok().map(u64::from)
    }

    /// Bits 10:8 of a message's data and of a redirection entry.
    const fn delivery_bits(&self) -> u32 {
        match self.delivery {
            DeliveryMode::Fixed => 0,
            DeliveryMode::Nmi => 4 << 8,
        }
    }

    /// The message that a device sends where interrupts are not remapped (SDM "Message Address Register Format",
    /// "Message Data Register Format"). `None` for a destination above 255, which it cannot name.
    #[must_use]
    pub fn message(&self) -> Option<MsiMessage> {
        let address = MsiMessage::BASE | self.short_destination()? << 12;
        Some(MsiMessage { address, data: self.delivery_bits() | u32::from(self.vector.0) })
    }

    /// The entry of an I/O APIC where interrupts are not remapped (82093AA "I/O Redirection Table Registers"), not
    /// masked. `None` as for [`Self::message`].
    #[must_use]
    pub fn redirection(&self, active_low: bool) -> Option<u64> {
        let level = u64::from(self.trigger == TriggerMode::Level);
        let low = u64::from(self.delivery_bits()) | u64::from(self.vector.0);
        Some(self.short_destination()? << 56 | level << 15 | u64::from(active_low) << 13 | low)
    }
}

/// What a device writes to raise a message-signalled interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MsiMessage {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

impl MsiMessage {
    /// Where messages go, to the local APIC with identifier 0.
    pub const BASE: u64 = 0xfee0_0000;
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: InterruptTarget = InterruptTarget {
        vector: Vector(0x41),
        destination: ApicId(0x12),
        trigger: TriggerMode::Edge,
        delivery: DeliveryMode::Fixed,
    };

    #[test]
    fn a_message_names_its_vector_and_its_cpu() {
        let message = |target: InterruptTarget| target.message().unwrap();
        assert_eq!(message(TARGET), MsiMessage { address: 0xfee1_2000, data: 0x41 });
        let nmi = InterruptTarget { delivery: DeliveryMode::Nmi, vector: Vector(0), ..TARGET };
        assert_eq!(message(nmi), MsiMessage { address: 0xfee1_2000, data: 0x400 });
    }

    #[test]
    fn a_redirection_entry_says_how_the_line_is_wired() {
        let level = InterruptTarget { trigger: TriggerMode::Level, ..TARGET };
        assert_eq!(TARGET.redirection(false), Some(0x1200_0000_0000_0041));
        assert_eq!(level.redirection(true), Some(0x1200_0000_0000_a041));
        let nmi = InterruptTarget { delivery: DeliveryMode::Nmi, vector: Vector(0), ..TARGET };
        assert_eq!(nmi.redirection(false), Some(0x1200_0000_0000_0400));
    }

    #[test]
    fn a_cpu_above_255_is_never_taken_for_another() {
        let far = InterruptTarget { destination: ApicId(0x112), ..TARGET };
        assert_eq!((far.message(), far.redirection(false)), (None, None));
    }
}
