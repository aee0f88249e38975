use proptest::prelude::*;

use super::*;
use crate::fake::FakeSpace;
use crate::header::COMMAND;

const OWN: Bdf = Bdf::new(0, 4, 0);
const OTHER: Bdf = Bdf::new(0, 5, 0);
/// 64 KiB with a table of 4 entries at 0x2008, in registers 0 and 1.
const MEMORY: u64 = 0x12_febd_0000;
/// 256 bytes, in register 2.
const SMALL: u64 = 0xfebe_0400;
const SHARED: HpaRange = HpaRange { start: Hpa::new(0x1_2340_0000), length: 0x4000 };
const REGISTERS: Part = Part::Bar { function: OWN, index: 0 };
const TABLE_AT: u64 = 0x2008;

fn space() -> FakeSpace {
    let mut space = FakeSpace::default();
    for at in [OWN, OTHER] {
        let device = space.device(at, 0x01_0802);
        let registers = [
            (MEMORY as u32 | 4, 0xffff_0000),
            ((MEMORY >> 32) as u32, u32::MAX),
            (SMALL as u32, 0xffff_ff00),
            (0xc001, 0xfff0),
            // No address from the firmware.
            (0, 0xffff_0000),
        ];
        for (offset, (value, writable)) in (0x10..).step_by(4).zip(registers) {
            device.set(offset, value);
            device.set_writable(offset, writable);
        }
        device.capability(0x40, capability::MSI_X, &[3, 0, 8, 0x20, 0, 0, 0, 0x30, 0, 0]);
    }
    space
}

/// A guest with the first of two such functions and one region.
fn owned() -> Owned {
    let mut space = space();
    let mut owned = Owned::default();
    let bars = crate::bar::size_bars(&mut space, OWN, 6);
    owned.add_function(&space, OWN, bars);
    owned.add_shared(SHARED);
    owned
}

fn register(part: Part, offset: u64, width: Width) -> Result<u64, NotOwned> {
    owned().register(part, offset, width).map(Hpa::as_u64)
}

fn pages(part: Part, offset: u64, length: u64) -> Result<u64, NotOwned> {
    owned().pages(part, offset, length).map(Hpa::as_u64)
}

const fn bar(function: Bdf, index: u8) -> Part {
    Part::Bar { function, index }
}

#[test]
fn what_is_the_guests_is_where_it_was_recorded() {
    assert_eq!(register(REGISTERS, 0xfff8, Width::Qword), Ok(MEMORY + 0xfff8));
    assert_eq!(register(bar(OWN, 2), 0xff, Width::Byte), Ok(SMALL + 0xff));
    assert_eq!(register(Part::Shared(0), 0x3ffc, Width::Dword), Ok(0x1_2340_3ffc));
    assert_eq!(pages(REGISTERS, 0, 0x2000), Ok(MEMORY));
    assert_eq!(pages(REGISTERS, 0x3000, 0xd000), Ok(MEMORY + 0x3000));
    assert_eq!(pages(Part::Shared(0), 0x1000, 0x3000), Ok(0x1_2340_1000));
}

#[test]
fn another_guests_function_is_refused() {
    let refused = Err(NOT_ITS_OWN);
    assert_eq!(register(bar(OTHER, 0), 0, Width::Dword), refused);
    assert_eq!(pages(bar(OTHER, 0), 0, 0x1000), refused);
    assert_eq!(owned().msix_entry(OTHER, 0), Err(ENTRY));
}

#[test]
fn a_bar_that_is_absent_is_refused() {
    // The upper half of BAR 0, ports, one without an address, one that is not there, and none at all.
    for index in [1, 3, 4, 5, 6, 255] {
        let refused = Err(NOT_ITS_OWN);
        assert_eq!(register(bar(OWN, index), 0, Width::Byte), refused, "{index}");
        assert_eq!(pages(bar(OWN, index), 0, 0x1000), refused, "{index}");
    }
}

#[test]
fn a_region_that_the_guest_does_not_share_is_refused() {
    for region in [1, usize::MAX] {
        let refused = Err(NOT_ITS_OWN);
        assert_eq!(register(Part::Shared(region), 0, Width::Byte), refused);
        assert_eq!(pages(Part::Shared(region), 0, 0x1000), refused);
    }
}

#[test]
fn an_offset_beyond_the_end_is_refused() {
    for (part, offset) in
        [(REGISTERS, 0x1_0000), (REGISTERS, !7), (bar(OWN, 2), 0x100), (Part::Shared(0), 0x4000)]
    {
        let refused = Err(BEYOND);
        assert_eq!(register(part, offset, Width::Qword), refused, "{part:?} {offset:#x}");
    }
    for (part, offset, length) in [
        (REGISTERS, 0xf000, 0x2000),
        (REGISTERS, !0xfff, 0x1000),
        (REGISTERS, 0x1000, !0xfff),
        // A page that it shares with registers of others.
        (bar(OWN, 2), 0, 0x1000),
        (Part::Shared(0), 0x3000, 0x2000),
    ] {
        let refused = Err(BEYOND);
        assert_eq!(pages(part, offset, length), refused, "{part:?} {offset:#x} {length:#x}");
    }
}

#[test]
fn the_page_of_the_msi_x_table_is_never_mapped_and_its_bytes_are_no_registers() {
    let refused = Err(TABLE);
    for (offset, length) in [(0x2000, 0x1000), (0, 0x1_0000), (0x1000, 0x2000), (0x2000, 0xe000)] {
        assert_eq!(pages(REGISTERS, offset, length), refused, "{offset:#x}");
    }
    for offset in (TABLE_AT..TABLE_AT + 64).step_by(8) {
        assert_eq!(register(REGISTERS, offset, Width::Qword), refused, "{offset:#x}");
        assert_eq!(register(REGISTERS, offset + 7, Width::Byte), refused, "{offset:#x}");
    }
    assert_eq!(register(REGISTERS, TABLE_AT - 8, Width::Qword), Ok(MEMORY + TABLE_AT - 8));
    assert_eq!(register(REGISTERS, TABLE_AT + 64, Width::Qword), Ok(MEMORY + TABLE_AT + 64));
}

