//! Frames: bytes of a debugger between those of the consoles, on the one line.
//!
//! A frame is a start byte and then bytes with bit 7 set, seven bits of its content each: kind and guest, length, payload,
//! sum. The start byte is [`MARK`](crate::MARK) to the user, which no guest can send and behind which the hypervisor's
//! own lines have a letter, and [`ESCAPE`](crate::ESCAPE) from the user, behind which a key has bit 7 clear.
//!
//! Invariants: bytes that are no frame's go on unchanged and in order; a frame that was cut ends at the next byte with bit
//! 7 clear, which is not lost; what is damaged is dropped.

/// The longest payload.
pub const MAX_PAYLOAD: usize = 240;
/// So many guests a frame can name.
pub const MAX_GUESTS: usize = 16;
/// The bytes before the payload, and the sum behind it.
const HEAD: usize = 2;
const SUM: usize = 2;
/// What marks a byte of a frame, and the bits that it has of the content.
const MARKED: u8 = 0x80;
const BITS: u32 = 7;

/// What a frame is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// To the hypervisor: which guests are there? From it: a guest, by its name, behind a byte that is 1 if gdb can reach
    /// it.
    Names,
    /// Bytes between gdb and a guest's stub.
    Gdb,
}

/// Whose a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Channel {
    /// What it is about.
    pub kind: Kind,
    /// The guest's index, below [`MAX_GUESTS`].
    pub guest: u8,
}

impl Channel {
    const GUEST: u8 = MAX_GUESTS as u8 - 1;

    fn head(self) -> u8 {
        (self.kind as u8) << 4 | self.guest & Self::GUEST
    }

    fn of(head: u8) -> Option<Self> {
        let kind = [Kind::Names, Kind::Gdb].into_iter().find(|kind| *kind as u8 == head >> 4)?;
        Some(Self { kind, guest: head & Self::GUEST })
    }
}

/// Writes a frame. What is beyond [`MAX_PAYLOAD`] is left out.
pub fn encode(start: u8, channel: Channel, payload: &[u8], sink: &mut dyn FnMut(u8)) {
    let payload = payload.get(..MAX_PAYLOAD).unwrap_or(payload);
    let head = [channel.head(), payload.len() as u8];
    let sum = head.iter().chain(payload).fold(!0, |sum, byte| add(sum, *byte)).to_le_bytes();
    sink(start);
    let (mut bits, mut count) = (0_u32, 0);
    for byte in head.iter().chain(payload).chain(&sum) {
        bits |= u32::from(*byte) << count;
        count += u8::BITS;
        while count >= BITS {
            sink(MARKED | bits as u8);
            bits >>= BITS;
            count -= BITS;
        }
    }
    if count > 0 {
        sink(MARKED | bits as u8);
    }
}

/// The sum, with one byte more: CRC-16 with the polynomial 0x1021, the top bit first.
const fn add(sum: u16, byte: u8) -> u16 {
    let mut sum = sum ^ (byte as u16) << 8;
    let mut bit = 0;
    while bit < u8::BITS {
        sum = sum << 1 ^ if sum & 0x8000 != 0 { 0x1021 } else { 0 };
        bit += 1;
    }
    sum
}

/// What a byte behind a start byte has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// The frame goes on.
    More,
    /// It is complete: [`Assembler::payload`].
    Whole(Channel),
    /// It is complete, and damaged.
    Damaged,
    /// The byte is not the frame's, which was cut.
    Cut,
}

/// Puts one frame together, from the byte behind its start on.
#[derive(Debug)]
pub struct Assembler {
    content: [u8; HEAD + MAX_PAYLOAD + SUM],
    length: usize,
    bits: u16,
    count: u32,
}

impl Assembler {
    /// Of a frame that begins.
    #[must_use]
    pub const fn new() -> Self {
        Self { content: [0; HEAD + MAX_PAYLOAD + SUM], length: 0, bits: 0, count: 0 }
    }

    /// The payload of a whole frame.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        self.content.get(HEAD..self.length.saturating_sub(SUM)).unwrap_or_default()
    }

    /// Takes the next byte. A frame that has ended is forgotten with the next.
    pub fn push(&mut self, byte: u8) -> Progress {
        if byte & MARKED == 0 {
            return Progress::Cut;
        }
        self.bits |= u16::from(byte & !MARKED) << self.count;
        self.count += BITS;
        if self.count < u8::BITS {
            return Progress::More;
        }
        let Some(place) = self.content.get_mut(self.length) else { return Progress::Damaged };
        *place = self.bits as u8;
        self.bits >>= u8::BITS;
        self.count -= u8::BITS;
        self.length += 1;
        let [head, payload, ..] = self.content;
        if self.length <= HEAD || self.length < HEAD + usize::from(payload) + SUM {
            return Progress::More;
        }
        let whole = self.content.get(..self.length).unwrap_or_default();
        let (content, sum) = whole.split_at(self.length - SUM);
        let right = content.iter().fold(!0, |sum, byte| add(sum, *byte)).to_le_bytes() == sum;
        Channel::of(head).filter(|_| right).map_or(Progress::Damaged, Progress::Whole)
    }

    /// Forgets what it has.
    pub fn clear(&mut self) {
        (self.length, self.bits, self.count) = (0, 0, 0);
    }
}

impl Default for Assembler {
    fn default() -> Self {
        Self::new()
    }
}

