//! The serial line of a 16550 (National Semiconductor PC16550D, "Line Control Register",
//! "Line Status Register", "FIFO Control Register", "Programmable Baud Generator"), wherever its registers are.
//!
//! Its two halves share no register that either writes: [`Line`] sends, [`Keys`] receives, each for whoever holds it.

use uart_16550::spec::FIFO_SIZE;
use uart_16550::spec::registers::{FCR, FifoTriggerLevel, IER, ISR, LCR, LSR, MCR, offsets};

use crate::uart::{DIVISOR_LATCH, INTERRUPT_ENABLE, LINE_CONTROL, MODEM_CONTROL, Registers};

/// Receiver and Transmitter; with the divisor latch shown, the divisor's low byte.
const DATA: u16 = offsets::DATA as u16;
const FIFO_CONTROL: u16 = offsets::FCR as u16;
const INTERRUPT_STATUS: u16 = offsets::ISR as u16;
const LINE_STATUS: u16 = offsets::LSR as u16;

/// 8 data bits, no parity, 1 stop bit.
const EIGHT_NONE_ONE: u8 = LCR::WORD_LENGTH0.union(LCR::WORD_LENGTH1).bits();
/// A byte has come.
const DATA_READY: u8 = LSR::DATA_READY.bits();
/// A byte can be given; with FIFOs, as many as one holds.
const HOLDING_EMPTY: u8 = LSR::THR_EMPTY.bits();
/// Nothing is left to send.
const TRANSMITTER_EMPTY: u8 = LSR::TRANSMITTER_EMPTY.bits();
/// A PC lets the interrupt out by OUT2.
const READY: u8 = MCR::DTR.union(MCR::RTS).union(MCR::OUT_2_INT_ENABLE).bits();
/// Both FIFOs on and empty. An interrupt for eight bytes, or for fewer that no other follows for four characters' time
/// ("FIFO Interrupt Mode Operation"): frames of a debugger would cost an exit for each byte, and where the UART is an
/// emulator's, which gives no more bytes than call, a turn of its host. The other eight are time to come.
const EMPTY_FIFOS: u8 = FCR::FIFO_ENABLE
    .union(FCR::RX_FIFO_RESET)
    .union(FCR::TX_FIFO_RESET)
    .set_fifo_trigger_level(FifoTriggerLevel::Eight)
    .bits();
/// What makes 115,200 baud of a PC's clock.
const FASTEST: u16 = 1;

/// The most that the line takes at once.
pub const PIECE: usize = FIFO_SIZE;

/// A UART that accepts nothing for this many polls has stalled: nobody waits for it until it is seen to accept again,
/// so that a machine without a serial line still boots.
const MAX_POLLS: u32 = 1_000_000;

/// The sending half of a line in use.
#[derive(Debug)]
pub struct Line<R> {
    registers: R,
    /// Bytes that its FIFO holds.
    fifo: usize,
    /// Bytes that it takes for sure.
    room: usize,
    stalled: bool,
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
        // A 16450 has no FIFO, and a 16550 one that does not work ("Interrupt Identification Register").
        let has_fifo = ISR::from_bits_retain(registers.read(INTERRUPT_STATUS)).fifo_enabled();
        Self { registers, fifo: if has_fifo { FIFO_SIZE } else { 1 }, room: 0, stalled: false }
    }

    /// How many bytes it takes at once now, without waiting: at most [`PIECE`].
    pub fn room(&mut self) -> usize {
        if self.room == 0 && self.registers.read(LINE_STATUS) & HOLDING_EMPTY != 0 {
            (self.room, self.stalled) = (self.fifo, false);
        }
        self.room
    }

    /// The same, but waits until it takes some; 0: it has stalled, which is waited for once.
    pub fn wait_for_room(&mut self) -> usize {
        let polls = if self.stalled { 1 } else { MAX_POLLS };
        for _ in 0..polls {
            let room = self.room();
            if room > 0 {
                return room;
            }
            core::hint::spin_loop();
        }
        self.stalled = true;
        0
    }

    /// Sends these bytes, for which there is room.
    pub fn send(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.registers.write(DATA, *byte);
            self.room = self.room.saturating_sub(1);
        }
    }

    /// Waits until the last byte has left the UART.
    pub fn drain(&mut self) {
        let polls = if self.stalled { 1 } else { MAX_POLLS };
        for _ in 0..polls {
            if self.registers.read(LINE_STATUS) & TRANSMITTER_EMPTY != 0 {
                return;
            }
            core::hint::spin_loop();
        }
    }
}

