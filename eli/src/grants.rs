//! Which vectors may reach the guest directly, and why.
//!
//! Invariant: a vector that is the host's is never granted. Grants are never taken back while the
//! guest runs: an interrupt may still be on its way when its source is reprogrammed.

use core::fmt;

use arch::Vector;

use crate::vectors::VectorSet;

/// What made a vector the guest's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// A device's message or interrupt line was programmed with it.
    Device,
    /// An entry of the local vector table, or the spurious vector.
    Lvt,
    /// An interprocessor interrupt was sent with it.
    Ipi,
    /// It arrived, and nobody else owns it: only a self-IPI can have raised it.
    SelfArrival,
    /// The guest executed `INT n`.
    Software,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Device => "a device",
            Self::Lvt => "the local APIC: its timer, or spurious",
            Self::Ipi => "interprocessor interrupts",
            Self::SelfArrival => "self-IPIs",
            Self::Software => "INT n",
        })
    }
}

const REASONS: [Reason; 5] =
    [Reason::Device, Reason::Lvt, Reason::Ipi, Reason::SelfArrival, Reason::Software];

/// The vector belongs to the host: move the host's interrupt to another one
/// ([`Grants::release_host`]) and grant again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostVector(pub Vector);

impl fmt::Display for HostVector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "vector {} is the hypervisor's own; it must move before the guest gets it",
            self.0
        )
    }
}

impl core::error::Error for HostVector {}

/// The vectors of one guest.
#[derive(Clone, Debug, Default)]
pub struct Grants {
    granted: VectorSet,
    host: VectorSet,
    by_reason: [VectorSet; REASONS.len()],
}

impl Grants {
    /// Nothing granted, no host vector.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps a vector for the host. `false` if the guest has it already.
    pub fn reserve_host(&mut self, vector: Vector) -> bool {
        let free = !self.granted.contains(vector);
        if free {
            self.host.insert(vector);
        }
        free
    }

    /// Gives up a host vector.
    pub fn release_host(&mut self, vector: Vector) {
        self.host.remove(vector);
    }

    /// Whether a vector is the host's.
    #[must_use]
    pub const fn is_host(&self, vector: Vector) -> bool {
        self.host.contains(vector)
    }

    /// Makes a vector the guest's. `true` if it was not: its shadow gate is to be derived anew.
    /// Vectors below 32 are the guest's anyway and need none.
    ///
    /// # Errors
    /// When the host keeps the vector.
    pub fn grant(&mut self, vector: Vector, why: Reason) -> Result<bool, HostVector> {
        if self.is_host(vector) {
            return Err(HostVector(vector));
        }
        if !vector.is_external() {
            return Ok(false);
        }
        if let Some(set) = self.by_reason.get_mut(why as usize) {
            set.insert(vector);
        }
        Ok(self.granted.insert(vector))
    }

    /// Whether the gate of a vector is the guest's own: every exception, and what was granted.
    #[must_use]
    pub const fn allows(&self, vector: Vector) -> bool {
        !vector.is_external() || self.granted.contains(vector)
    }

    /// Why a vector was granted; for the log.
    pub fn reasons(&self, vector: Vector) -> impl Iterator<Item = Reason> + '_ {
        let sets = REASONS.into_iter().zip(&self.by_reason);
        sets.filter(move |(_, set)| set.contains(vector)).map(|(why, _)| why)
    }

    /// Takes everything back from the guest (it is being reset and nothing can be on its way).
    pub fn clear(&mut self) {
        *self = Self { host: self.host, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_vector_is_granted_only_after_it_moved() {
        let mut grants = Grants::new();
        assert!(grants.reserve_host(Vector(0xf0)));
        assert_eq!(grants.grant(Vector(0xf0), Reason::Lvt), Err(HostVector(Vector(0xf0))));
        assert!(!grants.allows(Vector(0xf0)));
        grants.release_host(Vector(0xf0));
        assert_eq!(grants.grant(Vector(0xf0), Reason::Lvt), Ok(true));
        assert!(!grants.reserve_host(Vector(0xf0)));
    }

    #[test]
    fn every_reason_is_remembered_and_only_the_first_is_news() {
        let mut grants = Grants::new();
        for (at, why) in REASONS.into_iter().enumerate() {
            assert_eq!(grants.grant(Vector(0x41), why), Ok(at == 0));
        }
        assert!(grants.reasons(Vector(0x41)).eq(REASONS));
        grants.clear();
        assert!(!grants.allows(Vector(0x41)));
        assert_eq!(grants.reasons(Vector(0x41)).count(), 0);
    }

    #[test]
    fn exceptions_are_always_the_guests() {
        let mut grants = Grants::new();
        for vector in 0..=255 {
            assert_eq!(grants.allows(Vector(vector)), vector < 32);
        }
        assert_eq!(grants.grant(Vector(3), Reason::Software), Ok(false));
    }
}