/// Divides the bytes of a line into frames and the rest.
#[derive(Debug)]
pub struct Splitter {
    start: u8,
    state: State,
    assembler: Assembler,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Outside,
    /// The last byte was a start byte.
    Started,
    Inside,
}

impl Splitter {
    /// Of a line whose frames have this start byte.
    #[must_use]
    pub const fn new(start: u8) -> Self {
        Self { start, state: State::Outside, assembler: Assembler::new() }
    }

    /// Takes the next byte: what is no frame's goes to `rest`, a whole frame to `frame`.
    pub fn push(
        &mut self,
        byte: u8,
        rest: &mut dyn FnMut(u8),
        frame: &mut dyn FnMut(Channel, &[u8]),
    ) {
        if self.state == State::Started && byte & MARKED == 0 {
            rest(self.start);
            self.state = State::Outside;
            // One start byte behind the other: only the last can begin a frame, but for keys, which are pairs.
            if byte == self.start && self.start == crate::ESCAPE {
                return rest(byte);
            }
        }
        if self.state != State::Outside {
            self.state = State::Inside;
            match self.assembler.push(byte) {
                Progress::More => return,
                Progress::Whole(channel) => frame(channel, self.assembler.payload()),
                Progress::Damaged => {}
                Progress::Cut => self.state = State::Outside,
            }
            if self.state == State::Inside {
                self.state = State::Outside;
                return;
            }
        }
        if byte == self.start {
            self.state = State::Started;
            self.assembler.clear();
        } else {
            rest(byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{ESCAPE, MARK};

    type Frames = Vec<(Channel, Vec<u8>)>;

    fn split(start: u8, bytes: &[u8]) -> (Vec<u8>, Frames) {
        let mut splitter = Splitter::new(start);
        let (mut rest, mut frames) = (Vec::new(), Frames::new());
        for byte in bytes {
            splitter.push(*byte, &mut |byte| rest.push(byte), &mut |channel, payload| {
                frames.push((channel, payload.to_vec()));
            });
        }
        (rest, frames)
    }

    const GDB: Channel = Channel { kind: Kind::Gdb, guest: 3 };

    fn frame(start: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(start, GDB, payload, &mut |byte| bytes.push(byte));
        bytes
    }

    #[test]
    fn a_frame_comes_out_of_the_middle_of_a_line() {
        let bytes = [b"\x1enexit: he".as_slice(), &frame(MARK, b"$g#67"), b"llo\r\n"].concat();
        let (rest, frames) = split(MARK, &bytes);
        assert_eq!(rest, b"\x1enexit: hello\r\n");
        assert_eq!(frames, [(GDB, b"$g#67".to_vec())]);
    }

    #[test]
    fn keys_behind_the_escape_key_are_no_frame() {
        let keys = b"a\x01m\x01\x01\x012x";
        assert_eq!(split(ESCAPE, keys), (keys.to_vec(), vec![]));
        let bytes = [b"\x01\x01".as_slice(), &frame(ESCAPE, b"1"), b"\x01n"].concat();
        assert_eq!(split(ESCAPE, &bytes).0, b"\x01\x01\x01n");
        assert_eq!(split(ESCAPE, &bytes).1.len(), 1);
    }

    #[test]
    fn a_frame_that_was_cut_takes_no_text_with_it() {
        let whole = frame(MARK, b"0123456789");
        for length in 0..whole.len() {
            let bytes = [&whole[..length], b"text\r\n".as_slice(), &whole].concat();
            let (rest, frames) = split(MARK, &bytes);
            let expected: &[u8] = if length == 1 { b"\x1etext\r\n" } else { b"text\r\n" };
            assert_eq!((rest.as_slice(), frames.len()), (expected, 1), "{length} bytes");
        }
    }

    #[test]
    fn a_frame_with_a_wrong_bit_is_dropped() {
        let whole = frame(MARK, b"0123456789");
        for at in 1..whole.len() {
            for bit in 0..7 {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << bit;
                let (_, frames) = split(MARK, &[&bytes, b"\r\n".as_slice()].concat());
                // The last byte has bits that mean nothing.
                let last = at + 1 == whole.len();
                assert!(frames.is_empty() || last && frames[0].1 == b"0123456789", "{at} {bit}");
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_sent_arrives_and_the_rest_stays(
            pieces in prop::collection::vec((
                "[a-z\r\n]{0,9}", prop::collection::vec(any::<u8>(), 0..=MAX_PAYLOAD)
            ), 0..6),
            from_user: bool,
        ) {
            let start = if from_user { ESCAPE } else { MARK };
            let (mut bytes, mut text, mut sent) = (Vec::new(), Vec::new(), Vec::new());
            for (before, payload) in pieces {
                bytes.extend(before.bytes());
                text.extend(before.bytes());
                bytes.extend(frame(start, &payload));
                sent.push((GDB, payload));
            }
            prop_assert_eq!(split(start, &bytes), (text, sent));
        }

        #[test]
        fn any_bytes_do_no_harm_to_what_follows(bytes: Vec<u8>) {
            let bytes = [bytes, b"\r\n".to_vec(), frame(MARK, b"x")].concat();
            let (rest, frames) = split(MARK, &bytes);
            prop_assert!(rest.ends_with(b"\r\n"));
            prop_assert_eq!(frames.last().map(|(_, payload)| payload.as_slice()), Some(b"x".as_slice()));
        }
    }
}
