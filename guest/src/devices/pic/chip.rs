//! One 8259A (Intel 8259A data sheet), as the chipset of a PC has it: edge or level by line and not by ICW1
//! (82371SB data sheet, "Edge/Level Triggered Control Registers").

const ICW1: u8 = 1 << 4;
const ICW1_NEEDS_ICW4: u8 = 1 << 0;
const ICW1_SINGLE: u8 = 1 << 1;
const ICW4_AUTOMATIC_EOI: u8 = 1 << 1;
const ICW4_SPECIAL_FULLY_NESTED: u8 = 1 << 4;
const OCW3: u8 = 1 << 3;
const OCW3_READ_REGISTER: u8 = 1 << 1;
const OCW3_POLL: u8 = 1 << 2;
const OCW3_SET_SPECIAL_MASK: u8 = 1 << 6;
/// The input that nobody drives when the CPU asks: a default.
const SPURIOUS: u8 = 7;

/// What the next write to the data port is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum NextWrite {
    #[default]
    Mask,
    Icw2,
    Icw3,
    Icw4,
}

/// Its registers. After power-on it asks for nothing until it has been initialized.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Chip {
    pub(super) mask: u8,
    /// Lines that are level-triggered.
    pub(super) level: u8,
    /// ICW3: of the first of two, where the other one is.
    pub(super) cascade: u8,
    /// Its inputs, and the edges of them that have not been taken.
    lines: u8,
    edges: u8,
    in_service: u8,
    base: u8,
    icw1: u8,
    icw4: u8,
    next: NextWrite,
    initialized: bool,
    /// How far the priorities are rotated: input 0 has the highest at 0.
    rotation: u8,
    rotates_at_automatic_eoi: bool,
    special_mask: bool,
    reads_in_service: bool,
    polled: bool,
}

impl Chip {
    /// Before it is initialized, with every line masked.
    pub(super) fn masked() -> Self {
        Self { mask: 0xff, ..Self::default() }
    }

    /// Interrupt request register.
    pub(super) const fn requests(&self) -> u8 {
        self.lines & self.level | self.edges & !self.level
    }

    /// A line changes. The request of an edge is withdrawn with its line ("Interrupt Request Register").
    pub(super) const fn set_line(&mut self, input: u8, up: bool) {
        let bit = 1 << (input & 7);
        if !up {
            self.lines &= !bit;
            self.edges &= !bit;
        } else if self.lines & bit == 0 {
            self.lines |= bit;
            self.edges |= bit;
        }
    }

    /// Whether an interrupt of this input would come through.
    pub(super) fn listens(&self, input: u8) -> bool {
        self.ready() && self.mask & 1 << (input & 7) == 0
    }

    fn ready(&self) -> bool {
        self.initialized && self.next == NextWrite::Mask
    }

    /// Its inputs, the highest priority first.
    fn by_priority(&self) -> impl Iterator<Item = u8> + use<> {
        let rotation = self.rotation;
        (0..8).map(move |place| (place + rotation) & 7)
    }

    /// The input that it interrupts for.
    pub(super) fn asks_for(&self) -> Option<u8> {
        let wanted = if self.ready() { self.requests() & !self.mask } else { 0 };
        if wanted == 0 {
            return None;
        }
        // "Special Mask Mode": what is in service and masked holds nothing back.
        let served = if self.special_mask { self.in_service & !self.mask } else { self.in_service };
        // "The Special Fully Nested Mode": another one of the second chip comes through.
        let nested = if self.icw4 & ICW4_SPECIAL_FULLY_NESTED != 0 { self.cascade } else { 0 };
        let first = self.by_priority().find(|input| (wanted | served) & 1 << input != 0)?;
        let held = served & !nested & 1 << first != 0;
        (!held && wanted & 1 << first != 0).then_some(first)
    }

    /// The CPU takes the interrupt: its input.
    pub(super) fn acknowledge(&mut self) -> u8 {
        let Some(input) = self.asks_for() else { return SPURIOUS };
        self.edges &= !(1 << input);
        if self.icw4 & ICW4_AUTOMATIC_EOI == 0 {
            self.in_service |= 1 << input;
        } else if self.rotates_at_automatic_eoi {
            self.put_last(input);
        }
        input
    }

    /// The vector of an input.
    pub(super) const fn vector(&self, input: u8) -> u8 {
        self.base | input & 7
    }

    fn put_last(&mut self, input: u8) {
        self.rotation = (input + 1) & 7;
    }

    /// Reads the command port, or the data port where it has been polled: every read is taken for an acknowledgement
    /// then ("Poll Command").
    pub(super) fn read(&mut self, data: bool) -> u8 {
        if core::mem::take(&mut self.polled) {
            let asks = self.asks_for().is_some();
            return if asks { 0x80 | self.acknowledge() } else { 0 };
        }
        match (data, self.reads_in_service) {
            (true, _) => self.mask,
            (false, true) => self.in_service,
            (false, false) => self.requests(),
        }
    }

    /// Writes the command port.
    pub(super) fn command(&mut self, value: u8) {
        if value & ICW1 != 0 {
            *self = Self {
                icw1: value,
                next: NextWrite::Icw2,
                initialized: true,
                level: self.level,
                lines: self.lines,
                base: self.base,
                ..Self::default()
            };
        } else if value & OCW3 != 0 {
            self.operation_3(value);
        } else {
            self.operation_2(value >> 5, value & 7);
        }
    }

    fn operation_3(&mut self, value: u8) {
        if value & OCW3_SET_SPECIAL_MASK != 0 {
            self.special_mask = value & 1 << 5 != 0;
        }
        self.polled = value & OCW3_POLL != 0;
        if value & OCW3_READ_REGISTER != 0 {
            self.reads_in_service = value & 1 != 0;
        }
    }

    /// "Operation Command Word 2": ends of interrupts and rotations.
    fn operation_2(&mut self, operation: u8, level: u8) {
        const ROTATE: u8 = 1 << 2;
        let ended = match operation {
            0 | 4 => {
                self.rotates_at_automatic_eoi = operation == 4;
                None
            }
            1 | 5 => self.highest_in_service(),
            3 | 6 | 7 => Some(level),
            _ => None,
        };
        let Some(input) = ended else { return };
        if operation != 6 {
            self.in_service &= !(1 << input);
        }
        if operation & ROTATE != 0 {
            self.put_last(input);
        }
    }

    /// What an end of interrupt that names none ends: nothing that is masked in the special mask mode.
    fn highest_in_service(&self) -> Option<u8> {
        let served = if self.special_mask { self.in_service & !self.mask } else { self.in_service };
        self.by_priority().find(|input| served & 1 << input != 0)
    }

    /// Writes the data port.
    pub(super) fn data(&mut self, value: u8) {
        let after_icw3 =
            if self.icw1 & ICW1_NEEDS_ICW4 != 0 { NextWrite::Icw4 } else { NextWrite::Mask };
        self.next = match self.next {
            NextWrite::Mask => {
                self.mask = value;
                NextWrite::Mask
            }
            NextWrite::Icw2 => {
                self.base = value & 0xf8;
                if self.icw1 & ICW1_SINGLE == 0 { NextWrite::Icw3 } else { after_icw3 }
            }
            NextWrite::Icw3 => {
                self.cascade = value;
                after_icw3
            }
            NextWrite::Icw4 => {
                self.icw4 = value;
                NextWrite::Mask
            }
        };
    }
}
