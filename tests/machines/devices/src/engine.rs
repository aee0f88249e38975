//! The second half of each controller: an engine that sends a message, copies or writes after an *exact number of
//! ticks*, which no real device offers. Eight-byte registers are two words.
//!
//! | offset | |
//! |---|---|
//! | 0x00 | start: bits 27:0 the ticks, 31:28 the operation ([`Operation`]) |
//! | 0x04 | state: 0 done, 1 in progress, 2 refused; reading it has no effect |
//! | 0x08 | source address |
//! | 0x10 | destination address |
//! | 0x18 | length in bytes, or the number of the message; for a fault its reason |
//! | 0x1c | the word to write; for a fault its requester |
//! | 0x20 | tick at which the last operation was done |
//! | 0x28 | number of operations since the reset |

/// Its offset in BAR 0.
pub const OFFSET: u32 = 0x8000;
/// Bytes of its registers.
pub const SIZE: u32 = 0x30;
/// More bytes are not copied.
pub const MAX_COPY: u32 = 1 << 20;

const START: usize = 0;
const STATE: usize = 1;
const DONE_AT: usize = 8;
const COUNT: usize = 10;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// 0: sends the message of this number.
    Message(u16),
    /// 1: copies bytes.
    Copy {
        /// From here.
        source: u64,
        /// To here.
        destination: u64,
        /// At most [`MAX_COPY`].
        length: u32,
    },
    /// 2: writes four bytes.
    Write {
        /// Here.
        destination: u64,
        /// These.
        data: u32,
    },
    /// 3: the unit records a fault without a request.
    Fault {
        /// The requester in the record.
        source: u16,
        /// Why.
        reason: u8,
        /// Which page or index.
        info: u64,
    },
}

/// The engine's registers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Engine([u32; SIZE as usize / 4]);

impl Engine {
    /// Reads the word at `offset` from its first.
    #[must_use]
    pub fn read(&self, offset: u32) -> u32 {
        self.0.get(offset as usize / 4).copied().unwrap_or(0)
    }

    /// Writes a register. Returns the ticks to wait if the write starts an operation.
    pub fn write(&mut self, offset: u32, value: u32) -> Option<u64> {
        const TICKS: u32 = (1 << 28) - 1;
        let word = offset as usize / 4;
        if word == STATE || word >= DONE_AT {
            return None;
        }
        self.0[word] = value;
        if word != START {
            return None;
        }
        self.0[STATE] = 1;
        Some(u64::from(value & TICKS).max(1))
    }

    /// The operation to do; `None` if the number is unknown.
    #[must_use]
    pub fn operation(&self) -> Option<Operation> {
        let [start, _, source, source_high, destination, destination_high, length, data, ..] =
            self.0;
        let source = u64::from(source_high) << 32 | u64::from(source);
        let destination = u64::from(destination_high) << 32 | u64::from(destination);
        match start >> 28 {
            0 => Some(Operation::Message(length as u16)),
            1 => Some(Operation::Copy { source, destination, length: length.min(MAX_COPY) }),
            2 => Some(Operation::Write { destination, data }),
            3 => Some(Operation::Fault {
                source: data as u16,
                reason: length as u8,
                info: destination,
            }),
            _ => None,
        }
    }

    /// It is done, at this time.
    pub fn finish(&mut self, done: bool, now: u64) {
        self.0[STATE] = if done { 0 } else { 2 };
        self.0[DONE_AT] = now as u32;
        self.0[DONE_AT + 1] = (now >> 32) as u32;
        self.0[COUNT] = self.0[COUNT].wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_tells_its_ticks_and_what_to_do() {
        let mut engine = Engine::default();
        for (offset, value) in [(8, 0x1000), (0x10, 0x2000), (0x14, 1), (0x18, 64)] {
            assert_eq!(engine.write(offset, value), None);
        }
        assert_eq!(engine.write(0, 1 << 28 | 1500), Some(1500));
        assert_eq!(engine.read(4), 1);
        let copy = Operation::Copy { source: 0x1000, destination: 0x1_0000_2000, length: 64 };
        assert_eq!(engine.operation(), Some(copy));
        engine.finish(true, 1 << 32 | 5);
        assert_eq!([4, 0x20, 0x24, 0x28].map(|offset| engine.read(offset)), [0, 5, 1, 1]);
    }

    #[test]
    fn results_cannot_be_written_and_nothing_starts_at_once() {
        let mut engine = Engine::default();
        assert_eq!(engine.write(0x20, 7), None);
        assert_eq!(engine.write(SIZE, 7), None);
        assert_eq!((engine.read(0x20), engine.read(SIZE)), (0, 0));
        assert_eq!(engine.write(0, 0), Some(1));
        assert_eq!(engine.write(0, 0xf << 28), Some(1));
        assert_eq!(engine.operation(), None);
    }
}