/// The receiving half.
#[derive(Debug)]
pub struct Keys<R>(R);

impl<R: Registers> Keys<R> {
    /// Of a UART that [`Line::new`] has made ready.
    pub const fn new(registers: R) -> Self {
        Self(registers)
    }

    /// Raises the UART's line when a byte arrives.
    pub fn interrupt_on_receive(&mut self) {
        self.0.write(INTERRUPT_ENABLE, IER::DATA_READY.bits());
    }

    /// A byte that has arrived. A UART that has gone reads as ones and sends nothing.
    pub fn receive(&mut self) -> Option<u8> {
        let status = self.0.read(LINE_STATUS);
        (status & DATA_READY != 0 && status != u8::MAX).then(|| self.0.read(DATA))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A UART, and what it was told. What it was given takes `slow` readings of its status to leave.
    #[derive(Default)]
    struct Fake {
        divisor: u16,
        fifo_control: u8,
        has_fifo: bool,
        /// Bytes given since it was seen empty, and the most of them.
        given: usize,
        most: usize,
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
                    self.given = if self.left == 0 { 0 } else { self.given };
                    empty | u8::from(!self.came.is_empty())
                }
                INTERRUPT_STATUS if self.has_fifo => 0xc1,
                INTERRUPT_STATUS => 0x01,
                _ => self.registers[usize::from(offset)],
            }
        }

        fn write(&mut self, offset: u16, value: u8) {
            let latch = self.registers[3] & DIVISOR_LATCH != 0;
            match offset {
                0 if latch => self.divisor = self.divisor & 0xff00 | u16::from(value),
                1 if latch => self.divisor = self.divisor & 0xff | u16::from(value) << 8,
                FIFO_CONTROL => self.fifo_control = value,
                0 => {
                    self.sent.push(value);
                    self.left = self.slow;
                    self.given += 1;
                    self.most = self.most.max(self.given);
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
            assert_eq!(uart.fifo_control, 0x87, "FIFOs on and empty, a call for eight bytes");
            assert!(uart.sent.is_empty());
        }
    }

    /// Sends all of it, in pieces that there is room for; how many bytes went out.
    fn send(line: &mut Line<impl Registers>, mut bytes: &[u8]) -> usize {
        let all = bytes.len();
        while !bytes.is_empty() {
            let room = line.wait_for_room().min(bytes.len());
            if room == 0 {
                break;
            }
            let (piece, rest) = bytes.split_at(room);
            line.send(piece);
            bytes = rest;
        }
        all - bytes.len()
    }

    #[test]
    fn a_fifo_is_filled_when_it_is_empty_and_never_beyond() {
        for (has_fifo, most) in [(true, PIECE), (false, 1)] {
            let mut uart = Fake { slow: 100, has_fifo, ..Fake::default() };
            let mut line = Line::new(&mut uart, None);
            let text = [b'x'; 2 * PIECE + 5];
            assert_eq!(send(&mut line, &text), text.len());
            line.drain();
            assert_eq!((uart.sent.len(), uart.most, uart.left), (text.len(), most, 0));
        }
    }

    #[test]
    fn a_uart_that_stalls_is_waited_for_once_and_goes_on_when_it_can() {
        let mut uart = Fake { slow: u32::MAX, ..Fake::default() };
        let mut line = Line::new(&mut uart, None);
        assert_eq!(send(&mut line, b"hello"), 1);
        assert_eq!(line.registers.polls, MAX_POLLS + 1);
        assert_eq!(send(&mut line, b"ello"), 0);
        line.drain();
        assert_eq!(line.registers.polls, MAX_POLLS + 3, "one look each");
        (line.registers.slow, line.registers.left) = (100, 0);
        assert_eq!(send(&mut line, b"ello"), 4);
        assert_eq!(uart.sent, b"hello");
    }

    #[test]
    fn bytes_that_come_are_taken_in_order_and_call_only_when_asked_to() {
        let mut uart = Fake { came: b"ab".to_vec(), ..Fake::default() };
        let _ = Line::new(&mut uart, None);
        let mut line = Keys::new(&mut uart);
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
        assert_eq!(Keys::new(Ones).receive(), None);
    }
}
