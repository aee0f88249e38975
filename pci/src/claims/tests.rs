//! BARs that claim what is not theirs.

use super::*;
use crate::bar::BarKind;
use crate::fake::FakeSpace;
use crate::header::scan;
use arch::Hpa;
use proptest::prelude::*;
use std::string::ToString;
use std::vec;

const AT: Bdf = Bdf::new(0, 4, 0);
const OTHER: Bdf = Bdf::new(0, 5, 0);
const BRIDGE: Bdf = Bdf::new(0, 1, 0);
const BEHIND: Bdf = Bdf::new(1, 0, 0);

fn bar(kind: BarKind, base: u64, size: u64) -> [Option<Bar>; 6] {
    let bar = Bar { index: 0, kind, prefetchable: false, base, size };
    [Some(bar), None, None, None, None, None]
}

/// A machine with RAM up to 2 GiB, an I/O APIC and the chipset's ports.
fn owners() -> Owners {
    let range = |start, length| HpaRange { start: Hpa::new(start), length };
    Owners {
        memory: vec![
            (range(0, 0x8000_0000), "RAM"),
            (range(0xfec0_0000, 0x1000), "an I/O APIC"),
            (range(0x1_0000_0000, 0), "nothing"),
        ],
        ports: vec![(PortRange { first: 0xcf8, last: 0xcff }, "PCI's configuration ports")],
    }
}

fn check(space: &mut FakeSpace, function: Bdf) -> Result<(), Problem> {
    let functions: Vec<_> = scan(space, 0, [0]).collect();
    let claims = Claims::record(space, &functions, owners());
    claims.check(function).map_err(|bad| bad.problem)
}

fn claim(kind: BarKind, base: u64, size: u64) -> Result<(), Problem> {
    let mut space = FakeSpace::default();
    space.device(AT, 0x01_0802).set_bars(&bar(kind, base, size));
    check(&mut space, AT)
}

#[test]
fn a_bar_on_anybodys_memory_or_ports_is_refused_to_the_byte() {
    use BarKind::{Io, Memory32, Memory64};
    let ram = Problem::Owned("RAM", 0, 0x7fff_ffff);
    let io_apic = Problem::Owned("an I/O APIC", 0xfec0_0000, 0xfec0_0fff);
    let ports = Problem::Owned("PCI's configuration ports", 0xcf8, 0xcff);
    for (kind, base, size, expected) in [
        (Memory32, 0x8000_0000, 1 << 21, Ok(())),
        (Memory32, 0x7fe0_0000, 1 << 21, Err(ram)),
        (Memory64, 0x10_0000, 1 << 16, Err(ram)),
        (Memory32, 0xfec0_1000, 1 << 12, Ok(())),
        (Memory32, 0xfec0_0ff0, 1 << 4, Err(io_apic)),
        (Memory32, 0xf000_0000, 1 << 28, Err(io_apic)),
        (Memory64, 0x1_0000_0000, 1 << 30, Ok(())),
        (Io, 0xcf0, 8, Ok(())),
        (Io, 0xcf8, 8, Err(ports)),
        (Io, 0xc00, 256, Err(ports)),
        // Ports are no memory.
        (Io, 0x1000, 256, Ok(())),
        // No address from the firmware: nothing is claimed.
        (Memory32, 0, 1 << 21, Ok(())),
    ] {
        assert_eq!(claim(kind, base, size), expected, "{kind:?} {base:#x}");
    }
}

#[test]
fn two_bars_in_one_place_are_refused_if_one_of_them_is_decoded() {
    for (own, theirs, refused) in [(3, 3, true), (0, 3, true), (3, 0, false), (0, 0, true)] {
        let mut space = FakeSpace::default();
        for (at, command) in [(AT, own), (OTHER, theirs)] {
            let device = space.device(at, 0x01_0802);
            device.set_bars(&bar(BarKind::Memory32, 0xf000_0000, 1 << 20));
            device.bytes[4] = command;
        }
        let expected = if refused { Err(Problem::OtherBar(OTHER, 0)) } else { Ok(()) };
        assert_eq!(check(&mut space, AT), expected, "{own} {theirs}");
    }
}

#[test]
fn two_bars_of_one_function_in_one_place_are_refused() {
    let mut space = FakeSpace::default();
    let mut bars = bar(BarKind::Memory32, 0xf000_0000, 1 << 20);
    bars[1] = Some(Bar { index: 1, base: 0xf008_0000, size: 1 << 12, ..bars[0].unwrap() });
    space.device(AT, 0x01_0802).set_bars(&bars);
    assert_eq!(check(&mut space, AT), Err(Problem::OtherBar(AT, 1)));
}

