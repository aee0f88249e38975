//! The registers of UARTs, at ports and in memory.

use arch::uart::{UartBase, UartPlace};
use arch::{Hpa, Width};

use crate::instructions::{port_read, port_write};
use crate::physical::{mmio_read, mmio_write};

/// Reads the register at `offset` (0 to 7) of the UART at `place`.
///
/// # Safety
/// Ring 0; the place's eight registers are a UART's or nobody's, nobody else drives them, and what is in
/// memory is mapped uncached.
#[must_use]
pub unsafe fn read(place: UartPlace, offset: u16) -> u8 {
    let value = match place.base {
        // SAFETY: the caller vouches for the ports.
        UartBase::Port(first) => unsafe { port_read(first.wrapping_add(offset), Width::Byte) },
        // SAFETY: the caller vouches for the memory.
        UartBase::Memory(start) => unsafe {
            mmio_read(at(place, start, offset), place.width) as u32
        },
    };
    value as u8
}

/// Writes the register at `offset`.
///
/// # Safety
/// As for [`read`].
pub unsafe fn write(place: UartPlace, offset: u16, value: u8) {
    match place.base {
        // SAFETY: the caller vouches for the ports.
        UartBase::Port(first) => unsafe {
            port_write(first.wrapping_add(offset), Width::Byte, value.into());
        },
        // SAFETY: the caller vouches for the memory.
        UartBase::Memory(start) => unsafe {
            mmio_write(at(place, start, offset), place.width, value.into());
        },
    }
}

const fn at(place: UartPlace, start: Hpa, offset: u16) -> Hpa {
    start.wrapping_add(place.stride as u64 * offset as u64)
}

/// Makes the UART whose first port is `base` raise no interrupt; `false` where none is.
///
/// # Safety
/// Ring 0, and nobody else drives what is at the eight ports from `base`.
#[must_use]
pub unsafe fn quiet(base: u16) -> bool {
    const INTERRUPT_ENABLE: u16 = 1;
    const LINE_CONTROL: u16 = 3;
    const MODEM_CONTROL: u16 = 4;
    const SCRATCH: u16 = 7;
    const PATTERN: u8 = 0xa5;
    let place = UartPlace::port(base);
    // Line Control comes first: its highest bit shows other registers at the first two ports.
    for (register, value) in
        [(LINE_CONTROL, 3), (INTERRUPT_ENABLE, 0), (MODEM_CONTROL, 0), (SCRATCH, PATTERN)]
    {
        // SAFETY: the caller vouches for the ports.
        unsafe { write(place, register, value) };
    }
    // SAFETY: as above.
    unsafe { read(place, SCRATCH) == PATTERN }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Registers in memory, 4 bytes apart, as bytes and as dwords: a fake of a card that has its UART there.
    #[test]
    fn registers_in_memory_are_reached_with_their_stride_and_width() {
        for width in [Width::Byte, Width::Word, Width::Dword] {
            let mut memory = [0_u32; 8];
            let start = Hpa::new(memory.as_mut_ptr() as u64);
            let place = UartPlace { base: UartBase::Memory(start), stride: 4, width };
            for offset in 0..8 {
                // SAFETY: the registers are the array's.
                unsafe { write(place, offset, 0xa0 | offset as u8) };
            }
            let seen: Vec<u8> = (0..8)
                // SAFETY: as above.
                .map(|offset| unsafe { read(place, offset) })
                .collect();
            assert_eq!(seen, [0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7], "{width:?}");
            assert_eq!(memory[7], 0xa7);
        }
    }
}
