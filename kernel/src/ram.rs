//! A guest's RAM: the one place where a guest-physical address becomes a host-physical one.
//!
//! Invariant: what a guest names is a claim; only bytes inside its own blocks are ever touched.

use alloc::vec::Vec;

use arch::machine::{GuestMemory, NotGuestMemory};
use arch::{Gpa, Hpa};
use arrayvec::ArrayVec;
use cpu::physical;
use mem::Pieces;
use plan::memory::{Block, MAX_BLOCKS};

use crate::memory::Lent;
use crate::owned::Owned;

/// All of a guest's RAM.
#[derive(Clone, Debug)]
pub(crate) struct GuestRam(ArrayVec<Block, MAX_BLOCKS>);

impl GuestRam {
    /// RAM of these blocks; `None` where they are more than [`MAX_BLOCKS`].
    ///
    /// # Safety
    /// The blocks are RAM, identity-mapped for the hypervisor, and belong to this guest alone.
    pub(crate) unsafe fn new(blocks: &[Block]) -> Option<Self> {
        ArrayVec::try_from(blocks).ok().map(Self)
    }

    pub(crate) fn blocks(&self) -> &[Block] {
        &self.0
    }

    /// Where `length` bytes at `gpa` are, if all of them are this guest's.
    pub(crate) fn translate(&self, gpa: Gpa, length: u64) -> Result<Hpa, NotGuestMemory> {
        let fits = |block: &&Block| {
            let offset = gpa.as_u64().wrapping_sub(block.gpa.as_u64());
            offset < block.length && block.length - offset >= length
        };
        let block = self.0.iter().find(fits).ok_or(NotGuestMemory(gpa))?;
        Ok(block.hpa.wrapping_add(gpa.as_u64() - block.gpa.as_u64()))
    }

    /// Bytes of it.
    pub(crate) fn size(&self) -> u64 {
        self.0.iter().map(|block| block.length).sum()
    }
}

/// A guest's RAM, which goes back to the free memory when this is dropped.
pub(crate) struct OwnedRam(
    pub(crate) GuestRam,
    #[expect(dead_code, reason = "it is only dropped")] pub(crate) Vec<Owned<mem::Pages<Lent>>>,
);

/// A guest's RAM that its CPUs fill with zeros, while the guest does not run.
#[derive(Debug)]
pub(crate) struct Scrubbing {
    ram: GuestRam,
    pieces: Pieces,
}

impl Scrubbing {
    /// All of `ram` is to be filled.
    pub(crate) fn new(ram: GuestRam) -> Self {
        /// What takes a CPU well below a millisecond or two, so that no one waits long for the last.
        const PIECE: u64 = 4 << 20;
        let pieces = Pieces::new(ram.size(), PIECE);
        Self { ram, pieces }
    }

    /// Fills pieces until none is left; `meanwhile` is called after each.
    pub(crate) fn help(&self, mut meanwhile: impl FnMut()) {
        self.pieces.help(|piece| {
            let mut before = 0;
            for block in self.ram.blocks() {
                let start = piece.start.max(before);
                let end = piece.end.min(before + block.length);
                if start < end {
                    let (at, length) = (block.hpa.wrapping_add(start - before), end - start);
                    // SAFETY: `GuestRam::new`'s caller vouched for the block; the guest does not run, and this
                    // piece is nobody else's.
                    unsafe { physical::bytes_mut(at, length as usize) }.fill(0);
                }
                before += block.length;
            }
            meanwhile();
        });
    }

    /// Waits for the others; `meanwhile` is called now and then.
    pub(crate) fn wait(&self, mut meanwhile: impl FnMut()) {
        // Each of them is at one piece, and leaves it only done.
        while !self.pieces.finished() {
            meanwhile();
            core::hint::spin_loop();
        }
    }
}

impl GuestMemory for GuestRam {
    fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), NotGuestMemory> {
        let from = self.translate(gpa, bytes.len() as u64)?;
        // SAFETY: the range is this guest's RAM; another of its CPUs may write it meanwhile, which changes the bytes
        // copied and nothing else.
        unsafe { physical::copy_from_shared(from, bytes) };
        Ok(())
    }

    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), NotGuestMemory> {
        let to = self.translate(gpa, bytes.len() as u64)?;
        // SAFETY: as for `read`; the hypervisor keeps nothing of its own in guest RAM.
        unsafe { physical::copy_to_shared(to, bytes) };
        Ok(())
    }

    fn mark(&mut self, gpa: Gpa, old: u32, bits: u32) -> bool {
        let Ok(at) = self.translate(gpa, 4) else { return true };
        // SAFETY: as for `write`; a block begins at a page, so `at` is aligned as `gpa` is.
        !gpa.as_u64().is_multiple_of(4) || unsafe { physical::mark_shared(at, old, bits) }
    }
}
