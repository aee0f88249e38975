//! Memory that several guests share, and the doorbells by which they call each other.
//!
//! Invariant: a doorbell is one word. Its own guest writes it, behind that guest's lock; whoever
//! rings it only reads it, or marks it as pending, behind its own: no guest waits for another.

use arch::interrupt::InterruptTarget;
use arch::sync::{AtomicU64, Ordering};
use arch::{ApicId, Vector};

/// Maximum number of guests that share a region.
pub const MAX_PEERS: usize = 8;
/// Doorbells of each guest: entries of its MSI-X table.
pub const DOORBELLS: u16 = 8;

/// A region. Each of its guests holds it by a reference.
#[derive(Debug, Default)]
pub struct SharedMemory {
    size: u64,
    bells: [[AtomicU64; DOORBELLS as usize]; MAX_PEERS],
}

/// State of a doorbell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Bell {
    /// Nobody will ever hear it.
    Off,
    /// It is kept until the guest unmasks the doorbell.
    Masked,
    /// An interrupt.
    Live(InterruptTarget),
}

// A doorbell's word; 0 is `Bell::Off`. A live one has a vector in bits 7:0 and an APIC identifier in
// bits 39:8.
const LIVE: u64 = 1 << 63;
const MASKED: u64 = 1 << 62;
const PENDING: u64 = 1 << 61;

impl SharedMemory {
    /// A region of `size` bytes: a power of two, whole pages. Where it is the kernel knows.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self { size, ..Self::default() }
    }

    /// Bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    fn bell(&self, peer: u16, index: u16) -> Option<&AtomicU64> {
        self.bells.get(usize::from(peer))?.get(usize::from(index))
    }

    /// Rings doorbell `index` of `peer`: the interrupt to send now, if any.
    pub(super) fn ring(&self, peer: u16, index: u16) -> Option<(ApicId, Vector)> {
        let masked = |word| (word & MASKED != 0).then_some(word | PENDING);
        let bell = self.bell(peer, index)?;
        let word = bell.fetch_update(Ordering::AcqRel, Ordering::Acquire, masked).err()?;
        (word & LIVE != 0).then_some((ApicId((word >> 8) as u32), Vector(word as u8)))
    }

    /// The guest sets a doorbell of its own. `true`: it was rung while it was masked, and now is the
    /// time for its interrupt.
    pub(super) fn set(&self, peer: u16, index: u16, bell: Bell) -> bool {
        let next = |old| match bell {
            Bell::Off => 0,
            Bell::Masked => MASKED | old & PENDING,
            Bell::Live(target) => {
                LIVE | u64::from(target.destination.0) << 8 | u64::from(target.vector.0)
            }
        };
        let word = self.bell(peer, index);
        let old = word.map(|word| {
            word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |old| Some(next(old)))
        });
        let rung = old.and_then(Result::ok).is_some_and(|old| old & PENDING != 0);
        rung && matches!(bell, Bell::Live(_))
    }

    /// The pending-bit array of `peer`.
    pub(super) fn pending(&self, peer: u16) -> u64 {
        let rung = |index: &u16| {
            let word = self.bell(peer, *index).map(|bell| bell.load(Ordering::Acquire));
            word.is_some_and(|word| word & PENDING != 0)
        };
        (0..DOORBELLS).filter(rung).fold(0, |bits, index| bits | 1 << index)
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::*;
    use arch::interrupt::{DeliveryMode, TriggerMode};
    use arch::sync::AtomicU32;
    use loom::sync::Arc;
    use loom::thread;

    const TARGET: InterruptTarget = InterruptTarget {
        vector: Vector(0x71),
        destination: ApicId(3),
        trigger: TriggerMode::Edge,
        delivery: DeliveryMode::Fixed,
    };

    /// Two rings of a doorbell that is masked, while its guest unmasks it.
    #[test]
    fn model_a_ring_beside_an_unmasking_is_heard_and_with_it_what_was_written_before() {
        loom::model(|| {
            let memory = Arc::new(SharedMemory::new(4096));
            let written = Arc::new(AtomicU32::new(0));
            memory.set(0, 0, Bell::Masked);
            let ringer = {
                let (memory, written) = (memory.clone(), written.clone());
                thread::spawn(move || {
                    [1, 2].map(|number| {
                        written.store(number, Ordering::Relaxed);
                        memory.ring(0, 0).is_some()
                    })
                })
            };
            let late = memory.set(0, 0, Bell::Live(TARGET));
            // What was written before the ring is there when its interrupt is.
            assert!(!late || written.load(Ordering::Relaxed) > 0);
            let now = ringer.join().unwrap();
            assert_ne!(late, now[0], "the first is an interrupt at once, or the late one");
            assert!(now[1] || late && memory.ring(0, 0).is_some(), "it is unmasked now");
            assert_eq!(memory.pending(0), 0);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch::interrupt::{DeliveryMode, TriggerMode};

    const LIVE_TARGET: InterruptTarget = InterruptTarget {
        vector: Vector(0x71),
        destination: ApicId(0x1_0002),
        trigger: TriggerMode::Edge,
        delivery: DeliveryMode::Fixed,
    };

    /// Every sequence of this many operations. Each is one atomic operation on one word, so whatever CPUs do at once comes
    /// to one of these.
    #[test]
    fn in_every_order_a_bell_is_heard_once_for_what_was_rung_since_it_was_heard_last() {
        const LENGTH: u32 = 8;
        for number in 0..4_u32.pow(LENGTH) {
            let memory = SharedMemory::new(4096);
            let (mut state, mut waits) = (Bell::Off, false);
            for step in (0..LENGTH).map(|place| number >> (2 * place) & 3) {
                let next =
                    [Bell::Off, Bell::Masked, Bell::Live(LIVE_TARGET)].get(step as usize).copied();
                let Some(next) = next else {
                    let heard = memory.ring(2, 5);
                    let now = (LIVE_TARGET.destination, LIVE_TARGET.vector);
                    assert_eq!(heard, matches!(state, Bell::Live(_)).then_some(now), "{number:#x}");
                    waits |= state == Bell::Masked;
                    continue;
                };
                let late = memory.set(2, 5, next);
                assert_eq!(late, waits && matches!(next, Bell::Live(_)), "{number:#x}");
                waits &= next == Bell::Masked;
                state = next;
                assert_eq!(memory.pending(2), u64::from(waits) << 5, "{number:#x}");
            }
            assert_eq!((memory.pending(1), memory.ring(2, 4), memory.ring(1, 5)), (0, None, None));
        }
    }
}
