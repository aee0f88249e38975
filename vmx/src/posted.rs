//! Posted interrupts: what the CPUs of one guest send each other without an exit at the receiver
//! (SDM "Posted-Interrupt Processing").
//!
//! Invariant: a request is in the descriptor before its notification goes out, so that whoever takes the
//! notification finds it. Pure but for the atomics.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arch::{ApicId, Vector};

/// The vector that tells a CPU in a guest to look into its descriptor. In the highest class, so that a
/// level-triggered interrupt that the guest has not ended does not hold it back; not the physical
/// spurious vector, for which no EOI must be. A device or timer to which its guest gives this vector
/// would only ever notify.
pub(crate) const NOTIFICATION: Vector = Vector(0xf2);

/// Bit 256 of a descriptor: outstanding notification.
const OUTSTANDING: u32 = 1 << 0;
/// Bits 279:272: the notification vector.
const NOTIFICATION_VECTOR: u32 = (NOTIFICATION.0 as u32) << 16;

/// A posted-interrupt descriptor (SDM "Format of Posted-Interrupt Descriptor", and "IPI Virtualization" for
/// where notifications go). Aligned to 64 bytes it would be right; Bochs 3.0 refuses one that is not
/// page-aligned.
#[derive(Debug)]
#[repr(C, align(4096))]
pub(crate) struct PostedInterrupts {
    requests: [AtomicU32; 8],
    /// With [`NOTIFICATION_VECTOR`] once a VMCS names this descriptor.
    control: AtomicU32,
    destination: u32,
}

impl PostedInterrupts {
    /// That of a virtual CPU on `processor`.
    pub(crate) const fn new(processor: ApicId) -> Self {
        let (requests, control) = ([const { AtomicU32::new(0) }; 8], AtomicU32::new(0));
        Self { requests, control, destination: processor.0 }
    }

    pub(crate) fn address(&self) -> u64 {
        core::ptr::from_ref(self) as u64
    }

    /// From now on requests are posted.
    pub(crate) fn use_it(&self) {
        self.control.store(NOTIFICATION_VECTOR, Ordering::Release);
    }
}

/// A guest's PID-pointer table: in which descriptors its CPUs post IPIs by themselves, where they can. A CPU that
/// is not in it is reached by an exit.
#[derive(Debug)]
#[repr(C, align(4096))]
pub(crate) struct PidPointers([AtomicU64; Self::LAST as usize + 1]);

impl PidPointers {
    /// Index of the last entry: as many CPUs as a guest may have.
    pub(crate) const LAST: u16 = 63;
    const VALID: u64 = 1 << 0;
}

impl Default for PidPointers {
    /// No CPU is in it.
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; Self::LAST as usize + 1])
    }
}

/// How a virtual CPU is posted to.
#[derive(Clone, Copy, Debug)]
pub struct Posting {
    pub(crate) descriptor: &'static PostedInterrupts,
    /// Its guest's.
    pub(crate) table: &'static PidPointers,
    /// Its index in the guest.
    pub(crate) index: usize,
}

impl Posting {
    /// Those of a guest's virtual CPUs on these processors. They are never given back, as guests are not.
    pub fn of_guest(processors: &[ApicId]) -> impl Iterator<Item = Self> {
        let table = &*Box::leak(Box::<PidPointers>::default());
        processors.iter().enumerate().map(move |(index, processor)| {
            let descriptor = Box::leak(Box::new(PostedInterrupts::new(*processor)));
            Self { descriptor, table, index }
        })
    }

    /// Requests `vector`. The vector to send to the CPU: the notification, none if one is on its way, and
    /// `vector` itself where nothing can be posted.
    #[inline(never)]
    #[must_use]
    pub fn post(&self, vector: Vector) -> Option<Vector> {
        let PostedInterrupts { requests, control, .. } = self.descriptor;
        if control.load(Ordering::Relaxed) == 0 {
            return Some(vector);
        }
        if let Some(word) = requests.get(vector.index() / 32) {
            word.fetch_or(1 << (vector.index() % 32), Ordering::AcqRel);
        }
        let before = control.fetch_or(OUTSTANDING, Ordering::AcqRel);
        (before & OUTSTANDING == 0).then_some(NOTIFICATION)
    }

