//! What was typed for a guest and waits until it takes it.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// So many bytes wait; what comes beyond is lost, as on a real line.
const TYPED_AHEAD: usize = 256;

/// The bytes, in their order.
#[derive(Debug)]
pub struct Typed {
    bytes: [u8; TYPED_AHEAD],
    first: usize,
    count: usize,
}

impl Typed {
    /// Nothing.
    pub const EMPTY: Self = Self { bytes: [0; TYPED_AHEAD], first: 0, count: 0 };

    /// Whether nothing waits.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// A byte is typed.
    pub fn push(&mut self, byte: u8) {
        let at = (self.first + self.count) % TYPED_AHEAD;
        if let Some(place) = self.bytes.get_mut(at).filter(|_| self.count < TYPED_AHEAD) {
            *place = byte;
            self.count += 1;
        }
    }

    /// The guest takes one.
    pub fn pop(&mut self) -> Option<u8> {
        self.count = self.count.checked_sub(1)?;
        let byte = self.bytes.get(self.first).copied();
        self.first = (self.first + 1) % TYPED_AHEAD;
        byte
    }
}

/// For which guests something typed waits, and whether their CPUs have been told. So a guest that looks for it takes no lock
/// where nothing waits, and what nobody takes calls nobody again.
#[derive(Debug, Default)]
pub struct Waiting {
    guests: AtomicU32,
    news: AtomicBool,
}

impl Waiting {
    /// Nothing waits.
    #[must_use]
    pub const fn new() -> Self {
        Self { guests: AtomicU32::new(0), news: AtomicBool::new(false) }
    }

    /// A byte was typed for `guest`.
    pub fn add(&self, guest: usize) {
        self.guests.fetch_or(bit(guest), Ordering::Release);
        self.news.store(true, Ordering::Release);
    }

    /// Whether something waits for `guest`.
    #[must_use]
    pub fn has(&self, guest: usize) -> bool {
        self.guests.load(Ordering::Acquire) & bit(guest) != 0
    }

    /// `guest` has taken the last byte.
    pub fn remove(&self, guest: usize) {
        self.guests.fetch_and(!bit(guest), Ordering::Release);
    }

    /// Whether something was typed that no guest has been told of; it has been now.
    #[must_use]
    pub fn take_news(&self) -> bool {
        self.news.load(Ordering::Acquire) && self.news.swap(false, Ordering::AcqRel)
    }
}

fn bit(guest: usize) -> u32 {
    1_u32.unbounded_shl(guest as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_nobody_takes_call_the_others_once() {
        let waiting = Waiting::new();
        assert!(!waiting.take_news());
        waiting.add(3);
        waiting.add(3);
        assert_eq!((0..1000).filter(|_| waiting.take_news()).count(), 1);
        assert!(waiting.has(3) && !waiting.has(2) && !waiting.has(40));
        waiting.remove(2);
        waiting.add(5);
        assert!(waiting.take_news() && waiting.has(3) && waiting.has(5));
        waiting.remove(3);
        assert!(!waiting.has(3) && waiting.has(5) && !waiting.take_news());
    }

    #[test]
    fn what_was_typed_comes_in_order_and_what_finds_no_room_is_lost() {
        let mut typed = Typed::EMPTY;
        for round in 0..3 {
            (0..300_u32).for_each(|byte| typed.push(byte as u8));
            let taken: Vec<u8> = core::iter::from_fn(|| typed.pop()).collect();
            assert_eq!(taken, (0..=255).collect::<Vec<u8>>(), "round {round}");
            assert!(typed.is_empty());
            typed.push(b'x');
            assert_eq!((typed.pop(), typed.pop()), (Some(b'x'), None));
        }
    }
}
