//! Two 8259A interrupt controllers that a guest may program and that never interrupt.
//!
//! Every interrupt of the guest goes through its I/O APIC or as a message; the pair is here because
//! operating systems probe for it by reading the mask back (Intel 8259A data sheet, "Programming
//! the 8259A").

use arch::msr::PortRange;

/// First controller, second controller, and their edge/level registers.
pub const PORTS: [PortRange; 3] = [
    PortRange { first: 0x20, last: 0x21 },
    PortRange { first: 0xa0, last: 0xa1 },
    PortRange { first: 0x4d0, last: 0x4d1 },
];

const ICW1: u8 = 1 << 4;
const ICW1_NEEDS_ICW4: u8 = 1 << 0;
const ICW1_SINGLE: u8 = 1 << 1;

/// What the next write to the data port is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum NextWrite {
    #[default]
    Mask,
    Icw2,
    Icw3,
    Icw4,
}

#[derive(Clone, Copy, Debug, Default)]
struct Pic {
    mask: u8,
    icw1: u8,
    next: NextWrite,
    edge_level: u8,
}

impl Pic {
    fn command(&mut self, value: u8) {
        // OCW2 (end of interrupt) and OCW3 (which status register to read) change nothing here.
        if value & ICW1 != 0 {
            *self =
                Self { icw1: value, next: NextWrite::Icw2, edge_level: self.edge_level, mask: 0 };
        }
    }

    fn data(&mut self, value: u8) {
        let after_icw3 =
            if self.icw1 & ICW1_NEEDS_ICW4 != 0 { NextWrite::Icw4 } else { NextWrite::Mask };
        self.next = match self.next {
            NextWrite::Mask => {
                self.mask = value;
                NextWrite::Mask
            }
            NextWrite::Icw2 if self.icw1 & ICW1_SINGLE == 0 => NextWrite::Icw3,
            NextWrite::Icw2 | NextWrite::Icw3 => after_icw3,
            NextWrite::Icw4 => NextWrite::Mask,
        };
    }
}

/// Both controllers.
#[derive(Clone, Debug, Default)]
pub struct Pics([Pic; 2]);

impl Pics {
    /// Reads one of [`PORTS`]: the mask, the edge/level register, or an empty IRR or ISR.
    #[must_use]
    pub fn read(&self, port: u16) -> u8 {
        let [first, second] = &self.0;
        match port {
            0x21 => first.mask,
            0xa1 => second.mask,
            0x4d0 => first.edge_level,
            0x4d1 => second.edge_level,
            _ => 0,
        }
    }

    /// Writes one of [`PORTS`].
    pub fn write(&mut self, port: u16, value: u8) {
        let [first, second] = &mut self.0;
        match port {
            0x20 => first.command(value),
            0x21 => first.data(value),
            0xa0 => second.command(value),
            0xa1 => second.data(value),
            // IRQ 0, 1, 2, 8 and 13 are always edge-triggered.
            0x4d0 => first.edge_level = value & 0xf8,
            0x4d1 => second.edge_level = value & 0xde,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_finds_the_pair_by_reading_the_mask_back() {
        let mut pics = Pics::default();
        pics.write(0xa1, 0xff);
        pics.write(0x21, 0xfb);
        assert_eq!((pics.read(0x21), pics.read(0xa1)), (0xfb, 0xff));
    }

    #[test]
    fn initialization_words_do_not_land_in_the_mask() {
        for (icw1, words) in [(0x11, 3), (0x10, 2), (0x13, 2), (0x12, 1)] {
            let mut pics = Pics::default();
            pics.write(0x21, 0xff);
            pics.write(0x20, icw1);
            assert_eq!(pics.read(0x21), 0, "ICW1 clears the mask");
            (0..words).for_each(|_| pics.write(0x21, 0x30));
            assert_eq!(pics.read(0x21), 0, "{icw1:#x}");
            pics.write(0x21, 0xaa);
            assert_eq!(pics.read(0x21), 0xaa, "{icw1:#x}");
        }
    }

    #[test]
    fn end_of_interrupt_and_status_reads_are_harmless() {
        let mut pics = Pics::default();
        pics.write(0x21, 0x5a);
        pics.write(0x20, 0x20);
        pics.write(0x20, 0x0b);
        assert_eq!((pics.read(0x20), pics.read(0x21)), (0, 0x5a));
    }

    #[test]
    fn system_lines_stay_edge_triggered() {
        let mut pics = Pics::default();
        pics.write(0x4d0, 0xff);
        pics.write(0x4d1, 0xff);
        assert_eq!((pics.read(0x4d0), pics.read(0x4d1)), (0xf8, 0xde));
    }
}