    /// What is posted, 32 vectors to a word, if `vector` is the notification and a VMCS names the descriptor: what
    /// the CPU does at a notification that does not exit, up to the merge into the virtual IRR. Nested KVM hands
    /// one on as an external interrupt where it does not post itself (SDM "Posted-Interrupt Processing").
    pub(crate) fn take(&self, vector: Vector) -> Option<[u32; 8]> {
        let PostedInterrupts { requests, control, .. } = self.descriptor;
        if vector != NOTIFICATION || control.load(Ordering::Relaxed) == 0 {
            return None;
        }
        // First this: who posts from here on notifies again.
        control.fetch_and(!OUTSTANDING, Ordering::AcqRel);
        Some(requests.each_ref().map(|word| word.swap(0, Ordering::AcqRel)))
    }

    /// Whether the guest's other CPUs find it in the table.
    pub(crate) fn set_reachable(&self, reachable: bool) {
        if let Some(entry) = self.table.0.get(self.index) {
            let value = self.descriptor.address() | PidPointers::VALID;
            entry.store(if reachable { value } else { 0 }, Ordering::Release);
        }
    }

    /// The CPU is reset: it is not reachable, and what was requested is forgotten.
    pub(crate) fn reset(&self) {
        self.set_reachable(false);
        for word in &self.descriptor.requests {
            word.store(0, Ordering::Release);
        }
        self.descriptor.control.fetch_and(!OUTSTANDING, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    fn two_cpus() -> [Posting; 2] {
        Posting::of_guest(&[ApicId(4), ApicId(6)]).collect::<Vec<_>>().try_into().unwrap()
    }

    #[test]
    fn one_notification_is_enough_for_all_that_is_posted_before_it_is_taken() {
        let [posting, _] = two_cpus();
        let requests = &posting.descriptor.requests;
        assert_eq!(posting.post(Vector(0x41)), Some(Vector(0x41)), "no VMCS names it");
        posting.descriptor.use_it();
        assert_eq!(posting.post(Vector(0x41)), Some(NOTIFICATION));
        assert_eq!(posting.post(Vector(0xfe)), None);
        assert_eq!(requests[2].load(Ordering::Relaxed), 1 << 1);
        assert_eq!(requests[7].load(Ordering::Relaxed), 1 << 30);
        posting.reset();
        assert_eq!(posting.post(Vector(0x41)), Some(NOTIFICATION), "the CPU has taken the first");
    }

    #[test]
    fn a_notification_that_exits_gives_what_is_posted_and_the_next_post_notifies_again() {
        let [posting, _] = two_cpus();
        assert_eq!(posting.take(NOTIFICATION), None, "no VMCS names it: the guest's own vector");
        posting.descriptor.use_it();
        assert_eq!(posting.post(Vector(0x41)), Some(NOTIFICATION));
        assert_eq!(posting.post(Vector(0xfe)), None);
        assert_eq!(posting.take(Vector(0x41)), None, "another interrupt");
        assert_eq!(posting.take(NOTIFICATION), Some([0, 0, 1 << 1, 0, 0, 0, 0, 1 << 30]));
        assert_eq!(posting.take(NOTIFICATION), Some([0; 8]), "taken once");
        assert_eq!(posting.post(Vector(0x41)), Some(NOTIFICATION));
        assert_eq!(posting.descriptor.control.load(Ordering::Relaxed), 0xf2 << 16 | OUTSTANDING);
    }

    #[test]
    fn a_descriptor_says_where_the_cpu_is_to_be_notified() {
        // PID[279:272] and PID[319:288].
        assert_eq!(offset_of!(PostedInterrupts, control), 256 / 8);
        assert_eq!(offset_of!(PostedInterrupts, destination), 288 / 8);
        let [_, posting] = two_cpus();
        posting.descriptor.use_it();
        assert_eq!(posting.descriptor.control.load(Ordering::Relaxed), 0xf2 << 16);
        assert_eq!(posting.descriptor.destination, 6);
        let _ = posting.post(Vector(0x41));
        posting.reset();
        assert_eq!(posting.descriptor.control.load(Ordering::Relaxed), 0xf2 << 16);
    }

    #[test]
    fn the_table_names_the_cpus_that_are_reachable_and_no_other() {
        let [first, second] = two_cpus();
        let entries =
            || first.table.0.iter().map(|e| e.load(Ordering::Relaxed)).collect::<Vec<u64>>();
        assert!(entries().iter().all(|entry| *entry == 0));
        second.set_reachable(true);
        let entry = second.descriptor.address() | 1;
        assert_eq!(entry & 0x3f, 1, "what the CPU takes for a valid entry");
        assert_eq!((entries()[0], entries()[1]), (0, entry));
        assert!(entries()[2..].iter().all(|entry| *entry == 0));
        second.reset();
        assert!(entries().iter().all(|entry| *entry == 0));
    }
}
