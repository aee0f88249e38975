//! Configuration space as it was captured.
//!
//! Invariant: a BAR answers the writes that size it as the device would, from its captured size, and has
//! its address again once that is written back. Where the size is not known it answers as one that is not
//! there. Identity and status cannot be written; all else that was captured can, and nothing happens.

use std::collections::BTreeMap;

use arch::machine::ConfigSpace;
use arch::{Bdf, Width};
use pci::header::{BAR0, EXPANSION_ROM, HEADER_TYPE, MULTI_FUNCTION};

use crate::{Capture, Function};

/// Expansion ROM Base Address of a type 1 header.
const BRIDGE_ROM: u16 = 0x38;
/// Index of the expansion ROM's size in [`Function::bar_sizes`].
const ROM: usize = 6;

/// The configuration space of a captured machine.
#[derive(Clone, Debug)]
pub struct CapturedSpace {
    functions: BTreeMap<Bdf, Registers>,
}

#[derive(Clone, Debug)]
struct Registers {
    bytes: Vec<u8>,
    /// Registers that hold addresses.
    addresses: Vec<Address>,
}

/// A register that holds (half of) an address.
#[derive(Clone, Copy, Debug)]
struct Address {
    offset: u16,
    captured: u32,
    /// Bits that can be written; `None` where the size is not known.
    writable: Option<u32>,
    /// Bits that are what they are.
    fixed: u32,
}

impl CapturedSpace {
    pub(crate) fn new(capture: &Capture) -> Self {
        let functions = capture.functions.iter();
        Self { functions: functions.map(|it| (it.at, Registers::new(it))).collect() }
    }
}

impl Registers {
    fn new(function: &Function) -> Self {
        let bytes = function.config.0.clone();
        let header = bytes.get(usize::from(HEADER_TYPE)).map(|byte| byte & !MULTI_FUNCTION);
        let (bars, rom) = match header {
            Some(0) => (6, Some(EXPANSION_ROM)),
            Some(1) => (2, Some(BRIDGE_ROM)),
            _ => (0, None),
        };
        let mut registers = Self { bytes, addresses: Vec::new() };
        let size = |index: usize| function.bar_sizes.get(index).copied().flatten();
        let mut index = 0;
        while index < bars {
            let offset = BAR0 + index as u16 * 4;
            let Some(low) = registers.dword(offset) else { break };
            let io = low & 1 != 0;
            let wide = !io && low & 6 == 4;
            let mask = size(index).map(mask);
            registers.address(offset, mask.map(|mask| mask as u32), if io { 3 } else { 0xf });
            if wide && index + 1 < bars {
                registers.address(offset + 4, mask.map(|mask| (mask >> 32) as u32), 0);
            }
            index += if wide { 2 } else { 1 };
        }
        if let Some(rom) = rom {
            // Bit 0 switches it on (PCI Local Bus Specification, "Expansion ROM Base Address Register").
            let mask = size(ROM).map(|size| mask(size) as u32 & !0x7ff | u32::from(size != 0));
            registers.address(rom, mask, 0);
        }
        registers
    }

    fn address(&mut self, offset: u16, writable: Option<u32>, flags: u32) {
        let Some(captured) = self.dword(offset) else { return };
        let writable = writable.map(|writable| writable & !flags);
        self.addresses.push(Address { offset, captured, writable, fixed: captured & flags });
    }

    fn dword(&self, offset: u16) -> Option<u32> {
        arch::bytes::u32_at(&self.bytes, usize::from(offset))
    }

    /// What a byte becomes.
    fn write_byte(&mut self, offset: u16, value: u8) {
        const STATUS: std::ops::Range<u16> = 6..8;
        let read_only = offset < 4
            || STATUS.contains(&offset)
            || (8..0xc).contains(&offset)
            || offset == HEADER_TYPE;
        if read_only {
            return;
        }
        if let Some(byte) = self.bytes.get_mut(usize::from(offset)) {
            *byte = value;
        }
    }
}

/// The address bits of something of this size.
const fn mask(size: u64) -> u64 {
    match size.checked_next_power_of_two() {
        Some(size_of_two) if size != 0 => !(size_of_two - 1),
        _ => 0,
    }
}

impl Address {
    fn after(&self, written: u32) -> u32 {
        match self.writable {
            Some(writable) => written & writable | self.fixed,
            None if written == self.captured => self.captured,
            None => self.fixed,
        }
    }
}

impl ConfigSpace for CapturedSpace {
    fn read(&self, function: Bdf, offset: u16, width: Width) -> u32 {
        let ones = width.mask() as u32;
        let Some(registers) = self.functions.get(&function) else { return ones };
        let start = usize::from(offset);
        let Some(bytes) = registers.bytes.get(start..start + usize::from(width.bytes())) else {
            return ones;
        };
        bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
    }

    fn write(&mut self, function: Bdf, offset: u16, width: Width, value: u32) {
        let Some(registers) = self.functions.get_mut(&function) else { return };
        let bytes = value.to_le_bytes();
        let written = bytes.iter().take(usize::from(width.bytes()));
        for (index, byte) in written.enumerate() {
            registers.write_byte(offset + index as u16, *byte);
        }
        let touched = registers.addresses.iter().find(|it| it.offset == offset & !3).copied();
        if let Some(address) = touched
            && let Some(now) = registers.dword(address.offset)
        {
            let start = usize::from(address.offset);
            if let Some(bytes) = registers.bytes.get_mut(start..start + 4) {
                bytes.copy_from_slice(&address.after(now).to_le_bytes());
            }
        }
    }
}
