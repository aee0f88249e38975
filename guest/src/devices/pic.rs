//! The two 8259A interrupt controllers of a PC, the second at input 2 of the first.
//!
//! A guest that has a driver for its local APIC only probes for them, by reading the mask back. For one that has
//! none they deliver the PIT's ticks and the console's interrupts (`exits/legacy.rs`).
//! (Intel 8259A data sheet, "Programming the 8259A", "Cascade Mode".)

mod chip;

use arch::Vector;
use arch::msr::PortRange;

use chip::Chip;

/// First controller, second controller, and their edge/level registers.
pub const PORTS: [PortRange; 3] = [
    PortRange { first: 0x20, last: 0x21 },
    PortRange { first: 0xa0, last: 0xa1 },
    PortRange { first: 0x4d0, last: 0x4d1 },
];

/// Whether this is one of [`PORTS`]: asked at each access of any port.
#[must_use]
pub(crate) const fn is_port(port: u16) -> bool {
    matches!(port & !1, 0x20 | 0xa0 | 0x4d0)
}

/// The input of the first that the second is at.
const CASCADE: u8 = 2;

/// Both controllers.
#[derive(Clone, Debug)]
pub struct Pics {
    first: Chip,
    second: Chip,
}

impl Default for Pics {
    /// As firmware that uses none of them leaves them.
    fn default() -> Self {
        Self { first: Chip::masked(), second: Chip::masked() }
    }
}

impl Pics {
    /// Reads one of [`PORTS`].
    pub fn read(&mut self, port: u16) -> u8 {
        let value = match port {
            0x20 | 0x21 => self.first.read(port & 1 != 0),
            0xa0 | 0xa1 => self.second.read(port & 1 != 0),
            0x4d0 => self.first.level,
            0x4d1 => self.second.level,
            _ => 0,
        };
        // It may have been a poll.
        self.connect();
        value
    }

    /// Writes one of [`PORTS`].
    pub fn write(&mut self, port: u16, value: u8) {
        let Self { first, second } = self;
        match port {
            0x20 => first.command(value),
            0x21 => first.data(value),
            0xa0 => second.command(value),
            0xa1 => second.data(value),
            // IRQ 0, 1, 2, 8 and 13 are always edge-triggered.
            0x4d0 => first.level = value & 0xf8,
            0x4d1 => second.level = value & 0xde,
            _ => {}
        }
        self.connect();
    }

    /// Lines 0 to 15 change, one at a time.
    pub fn set_line(&mut self, irq: u8, up: bool) {
        let chip = if irq < 8 { &mut self.first } else { &mut self.second };
        chip.set_line(irq & 7, up);
        self.connect();
    }

    /// Whether an interrupt of line `irq`, of the first controller, would come through.
    #[must_use]
    pub fn listens(&self, irq: u8) -> bool {
        self.first.listens(irq)
    }

    /// Whether they interrupt the CPU.
    #[must_use]
    pub fn asks(&self) -> bool {
        self.first.asks_for().is_some()
    }

    /// The CPU takes the interrupt that they ask for.
    pub fn acknowledge(&mut self) -> Vector {
        let input = self.first.acknowledge();
        let vector = if input == CASCADE && self.first.cascade & 1 << CASCADE != 0 {
            let input = self.second.acknowledge();
            // Its output falls with each acknowledgement, and what it asks for next is an edge again.
            self.first.set_line(CASCADE, false);
            self.second.vector(input)
        } else {
            self.first.vector(input)
        };
        self.connect();
        Vector(vector)
    }

    fn connect(&mut self) {
        self.first.set_line(CASCADE, self.second.asks_for().is_some());
    }
}

#[cfg(test)]
mod tests;
