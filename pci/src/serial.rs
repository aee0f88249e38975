//! Serial cards (PCI Local Bus Specification, "Class Codes": a 16550-compatible serial controller).
//!
//! A card has its ports one behind the other in a BAR, or each in a BAR of its own; which it is, and how
//! far registers are from each other in memory, its maker knows. So every place where a port can begin is
//! handed to the caller, who asks what is there.

use arch::machine::ConfigSpace;
use arch::uart::{UartBase, UartPlace};
use arch::{Hpa, Width};

use crate::bar::{Bar, size_bars};
use crate::header::{Command, Function, HeaderType};

/// Simple communication controller, serial, 16550-compatible.
const SERIAL_16550: u32 = 0x07_00_02;
/// Ports of a card that are asked.
const MAX_PORTS: u64 = 16;

/// Whether the function is a serial card with 16550s.
#[must_use]
pub fn is_card(function: &Function) -> bool {
    function.class == SERIAL_16550 && function.header == HeaderType::Device
}

/// Where the ports of a BAR can begin.
fn places(bar: Bar) -> impl Iterator<Item = UartPlace> {
    let ports = if bar.is_memory() { 0 } else { (bar.size / 8).min(MAX_PORTS) };
    let port = move |number| u16::try_from(bar.base + 8 * number).ok().map(UartPlace::port);
    let layouts: &[(u8, Width)] =
        if bar.is_memory() { &[(1, Width::Byte), (4, Width::Dword)] } else { &[] };
    let memory = move |(stride, width): &(u8, Width)| {
        let place = UartPlace {
            base: UartBase::Memory(Hpa::new(bar.base)),
            stride: *stride,
            width: *width,
        };
        place.range().filter(|range| range.length <= bar.size).map(|_| place)
    };
    (0..ports).filter_map(port).chain(layouts.iter().filter_map(memory))
}

/// Finds the first port of the card that `answers`, with the card's decoding on; it stays on for that
/// one, and is as it was where none does. No bus mastering, no interrupt.
pub fn find(
    space: &mut impl ConfigSpace,
    function: &Function,
    mut answers: impl FnMut(UartPlace) -> bool,
) -> Option<UartPlace> {
    let bars = size_bars(space, function.bdf, 6);
    let before = Command::read(space, function.bdf);
    let on = before | Command::IO_SPACE | Command::MEMORY_SPACE | Command::INTERRUPT_DISABLE;
    on.write(space, function.bdf);
    let given = bars.into_iter().flatten().filter(|bar| bar.base != 0);
    let found = given.flat_map(places).find(|place| answers(*place));
    if found.is_none() {
        before.write(space, function.bdf);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bar::BarKind;
    use crate::fake::FakeSpace;
    use arch::Bdf;
    use std::vec;
    use std::vec::Vec;

    fn bar(kind: BarKind, base: u64, size: u64) -> Bar {
        Bar { index: 0, kind, prefetchable: false, base, size }
    }

    #[test]
    fn ports_of_one_bar_are_eight_apart() {
        let all = |bar| places(bar).map(|place| place.first_port().unwrap()).collect::<Vec<_>>();
        assert_eq!(all(bar(BarKind::Io, 0xc000, 8)), [0xc000]);
        assert_eq!(all(bar(BarKind::Io, 0xc000, 32)), [0xc000, 0xc008, 0xc010, 0xc018]);
        assert_eq!(all(bar(BarKind::Io, 0xc000, 256)).len(), 16);
        assert_eq!(all(bar(BarKind::Io, 0xffff_fff8, 8)), [], "no CPU has such a port");
    }

    #[test]
    fn registers_in_memory_are_a_byte_or_a_dword_apart_and_inside_the_bar() {
        let all = |size| places(bar(BarKind::Memory32, 0xfe00_0000, size)).collect::<Vec<_>>();
        let strides = |size| all(size).iter().map(|place| place.stride).collect::<Vec<_>>();
        assert_eq!((strides(4096), strides(16), strides(4)), (vec![1, 4], vec![1], vec![]));
        assert_eq!(all(4096)[1].width, Width::Dword);
        assert!(all(32).iter().all(|place| place.first_port().is_none()));
    }

    #[test]
    fn the_first_port_that_answers_is_taken_and_a_card_without_one_is_left_as_it_was() {
        let at = Bdf::new(0, 5, 0);
        let mut space = FakeSpace::default();
        let bars = [Some(bar(BarKind::Io, 0xc000, 32)), None, None, None, None, None];
        space.device(at, SERIAL_16550).set_bars(&bars);
        let function = Function::read(&space, at).unwrap();
        assert!(is_card(&function));
        let mut asked = Vec::new();
        let none = find(&mut space, &function, |place| {
            asked.push(place.first_port());
            false
        });
        assert_eq!((none, asked.len()), (None, 4));
        assert_eq!(Command::read(&space, at), Command::empty());
        let found = find(&mut space, &function, |place| place.first_port() == Some(0xc008));
        assert_eq!(found, Some(UartPlace::port(0xc008)));
        let command = Command::read(&space, at);
        assert!(command.contains(Command::IO_SPACE | Command::INTERRUPT_DISABLE));
        assert!(!command.contains(Command::BUS_MASTER));
    }
}
