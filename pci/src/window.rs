//! The addresses that a bridge sends to the buses behind it (PCI-to-PCI Bridge Architecture
//! Specification, "Address Decoding").

use core::ops::RangeInclusive;

use arch::Width;
use arch::machine::ConfigSpace;

use crate::header::Function;

const IO: u16 = 0x1c;
const MEMORY: u16 = 0x20;
const PREFETCHABLE: u16 = 0x24;
const PREFETCHABLE_UPPER: [u16; 2] = [0x28, 0x2c];
const IO_UPPER: u16 = 0x30;

/// The windows of one bridge; one that is closed is empty.
#[derive(Clone, Debug)]
pub(crate) struct Windows {
    /// It sends on what nobody else takes (subtractive decoding).
    takes_the_rest: bool,
    io: RangeInclusive<u64>,
    memory: RangeInclusive<u64>,
    prefetchable: RangeInclusive<u64>,
}

impl Windows {
    pub(crate) fn read(space: &impl ConfigSpace, bridge: &Function) -> Self {
        const SUBTRACTIVE: u32 = 0x06_0401;
        /// The window's addresses are wider than its register.
        const WIDE: u64 = 1;
        let read = |offset| u64::from(space.read(bridge.bdf, offset, Width::Dword));
        // Base and limit are the halves of the dword; 4 KiB and 1 MiB are what their lowest bits count.
        let (io, io_upper) = (read(IO), read(IO_UPPER));
        let wide = |low: u64| if low & 0xf == WIDE { u64::MAX } else { 0 };
        let io_base = (io & 0xf0) << 8 | (io_upper & 0xffff) << 16 & wide(io);
        let io_limit = (io >> 8 & 0xf0) << 8 | 0xfff | (io_upper >> 16) << 16 & wide(io >> 8);
        let memory = read(MEMORY);
        let window = |low: u64| (low & 0xfff0) << 16..=(low >> 16 & 0xfff0) << 16 | 0xf_ffff;
        let prefetchable = read(PREFETCHABLE);
        let [upper_base, upper_limit] =
            PREFETCHABLE_UPPER.map(|offset| read(offset) << 32 & wide(prefetchable));
        let low = window(prefetchable);
        Self {
            takes_the_rest: bridge.class == SUBTRACTIVE,
            io: io_base..=io_limit,
            memory: window(memory),
            prefetchable: upper_base | *low.start()..=upper_limit | *low.end(),
        }
    }

    /// Whether all addresses from `first` to `last` go to the bus behind the bridge.
    pub(crate) fn contain(&self, memory: bool, first: u64, last: u64) -> bool {
        let in_one = |windows: &[&RangeInclusive<u64>]| {
            windows.iter().any(|window| window.contains(&first) && window.contains(&last))
        };
        self.takes_the_rest
            || if memory {
                in_one(&[&self.memory, &self.prefetchable])
            } else {
                in_one(&[&self.io])
            }
    }
}
