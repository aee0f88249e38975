//! The serial line of a 16550 (National Semiconductor PC16550D, "Line Control Register",
//! "Line Status Register", "FIFO Control Register", "Programmable Baud Generator"), wherever its registers are.

use uart_16550::spec::registers::{FCR, IER, LCR, LSR, MCR, offsets};

use crate::uart::{DIVISOR_LATCH, INTERRUPT_ENABLE, LINE_CONTROL, MODEM_CONTROL, Registers};

/// Receiver and Transmitter; with the divisor latch shown, the divisor's low byte.
const DATA: u16 = offsets::DATA as u16;
const FIFO_CONTROL: u16 = offsets::FCR as u16;
const LINE_STATUS: u16 = offsets::LSR as u16;

/// 8 data bits, no parity, 1 stop bit.
const EIGHT_NONE_ONE: u8 = LCR::WORD_LENGTH0.union(LCR::WORD_LENGTH1).bits();
/// A byte has come.
const DATA_READY: u8 = LSR::DATA_READY.bits();
/// A byte can be given.
const HOLDING_EMPTY: u8 = LSR::THR_EMPTY.bits();
/// Nothing is left to send.
const TRANSMITTER_EMPTY: u8 = LSR::TRANSMITTER_EMPTY.bits();
/// A PC lets the interrupt out by OUT2.
const READY: u8 = MCR::DTR.union(MCR::RTS).union(MCR::OUT_2_INT_ENABLE).bits();
/// Both FIFOs on and empty; an interrupt for each byte.
const EMPTY_FIFOS: u8 = FCR::FIFO_ENABLE.union(FCR::RX_FIFO_RESET).union(FCR::TX_FIFO_RESET).bits();
/// What makes 115,200 baud of a PC's clock.
const FASTEST: u16 = 1;

/// A UART that accepts nothing for this many polls is not there: the byte is dropped, so that a
/// machine without a serial line still boots.
const MAX_POLLS: u32 = 1_000_000;

/// A line in use.
#[derive(Debug)]
pub struct Line<R> {
    registers: R,
    silent: bool,
}

impl<R: Registers> Line<R> {
    /// Makes the UART ready: 8 bits, no parity, FIFOs on, no interrupts. `divisor` sets the rate; without
    /// one it stays as it is, unless it is none.
    pub fn new(mut registers: R, divisor: Option<u16>) -> Self {
        registers.write(INTERRUPT_ENABLE, 0);
        registers.write(LINE_CONTROL, DIVISOR_LATCH | EIGHT_NONE_ONE);
        let found = u16::from_le_bytes([registers.read(DATA), registers.read(INTERRUPT_ENABLE)]);
        if divisor.is_some() || found == 0 {
            let [low, high] = divisor.unwrap_or(FASTEST).to_le_bytes();
            registers.write(DATA, low);
            registers.write(INTERRUPT_ENABLE, high);
        }
        registers.write(LINE_CONTROL, EIGHT_NONE_ONE);
        registers.write(FIFO_CONTROL, EMPTY_FIFOS);
        registers.write(MODEM_CONTROL, READY);
        Self { registers, silent: false }
    }

    /// Sends one byte.
    pub fn send(&mut self, byte: u8) {
        if self.silent {
            return;
        }
        self.silent = !self.wait_for(HOLDING_EMPTY);
        if !self.silent {
            self.registers.write(DATA, byte);
        }
    }

    fn wait_for(&mut self, status: u8) -> bool {
        (0..MAX_POLLS).any(|_| {
            core::hint::spin_loop();
            self.registers.read(LINE_STATUS) & status != 0
        })
    }

    /// Raises the UART's line when a byte arrives.
    pub fn interrupt_on_receive(&mut self) {
        self.registers.write(INTERRUPT_ENABLE, IER::DATA_READY.bits());
    }

    /// A byte that has arrived. A UART that has gone reads as ones and sends nothing.
    pub fn receive(&mut self) -> Option<u8> {
        let status = self.registers.read(LINE_STATUS);
        (status & DATA_READY != 0 && status != u8::MAX).then(|| self.registers.read(DATA))
    }

