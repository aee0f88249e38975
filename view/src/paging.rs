//! Where a linear address leads: through the guest's own tables, then through the nested one.

use alloc::string::String;
use alloc::{format, vec};

use arch::machine::GuestMemory;
use arch::{Gpa, Gva, PageSize};
use insn::{PagingRegisters, Visited};
use mem::table::Mapping;
use mem::{MemoryType, Rights};

use crate::flags::words;
use crate::{Column, Lines, Table};

/// What a guest-physical address is to the hypervisor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backing {
    /// The guest's own RAM.
    Ram,
    /// RAM of the guest's in whose place it is shown another page: a shadow of its IDT, for one.
    StandIn,
    /// Registers of a device, or memory shared with other guests.
    Device,
    /// Nothing is mapped: an access exits, and the hypervisor emulates a device there, or nothing.
    Exits,
}

impl Backing {
    /// Of an address: whether it is in the guest's RAM, and whether the nested table leads there.
    #[must_use]
    pub const fn new(in_ram: bool, mapped: bool, to_ram: bool) -> Self {
        match (in_ram, mapped, to_ram) {
            (true, true, true) => Self::Ram,
            (true, true, false) => Self::StandIn,
            (false, true, _) => Self::Device,
            (_, false, _) => Self::Exits,
        }
    }

    const fn words(self) -> &'static str {
        match self {
            Self::Ram => "the guest's RAM",
            Self::StandIn => {
                "another page in place of the guest's RAM, such as a shadow of its IDT"
            }
            Self::Device => "a device's registers, or shared memory",
            Self::Exits => "an access exits: a device that the hypervisor emulates, or nothing",
        }
    }
}

/// The guest's half of a walk.
#[derive(Debug)]
pub struct Walked {
    /// The lines for a reader.
    pub lines: Lines,
    /// Where it ends; `None` where the guest's tables have no such page.
    pub gpa: Option<Gpa>,
}

/// Follows the guest's tables, with the registers of a CPU, `who`.
#[must_use]
pub fn walk(who: &str, paging: PagingRegisters, memory: &impl GuestMemory, address: Gva) -> Walked {
    let mut visited = vec![];
    let end = paging.walk(memory, address, |entry| visited.push(entry));
    let mut lines = vec![format!("{who}: linear {address}, from cr3 {:#x}", paging.cr3)];
    let mut table = Table::new(&[
        Column::Left("  table"),
        Column::Left("entry at"),
        Column::Left("entry"),
        Column::Left("flags"),
    ]);
    for Visited { level, at, entry } in &visited {
        let name = NAMES.get(*level as usize).copied().unwrap_or_default();
        let at_text = format!("{:016x}", at.as_u64());
        let flags = flags(*entry, *level);
        table.row([format!("  {name}"), at_text, format!("{entry:016x}"), flags]);
    }
    if visited.is_empty() {
        lines.push("  paging is off".into());
    } else {
        lines.extend(table.lines());
    }
    match end {
        Ok(gpa) => lines.push(format!("  guest-physical {gpa}")),
        Err(fault) => lines.push(format!("  {fault}")),
    }
    Walked { lines, gpa: end.ok() }
}

/// The tables of the guest's, by level: SDM "Paging". With fewer levels the last ones are the same.
const NAMES: [&str; 6] = ["", "PT", "PD", "PDPT", "PML4", "PML5"];

/// A present entry's flags in words.
fn flags(entry: u64, level: u32) -> String {
    const PRESENT: u64 = 1;
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    const NAMES: [(u32, &str); 9] = [
        (0, "present"),
        (1, "write"),
        (2, "user"),
        (3, "write-through"),
        (4, "cache-off"),
        (5, "accessed"),
        (6, "dirty"),
        (8, "global"),
        (63, "no-execute"),
    ];
    if entry & PRESENT == 0 {
        return "not present".into();
    }
    // Bit 7 makes a large page in a directory, and is a bit of the memory type in a PT.
    let (large, bit_7) = match level {
        1 => ("", 0),
        _ if entry & 1 << 7 != 0 => ("a large page: ", 1 << 7),
        _ => ("", 0),
    };
    format!("{large}{}", words(entry & !ADDRESS & !bit_7, &NAMES))
}

