//! Breakpoints beyond the four that a CPU has: a byte of the guest's code is INT1 as long as the guest runs with them.
//!
//! INT1 and not INT3: its #DB exits in any case, and what the guest does with INT3 stays its own. gdb's reads and writes
//! of memory see the guest's byte; the guest's own reads see INT1.

use arch::Gpa;
use arch::machine::GuestMemory;

/// So many there can be.
const MAX_PATCHES: usize = 28;
/// The instruction.
const INT1: u8 = 0xf1;
/// No place in memory.
const NOWHERE: Gpa = Gpa::new(u64::MAX);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Patch {
    /// As gdb names it.
    address: u64,
    gpa: Gpa,
    /// What the guest has there.
    byte: u8,
}

/// Where they are, for a CPU that has met one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Places([Gpa; MAX_PATCHES]);

impl Places {
    /// Nowhere.
    pub const NONE: Self = Self([NOWHERE; MAX_PATCHES]);

    /// Whether one is there.
    #[must_use]
    pub fn has(&self, gpa: Gpa) -> bool {
        self.0.contains(&gpa)
    }
}

/// Those of a guest, in its RAM.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Patches {
    all: [Option<Patch>; MAX_PATCHES],
    /// The generation of the guest in whose RAM they are.
    generation: u32,
}

impl Patches {
    /// The guest has this generation now: what was in the RAM of another is gone.
    pub(crate) fn of(&mut self, generation: u32) -> &mut Self {
        if self.generation != generation {
            *self = Self { generation, ..Self::default() };
        }
        self
    }

    pub(crate) fn any(&self) -> bool {
        self.all.iter().any(Option::is_some)
    }

    pub(crate) fn places(&self) -> Places {
        Places(self.all.map(|patch| patch.map_or(NOWHERE, |patch| patch.gpa)))
    }

    /// Puts one there; `false` where that is no RAM of the guest's, or there are too many.
    pub(crate) fn insert(&mut self, address: u64, gpa: Gpa, memory: &mut impl GuestMemory) -> bool {
        // Another address may lead to the same byte.
        let known = self.at(gpa).map(|patch| patch.byte);
        let mut byte = [0];
        if memory.read(gpa, &mut byte).is_err() {
            return false;
        }
        let Some(free) = self.all.iter_mut().find(|patch| patch.is_none()) else { return false };
        if memory.write(gpa, &[INT1]).is_err() {
            return false;
        }
        *free = Some(Patch { address, gpa, byte: known.unwrap_or(byte[0]) });
        true
    }

    /// Takes one away; `false` where there is none.
    pub(crate) fn remove(&mut self, address: u64, memory: &mut impl GuestMemory) -> bool {
        let here = |patch: &&mut Option<Patch>| patch.is_some_and(|patch| patch.address == address);
        let Some(patch) = self.all.iter_mut().find(here).and_then(Option::take) else {
            return false;
        };
        if self.at(patch.gpa).is_none() {
            put_back(patch, memory);
        }
        true
    }

    /// Takes all away.
    pub(crate) fn clear(&mut self, memory: &mut impl GuestMemory) {
        let all = core::mem::take(&mut self.all);
        all.into_iter().flatten().for_each(|patch| put_back(patch, memory));
    }

    /// Bytes that were read at `gpa`, as the guest has them.
    pub(crate) fn unpatch(&self, gpa: Gpa, bytes: &mut [u8]) {
        for patch in self.all.iter().flatten() {
            let offset = patch.gpa.as_u64().wrapping_sub(gpa.as_u64());
            let place = usize::try_from(offset).ok().and_then(|offset| bytes.get_mut(offset));
            // The guest may have written there.
            if let Some(place) = place.filter(|byte| **byte == INT1) {
                *place = patch.byte;
            }
        }
    }