    /// Waits until the last byte has left the UART.
    pub fn drain(&mut self) {
        if !self.silent {
            self.wait_for(TRANSMITTER_EMPTY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A UART, and what it was told. A byte takes `slow` readings of its status to leave.
    #[derive(Default)]
    struct Fake {
        divisor: u16,
        registers: [u8; 8],
        sent: Vec<u8>,
        came: Vec<u8>,
        slow: u32,
        left: u32,
        polls: u32,
    }

    impl Registers for &mut Fake {
        fn read(&mut self, offset: u16) -> u8 {
            let latch = self.registers[3] & DIVISOR_LATCH != 0;
            match offset {
                0 if latch => self.divisor as u8,
                1 if latch => (self.divisor >> 8) as u8,
                0 => self.came.remove(0),
                LINE_STATUS => {
                    self.polls += 1;
                    self.left = self.left.saturating_sub(1);
                    let empty = if self.left == 0 { HOLDING_EMPTY | TRANSMITTER_EMPTY } else { 0 };
                    empty | u8::from(!self.came.is_empty())
                }
                _ => self.registers[usize::from(offset)],
            }
        }

        fn write(&mut self, offset: u16, value: u8) {
            let latch = self.registers[3] & DIVISOR_LATCH != 0;
            match offset {
                0 if latch => self.divisor = self.divisor & 0xff00 | u16::from(value),
                1 if latch => self.divisor = self.divisor & 0xff | u16::from(value) << 8,
                0 => {
                    self.sent.push(value);
                    self.left = self.slow;
                }
                _ => self.registers[usize::from(offset)] = value,
            }
        }
    }

    #[test]
    fn a_rate_is_set_or_left_and_never_none() {
        for (firmwares, wanted, then) in
            [(12, Some(1), 1), (12, None, 12), (0, None, 1), (0x1234, Some(0x300), 0x300)]
        {
            let mut uart = Fake { divisor: firmwares, ..Fake::default() };
            let _ = Line::new(&mut uart, wanted);
            assert_eq!(uart.divisor, then, "{firmwares} {wanted:?}");
            assert_eq!((uart.registers[3], uart.registers[1]), (3, 0), "8N1, no interrupts");
            assert!(uart.sent.is_empty());
        }
    }

    #[test]
    fn bytes_wait_for_room_and_a_uart_that_takes_none_is_asked_once() {
        let mut uart = Fake { slow: 100, ..Fake::default() };
        let mut line = Line::new(&mut uart, None);
        b"hello".iter().for_each(|byte| line.send(*byte));
        line.drain();
        assert_eq!((uart.sent.as_slice(), uart.left), (b"hello".as_slice(), 0));
        let mut stuck = Fake { slow: u32::MAX, ..Fake::default() };
        let mut line = Line::new(&mut stuck, None);
        b"hello".iter().for_each(|byte| line.send(*byte));
        line.drain();
        assert_eq!((stuck.sent.as_slice(), stuck.polls), (b"h".as_slice(), MAX_POLLS + 1));
    }

    #[test]
    fn bytes_that_come_are_taken_in_order_and_call_only_when_asked_to() {
        let mut uart = Fake { came: b"ab".to_vec(), ..Fake::default() };
        let mut line = Line::new(&mut uart, None);
        assert_eq!(
            [line.receive(), line.receive(), line.receive()],
            [Some(b'a'), Some(b'b'), None]
        );
        line.interrupt_on_receive();
        assert_eq!((uart.registers[1], uart.registers[4]), (1, READY));
    }

    #[test]
    fn nothing_comes_from_where_nothing_is() {
        struct Ones;
        impl Registers for Ones {
            fn read(&mut self, _: u16) -> u8 {
                u8::MAX
            }
            fn write(&mut self, _: u16, _: u8) {}
        }
        assert_eq!(Line::new(Ones, None).receive(), None);
    }
}
