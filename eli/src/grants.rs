//! Which vectors may reach the guest directly, and why.
//!
//! Invariant: grants are never taken back while the guest runs: an interrupt may still be on its way
//! when its source is reprogrammed.

use core::fmt;

use arch::Vector;
use arch::sync::{AtomicU64, Ordering};

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

/// The vectors of one guest. All its CPUs look at them and add to them at once, without a lock.
#[derive(Debug, Default)]
pub struct Grants {
    granted: SharedSet,
    by_reason: [SharedSet; REASONS.len()],
}

impl Grants {
    /// Nothing granted.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a vector the guest's. `true` if it was not: its shadow gate is to be derived again.
    /// Vectors below 32 are the guest's anyway and need none.
    pub fn grant(&self, vector: Vector, why: Reason) -> bool {
        if !vector.is_external() {
            return false;
        }
        if let Some(set) = self.by_reason.get(why as usize) {
            set.insert(vector);
        }
        self.granted.insert(vector)
    }

    /// Whether the gate of a vector is the guest's own: every exception, and what was granted.
    #[must_use]
    pub fn allows(&self, vector: Vector) -> bool {
        !vector.is_external() || self.granted.contains(vector)
    }

    /// Why a vector was granted; for the log.
    pub fn reasons(&self, vector: Vector) -> impl Iterator<Item = Reason> + '_ {
        let sets = REASONS.into_iter().zip(&self.by_reason);
        sets.filter(move |(_, set)| set.contains(vector)).map(|(why, _)| why)
    }

    /// Takes everything back from the guest (it is being reset and nothing can be on its way).
    pub fn clear(&self) {
        self.granted.clear();
        self.by_reason.iter().for_each(SharedSet::clear);
    }
}

/// A set of vectors that several CPUs use at once.
#[derive(Debug, Default)]
struct SharedSet([AtomicU64; 4]);

impl SharedSet {
    const fn split(vector: Vector) -> (usize, u64) {
        (vector.index() / 64, 1 << (vector.index() % 64))
    }

    /// Adds a vector; `true` if it was not there.
    fn insert(&self, vector: Vector) -> bool {
        let (word, bit) = Self::split(vector);
        self.0[word].fetch_or(bit, Ordering::AcqRel) & bit == 0
    }

    fn contains(&self, vector: Vector) -> bool {
        let (word, bit) = Self::split(vector);
        self.0[word].load(Ordering::Acquire) & bit != 0
    }

    fn clear(&self) {
        self.0.iter().for_each(|word| word.store(0, Ordering::Release));
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    #[test]
    fn model_of_two_cpus_that_grant_a_vector_at_once_one_derives_its_gate_and_both_reasons_stay() {
        loom::model(|| {
            let grants = Arc::new(Grants::new());
            // Neighbours in a word, and the same vector for two reasons.
            let whys = [(0x41, Reason::Device), (0x41, Reason::Ipi)].map(|(vector, why)| {
                let grants = grants.clone();
                thread::spawn(move || grants.grant(Vector(vector), why))
            });
            let neighbour = grants.grant(Vector(0x42), Reason::Device);
            let news = whys.map(|why| why.join().unwrap());
            assert!(neighbour && news[0] != news[1]);
            assert!(grants.allows(Vector(0x41)) && grants.allows(Vector(0x42)));
            assert!(grants.reasons(Vector(0x41)).eq([Reason::Device, Reason::Ipi]));
        });
    }

    /// A CPU that sees the grant sees why, too.
    #[test]
    fn model_who_sees_a_grant_sees_its_reason() {
        loom::model(|| {
            let grants = Arc::new(Grants::new());
            let other = grants.clone();
            let other = thread::spawn(move || other.grant(Vector(0x41), Reason::Device));
            if grants.allows(Vector(0x41)) {
                assert_eq!(grants.reasons(Vector(0x41)).count(), 1);
            }
            other.join().unwrap();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_remembered_and_only_the_first_is_news() {
        let grants = Grants::new();
        for (at, why) in REASONS.into_iter().enumerate() {
            assert_eq!(grants.grant(Vector(0x41), why), at == 0);
        }
        assert!(grants.reasons(Vector(0x41)).eq(REASONS));
        grants.clear();
        assert!(!grants.allows(Vector(0x41)));
        assert_eq!(grants.reasons(Vector(0x41)).count(), 0);
    }

    #[test]
    fn exceptions_are_always_the_guests() {
        let grants = Grants::new();
        for vector in 0..=255 {
            assert_eq!(grants.allows(Vector(vector)), vector < 32);
        }
        assert!(!grants.grant(Vector(3), Reason::Software));
    }
}