/// A device behind a bridge with windows for ports 0x2000 to 0x2fff, memory 0xf000_0000 to 0xf00f_ffff,
/// and prefetchable memory 0x20_0000_0000 to 0x20_3fff_ffff.
fn behind(kind: BarKind, base: u64, size: u64, class: u32) -> Result<(), Problem> {
    let mut space = FakeSpace::default();
    space.bridge(BRIDGE, 1);
    let bridge = space.functions.get_mut(&BRIDGE).unwrap();
    bridge.set(8, class << 8);
    for (offset, value) in
        [(0x1c, 0x2121), (0x20, 0xf000_f000), (0x24, 0x3ff1_0001), (0x28, 0x20), (0x2c, 0x20)]
    {
        bridge.set(offset, value);
    }
    space.device(BEHIND, 0x01_0802).set_bars(&bar(kind, base, size));
    check(&mut space, BEHIND)
}

#[test]
fn a_bar_outside_of_its_bridges_windows_is_refused() {
    use BarKind::{Io, Memory32, Memory64};
    let outside = Err(Problem::OutsideBridge(BRIDGE));
    for (kind, base, size, expected) in [
        (Memory32, 0xf000_0000, 1 << 20, Ok(())),
        (Memory32, 0xf010_0000, 1 << 12, outside),
        (Memory32, 0xe000_0000, 1 << 12, outside),
        (Memory64, 0x20_0000_0000, 1 << 30, Ok(())),
        (Memory64, 0x20_4000_0000, 1 << 12, outside),
        (Memory64, 0x10_0000_0000, 1 << 12, outside),
        (Io, 0x2000, 256, Ok(())),
        (Io, 0x3000, 256, outside),
    ] {
        assert_eq!(behind(kind, base, size, 0x06_0400), expected, "{kind:?} {base:#x}");
        assert_eq!(behind(kind, base, size, 0x06_0401), Ok(()), "subtractive {base:#x}");
    }
}

#[test]
fn a_closed_window_lets_nothing_through() {
    let mut space = FakeSpace::default();
    space.bridge(BRIDGE, 1);
    let bridge = space.functions.get_mut(&BRIDGE).unwrap();
    // As bridges are closed: the base above the limit.
    for (offset, value) in [(0x1c, 0x00f0), (0x20, 0x0000_fff0), (0x24, 0x0000_fff0)] {
        bridge.set(offset, value);
    }
    space.device(BEHIND, 0x01_0802).set_bars(&bar(BarKind::Memory32, 0xf000_0000, 1 << 20));
    assert_eq!(check(&mut space, BEHIND), Err(Problem::OutsideBridge(BRIDGE)));
}

#[test]
fn ports_that_a_guest_asks_for_by_number_are_known_to_be_anothers_bar() {
    let mut space = FakeSpace::default();
    space.device(AT, 0x01_0802).set_bars(&bar(BarKind::Io, 0x3000, 32));
    let functions: Vec<_> = scan(&space, 0, [0]).collect();
    let claims = Claims::record(&mut space, &functions, owners());
    let ports = |first, last| PortRange { first, last };
    let found = |range, own: &[Bdf]| claims.port_bar(range, own).map(|(function, _)| function);
    assert_eq!(found(ports(0x301f, 0x3020), &[]), Some(AT));
    assert_eq!(found(ports(0x301f, 0x3020), &[AT]), None);
    assert_eq!(found(ports(0x3020, 0x3fff), &[]), None);
}

#[test]
fn a_refusal_names_the_bar_what_it_overlaps_and_what_to_do() {
    let mut space = FakeSpace::default();
    space.device(AT, 0x01_0802).set_bars(&bar(BarKind::Memory32, 0x20_0000, 1 << 21));
    let functions: Vec<_> = scan(&space, 0, [0]).collect();
    let claims = Claims::record(&mut space, &functions, owners());
    assert_eq!(
        claims.check(AT).unwrap_err().to_string(),
        "00:04.0 cannot be assigned: its BAR 0 (memory 0x200000 to 0x3fffff) overlaps RAM (0x0 to \
         0x7fffffff): update the firmware, or leave the device out"
    );
}

proptest! {
    #[test]
    fn what_passes_shares_no_byte_with_an_owner(base: u64, bits in 4u32..40, io: bool) {
        let (kind, base, size) = if io {
            (BarKind::Io, base & 0xffff, 1u64 << bits.min(8))
        } else {
            (BarKind::Memory64, base & ((1 << 44) - 1), 1 << bits)
        };
        let base = base & !(size - 1);
        if claim(kind, base, size).is_ok() && base != 0 {
            let last = base + size - 1;
            let ranges: &[(u64, u64)] =
                if io { &[(0xcf8, 0xcff)] } else { &[(0, 0x7fff_ffff), (0xfec0_0000, 0xfec0_0fff)] };
            for (first, end) in ranges {
                prop_assert!(last < *first || base > *end);
            }
        }
    }
}
