//! Base Address Registers: decoding and sizing (PCI Local Bus Specification, "Base Addresses").
//!
//! Invariant: whatever a device answers, a decoded BAR has a power-of-two size, a base that is a
//! multiple of it, and an end within 64 bits.

use arch::machine::ConfigSpace;
use arch::{Bdf, Width};

use crate::header::{BAR0, Command};

/// What a BAR decodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BarKind {
    /// Memory, 32-bit address.
    Memory32,
    /// Memory, 64-bit address; takes the next register too.
    Memory64,
    /// I/O ports.
    Io,
}

/// An implemented BAR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bar {
    /// Index of its (first) register, 0 to 5.
    pub index: u8,
    /// What it decodes.
    pub kind: BarKind,
    /// Reads have no side effects.
    pub prefetchable: bool,
    /// Physical address or port; 0 where the firmware gave none.
    pub base: u64,
    /// Size in bytes, a power of two.
    pub size: u64,
}

impl Bar {
    /// The read-only low bits of its (first) register.
    #[must_use]
    pub const fn flags(&self) -> u32 {
        let kind = match self.kind {
            BarKind::Memory32 => 0,
            BarKind::Memory64 => 4,
            BarKind::Io => 1,
        };
        kind | (self.prefetchable as u32) << 3
    }

    /// Whether it decodes memory.
    #[must_use]
    pub const fn is_memory(&self) -> bool {
        !matches!(self.kind, BarKind::Io)
    }
}

/// Finds the size of every BAR of `function`, `registers` of them (6 in a type 0 header, 2 in a
/// type 1), with its decoding switched off meanwhile. The second register of a 64-bit BAR, and what
/// is not implemented, is `None`.
pub fn size_bars(
    space: &mut impl ConfigSpace,
    function: Bdf,
    registers: usize,
) -> [Option<Bar>; 6] {
    let command = Command::read(space, function);
    (command - Command::MEMORY_SPACE - Command::IO_SPACE).write(space, function);
    let mut bars = [None; 6];
    let registers = registers.min(bars.len());
    let mut index = 0;
    while index < registers {
        let low = probe(space, function, index);
        let wide = low.value & 7 == 4;
        if wide && index + 1 == registers {
            break;
        }
        let high = if wide { probe(space, function, index + 1) } else { Probe::default() };
        bars[index] = decode(index as u8, low, high);
        index += if wide { 2 } else { 1 };
    }
    command.write(space, function);
    bars
}

/// A register's value, and what stuck of all ones.
#[derive(Clone, Copy, Default)]
struct Probe {
    value: u32,
    ones: u32,
}

fn probe(space: &mut impl ConfigSpace, function: Bdf, index: usize) -> Probe {
    let offset = BAR0 + index as u16 * 4;
    let value = space.read(function, offset, Width::Dword);
    space.write(function, offset, Width::Dword, u32::MAX);
    let ones = space.read(function, offset, Width::Dword);
    space.write(function, offset, Width::Dword, value);
    Probe { value, ones }
}

fn decode(index: u8, low: Probe, high: Probe) -> Option<Bar> {
    let (kind, flag_bits) = match low.value & 7 {
        // 2: "below 1 MiB", reserved since PCI 2.2, is a 32-bit BAR to today's software.
        0 | 2 => (BarKind::Memory32, 0xf),
        4 => (BarKind::Memory64, 0xf),
        1 | 5 => (BarKind::Io, 0x3),
        _ => return None,
    };
    let join = |low: u32, high: u32| u64::from(low & !flag_bits) | u64::from(high) << 32;
    let ones = join(low.ones, high.ones);
    if ones == 0 {
        return None;
    }
    // The lowest bit that can be written is the size, even where upper bits are hardwired to 0.
    let size = ones & ones.wrapping_neg();
    let base = join(low.value, high.value) & !(size - 1);
    base.checked_add(size)?;
    let prefetchable = !matches!(kind, BarKind::Io) && low.value & 8 != 0;
    Some(Bar { index, kind, prefetchable, base, size })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{FakeSpace, arbitrary_bars};
    use proptest::prelude::*;

    const AT: Bdf = Bdf::new(0, 4, 0);

    proptest! {
        #[test]
        fn sizing_finds_every_bar_and_leaves_the_device_as_it_was(bars in arbitrary_bars(), command: u16) {
            let mut space = FakeSpace::default();
            let device = space.device(AT, 0x020000);
            device.set_bars(&bars);
            device.bytes[4..6].copy_from_slice(&command.to_le_bytes());
            let before = device.clone();
            prop_assert_eq!(size_bars(&mut space, AT, 6), bars);
            prop_assert!(!space.sized_while_decoding);
            prop_assert_eq!(&space.functions[&AT].bytes, &before.bytes);
        }

        #[test]
        fn registers_that_lie_still_give_sane_bars(
            values: [u32; 6], writable: [u32; 6], registers in 0usize..9,
        ) {
            let mut space = FakeSpace::default();
            let device = space.device(AT, 0x020000);
            for i in 0..6 {
                device.set(BAR0 + 4 * i as u16, values[i]);
                device.set_writable(BAR0 + 4 * i as u16, writable[i]);
            }
            for (i, bar) in size_bars(&mut space, AT, registers).iter().enumerate() {
                let Some(bar) = bar else { continue };
                prop_assert!(i < registers && bar.size.is_power_of_two());
                prop_assert_eq!(bar.base % bar.size, 0);
                prop_assert!(bar.base.checked_add(bar.size).is_some());
            }
        }
    }

    #[test]
    fn io_bars_with_hardwired_upper_bits_have_their_true_size() {
        let mut space = FakeSpace::default();
        let device = space.device(AT, 0x010180);
        device.set(BAR0, 0xc001);
        device.set_writable(BAR0, 0xfff0);
        let bar = size_bars(&mut space, AT, 6)[0].unwrap();
        assert_eq!((bar.kind, bar.base, bar.size), (BarKind::Io, 0xc000, 16));
    }

    #[test]
    fn a_64_bit_bar_in_the_last_register_is_not_one() {
        let mut space = FakeSpace::default();
        let device = space.device(AT, 0);
        device.set(BAR0 + 20, 0x8000_0004);
        device.set_writable(BAR0 + 20, 0xffff_f000);
        assert_eq!(size_bars(&mut space, AT, 6), [None; 6]);
    }
}
