//! A set of vectors, in the layout of the local APIC's 256-bit registers
//! (SDM "Interrupt Acceptance for Fixed Interrupts").

use crate::interrupt::Vector;

/// A set of vectors.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VectorSet([u32; 8]);

impl VectorSet {
    /// No vector.
    pub const EMPTY: Self = Self([0; 8]);

    const fn split(vector: Vector) -> (usize, u32) {
        (vector.index() / 32, 1 << (vector.index() % 32))
    }

    /// Adds a vector; `true` if it was not there.
    pub const fn insert(&mut self, vector: Vector) -> bool {
        let (word, bit) = Self::split(vector);
        let new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        new
    }

    /// Takes a vector out; `true` if it was there.
    pub const fn remove(&mut self, vector: Vector) -> bool {
        let (word, bit) = Self::split(vector);
        let was = self.0[word] & bit != 0;
        self.0[word] &= !bit;
        was
    }

    /// Whether a vector is there.
    #[must_use]
    pub const fn contains(&self, vector: Vector) -> bool {
        let (word, bit) = Self::split(vector);
        self.0[word] & bit != 0
    }

    /// The highest vector.
    #[must_use]
    pub fn highest(&self) -> Option<Vector> {
        let word = self.0.iter().rposition(|bits| *bits != 0)?;
        Some(Vector(word as u8 * 32 + self.word(word).ilog2() as u8))
    }

    /// The set that [`Self::words`] gave.
    #[must_use]
    pub const fn from_words(words: [u32; 8]) -> Self {
        Self(words)
    }

    /// All 256 vectors, 32 to a word.
    #[must_use]
    pub const fn words(&self) -> [u32; 8] {
        self.0
    }

    /// 32 vectors from `word` × 32 on, as ISR, TMR and IRR show them; `word` is taken modulo 8.
    #[must_use]
    pub const fn word(&self, word: usize) -> u32 {
        self.0[word & 7]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_behaves_as_a_set(changes in proptest::collection::vec((any::<u8>(), any::<bool>()), 0..64)) {
            let (mut ours, mut model) = (VectorSet::EMPTY, BTreeSet::new());
            for (vector, insert) in changes {
                if insert {
                    prop_assert_eq!(ours.insert(Vector(vector)), model.insert(vector));
                } else {
                    prop_assert_eq!(ours.remove(Vector(vector)), model.remove(&vector));
                }
                prop_assert_eq!(ours.highest(), model.last().map(|v| Vector(*v)));
            }
            for vector in 0..=255 {
                prop_assert_eq!(ours.contains(Vector(vector)), model.contains(&vector));
                let bit = ours.word(usize::from(vector) / 32) >> (vector % 32) & 1;
                prop_assert_eq!(bit == 1, model.contains(&vector));
            }
        }
    }
}
