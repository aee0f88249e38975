//! Work on a long run of bytes, divided among the CPUs that join.
//!
//! Invariant: each byte is in one piece, and each piece is handed out once; the work is finished when all
//! pieces are, on whichever CPU.

use core::ops::Range;

use arch::sync::{AtomicU64, Ordering};

/// A run of bytes in pieces.
#[derive(Debug)]
pub struct Pieces {
    length: u64,
    piece: u64,
    /// Where the next piece begins.
    next: AtomicU64,
    /// Bytes of pieces that are done.
    done: AtomicU64,
}

impl Pieces {
    /// `length` bytes in pieces of `piece` bytes (at least one).
    #[must_use]
    pub fn new(length: u64, piece: u64) -> Self {
        let piece = if piece == 0 { 1 } else { piece };
        Self { length, piece, next: AtomicU64::new(0), done: AtomicU64::new(0) }
    }

    /// Has `work` do pieces until none is left. Others may still be at theirs then.
    pub fn help(&self, mut work: impl FnMut(Range<u64>)) {
        let further = |at| (at < self.length).then(|| self.length.min(at + self.piece));
        while let Ok(start) = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, further)
        {
            let end = self.length.min(start + self.piece);
            work(start..end);
            self.done.fetch_add(end - start, Ordering::Release);
        }
    }

    /// Whether all pieces are done. What was done to them is seen by who hears so.
    #[must_use]
    pub fn finished(&self) -> bool {
        self.done.load(Ordering::Acquire) == self.length
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::*;
    use arch::sync::AtomicU32;
    use loom::sync::Arc;
    use loom::thread;

    #[test]
    fn model_who_hears_that_all_is_done_sees_what_each_cpu_did() {
        loom::model(|| {
            let work = Arc::new((Pieces::new(2, 1), [AtomicU32::new(0), AtomicU32::new(0)]));
            let help = |(pieces, bytes): &(Pieces, [AtomicU32; 2])| {
                pieces.help(|piece| {
                    let before = bytes[piece.start as usize].fetch_add(1, Ordering::Relaxed);
                    assert_eq!(before, 0, "once each");
                });
            };
            let helper = work.clone();
            let helper = thread::spawn(move || help(&helper));
            help(&work);
            if work.0.finished() {
                assert!(work.1.iter().all(|byte| byte.load(Ordering::Relaxed) == 1));
            }
            helper.join().unwrap();
            assert!(work.0.finished());
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Mutex;
    use std::vec;
    use std::vec::Vec;

    proptest! {
        #[test]
        fn each_byte_is_done_once_by_whoever_comes(length in 0u64..5000, piece in 0u64..700, workers in 1usize..5) {
            let pieces = Pieces::new(length, piece);
            let bytes = Mutex::new(vec![0_u8; length as usize]);
            std::thread::scope(|scope| {
                for _ in 0..workers {
                    scope.spawn(|| pieces.help(|range| {
                        let mut bytes = bytes.lock().unwrap();
                        bytes[range.start as usize..range.end as usize].iter_mut().for_each(|byte| *byte += 1);
                    }));
                }
            });
            prop_assert!(pieces.finished());
            prop_assert!(bytes.into_inner().unwrap().iter().all(|byte| *byte == 1));
        }
    }

    #[test]
    fn the_work_is_not_finished_while_a_piece_is_in_hand() {
        let pieces = Pieces::new(10, 4);
        let mut seen = Vec::new();
        pieces.help(|range| {
            assert!(!pieces.finished());
            seen.push(range);
        });
        assert_eq!(seen, [0..4, 4..8, 8..10]);
        assert!(pieces.finished());
    }
}
