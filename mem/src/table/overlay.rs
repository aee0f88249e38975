//! A second root over the same tables, in which a few pages are others.
//!
//! Only the way from the root to those pages is the overlay's own; all else it shares with the table,
//! and it is made again for each use: what the table becomes later it need not show.

use arch::Hpa;

use super::{ENTRIES, Table, TableMemory, bytes, entry, slot};
use crate::pages::Pages;
use crate::table::{Entry, Format, Leaf};

impl<F: Format, P> Table<F, P> {
    /// Frames that an overlay of `pages` pages takes at most.
    #[must_use]
    pub fn overlay_frames(&self, pages: usize) -> usize {
        1 + pages * usize::from(self.format.levels() - 1)
    }

    /// Whether an overlay can have a page at `input`.
    #[must_use]
    pub fn reaches(&self, input: u64) -> bool {
        input < self.input_limit()
    }

    /// Makes an overlay in `frames`, of which nobody else uses any, with these 4 KiB pages. `None` where the
    /// frames do not suffice or a page is beyond the table's reach.
    pub fn overlay(
        &self,
        memory: &mut impl TableMemory<Pool = P>,
        frames: &[Pages<P>],
        pages: &[(u64, Leaf)],
    ) -> Option<Hpa> {
        let top = self.format.levels() - 1;
        let mut free = frames.iter().map(Pages::start);
        let root = free.next()?;
        copy(memory, self.root(), root);
        for (input, leaf) in pages {
            if !self.reaches(*input) {
                return None;
            }
            let mut table = root;
            for level in (1..=top).rev() {
                let slot = slot(table, level, *input);
                table = match self.format.decode(memory.read(slot), level) {
                    Entry::Table(lower) if frames.iter().any(|own| own.start() == lower) => lower,
                    shared @ (Entry::Absent | Entry::Table(_) | Entry::Leaf(_)) => {
                        let own = free.next()?;
                        self.fill_from(memory, own, shared, level - 1);
                        memory.write(slot, self.format.table_entry(own));
                        own
                    }
                };
            }
            memory.write(slot(table, 0, *input), self.format.leaf_entry(*leaf, 0));
        }
        Some(root)
    }

    /// Makes `table`, of `level`, say what `entry` of the level above says.
    fn fill_from(
        &self,
        memory: &mut impl TableMemory<Pool = P>,
        table: Hpa,
        entry: Entry,
        level: u8,
    ) {
        match entry {
            Entry::Table(shared) => copy(memory, shared, table),
            Entry::Absent => fill(memory, table, |_, _| 0),
            Entry::Leaf(leaf) => fill(memory, table, |_, index| {
                let hpa = leaf.hpa.wrapping_add(index * bytes(level));
                self.format.leaf_entry(Leaf { hpa, ..leaf }, level)
            }),
        }
    }
}

fn copy(memory: &mut impl TableMemory, from: Hpa, to: Hpa) {
    fill(memory, to, |memory, index| memory.read(entry(from, index)));
}

fn fill<M: TableMemory>(memory: &mut M, table: Hpa, content: impl Fn(&M, u64) -> u64) {
    for index in 0..ENTRIES {
        let value = content(memory, index);
        memory.write(entry(table, index), value);
    }
}

#[cfg(test)]
mod tests {
    use arch::PageSize;
    use arch::address::PAGE_SIZE;

    use super::*;
    use crate::table::{MemoryType, Rights};
    use crate::testing::TestMemory;
    use crate::{EptFormat, NptFormat};

    const GIB: u64 = 1 << 30;

    fn an_overlay_shows_its_pages_and_leaves_the_table_alone<F: Format + Clone>(format: F) {
        let memory = &mut TestMemory::new();
        let mut table = Table::new(format.clone(), memory).unwrap();
        let (ram, kind) = (Hpa::new(0x40_0000_0000), MemoryType::WriteBack);
        table.map(memory, 0, ram, GIB, Rights::ALL, kind).unwrap().nothing_cached();
        let at = 3 * GIB + 5 * PAGE_SIZE;
        table
            .map(memory, at, Hpa::new(0x1000), PAGE_SIZE, Rights::READ, kind)
            .unwrap()
            .nothing_cached();
        let frames: Vec<_> =
            (0..table.overlay_frames(4)).map(|_| memory.allocate_table().unwrap()).collect();
        let leaf = |hpa| Leaf { hpa: Hpa::new(hpa), access: Rights::ALL, memory_type: kind };
        // In a large page, beside a mapped page, where nothing is near, and in the last page of all.
        let pages = [
            (0x12_3000, leaf(0xa000)),
            (at + PAGE_SIZE, leaf(0xb000)),
            (1 << 40, leaf(0xc000)),
            ((1 << 48) - PAGE_SIZE, leaf(0xd000)),
        ];
        let before = memory.clone();
        for _ in 0..2 {
            let root = table.overlay(memory, &frames, &pages).unwrap();
            let overlay = Table { format: format.clone(), root: Pages::linked(root) };
            for (input, leaf) in pages {
                let seen = overlay.translate(memory, input).unwrap();
                assert_eq!((seen.hpa, seen.size), (leaf.hpa, PageSize::Size4K));
            }
            for input in [0, 0x12_2000, 0x12_4000, 0x20_0000, GIB - PAGE_SIZE, at, at + 0x2000] {
                let pages = [&overlay, &table].map(|table| {
                    table.translate(memory, input).map(|mapping| (mapping.hpa, mapping.access))
                });
                assert_eq!(pages[0], pages[1], "{input:#x}");
            }
        }
        let written = memory.log.iter().skip(before.log.len());
        let own = |at: &Hpa| frames.iter().any(|frame| frame.start() == at.page());
        assert!(written.clone().all(|(at, _)| own(at)), "only its own frames are written");
        assert_eq!(table.overlay(memory, &frames, &[(1 << 48, leaf(0xe000))]), None);
        assert_eq!(table.overlay(memory, &frames[..3], &pages), None, "too few frames");
    }

    #[test]
    fn an_overlay_of_an_extended_page_table() {
        let largest = PageSize::Size1G;
        an_overlay_shows_its_pages_and_leaves_the_table_alone(EptFormat::up_to(largest));
    }

    #[test]
    fn an_overlay_of_a_nested_page_table() {
        let largest = PageSize::Size1G;
        an_overlay_shows_its_pages_and_leaves_the_table_alone(NptFormat { largest });
    }
}
