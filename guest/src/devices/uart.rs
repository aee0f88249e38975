//! The virtual 16550A: the guest's console at COM1 (0x3F8, IRQ 4).
//!
//! The transmitter is never busy: a written byte is gone at once and "transmitter empty" is raised
//! again. Invariant: [`Uart::interrupt`] is the level of the line, a function of the registers; the
//! caller turns its rising edges into interrupts.
//! Register names are those of the National Semiconductor PC16550D data sheet.

use arch::msr::PortRange;

/// COM1.
pub const PORTS: PortRange = PortRange { first: 0x3f8, last: 0x3ff };
/// The global system interrupt of COM1's line.
pub const GSI: u32 = 4;

const FIFO_SIZE: usize = 16;

const IER_RECEIVE: u8 = 1 << 0;
const IER_TRANSMIT: u8 = 1 << 1;
const IER_LINE_STATUS: u8 = 1 << 2;
const IER_MASK: u8 = 0x0f;

const IIR_NONE: u8 = 0x01;
const IIR_TRANSMIT: u8 = 0x02;
const IIR_RECEIVE: u8 = 0x04;
const IIR_LINE_STATUS: u8 = 0x06;
const IIR_TIMEOUT: u8 = 0x0c;
const IIR_FIFO_ENABLED: u8 = 0xc0;

const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RECEIVER: u8 = 1 << 1;

const LCR_DIVISOR_LATCH: u8 = 1 << 7;

const MCR_OUT2: u8 = 1 << 3;
const MCR_LOOP: u8 = 1 << 4;
const MCR_MASK: u8 = 0x1f;

const LSR_DATA_READY: u8 = 1 << 0;
const LSR_OVERRUN: u8 = 1 << 1;
const LSR_TRANSMITTER_EMPTY: u8 = 0x60;

/// Carrier, data set ready and clear to send.
const MSR_CONNECTED: u8 = 0xb0;

/// The receiver's bytes in order of arrival, without a heap: devices work while guests run.
#[derive(Clone, Debug, Default)]
struct Fifo {
    bytes: [u8; FIFO_SIZE],
    count: usize,
}

impl Fifo {
    fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.count) {
            *place = byte;
            self.count += 1;
        }
    }

    fn pop(&mut self) -> Option<u8> {
        self.count = self.count.checked_sub(1)?;
        let [first, ..] = self.bytes;
        self.bytes.rotate_left(1);
        Some(first)
    }
}

/// The registers.
#[derive(Clone, Debug, Default)]
pub struct Uart {
    received: Fifo,
    overrun: bool,
    transmitted: bool,
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    scr: u8,
    divisor: [u8; 2],
}

impl Uart {
    /// Reads the register at `offset` (0 to 7).
    pub fn read(&mut self, offset: u16) -> u8 {
        match offset {
            0 | 1 if self.divisor_latch() => self.divisor[usize::from(offset == 1)],
            0 => self.received.pop().unwrap_or(0),
            1 => self.ier,
            2 => self.identify(),
            3 => self.lcr,
            4 => self.mcr,
            5 => self.line_status(),
            6 => self.modem_status(),
            _ => self.scr,
        }
    }

    /// Writes the register at `offset` (0 to 7); the answer is a byte put on the line.
    pub fn write(&mut self, offset: u16, value: u8) -> Option<u8> {
        match offset {
            0 | 1 if self.divisor_latch() => self.divisor[usize::from(offset == 1)] = value,
            0 => return self.transmit(value),
            1 => self.enable_interrupts(value & IER_MASK),
            2 => self.control_fifo(value),
            3 => self.lcr = value,
            4 => self.mcr = value & MCR_MASK,
            7 => self.scr = value,
            _ => {}
        }
        None
    }

    /// A byte arrives on the line. It is lost where the receiver is full.
    pub fn receive(&mut self, byte: u8) {
        if self.mcr & MCR_LOOP == 0 {
            self.accept(byte);
        }
    }

    /// Whether the receiver takes another byte without losing one.
    #[must_use]
    pub fn can_receive(&self) -> bool {
        self.received.count < self.receiver_size()
    }

