//! The shadow IDT: the CPU reads it in place of the guest's table.
//!
//! The guest's table lies in one or two guest-physical pages. The nested page table maps a shadow page, read-only, in
//! place of each. Its bytes are the guest's own, but in gates of external vectors
//! that are not granted the present bit is clear, so that delivery raises #NP ([`crate::gate_fault`]).
//! The CPU checks a gate's type before its present bit and raises #GP for an invalid type (a
//! zeroed entry), so a closed gate also has the type of an interrupt gate.
//!
//! Shadow and guest differ in one byte of a gate only. So every byte of the
//! shadow depends only on the same byte of the real page and on the grants. Any range of bytes can be derived again,
//! even one that begins or ends within a gate or a page.

use core::sync::atomic::{AtomicU8, Ordering};

use arch::address::PAGE_SIZE;
use arch::gate::{GATE_FLAGS_OFFSET, GATE_PRESENT, GateFormat};
use arch::machine::{GuestMemory, SharedPage};
use arch::segment::DescriptorTable;
use arch::{Gpa, Vector};

use crate::grants::Grants;

pub const PAGE_BYTES: usize = PAGE_SIZE as usize;

/// Where a byte of the table is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Position {
    /// Which page: 0 or 1.
    pub page: usize,
    /// Offset in the page.
    pub offset: usize,
}

/// The guest's IDT: its address and format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShadowIdt {
    format: GateFormat,
    /// Offset of the table in its first page.
    start: usize,
    /// Bytes of the table that the CPU can reach: at most 256 gates.
    length: usize,
    pages: [Option<Gpa>; 2],
}

impl ShadowIdt {
    /// The table that `idtr` names. `pages` are the guest-physical pages behind the linear page of
    /// its base and the one after it; `None` if the guest has mapped none (delivery through it
    /// is then the guest's own page fault). A second page is dropped if the table does not reach it,
    /// or if it is the first page at another address: a page can show only one shadow.
    ///
    /// A real-mode table has no present bits and cannot be shadowed.
    #[must_use]
    pub fn new(idtr: DescriptorTable, format: GateFormat, pages: [Option<Gpa>; 2]) -> Self {
        let start = idtr.base.page_offset() as usize;
        let length = (usize::from(idtr.limit) + 1).min(256 * format.size());
        let [first, second] = pages.map(|page| page.map(Gpa::page));
        let second = second.filter(|page| start + length > PAGE_BYTES && first != Some(*page));
        Self { format, start, length, pages: [first, second] }
    }

    /// The guest-physical pages that the table reaches, for `Machine::set_shadow_page`.
    #[must_use]
    pub const fn pages(&self) -> [Option<Gpa>; 2] {
        self.pages
    }

    /// Which of its pages holds `gpa`.
    #[must_use]
    pub fn page_of(&self, gpa: Gpa) -> Option<usize> {
        self.pages.iter().position(|page| *page == Some(gpa.page()))
    }

    /// Whether the whole gate of a vector lies within the limit. If not, delivery raises
    /// #GP instead of #NP.
    #[must_use]
    pub const fn covers(&self, vector: Vector) -> bool {
        (vector.index() + 1) * self.format.size() <= self.length
    }

    /// The position of the byte with the present bit of a vector's gate. A gate may cross into the second
    /// page; this byte is in one of them. `None` if the table does not cover the vector.
    #[must_use]
    pub const fn flags_position(&self, vector: Vector) -> Option<Position> {
        if !self.covers(vector) {
            return None;
        }
        let at = self.start + vector.index() * self.format.size() + GATE_FLAGS_OFFSET;
        Some(Position { page: at / PAGE_BYTES, offset: at % PAGE_BYTES })
    }

    /// The byte with the present bit of a vector's real gate. `None` if there is no such byte.
    #[must_use]
    pub fn real_flags<M: GuestMemory>(&self, vector: Vector, memory: &M) -> Option<u8> {
        let Position { page, offset } = self.flags_position(vector)?;
        let gpa = (*self.pages.get(page)?)?.checked_add(offset as u64)?;
        let mut flags = [0];
        memory.read(gpa, &mut flags).ok()?;
        let [flags] = flags;
        Some(flags)
    }

    /// Whether the guest itself has made the gate of a vector present.
    #[must_use]
    pub fn real_gate_present<M: GuestMemory>(&self, vector: Vector, memory: &M) -> bool {
        self.real_flags(vector, memory).is_some_and(|flags| flags & GATE_PRESENT != 0)
    }

    /// Derives the bytes of shadow page `page` from `offset` on from `real`, the guest's bytes in
    /// the same place: the whole page after an LIDT, the written bytes after a guest's write, one
    /// flags byte ([`Self::flags_position`]) after a grant. What reaches beyond the page is
    /// ignored.
    ///
    /// Each byte is stored once, with its final value, and as an atomic, so that the compiler does no more: a CPU that
    /// reads the shadow meanwhile finds the old gate or the new one as it would in the guest's own table, and never one
    /// that is open for a moment.
    pub fn derive(
        &self,
        page: usize,
        offset: usize,
        real: &[u8],
        grants: &Grants,
        shadow: &SharedPage,
    ) {
        let Some(shadow) = shadow.get(offset..) else { return };
        let length = real.len().min(shadow.len());
        let (Some(real), Some(shadow)) = (real.get(..length), shadow.get(..length)) else {
            return;
        };
        let mut done = 0;
        while let Some((vector, at)) = self.next_flags(page, offset + done, offset + length) {
            let at = at - offset;
            copy(real, shadow, done..at);
            if let (Some(from), Some(to)) = (real.get(at), shadow.get(at)) {
                let flags = if grants.allows(vector) { *from } else { closed(*from) };
                to.store(flags, Ordering::Relaxed);
            }
            done = at + 1;
        }
        copy(real, shadow, done..length);
    }

    /// The first flags byte of a covered gate in `from..to` of a page: its vector and offset.
    fn next_flags(&self, page: usize, from: usize, to: usize) -> Option<(Vector, usize)> {
        let size = self.format.size();
        let first = self.start + GATE_FLAGS_OFFSET;
        let index = (page * PAGE_BYTES + from).saturating_sub(first).div_ceil(size);
        let vector = Vector(u8::try_from(index).ok()?);
        let position = self.flags_position(vector)?;
        (position.page == page && position.offset < to).then_some((vector, position.offset))
    }
}

/// The flags byte of a gate that is closed to deliveries: not present, an interrupt gate, and with
/// the guest's own DPL, which `INT n` is checked against first.
const fn closed(flags: u8) -> u8 {
    const DPL: u8 = 3 << 5;
    const INTERRUPT_GATE: u8 = 0x0e;
    flags & DPL | INTERRUPT_GATE
}

/// Copies a range of equal places.
fn copy(from: &[u8], to: &[AtomicU8], range: core::ops::Range<usize>) {
    if let (Some(from), Some(to)) = (from.get(range.clone()), to.get(range)) {
        from.iter().zip(to).for_each(|(from, to)| to.store(*from, Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests;