    /// Bytes were written at `gpa`: they are the guest's, and what was there is put there again.
    pub(crate) fn written(&mut self, gpa: Gpa, bytes: &[u8], memory: &mut impl GuestMemory) {
        for patch in self.all.iter_mut().flatten() {
            let offset = patch.gpa.as_u64().wrapping_sub(gpa.as_u64());
            if let Some(byte) = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset)) {
                patch.byte = *byte;
                let _ = memory.write(patch.gpa, &[INT1]);
            }
        }
    }

    fn at(&self, gpa: Gpa) -> Option<&Patch> {
        self.all.iter().flatten().find(|patch| patch.gpa == gpa)
    }
}

/// What the guest has written over it meanwhile stays.
fn put_back(patch: Patch, memory: &mut impl GuestMemory) {
    let mut byte = [0];
    if memory.read(patch.gpa, &mut byte).is_ok() && byte == [INT1] {
        let _ = memory.write(patch.gpa, &[patch.byte]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Memory;

    const AT: Gpa = Gpa::new(0x10);

    fn memory() -> Memory {
        Memory((0..0x100).map(|at| at as u8).collect())
    }

    #[test]
    fn memory_is_as_before_when_the_last_is_gone() {
        let (mut all, mut memory) = (Patches::default(), memory());
        let before = memory.0.clone();
        assert!(all.insert(0x1010, AT, &mut memory) && all.insert(0x2010, AT, &mut memory));
        assert_eq!(memory.0[0x10], INT1);
        assert!(all.any() && all.places().has(AT) && !all.places().has(Gpa::new(0x11)));
        assert!(all.remove(0x1010, &mut memory) && !all.remove(0x1010, &mut memory));
        assert_eq!(memory.0[0x10], INT1, "the other is there");
        assert!(all.remove(0x2010, &mut memory));
        assert!(!all.any() && all.places() == Places::NONE);
        assert_eq!(memory.0, before);
    }

    #[test]
    fn gdb_reads_and_writes_the_guests_bytes() {
        let (mut all, mut memory) = (Patches::default(), memory());
        assert!(all.insert(0x10, AT, &mut memory));
        let mut bytes = [0xee; 4];
        let start = Gpa::new(0xe);
        memory.read(start, &mut bytes).unwrap();
        all.unpatch(start, &mut bytes);
        assert_eq!(bytes, [0xe, 0xf, 0x10, 0x11]);
        memory.write(start, &[1, 2, 3, 4]).unwrap();
        all.written(start, &[1, 2, 3, 4], &mut memory);
        assert_eq!(memory.0[0xe..0x12], [1, 2, INT1, 4]);
        all.clear(&mut memory);
        assert_eq!(memory.0[0xe..0x12], [1, 2, 3, 4]);
    }

    #[test]
    fn what_the_guest_writes_over_one_stays() {
        let (mut all, mut memory) = (Patches::default(), memory());
        assert!(all.insert(0x10, AT, &mut memory));
        memory.0[0x10] = 0x90;
        let mut byte = [0x90];
        all.unpatch(AT, &mut byte);
        assert_eq!(byte, [0x90]);
        assert!(all.remove(0x10, &mut memory));
        assert_eq!(memory.0[0x10], 0x90);
    }

    #[test]
    fn the_ram_of_another_generation_is_left_alone() {
        let (mut all, mut memory) = (Patches::default(), memory());
        assert!(all.of(1).insert(0x10, AT, &mut memory));
        // As loaded anew, with an INT1 of its own by chance.
        memory.0[0x10] = INT1;
        assert!(!all.of(2).any() && !all.of(2).remove(0x10, &mut memory));
        assert_eq!(memory.0[0x10], INT1);
    }

    #[test]
    fn what_is_no_ram_is_refused_and_so_is_one_too_many() {
        let (mut all, mut memory) = (Patches::default(), memory());
        assert!(!all.insert(0x100, Gpa::new(0x100), &mut memory));
        for n in 0..MAX_PATCHES as u64 {
            assert!(all.insert(n, Gpa::new(n), &mut memory));
        }
        assert!(!all.insert(0x80, Gpa::new(0x80), &mut memory));
        assert_eq!(memory.0[0x80], 0x80);
    }
}