    /// Level of the interrupt line; a PC gates it with OUT2.
    #[must_use]
    pub fn interrupt(&self) -> bool {
        self.pending() != IIR_NONE && self.mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2
    }

    fn divisor_latch(&self) -> bool {
        self.lcr & LCR_DIVISOR_LATCH != 0
    }

    fn receiver_size(&self) -> usize {
        if self.fcr & FCR_ENABLE != 0 { FIFO_SIZE } else { 1 }
    }

    fn accept(&mut self, byte: u8) {
        if self.can_receive() {
            self.received.push(byte);
        } else {
            self.overrun = true;
        }
    }

    fn transmit(&mut self, byte: u8) -> Option<u8> {
        self.transmitted = true;
        if self.mcr & MCR_LOOP != 0 {
            self.accept(byte);
            return None;
        }
        Some(byte)
    }

    /// Switching the transmit interrupt on while the transmitter is empty raises it: drivers start
    /// sending that way, and Linux takes a chip that does not do so for broken.
    fn enable_interrupts(&mut self, ier: u8) {
        if ier & !self.ier & IER_TRANSMIT != 0 {
            self.transmitted = true;
        }
        self.ier = ier;
    }

    fn control_fifo(&mut self, value: u8) {
        if (value ^ self.fcr) & FCR_ENABLE != 0 || value & FCR_CLEAR_RECEIVER != 0 {
            self.received.count = 0;
        }
        // The trigger level (bits 7:6) and the enable bit stay.
        self.fcr = if value & FCR_ENABLE != 0 { value & 0xc1 } else { 0 };
    }

    /// The interrupt of highest priority in the low nibble of IIR.
    fn pending(&self) -> u8 {
        let trigger = match self.fcr >> 6 {
            0 => 1,
            1 => 4,
            2 => 8,
            _ => 14,
        };
        if self.ier & IER_LINE_STATUS != 0 && self.overrun {
            IIR_LINE_STATUS
        } else if self.ier & IER_RECEIVE != 0 && self.received.count > 0 {
            // Fewer than the trigger level wait for four character times on the real chip; here
            // that time is always over.
            if self.received.count >= trigger { IIR_RECEIVE } else { IIR_TIMEOUT }
        } else if self.ier & IER_TRANSMIT != 0 && self.transmitted {
            IIR_TRANSMIT
        } else {
            IIR_NONE
        }
    }

    /// IIR. Reading it acknowledges the transmit interrupt, if that is the one it shows.
    fn identify(&mut self) -> u8 {
        let pending = self.pending();
        if pending == IIR_TRANSMIT {
            self.transmitted = false;
        }
        pending | if self.fcr & FCR_ENABLE != 0 { IIR_FIFO_ENABLED } else { 0 }
    }

    fn line_status(&mut self) -> u8 {
        let ready = if self.received.count == 0 { 0 } else { LSR_DATA_READY };
        let overrun = if self.overrun { LSR_OVERRUN } else { 0 };
        self.overrun = false;
        LSR_TRANSMITTER_EMPTY | ready | overrun
    }

