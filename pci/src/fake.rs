//! A configuration space made of memory, for this crate's tests: per function 4 KiB of bytes and a
//! mask of the bits that software can write.

use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

use arch::machine::ConfigSpace;
use arch::{Bdf, Width};
use proptest::prelude::*;

use crate::bar::{Bar, BarKind};
use crate::header::{BAR0, BAR5};

#[derive(Clone, Debug)]
pub(crate) struct FakeFunction {
    pub(crate) bytes: Vec<u8>,
    writable: Vec<u8>,
}

impl FakeFunction {
    pub(crate) fn set(&mut self, offset: u16, value: u32) {
        let at = usize::from(offset);
        self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn set_writable(&mut self, offset: u16, mask: u32) {
        let at = usize::from(offset);
        self.writable[at..at + 4].copy_from_slice(&mask.to_le_bytes());
    }

    /// Appends a capability to the list; `body` starts at its third byte.
    pub(crate) fn capability(&mut self, offset: u8, id: u16, body: &[u8]) {
        self.bytes[6] |= 0x10;
        let mut link = 0x34;
        while self.bytes[link] != 0 {
            link = usize::from(self.bytes[link]) + 1;
        }
        self.bytes[link] = offset;
        let at = usize::from(offset);
        self.bytes[at] = id as u8;
        self.bytes[at + 1] = 0;
        self.bytes[at + 2..at + 2 + body.len()].copy_from_slice(body);
        self.writable[at..at + 2 + body.len()].fill(0xff);
    }

    pub(crate) fn set_bars(&mut self, bars: &[Option<Bar>; 6]) {
        for offset in (BAR0..=BAR5).step_by(4) {
            self.set(offset, 0);
            self.set_writable(offset, 0);
        }
        for bar in bars.iter().flatten() {
            let offset = BAR0 + 4 * u16::from(bar.index);
            let mask = !(bar.size - 1);
            self.set(offset, bar.base as u32 | bar.flags());
            self.set_writable(offset, mask as u32);
            if bar.kind == BarKind::Memory64 {
                self.set(offset + 4, (bar.base >> 32) as u32);
                self.set_writable(offset + 4, (mask >> 32) as u32);
            }
        }
    }
}

#[derive(Clone, Default, Debug)]
pub(crate) struct FakeSpace {
    pub(crate) functions: BTreeMap<Bdf, FakeFunction>,
    pub(crate) sized_while_decoding: bool,
}

impl FakeSpace {
    pub(crate) fn device(&mut self, at: Bdf, class: u32) -> &mut FakeFunction {
        let mut function = FakeFunction { bytes: vec![0; 4096], writable: vec![0; 4096] };
        function.set(0, 0x1234_8086);
        function.set(8, class << 8);
        function.set_writable(4, 0xffff);
        self.functions.insert(at, function);
        self.functions.get_mut(&at).unwrap()
    }

    pub(crate) fn bridge(&mut self, at: Bdf, secondary: u8) {
        let function = self.device(at, 0x060400);
        function.bytes[0x0e] = 1;
        function.bytes[0x19] = secondary;
        function.bytes[0x1a] = secondary;
    }
}

impl ConfigSpace for FakeSpace {
    fn read(&self, function: Bdf, offset: u16, width: Width) -> u32 {
        let Some(function) = self.functions.get(&function) else {
            return width.mask() as u32;
        };
        (0..usize::from(width.bytes())).fold(0, |value, i| {
            value | u32::from(function.bytes[usize::from(offset) + i]) << (8 * i)
        })
    }

    fn write(&mut self, function: Bdf, offset: u16, width: Width, value: u32) {
        let Some(function) = self.functions.get_mut(&function) else { return };
        if (BAR0..=BAR5).contains(&offset) && value == u32::MAX && function.bytes[4] & 3 != 0 {
            self.sized_while_decoding = true;
        }
        for i in 0..usize::from(width.bytes()) {
            let at = usize::from(offset) + i;
            let mask = function.writable[at];
            function.bytes[at] = function.bytes[at] & !mask | (value >> (8 * i)) as u8 & mask;
        }
    }
}

/// Any set of BARs that a real function could have.
pub(crate) fn arbitrary_bars() -> impl Strategy<Value = [Option<Bar>; 6]> {
    proptest::collection::vec((0u8..4, 4u32..40, any::<u64>(), any::<bool>()), 6).prop_map(|list| {
        let mut bars = [None; 6];
        let mut index = 0;
        for (kind, bits, address, prefetchable) in list {
            let (kind, bits, top) = match kind {
                1 => (BarKind::Memory32, bits.min(31), 32),
                2 if index < 5 => (BarKind::Memory64, bits, 63),
                3 => (BarKind::Io, bits.min(8), 16),
                _ => {
                    index += 1;
                    continue;
                }
            };
            if index > 5 {
                break;
            }
            let size = 1u64 << bits;
            let base = address & ((1 << top) - 1) & !(size - 1);
            let prefetchable = prefetchable && kind != BarKind::Io;
            bars[index] = Some(Bar { index: index as u8, kind, prefetchable, base, size });
            index += if kind == BarKind::Memory64 { 2 } else { 1 };
        }
        bars
    })
}