/// What the nested table has at a guest-physical address.
#[must_use]
pub fn nested(gpa: Gpa, mapping: Option<Mapping>, place: Backing) -> Lines {
    let Some(Mapping { hpa, size, access, memory_type }) = mapping else {
        return vec![
            format!("  nested table: {gpa} is not mapped"),
            format!("  it is: {}", place.words()),
        ];
    };
    let size = match size {
        PageSize::Size4K => "4 KiB",
        PageSize::Size2M => "2 MiB",
        PageSize::Size1G => "1 GiB",
    };
    let Rights { write, execute } = access;
    let rights = match (write, execute) {
        (false, false) => "read",
        (true, false) => "read, write",
        (false, true) => "read, execute",
        (true, true) => "read, write, execute",
    };
    let cached = match memory_type {
        MemoryType::WriteBack => "write-back",
        MemoryType::Uncached => "uncached",
        MemoryType::WriteCombining => "write-combining",
    };
    vec![
        format!(
            "  nested table: {gpa} is host-physical {hpa}, in a page of {size}: {rights}, {cached}"
        ),
        format!("  it is: {}", place.words()),
    ]
}

#[cfg(test)]
mod tests {
    use arch::Hpa;
    use arch::machine::NotGuestMemory;

    use super::*;

    /// Quadwords by their addresses.
    struct Memory(std::collections::BTreeMap<u64, u64>);

    impl GuestMemory for Memory {
        fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), NotGuestMemory> {
            let value = self.0.get(&gpa.as_u64()).copied().unwrap_or(0);
            bytes.copy_from_slice(&value.to_le_bytes()[..bytes.len()]);
            Ok(())
        }

        fn write(&mut self, gpa: Gpa, _: &[u8]) -> Result<(), NotGuestMemory> {
            Err(NotGuestMemory(gpa))
        }
    }

    const LONG: PagingRegisters =
        PagingRegisters { cr0: 0x8000_0001, cr3: 0x1000, cr4: 0x20, efer: 0xd00 };

    #[test]
    fn a_walk_shows_each_entry_and_where_it_ends() {
        let entries = [(0x1ff8, 0x2063), (0x2ff0, 0x3063), (0x3040, 0x8000_0000_1aa0_01e3)];
        let walked =
            walk("linux, CPU 0", LONG, &Memory(entries.into()), Gva::new(0xffff_ffff_8120_0010));
        assert_eq!(
            walked.lines,
            [
                "linux, CPU 0: linear 0xffffffff81200010, from cr3 0x1000",
                "  table  entry at          entry             flags",
                "  PML4   0000000000001ff8  0000000000002063  dirty accessed write present",
                "  PDPT   0000000000002ff0  0000000000003063  dirty accessed write present",
                "  PD     0000000000003048  0000000000000000  not present",
                "  page fault at linear address 0xffffffff81200010, error code 0x0",
            ]
        );
        assert_eq!(walked.gpa, None);
        let entries = [(0x1ff8, 0x2063), (0x2ff0, 0x3063), (0x3048, 0x8000_0000_1aa0_01e3)];
        let walked = walk("a", LONG, &Memory(entries.into()), Gva::new(0xffff_ffff_8120_0010));
        assert_eq!(walked.gpa, Some(Gpa::new(0x1aa0_0010)));
        let end = &walked.lines[walked.lines.len() - 2..];
        assert_eq!(
            end,
            [
                "  PD     0000000000003048  800000001aa001e3  a large page: no-execute global dirty accessed write present",
                "  guest-physical 0x1aa00010",
            ]
        );
    }

    #[test]
    fn without_paging_an_address_is_itself() {
        let paging = PagingRegisters { cr0: 1, ..PagingRegisters::default() };
        let walked = walk("a", paging, &Memory([].into()), Gva::new(0x1234));
        assert_eq!(walked.gpa, Some(Gpa::new(0x1234)));
        assert_eq!(walked.lines[1..], ["  paging is off", "  guest-physical 0x1234"]);
    }

    #[test]
    fn the_nested_table_says_what_is_there() {
        let mapping = Mapping {
            hpa: Hpa::new(0x1_0000_3000),
            size: PageSize::Size4K,
            access: Rights::READ,
            memory_type: MemoryType::WriteBack,
        };
        assert_eq!(
            nested(Gpa::new(0x3000), Some(mapping), Backing::new(true, true, false)),
            [
                "  nested table: 0x3000 is host-physical 0x100003000, in a page of 4 KiB: read, write-back",
                "  it is: another page in place of the guest's RAM, such as a shadow of its IDT",
            ]
        );
        let lines = nested(Gpa::new(0xfec0_0000), None, Backing::new(false, false, false));
        assert_eq!(lines[0], "  nested table: 0xfec00000 is not mapped");
        assert!(lines[1].contains("an access exits"));
        assert_eq!(Backing::new(true, true, true), Backing::Ram);
        assert_eq!(Backing::new(false, true, false), Backing::Device);
    }
}
