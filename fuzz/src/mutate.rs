//! Inputs by a seed: the same seed gives the same inputs on every machine.

use crate::Target;

/// The longest input, in bytes.
pub const MAX_INPUT: usize = 4096;
/// The most changes to one input.
const MAX_CHANGES: u64 = 8;
/// Numbers at which something ends.
const EDGES: &[u64] = &[
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    u64::MAX >> 1,
    u64::MAX,
];

/// A generator of numbers: SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators").
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// Any number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ value >> 31
    }

    /// A number below `end`, or 0.
    pub const fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { (self.next() % end as u64) as usize }
    }
}

/// Puts a new input into `input`: one of the corpus with some changes, or any bytes.
pub fn next(corpus: &[Vec<u8>], random: &mut Random, input: &mut Vec<u8>) {
    input.clear();
    if corpus.is_empty() || random.next().is_multiple_of(16) {
        let length = random.below(256);
        input.extend((0..length).map(|_| random.next() as u8));
        return;
    }
    input.extend_from_slice(&corpus[random.below(corpus.len())]);
    for _ in 0..=random.next() % MAX_CHANGES {
        change(corpus, random, input);
    }
    input.truncate(MAX_INPUT);
}

fn change(corpus: &[Vec<u8>], random: &mut Random, input: &mut Vec<u8>) {
    let at = random.below(input.len());
    let length = 1 + random.below(16);
    let end = input.len().min(at + length);
    match random.next() % 8 {
        0 => input.truncate(at),
        1 => drop(input.drain(at..end)),
        2 => {
            let piece = input[at..end].to_vec();
            input.splice(at..at, piece);
        }
        3 => {
            let other = &corpus[random.below(corpus.len())];
            let from = random.below(other.len());
            let piece = &other[from..other.len().min(from + 4 * length)];
            input.splice(at..end, piece.iter().copied());
        }
        4 => {
            let edge = EDGES[random.below(EDGES.len())].to_le_bytes();
            let width = 1 << random.below(4);
            for (to, from) in input.iter_mut().skip(at).zip(&edge[..width]) {
                *to = *from;
            }
        }
        5 => drop(input.splice(at..at, (0..length).map(|_| random.next() as u8))),
        6 => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        _ => {
            if let Some(byte) = input.get_mut(at) {
                *byte = random.next() as u8;
            }
        }
    }
}

/// Gives `target` its corpus and then `inputs` more. Returns how many it took.
pub fn run(target: &Target, corpus: &[Vec<u8>], seed: u64, inputs: u64) -> u64 {
    for input in corpus {
        (target.run)(input);
    }
    let (mut random, mut input) = (Random(seed), Vec::new());
    for _ in 0..inputs {
        next(corpus, &mut random, &mut input);
        let _told = Told(&input);
        (target.run)(&input);
    }
    corpus.len() as u64 + inputs
}

/// Says which input it was when a target panics.
struct Told<'a>(&'a [u8]);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the input, as a line of the corpus: {}", crate::corpus::line(self.0));
        }
    }
}
