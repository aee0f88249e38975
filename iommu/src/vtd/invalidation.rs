//! Queued invalidation (VT-d specification "Queued Invalidation Interface").
//!
//! Invariant: the queue is empty between two calls: each call waits for what it has queued. A unit
//! that once failed to answer is not asked again, as its queue could overrun.

use arch::Hpa;
use arch::iommu::{IommuError, RemapIndex};
use mem::{Pages, TableMemory};

use super::registers::{FSTS, INVALIDATION_ERRORS, IQA, IQT, Registers, poll};

/// One page of descriptors, and one that the unit writes its status to.
const QUEUE_SIZE: u64 = 4096;
const DESCRIPTOR_SIZE: u64 = 16;

/// A 128-bit descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Descriptor {
    pub(super) low: u64,
    pub(super) high: u64,
}

impl Descriptor {
    /// Forget all context entries.
    pub(super) const CONTEXT_GLOBAL: Self = Self { low: 1 << 4 | 1, high: 0 };
    /// Forget all interrupt-remapping entries.
    pub(super) const INTERRUPT_GLOBAL: Self = Self { low: 4, high: 0 };

    /// Forget all translations; `drain` says for (writes, reads) whether to wait for those under way.
    pub(super) const fn iotlb_global(drain: (bool, bool)) -> Self {
        Self { low: 2 | 1 << 4 | (drain.0 as u64) << 6 | (drain.1 as u64) << 7, high: 0 }
    }

    /// Forget one interrupt-remapping entry.
    pub(super) const fn interrupt(index: RemapIndex) -> Self {
        Self { low: 4 | 1 << 4 | (index.0 as u64) << 32, high: 0 }
    }

    /// Write `sequence` to `status` when all descriptors before this one are done.
    const fn wait(sequence: u32, status: Hpa) -> Self {
        const STATUS_WRITE: u64 = 1 << 5;
        Self { low: 5 | STATUS_WRITE | (sequence as u64) << 32, high: status.as_u64() }
    }
}

/// One unit's queue.
#[derive(Debug)]
pub(super) struct Queue<P> {
    pages: Pages<P>,
    tail: u64,
    sequence: u32,
    failed: bool,
}

impl<P> Queue<P> {
    /// Gives the unit an empty queue; queued invalidation must be off.
    pub(super) fn new(
        registers: &mut impl Registers,
        memory: &mut impl TableMemory<Pool = P>,
    ) -> Result<Self, IommuError> {
        let pages = memory.allocate_contiguous(2 * QUEUE_SIZE).ok_or(IommuError::OutOfFrames)?;
        registers.write_u64(IQT, 0);
        // QS = 0: one page; DW = 0: 128-bit descriptors.
        registers.write_u64(IQA, pages.start().as_u64());
        Ok(Self { pages, tail: 0, sequence: 0, failed: false })
    }

    /// Queues `descriptors` and waits until the unit has carried them out.
    ///
    /// # Errors
    /// When the unit does not answer or stops at an error, now or once before.
    pub(super) fn run(
        &mut self,
        registers: &mut impl Registers,
        memory: &mut impl TableMemory<Pool = P>,
        descriptors: &[Descriptor],
    ) -> Result<(), IommuError> {
        const WHAT: &str = "invalidating its caches";
        if self.failed {
            return Err(IommuError::TimedOut(WHAT));
        }
        self.sequence = self.sequence.wrapping_add(1);
        let (sequence, status) = (self.sequence, self.pages.word(QUEUE_SIZE));
        let wait = Descriptor::wait(sequence, status.address());
        for descriptor in descriptors.iter().chain([&wait]) {
            memory.write(self.pages.word(self.tail), descriptor.low);
            memory.write(self.pages.word(self.tail + 8), descriptor.high);
            self.tail = (self.tail + DESCRIPTOR_SIZE) % QUEUE_SIZE;
        }
        registers.write_u64(IQT, self.tail);
        let mut stopped = false;
        let result = poll(WHAT, || {
            stopped = registers.read_u32(FSTS) & INVALIDATION_ERRORS != 0;
            stopped || memory.read(status) as u32 == sequence
        });
        self.failed = stopped || result.is_err();
        if self.failed { Err(IommuError::TimedOut(WHAT)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_have_the_specifications_bits() {
        assert_eq!(Descriptor::CONTEXT_GLOBAL.low, 0x11);
        assert_eq!(Descriptor::iotlb_global((true, true)).low, 0xd2);
        assert_eq!(Descriptor::iotlb_global((false, false)).low, 0x12);
        assert_eq!(Descriptor::INTERRUPT_GLOBAL.low, 0x04);
        assert_eq!(Descriptor::interrupt(RemapIndex(0x123)).low, 0x123_0000_0014);
        let wait = Descriptor::wait(7, Hpa::new(0x5000));
        assert_eq!(wait, Descriptor { low: 0x7_0000_0025, high: 0x5000 });
    }
}
