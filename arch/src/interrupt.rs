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

/// What a device writes to raise a message-signalled interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MsiMessage {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
}