#[test]
fn a_table_across_a_page_boundary_hides_both_pages() {
    let mut space = space();
    // 512 entries.
    space.functions.get_mut(&OWN).unwrap().bytes[0x42..0x44].copy_from_slice(&[0xff, 1]);
    let mut owned = Owned::default();
    let bars = crate::bar::size_bars(&mut space, OWN, 6);
    owned.add_function(&space, OWN, bars);
    for (offset, mapped) in
        [(0x1000, true), (0x2000, false), (0x3000, false), (0x4000, false), (0x5000, true)]
    {
        assert_eq!(owned.pages(REGISTERS, offset, 0x1000).is_ok(), mapped, "{offset:#x}");
    }
}

#[test]
fn an_entry_of_msi_x_is_reached_by_its_index_only() {
    let owned = owned();
    assert_eq!(owned.msix_entry(OWN, 0), Ok(Hpa::new(MEMORY + TABLE_AT)));
    assert_eq!(owned.msix_entry(OWN, 3), Ok(Hpa::new(MEMORY + TABLE_AT + 48)));
    for index in [4, u16::MAX] {
        assert_eq!(owned.msix_entry(OWN, index), Err(ENTRY));
    }
}

#[test]
fn a_table_that_lies_beyond_its_bar_is_none() {
    // In the small BAR; in ports; at the very end.
    for place in [0x2002_u32, 0x2003, 0xffd0] {
        let mut space = space();
        let bars = crate::bar::size_bars(&mut space, OWN, 6);
        let bytes = &mut space.functions.get_mut(&OWN).unwrap().bytes;
        bytes[0x44..0x48].copy_from_slice(&place.to_le_bytes());
        let mut owned = Owned::default();
        owned.add_function(&space, OWN, bars);
        assert_eq!(owned.msix_entry(OWN, 0), Err(ENTRY), "{place:#x}");
    }
}

#[test]
fn what_is_not_aligned_is_refused() {
    for (offset, width) in [(1, Width::Word), (2, Width::Dword), (4, Width::Qword)] {
        assert_eq!(register(REGISTERS, offset, width), Err(UNALIGNED));
    }
    for (offset, length) in [(0x800, 0x1000), (0, 0x800), (0, 0)] {
        assert_eq!(pages(REGISTERS, offset, length), Err(UNALIGNED));
    }
}

#[test]
fn configuration_space_of_others_reads_as_ones_and_takes_no_write() {
    let owned = Arc::new(owned());
    let mut own = OwnedConfigSpace::new(space(), owned);
    for (function, identity, written) in
        [(OWN, space().read(OWN, 0, Width::Dword), 7), (OTHER, u32::MAX, 0)]
    {
        assert_eq!(own.read(function, 0, Width::Dword), identity);
        own.write(function, COMMAND, Width::Word, 7);
        assert_eq!(own.space.read(function, COMMAND, Width::Word) & 7, written, "{function}");
    }
    assert_eq!(own.read(OTHER, 0, Width::Byte), 0xff);
}

#[test]
fn channel_0_of_the_pit_is_one_guests_and_the_others_are_nobodys() {
    let mut owned = owned();
    for register in [PitRegister::Channel0, PitRegister::Control] {
        assert_eq!(owned.pit_port(register, 0x34), Err(PIT));
    }
    owned.add_pit();
    assert_eq!(owned.pit_port(PitRegister::Channel0, 0xff), Ok(0x40));
    assert_eq!(owned.pit_port(PitRegister::Control, 0x34), Ok(0x43));
    for value in [0x74, 0xb4, 0xc2] {
        assert_eq!(owned.pit_port(PitRegister::Control, value), Err(PIT), "{value:#x}");
    }
}

proptest! {
    /// Names of all kinds, against a naive list of the guest's bytes.
    #[test]
    fn no_name_leads_out_of_what_is_the_guests(
        function in prop_oneof![Just(OWN), Just(OTHER), any::<u16>().prop_map(Bdf::from_requester_id)],
        index in 0u8..8,
        shared: bool,
        offset in prop_oneof![0u64..0x1_1000, any::<u64>()],
        length in prop_oneof![0u64..0x1_1000, any::<u64>()],
        round: bool,
        width in prop_oneof![Just(Width::Byte), Just(Width::Word), Just(Width::Dword), Just(Width::Qword)],
    ) {
        let part = if shared { Part::Shared(index.into()) } else { bar(function, index) };
        let page = |value: u64| if round { value & !0xfff } else { value };
        let allowed = |start: u64, length: u64, hidden: std::ops::Range<u64>| {
            let inside = |base: u64, size: u64| {
                start >= base && start.checked_add(length).is_some_and(|end| end <= base + size)
            };
            let clear = start >= hidden.end || start + length <= hidden.start;
            inside(SHARED.start.as_u64(), SHARED.length)
                || inside(SMALL, 0x100)
                || inside(MEMORY, 0x1_0000) && clear
        };
        if let Ok(at) = pages(part, page(offset), page(length)) {
            prop_assert!(allowed(at, page(length), MEMORY + 0x2000..MEMORY + 0x3000));
        }
        if let Ok(at) = register(part, offset, width) {
            let table = MEMORY + TABLE_AT..MEMORY + TABLE_AT + 64;
            prop_assert!(allowed(at, width.bytes().into(), table));
        }
    }
}
