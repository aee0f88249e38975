//! Whole packets out of the bytes of a line (GDB's manual, "Overview" of its remote protocol). What is damaged, too long,
//! or no packet at all never gets further.

use alloc::vec::Vec;

/// The longest packet, with all around it. gdb is told a little less.
pub const MAX_PACKET: usize = 4096;

/// What a byte has completed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A packet, whole and undamaged: [`Framer::packet`].
    Packet,
    /// A packet that is damaged.
    Damaged,
    /// gdb has not understood the last answer.
    Again,
    /// gdb wants the guest to stop.
    Interrupt,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Between packets.
    Outside,
    Inside,
    /// Behind its end: digits of the sum.
    Sum(Option<u8>),
}

/// Makes packets of bytes.
#[derive(Debug)]
pub struct Framer {
    state: State,
    packet: Vec<u8>,
}

impl Framer {
    /// Between two packets.
    #[must_use]
    pub const fn new() -> Self {
        Self { state: State::Outside, packet: Vec::new() }
    }

    /// The last packet, from its `$` to its sum.
    #[must_use]
    pub fn packet(&self) -> &[u8] {
        &self.packet
    }

    /// Takes the next byte.
    pub fn push(&mut self, byte: u8) -> Option<Event> {
        const START: u8 = b'$';
        const END: u8 = b'#';
        const INTERRUPT: u8 = 3;
        match (self.state, byte) {
            // A packet has none within.
            (_, START) => {
                self.packet.clear();
                self.packet.push(byte);
                self.state = State::Inside;
                None
            }
            (State::Outside, INTERRUPT) => Some(Event::Interrupt),
            (State::Outside, b'-') => Some(Event::Again),
            (State::Outside, _) => None,
            (State::Inside | State::Sum(_), _) if self.packet.len() >= MAX_PACKET => {
                self.state = State::Outside;
                Some(Event::Damaged)
            }
            (State::Inside, _) => {
                self.packet.push(byte);
                if byte == END {
                    self.state = State::Sum(None);
                }
                None
            }
            (State::Sum(None), _) => {
                self.packet.push(byte);
                self.state = State::Sum(Some(byte));
                None
            }
            (State::Sum(Some(high)), low) => {
                self.packet.push(low);
                self.state = State::Outside;
                let said = digit(high).zip(digit(low)).map(|(high, low)| high << 4 | low);
                Some(if said == Some(self.sum()) { Event::Packet } else { Event::Damaged })
            }
        }
    }

    /// The sum of the bytes between `$` and `#`.
    fn sum(&self) -> u8 {
        let within = self.packet.iter().skip(1).take(self.packet.len().saturating_sub(4));
        within.fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
    }
}

impl Default for Framer {
    fn default() -> Self {
        Self::new()
    }
}

fn digit(letter: u8) -> Option<u8> {
    char::from(letter).to_digit(16).map(|digit| digit as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn events(bytes: &[u8]) -> Vec<Event> {
        let mut framer = Framer::new();
        bytes.iter().filter_map(|byte| framer.push(*byte)).collect()
    }

    #[test]
    fn only_whole_packets_count() {
        assert_eq!(events(b"+$g#67"), [Event::Packet]);
        assert_eq!(events(b"$g#68"), [Event::Damaged]);
        assert_eq!(events(b"$g#6"), []);
        assert_eq!(events(b"$#00"), [Event::Packet]);
        assert_eq!(events(b"$gg$g#67"), [Event::Packet], "the first was cut off");
        assert_eq!(events(b"\x03-+x"), [Event::Interrupt, Event::Again]);
        assert_eq!(events(b"$\x03#03"), [Event::Packet], "within a packet it is a byte");
        let long = [b"$".as_slice(), &[b'a'; 2 * MAX_PACKET], b"#00"].concat();
        assert_eq!(events(&long), [Event::Damaged]);
    }

    proptest! {
        #[test]
        fn a_packet_behind_any_garbage_is_found(garbage: Vec<u8>) {
            let mut framer = Framer::new();
            for byte in garbage {
                framer.push(byte);
            }
            let events: Vec<Event> = b"$g#67".iter().filter_map(|byte| framer.push(*byte)).collect();
            prop_assert_eq!(events, [Event::Packet]);
            prop_assert_eq!(framer.packet(), b"$g#67");
        }
    }
}
