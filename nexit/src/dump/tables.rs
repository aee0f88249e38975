//! What a guest's page tables map, in 64-bit mode (SDM "4-Level Paging and 5-Level Paging").

use std::ops::Range;

/// More of them an ELF file cannot name.
const MAX_MAPPINGS: usize = 60_000;
/// Tables may lead to each other in a ring, by which they map far more than there is.
const MAX_ENTRIES: usize = 1 << 23;
/// What an entry says of where it leads.
const FRAME: u64 = 0x000f_ffff_ffff_f000;
const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;

/// Linear addresses that lead to physical ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Mapping {
    pub(super) linear: u64,
    pub(super) physical: u64,
    pub(super) length: u64,
}

/// Each address leads to itself.
pub(super) fn identity(ranges: &[Range<u64>]) -> Vec<Mapping> {
    let itself = |range: &Range<u64>| Mapping {
        linear: range.start,
        physical: range.start,
        length: range.end - range.start,
    };
    ranges.iter().map(itself).collect()
}

struct Walk<'a> {
    read: &'a dyn Fn(u64) -> Option<u64>,
    found: Vec<Mapping>,
    entries: usize,
}

/// All that the tables from `cr3` on map, in the order of linear addresses, and whether that is really all.
pub(super) fn mappings(
    read: &dyn Fn(u64) -> Option<u64>,
    cr3: u64,
    levels: u32,
) -> (Vec<Mapping>, bool) {
    let mut walk = Walk { read, found: Vec::new(), entries: 0 };
    walk.table(cr3 & FRAME, levels, 0);
    let complete = !walk.is_full();
    walk.found.truncate(MAX_MAPPINGS);
    (walk.found, complete)
}

impl Walk<'_> {
    fn is_full(&self) -> bool {
        self.found.len() > MAX_MAPPINGS || self.entries > MAX_ENTRIES
    }

    fn table(&mut self, table: u64, level: u32, base: u64) {
        let shift = 12 + 9 * (level - 1);
        for index in 0..512 {
            if self.is_full() {
                return;
            }
            self.entries += 1;
            let entry = (self.read)(table + 8 * index).unwrap_or(0);
            if entry & PRESENT == 0 {
                continue;
            }
            let linear = base | index << shift;
            let is_page = level == 1 || level <= 3 && entry & LARGE != 0;
            if is_page {
                let length = 1 << shift;
                self.add(canonical(linear), entry & FRAME & !(length - 1), length);
            } else {
                self.table(entry & FRAME, level - 1, linear);
            }
        }
    }

    fn add(&mut self, linear: u64, physical: u64, length: u64) {
        if let Some(last) = self.found.last_mut()
            && last.linear.wrapping_add(last.length) == linear
            && last.physical + last.length == physical
        {
            last.length += length;
            return;
        }
        self.found.push(Mapping { linear, physical, length });
    }
}

/// The upper bits are as the highest that counts: with four levels bit 47, with five bit 56, below which a four-level
/// address has none.
const fn canonical(linear: u64) -> u64 {
    let bits = if linear >> 48 == 0 { 48 } else { 57 };
    ((linear << (64 - bits)) as i64 >> (64 - bits)) as u64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn walk(entries: &[(u64, u64)], levels: u32) -> (Vec<Mapping>, bool) {
        let memory: BTreeMap<u64, u64> = entries.iter().copied().collect();
        mappings(&|gpa| memory.get(&gpa).copied(), 0x1000, levels)
    }

    #[test]
    fn pages_side_by_side_are_one_mapping_and_high_addresses_are_canonical() {
        let (found, complete) = walk(
            &[
                (0x1000 + 8 * 511, 0x2003),
                (0x2000 + 8 * 510, 0x3003),
                (0x3000, 0x4003),
                (0x3008, 0x60_0083),
                (0x4000, 0x7003),
                (0x4008, 0x8003),
                (0x4000 + 8 * 511, 0x5f_f003),
            ],
            4,
        );
        let base = 0xffff_ffff_8000_0000;
        let mapping = |linear, physical, length| Mapping { linear, physical, length };
        assert_eq!(
            found,
            [mapping(base, 0x7000, 0x2000), mapping(base + 0x1f_f000, 0x5f_f000, 0x20_1000)]
        );
        assert!(complete);
    }

    #[test]
    fn tables_in_a_ring_come_to_an_end() {
        let ring: Vec<(u64, u64)> = (0..512).map(|at| (0x1000 + 8 * at, 0x1003)).collect();
        let (found, complete) = walk(&ring, 5);
        assert!(!complete && found.len() <= MAX_MAPPINGS);
    }
}