    /// In loopback the modem outputs come back as inputs: DTR as DSR, RTS as CTS, OUT1 as RI, OUT2
    /// as DCD.
    fn modem_status(&self) -> u8 {
        if self.mcr & MCR_LOOP == 0 {
            return MSR_CONNECTED;
        }
        let bit = |from: u8, to: u8| (self.mcr >> from & 1) << to;
        bit(0, 5) | bit(1, 4) | bit(2, 6) | bit(3, 7)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with_interrupts(ier: u8) -> Uart {
        let mut uart = Uart::default();
        uart.write(2, 0x01);
        uart.write(4, MCR_OUT2);
        uart.write(1, ier);
        uart
    }

    #[test]
    fn a_written_byte_is_transmitted_and_raises_the_line_until_iir_is_read() {
        let mut uart = with_interrupts(IER_TRANSMIT);
        assert!(uart.interrupt(), "switching the interrupt on with an empty transmitter raises it");
        assert_eq!(uart.read(2), 0xc2);
        assert!(!uart.interrupt());
        assert_eq!(uart.write(0, b'x'), Some(b'x'));
        assert!(uart.interrupt());
        assert_eq!(uart.read(2) & 0x0f, IIR_TRANSMIT);
        assert_eq!(uart.read(2) & 0x0f, IIR_NONE);
        uart.write(1, 0);
        uart.write(1, IER_TRANSMIT);
        assert!(uart.interrupt(), "Linux's test for chips that do not raise it again");
    }

    #[test]
    fn received_bytes_come_out_in_order_and_hold_the_line() {
        let mut uart = with_interrupts(IER_RECEIVE);
        uart.receive(b'a');
        uart.receive(b'b');
        assert!(uart.interrupt());
        assert_eq!(uart.read(5), 0x61);
        assert_eq!((uart.read(0), uart.read(0)), (b'a', b'b'));
        assert!(!uart.interrupt());
        assert_eq!(uart.read(5), 0x60);
    }

    #[test]
    fn out2_gates_the_line() {
        let mut uart = with_interrupts(IER_RECEIVE);
        uart.receive(1);
        uart.write(4, 0);
        assert!(!uart.interrupt());
    }

    #[test]
    fn linux_finds_a_16550a() {
        let mut uart = Uart::default();
        uart.write(1, 0);
        assert_eq!(uart.read(1) & 0x0f, 0);
        uart.write(1, 0x0f);
        assert_eq!(uart.read(1) & 0x0f, 0x0f);
        uart.write(1, 0);
        uart.write(4, 0x10 | 0x0a);
        assert_eq!(uart.read(6) & 0xf0, 0x90, "loopback returns RTS and OUT2");
        uart.write(4, 0);
        uart.write(2, 0x01);
        assert_eq!(uart.read(2) >> 6, 3, "both FIFO bits: not a 16450, not a 16550");
        uart.write(3, 0x80);
        assert_ne!(uart.read(2), 0, "not a 16650: there is no EFR");
        uart.write(3, 0);
        uart.write(2, 0x21);
        assert_eq!(uart.read(2) >> 5 & 1, 0, "not a 16750: no 64-byte FIFO");
        uart.write(1, 0x40);
        assert_eq!(uart.read(1), 0, "not an XScale: no unit enable");
    }

    #[test]
    fn the_divisor_latch_hides_data_and_ier() {
        let mut uart = Uart::default();
        uart.write(3, 0x80);
        assert_eq!(uart.write(0, 12), None);
        uart.write(1, 3);
        assert_eq!((uart.read(0), uart.read(1)), (12, 3));
        uart.write(3, 3);
        assert_eq!(uart.read(1), 0);
    }

    #[test]
    fn loopback_keeps_bytes_off_the_line() {
        let mut uart = Uart::default();
        uart.write(4, MCR_LOOP);
        uart.receive(b'q');
        assert_eq!(uart.write(0, b'z'), None);
        assert_eq!(uart.read(0), b'z');
    }

    #[test]
    fn an_overrun_is_reported_once() {
        let mut uart = with_interrupts(IER_LINE_STATUS);
        (0..17).for_each(|byte| uart.receive(byte));
        assert!(!uart.can_receive());
        assert_eq!(uart.read(2) & 0x0f, IIR_LINE_STATUS);
        assert_eq!((uart.read(5), uart.read(5)), (0x63, 0x61));
    }

    proptest! {
        #[test]
        fn the_line_is_high_exactly_when_iir_names_a_cause_and_out2_is_set(
            accesses in proptest::collection::vec((0u16..8, any::<Option<u8>>(), any::<bool>()), 0..64)
        ) {
            let mut uart = Uart::default();
            for (offset, value, arrives) in accesses {
                if arrives {
                    uart.receive(7);
                }
                match value {
                    Some(value) => { uart.write(offset, value); }
                    None => { uart.read(offset); }
                }
                let gate = uart.read(4) & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2;
                let line = uart.interrupt();
                prop_assert_eq!(line, gate && uart.read(2) & 1 == 0);
                prop_assert!(uart.received.count <= FIFO_SIZE);
            }
        }
    }
}
