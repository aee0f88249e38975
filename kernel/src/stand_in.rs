//! Pages of a virtual CPU's own that stand in for others while it makes a step: `arch::machine::Machine::set_stand_in`.
//!
//! Invariant: each CPU's frames are its own from its guest's building on, so no step can fail for want of memory; a
//! page is filled again before each use, and the guest's other CPUs never see it.

use alloc::vec::Vec;

use arch::address::PAGE_SIZE;
use arch::machine::MAX_STAND_INS;
use arch::{Gpa, Hpa};
use cpu::physical;
use mem::table::Format;
use mem::{Leaf, MemoryType, Pages, Rights, Table, TableMemory};

use crate::memory::{Memory, Own};
use crate::refusal::Refusal;

/// A page of the hypervisor's own.
type Frame = Pages<Own>;

/// The frames of all CPUs of a guest, those of one after those of another.
pub(crate) struct StandInFrames {
    frames: Vec<Frame>,
    for_each_cpu: usize,
}

impl StandInFrames {
    pub(crate) fn new<F: Format>(
        nested: &Table<F, Own>,
        cpus: usize,
        memory: Memory,
    ) -> Result<Self, Refusal> {
        let for_each_cpu = nested.overlay_frames(MAX_STAND_INS) + MAX_STAND_INS;
        let mut own = Self { frames: Vec::with_capacity(cpus * for_each_cpu), for_each_cpu };
        for _ in 0..cpus * for_each_cpu {
            own.frames.push(memory.frame()?);
        }
        Ok(own)
    }

    /// The pages of one CPU, and the frames of its overlay.
    fn of_cpu(&self, cpu: usize) -> Option<(&[Frame], &[Frame])> {
        self.frames.chunks(self.for_each_cpu).nth(cpu)?.split_at_checked(MAX_STAND_INS)
    }
}

impl Drop for StandInFrames {
    fn drop(&mut self) {
        for frame in self.frames.drain(..) {
            Memory::handle().free(frame);
        }
    }
}

/// Which pages stand in for others on one CPU.
#[derive(Clone, Copy, Default)]
pub(crate) struct StandIns([Option<Gpa>; MAX_STAND_INS]);

impl StandIns {
    pub(crate) fn set(
        &mut self,
        frames: &StandInFrames,
        cpu: usize,
        slot: usize,
        page: Option<Gpa>,
    ) {
        if let Some(place) = self.0.get_mut(slot) {
            *place = page;
        }
        if page.is_some() {
            Self::with(frames, cpu, slot, |bytes| bytes.fill(0xff));
        }
    }

    pub(crate) fn with(
        frames: &StandInFrames,
        cpu: usize,
        slot: usize,
        work: impl FnOnce(&mut [u8; PAGE_SIZE as usize]),
    ) {
        if let Some(frame) = frames.of_cpu(cpu).and_then(|(pages, _)| pages.get(slot)) {
            // SAFETY: the frame is this CPU's alone, which is not in the guest, and it holds plain bytes.
            work(unsafe { &mut *physical::pointer::<[u8; PAGE_SIZE as usize]>(frame.start()) });
        }
    }

    /// Root of a table in which they are; `None` where none is.
    pub(crate) fn root<F: Format>(
        &self,
        frames: &StandInFrames,
        cpu: usize,
        nested: &Table<F, Own>,
        mut memory: Memory,
    ) -> Option<Hpa> {
        let (own, overlay) = frames.of_cpu(cpu)?;
        let (access, memory_type) = (Rights::ALL, MemoryType::WriteBack);
        let mut pages = arrayvec::ArrayVec::<(u64, Leaf), MAX_STAND_INS>::new();
        for (page, frame) in self.0.iter().zip(own) {
            if let Some(page) = page {
                pages.push((page.as_u64(), Leaf { hpa: frame.start(), access, memory_type }));
            }
        }
        let root = nested.overlay(&mut memory, overlay, &pages)?;
        (!pages.is_empty()).then_some(root)
    }
}
