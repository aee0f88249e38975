//! Table memory as the units see it: written through to RAM where their walks bypass the caches.

use core::arch::asm;

use arch::Hpa;
use mem::{Pages, TableMemory, Word};

/// Bytes that one CLFLUSH writes back, on every CPU with VT-d.
const CACHE_LINE: u64 = 64;

/// Memory that flushes each line behind a write where a unit needs it (ECAP.C = 0).
#[derive(Debug)]
pub(super) struct WrittenThrough<M> {
    inner: M,
    flush: bool,
}

impl<M: TableMemory> WrittenThrough<M> {
    /// With `flush`, `inner`'s addresses are identity-mapped RAM.
    pub(super) const fn new(inner: M, flush: bool) -> Self {
        Self { inner, flush }
    }

    fn write_back(&self, at: Hpa) {
        if self.flush {
            // SAFETY: CLFLUSH changes no memory, and `at` is identity-mapped RAM that `inner` handed
            // out. It is ordered with the writes before it and the register write behind it.
            unsafe { asm!("clflush [{}]", in(reg) at.as_u64(), options(nostack, preserves_flags)) }
        }
    }
}

impl<M: TableMemory> TableMemory for WrittenThrough<M> {
    type Pool = M::Pool;

    fn read(&self, at: Word<'_, M::Pool>) -> u64 {
        self.inner.read(at)
    }

    fn write(&mut self, at: Word<'_, M::Pool>, value: u64) {
        self.inner.write(at, value);
        self.write_back(at.address());
    }

    fn allocate_contiguous(&mut self, bytes: u64) -> Option<Pages<M::Pool>> {
        let pages = self.inner.allocate_contiguous(bytes)?;
        for offset in (0..bytes).step_by(CACHE_LINE as usize) {
            self.write_back(pages.word(offset).address());
        }
        Some(pages)
    }

    fn free(&mut self, pages: Pages<M::Pool>) {
        self.inner.free(pages);
    }
}
