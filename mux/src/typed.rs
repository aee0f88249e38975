//! What was typed for a guest and waits until it takes it.

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

#[cfg(test)]
mod tests {
    use super::*;

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
