//! Memory as values: who holds pages is the only one who has them.
//!
//! Invariant: a pool `P` alone makes pages of an address ([`Pages::of`] wants one to be shown). They cannot be copied,
//! and end where they are freed or linked into a table. Only this crate makes them again, of an address that it has
//! itself stored in such a page. So each [`Word`] lies in memory that was taken from its pool and not given back.
//!
//! Pages are freed once, and a word does not outlive them:
//!
//! ```compile_fail
//! fn twice<P>(memory: &mut impl mem::TableMemory<Pool = P>, pages: mem::Pages<P>) {
//!     memory.free(pages);
//!     memory.free(pages);
//! }
//! ```
//!
//! ```compile_fail
//! fn late<P>(memory: &mut impl mem::TableMemory<Pool = P>, pages: mem::Pages<P>) {
//!     let word = pages.word(0);
//!     memory.free(pages);
//!     memory.write(word, 1);
//! }
//! ```
//!
//! ```
//! fn once<P>(memory: &mut impl mem::TableMemory<Pool = P>, pages: mem::Pages<P>) {
//!     memory.write(pages.word(0), 1);
//!     memory.free(pages);
//! }
//! ```

use core::marker::PhantomData;

use arch::Hpa;
use arch::address::{HpaRange, PAGE_SIZE};

/// Whole contiguous pages that were taken from a pool. To drop them is to lose them.
#[derive(Debug)]
#[must_use = "memory that is dropped is lost: free it"]
pub struct Pages<P> {
    range: HpaRange,
    pool: PhantomData<P>,
}

impl<P> Pages<P> {
    /// What `pool` has just handed out: a page or more, which nobody else has.
    pub const fn of(_pool: &P, range: HpaRange) -> Self {
        Self { range, pool: PhantomData }
    }

    /// A page that was linked: this crate has stored its address in a page of the same pool.
    pub(crate) const fn linked(page: Hpa) -> Self {
        Self { range: HpaRange { start: page, length: PAGE_SIZE }, pool: PhantomData }
    }

    /// Where they begin.
    #[must_use]
    pub const fn start(&self) -> Hpa {
        self.range.start
    }

    /// Where they are.
    #[must_use]
    pub const fn range(&self) -> HpaRange {
        self.range
    }

    /// The word at an offset, a multiple of 8. Behind the last one comes the first.
    #[must_use]
    pub fn word(&self, offset: u64) -> Word<'_, P> {
        // They are never none.
        let within = offset.checked_rem(self.range.length).unwrap_or(0);
        Word::linked(self.range.start.wrapping_add(within & !7))
    }
}

/// Eight bytes of pages that somebody holds.
#[derive(Debug)]
pub struct Word<'a, P>(Hpa, PhantomData<&'a P>);

impl<P> Clone for Word<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P> Copy for Word<'_, P> {}

impl<P> Word<'_, P> {
    /// A word of pages, or of a page that was linked.
    pub(crate) const fn linked(at: Hpa) -> Self {
        Self(at, PhantomData)
    }

    /// Where it is, a multiple of 8.
    #[must_use]
    pub const fn address(self) -> Hpa {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_offset_leads_out_of_the_pages() {
        let range = HpaRange { start: Hpa::new(0x5000), length: 3 * PAGE_SIZE };
        let pages = Pages::of(&(), range);
        for (offset, at) in [(0, 0x5000), (0x1238, 0x6238), (7, 0x5000), (0x3008, 0x5008)] {
            assert_eq!(pages.word(offset).address(), Hpa::new(at));
        }
        let last = pages.word(u64::MAX).address();
        assert!(range.start <= last && last.as_u64() + 8 <= range.end().as_u64());
    }
}
