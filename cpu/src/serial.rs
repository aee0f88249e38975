//! The UART of the console: driven where `mux::uart` found one.

use core::fmt;

use arch::Width;
use uart_16550::backend::PioBackend;
use uart_16550::{BaudRate, Config, Uart16550};

use crate::instructions::{port_read, port_write};

/// A UART that accepts nothing for this many polls is not there: the byte is dropped, so that a
/// machine without a serial line still boots.
const MOST_POLLS: u32 = 1_000_000;

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
    const PATTERN: u32 = 0xa5;
    // Line Control comes first: its highest bit shows other registers at the first two ports.
    for (register, value) in
        [(LINE_CONTROL, 3), (INTERRUPT_ENABLE, 0), (MODEM_CONTROL, 0), (SCRATCH, PATTERN)]
    {
        // SAFETY: the caller vouches for the ports.
        unsafe { port_write(base + register, Width::Byte, value) };
    }
    // SAFETY: as above.
    unsafe { port_read(base + SCRATCH, Width::Byte) == PATTERN }
}

/// The serial line.
pub struct Serial {
    uart: Option<Uart16550<PioBackend>>,
}

impl Serial {
    /// No line: everything written is dropped.
    #[must_use]
    pub const fn absent() -> Self {
        Self { uart: None }
    }

    /// The UART whose first port is `base`, at 115,200 baud, 8N1, FIFOs on; absent where none answers.
    ///
    /// # Safety
    /// Ring 0, and nobody else drives what is at the eight ports from `base`.
    #[must_use]
    pub unsafe fn at(base: u16) -> Self {
        // SAFETY: the caller vouches for the ports.
        let Ok(mut uart) = (unsafe { Uart16550::new_port(base) }) else { return Self::absent() };
        let config = Config { baud_rate: BaudRate::Baud115200, ..Config::DEFAULT };
        Self { uart: uart.init(config).is_ok().then_some(uart) }
    }

    /// Sends one byte.
    pub fn send(&mut self, byte: u8) {
        let Some(uart) = &mut self.uart else { return };
        for _ in 0..MOST_POLLS {
            if uart.try_send_byte(byte).is_ok() {
                return;
            }
            core::hint::spin_loop();
        }
        self.uart = None;
    }

    /// Raises the UART's line when a byte arrives (a PC gates it with OUT2).
    pub fn interrupt_on_receive(&mut self) {
        if let Some(uart) = &mut self.uart {
            uart.enable_interrupts(uart_16550::spec::registers::IER::DATA_READY);
        }
    }

    /// A byte that has arrived.
    pub fn receive(&mut self) -> Option<u8> {
        self.uart.as_mut()?.try_receive_byte().ok()
    }

    /// Waits until the last byte has left the UART.
    pub fn drain(&mut self) {
        let Some(uart) = &mut self.uart else { return };
        for _ in 0..MOST_POLLS {
            if uart.lsr().contains(uart_16550::spec::registers::LSR::TRANSMITTER_EMPTY) {
                return;
            }
            core::hint::spin_loop();
        }
    }
}

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                self.send(b'\r');
            }
            self.send(byte);
        }
        Ok(())
    }
}
