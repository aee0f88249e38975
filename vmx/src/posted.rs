//! Posted interrupts: what the CPUs of one guest send each other without an exit at the receiver
//! (SDM "Posted-Interrupt Processing").
//!
//! Invariant: a request is in the descriptor before its notification goes out, so that whoever takes the
//! notification finds it. Pure but for the atomics.

use core::sync::atomic::{AtomicU32, Ordering};

use arch::Vector;

/// The vector that tells a CPU in a guest to look into its descriptor. In the highest class, so that a
/// level-triggered interrupt that the guest has not ended does not hold it back; not the physical
/// spurious vector, for which no EOI must be. A device or timer to which its guest gives this vector
/// would only ever notify.
pub const NOTIFICATION: Vector = Vector(0xf2);

/// Bit 256: outstanding notification.
const OUTSTANDING: u32 = 1 << 0;

/// A posted-interrupt descriptor (SDM "Format of Posted-Interrupt Descriptor"). Aligned to 64 bytes it would
/// be right; Bochs 3.0 refuses one that is not page-aligned.
#[derive(Debug, Default)]
#[repr(C, align(4096))]
pub struct PostedInterrupts {
    requests: [AtomicU32; 8],
    control: AtomicU32,
    /// For software: a VMCS names this descriptor.
    in_use: AtomicU32,
}

impl PostedInterrupts {
    /// Requests `vector`. The vector to send to the CPU: the notification, none if one is on its way, and
    /// `vector` itself where nothing can be posted.
    #[must_use]
    pub fn post(&self, vector: Vector) -> Option<Vector> {
        if self.in_use.load(Ordering::Relaxed) == 0 {
            return Some(vector);
        }
        if let Some(word) = self.requests.get(vector.index() / 32) {
            word.fetch_or(1 << (vector.index() % 32), Ordering::AcqRel);
        }
        let before = self.control.fetch_or(OUTSTANDING, Ordering::AcqRel);
        (before & OUTSTANDING == 0).then_some(NOTIFICATION)
    }

    /// From now on requests are posted.
    pub(crate) fn use_it(&self) {
        self.in_use.store(1, Ordering::Release);
    }

    /// Forgets what was requested: the CPU is reset.
    pub(crate) fn clear(&self) {
        for word in &self.requests {
            word.store(0, Ordering::Release);
        }
        self.control.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_notification_is_enough_for_all_that_is_posted_before_it_is_taken() {
        let posted = PostedInterrupts::default();
        assert_eq!(posted.post(Vector(0x41)), Some(Vector(0x41)), "no VMCS names it");
        posted.use_it();
        assert_eq!(posted.post(Vector(0x41)), Some(NOTIFICATION));
        assert_eq!(posted.post(Vector(0xfe)), None);
        assert_eq!(posted.requests[2].load(Ordering::Relaxed), 1 << 1);
        assert_eq!(posted.requests[7].load(Ordering::Relaxed), 1 << 30);
        posted.clear();
        assert_eq!(posted.post(Vector(0x41)), Some(NOTIFICATION), "the CPU has taken the first");
    }
}
