//! Detects a UART by its behaviour, because an address proves nothing.
//!
//! Pure: the ports are a trait's. An unused port reads as ones, or as the last value written to
//! the bus; a chip that is not a UART may also keep a byte in its last register. Only a UART in loopback shows
//! its outputs at its inputs.

use uart_16550::spec::registers::{LCR, MCR, offsets};

/// Where PCs have their first two UARTs, in the order in which they are tried.
pub const CANDIDATES: [u16; 2] = [0x3f8, 0x2f8];

/// The eight registers of a possible UART.
pub trait Registers {
    /// Reads the register at `offset`.
    fn read(&mut self, offset: u16) -> u8;
    /// Writes the register at `offset`.
    fn write(&mut self, offset: u16, value: u8);
}

pub(crate) const INTERRUPT_ENABLE: u16 = offsets::IER as u16;
pub(crate) const LINE_CONTROL: u16 = offsets::LCR as u16;
pub(crate) const MODEM_CONTROL: u16 = offsets::MCR as u16;
const MODEM_STATUS: u16 = offsets::MSR as u16;
const SCRATCH: u16 = offsets::SPR as u16;

/// Line Control: the divisor is shown at the first two registers.
pub(crate) const DIVISOR_LATCH: u8 = LCR::DLAB.bits();
const LOOPBACK: u8 = MCR::LOOP_BACK.bits();

/// Whether a 16550 answers (National Semiconductor PC16550D, "Scratchpad Register" and "Modem
/// Control Register"). Nothing is sent; interrupts and the modem's outputs are off afterwards.
pub fn answers(registers: &mut impl Registers) -> bool {
    // 8 bits; the highest bit would show other registers at the first two ports.
    registers.write(LINE_CONTROL, 3);
    registers.write(INTERRUPT_ENABLE, 0);
    let keeps = [0x5a, 0xa5].into_iter().all(|pattern| {
        registers.write(SCRATCH, pattern);
        registers.read(SCRATCH) == pattern
    });
    if !keeps || registers.read(INTERRUPT_ENABLE) & 0xf0 != 0 {
        return false;
    }
    // DTR, RTS, OUT1 and OUT2 appear as DSR, CTS, RI and DCD: bits 5, 4, 6 and 7.
    let loops = [(0b1010, 0b1001), (0b0101, 0b0110)].into_iter().all(|(outputs, inputs)| {
        registers.write(MODEM_CONTROL, LOOPBACK | outputs);
        registers.read(MODEM_STATUS) >> 4 == inputs
    });
    registers.write(MODEM_CONTROL, 0);
    loops
}

/// The first port of the first of [`CANDIDATES`] that answers.
pub fn find(mut answers: impl FnMut(u16) -> bool) -> Option<u16> {
    CANDIDATES.into_iter().find(|base| answers(*base))
}

/// The ISA interrupt of the UART at `base`, where a PC has a fixed one.
#[must_use]
pub const fn line(base: u16) -> Option<u8> {
    match base {
        0x3f8 | 0x3e8 => Some(4),
        0x2f8 | 0x2e8 => Some(3),
        _ => None,
    }
}

/// The name of the UART at `base`, if it has one.
#[must_use]
pub const fn name(base: u16) -> &'static str {
    match base {
        0x3f8 => "COM1",
        0x2f8 => "COM2",
        0x3e8 => "COM3",
        0x2e8 => "COM4",
        _ => "the UART",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The device at the ports.
    #[derive(Clone, Copy, PartialEq)]
    enum Chip {
        /// Reads as this byte.
        Nothing(u8),
        /// Reads return the last written byte.
        Echo,
        /// Eight bytes of memory.
        Memory,
        Uart,
    }

    struct Ports {
        chip: Chip,
        kept: [u8; 8],
        last: u8,
        sent: usize,
    }

    impl Ports {
        fn with(chip: Chip) -> Self {
            Self { chip, kept: [0; 8], last: 0, sent: 0 }
        }
    }

    impl Registers for Ports {
        fn read(&mut self, offset: u16) -> u8 {
            let kept = self.kept[usize::from(offset)];
            match self.chip {
                Chip::Nothing(byte) => byte,
                Chip::Echo => self.last,
                Chip::Uart if offset == MODEM_STATUS && self.kept[4] & LOOPBACK != 0 => {
                    let control = self.kept[4];
                    let moved = [(0, 5), (1, 4), (2, 6), (3, 7)];
                    moved.iter().fold(0, |status, (from, to)| status | (control >> from & 1) << to)
                }
                Chip::Memory | Chip::Uart => kept,
            }
        }

        fn write(&mut self, offset: u16, value: u8) {
            self.last = value;
            self.sent += usize::from(offset == 0);
            self.kept[usize::from(offset)] = value;
        }
    }

    #[test]
    fn only_a_uart_is_taken_for_one() {
        for byte in 0..=u8::MAX {
            assert!(!answers(&mut Ports::with(Chip::Nothing(byte))), "{byte:#x}");
        }
        assert!(!answers(&mut Ports::with(Chip::Echo)));
        assert!(!answers(&mut Ports::with(Chip::Memory)));
        let mut uart = Ports::with(Chip::Uart);
        assert!(answers(&mut uart));
        assert_eq!((uart.kept[4], uart.sent), (0, 0), "out of loopback, and nothing was sent");
    }

    #[test]
    fn a_uart_whose_divisor_firmware_left_open_is_found() {
        let mut uart = Ports::with(Chip::Uart);
        uart.kept[3] = 0x80;
        assert!(answers(&mut uart));
        assert_eq!(uart.kept[3], 3);
    }

    #[test]
    fn a_port_where_nothing_answers_is_passed_over() {
        let found = |there: &'static [u16]| find(|base| there.contains(&base));
        assert_eq!(found(&[0x3f8, 0x2f8]), Some(0x3f8));
        assert_eq!(found(&[0x2f8, 0x3e8]), Some(0x2f8));
        assert_eq!(found(&[0x3e8]), None);
    }
}
