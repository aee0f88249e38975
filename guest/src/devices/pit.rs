//! The 8254 timer and port 0x61: counters that are computed from the TSC when they are read.
//!
//! Operating systems calibrate against channel 2, whose gate and output are in port 0x61. Channel 0
//! ticks until they have found the local APIC's timer: for the guest that has the line of the machine's
//! PIT, what is written to channel 0 here goes there too, and its ticks cost no exit, or one where they come through the
//! 8259s (`exits/legacy.rs`).
//! (Intel 8254 data sheet, "Programming the 8254" and "Mode Definitions".)

use arch::machine::PitRegister;
use arch::msr::PortRange;

use super::clock::PitClock;

/// Counters and control word; and the port that gates channel 2.
pub const PORTS: [PortRange; 2] =
    [PortRange { first: 0x40, last: 0x43 }, PortRange { first: 0x61, last: 0x61 }];

/// The machine's interrupt line of channel 0, and the I/O APIC's input that it drives.
pub const GSI: u32 = 2;

/// Its line of the ISA bus.
pub const IRQ: u8 = 0;

/// The register of channel 0 that a write concerns, if it concerns that channel alone.
#[must_use]
pub const fn of_channel_0(port: u16, value: u8) -> Option<PitRegister> {
    match port {
        0x40 => Some(PitRegister::Channel0),
        CONTROL if value >> 6 == 0 => Some(PitRegister::Control),
        _ => None,
    }
}

/// Input clock in Hz.
pub const FREQUENCY_HZ: u64 = 1_193_182;

/// The shortest period of ticks through the 8259s, each of which is an NMI: 50 µs.
const MIN_PERIOD: u64 = 60;

const CONTROL: u16 = 0x43;
const PORT_61: u16 = 0x61;
const PORT_61_GATE: u8 = 1 << 0;
const PORT_61_WRITABLE: u8 = 0x0f;
const PORT_61_REFRESH: u8 = 1 << 4;
const PORT_61_OUTPUT: u8 = 1 << 5;

/// Which byte of a counter the next access is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum AccessMode {
    #[default]
    LowThenHigh,
    Low,
    High,
}

#[derive(Clone, Copy, Debug)]
struct Channel {
    mode: u8,
    /// It counts four decimal digits.
    decimal: bool,
    access: AccessMode,
    /// A count that has been written and waits for the gate to rise.
    next: Option<u16>,
    reload: u16,
    /// TSC when the count was loaded or the gate opened; `None` while it does not count.
    started: Option<u64>,
    /// What had been counted before that.
    before: u64,
    gate: bool,
    /// Low byte of a two-byte load that waits for its high byte.
    low_written: Option<u8>,
    /// The low byte has been read, the high byte is next.
    high_next: bool,
    latched: Option<u16>,
    status: Option<u8>,
    /// A count has been loaded since the control word.
    loaded: bool,
    /// Rising edges of the output since `started` that have been counted.
    counted: u64,
}

impl Channel {
    const fn new(gate: bool) -> Self {
        Self {
            mode: 3,
            decimal: false,
            access: AccessMode::LowThenHigh,
            next: None,
            reload: 0,
            started: None,
            before: 0,
            gate,
            low_written: None,
            high_next: false,
            latched: None,
            status: None,
            loaded: false,
            counted: 0,
        }
    }

    /// Of the four digits that it counts.
    const fn base(&self) -> u64 {
        if self.decimal { 10 } else { 16 }
    }

    /// The reload value as the chip counts it: 0 stands for all counts that there are.
    fn period(&self) -> u64 {
        let digits = [12, 8, 4, 0].map(|shift| u64::from(self.reload >> shift & 0xf));
        let count = digits.into_iter().fold(0, |count, digit| count * self.base() + digit);
        if count == 0 { self.base().pow(4) } else { count }
    }

    /// `count` as the register shows it.
    fn shown(&self, count: u64) -> u16 {
        let digits = [3, 2, 1, 0].map(|place| count / self.base().pow(place) % self.base());
        digits.into_iter().fold(0, |shown, digit| shown << 4 | digit as u16)
    }

    fn elapsed(&self, clock: PitClock) -> u64 {
        let now = self.started.map_or(0, |tsc| clock.ticks_since(tsc, FREQUENCY_HZ));
        self.before.saturating_add(now)
    }

    /// Modes 2 and 3 start over at the end, the others count on through the highest count.
    fn count(&self, clock: PitClock) -> u16 {
        let (elapsed, period, all) = (self.elapsed(clock), self.period(), self.base().pow(4));
        self.shown(match self.mode {
            3 | 7 => (period - (2 * elapsed) % period) & !1,
            2 | 6 => period - elapsed % period,
            _ => period + all - elapsed % all,
        })
    }

    fn output(&self, clock: PitClock) -> bool {
        let (elapsed, period) = (self.elapsed(clock), self.period());
        match self.mode {
            1.. if self.mode != 4 && self.started.is_none() => true,
            0 | 1 => elapsed >= period,
            4 | 5 => elapsed != period,
            2 | 6 => elapsed % period != period - 1,
            _ => elapsed % period < period.div_ceil(2),
        }
    }

    fn control(&mut self, value: u8, clock: PitClock) {
        match value >> 4 & 3 {
            0 => {
                self.latch(clock);
                return;
            }
            1 => self.access = AccessMode::Low,
            2 => self.access = AccessMode::High,
            _ => self.access = AccessMode::LowThenHigh,
        }
        let (mode, decimal) = (value >> 1 & 7, value & 1 != 0);
        *self = Self { mode, decimal, access: self.access, ..Self::new(self.gate) };
    }

    fn latch(&mut self, clock: PitClock) {
        self.latched = self.latched.or_else(|| Some(self.count(clock)));
    }

    fn read_back(&mut self, command: u8, clock: PitClock) {
        if command & 0x20 == 0 {
            self.latch(clock);
        }
        if command & 0x10 == 0 {
            let access = match self.access {
                AccessMode::Low => 1,
                AccessMode::High => 2,
                AccessMode::LowThenHigh => 3,
            };
            let output = u8::from(self.output(clock)) << 7;
            let null = u8::from(!self.loaded || self.next.is_some()) << 6;
            let control = access << 4 | self.mode << 1 | u8::from(self.decimal);
            self.status = self.status.or(Some(output | null | control));
        }
    }

    fn read(&mut self, clock: PitClock) -> u8 {
        if let Some(status) = self.status.take() {
            return status;
        }
        let count = self.latched.unwrap_or_else(|| self.count(clock));
        let [low, high] = count.to_le_bytes();
        let (byte, last) = match self.access {
            AccessMode::Low => (low, true),
            AccessMode::High => (high, true),
            AccessMode::LowThenHigh => (if self.high_next { high } else { low }, self.high_next),
        };
        self.high_next = !last;
        if last {
            self.latched = None;
        }
        byte
    }

    fn write(&mut self, value: u8, clock: PitClock) {
        let reload = match (self.access, self.low_written.take()) {
            (AccessMode::Low, _) => u16::from(value),
            (AccessMode::High, _) => u16::from(value) << 8,
            (AccessMode::LowThenHigh, Some(low)) => u16::from_le_bytes([low, value]),
            (AccessMode::LowThenHigh, None) => {
                self.low_written = Some(value);
                if self.mode == 0 {
                    (self.loaded, self.started, self.before) = (false, None, 0);
                }
                return;
            }
        };
        self.next = Some(reload);
        // Modes 1 and 5 wait for the gate to rise.
        if self.mode & 3 != 1 {
            self.start(clock);
        }
    }

    /// Begins with the count that was written last.
    fn start(&mut self, clock: PitClock) {
        if let Some(next) = self.next.take() {
            (self.reload, self.loaded) = (next, true);
        }
        (self.before, self.counted) = (0, 0);
        self.started = (self.gate && self.loaded).then_some(clock.tsc);
    }

    fn set_gate(&mut self, gate: bool, clock: PitClock) {
        let before = core::mem::replace(&mut self.gate, gate);
        match (before, gate, self.mode & 3) {
            (false, true, 1..) => self.start(clock),
            // What has been triggered counts whatever the gate does.
            (true, false, 0 | 2..) | (false, true, 0) => {
                self.before = self.elapsed(clock);
                self.started = (gate && self.loaded).then_some(clock.tsc);
            }
            _ => {}
        }
    }

    /// Whether it starts over by itself.
    const fn is_periodic(&self) -> bool {
        matches!(self.mode & 3, 2 | 3)
    }

    /// Whether the output has risen since the last call. The machine's own counts by a clock of its own: where it is
    /// when that one's output rises that this is asked, what is nearly due is due.
    fn rises(&mut self, clock: PitClock, nearly: bool) -> bool {
        if !self.loaded {
            return false;
        }
        let (elapsed, period) = (self.elapsed(clock), self.period());
        let early = |part| if nearly { period / part } else { 0 };
        let risen = match self.mode {
            0 | 4 => u64::from(elapsed + early(16) >= period),
            _ if self.is_periodic() => (elapsed + early(2)) / period,
            _ => 0,
        };
        let rises = risen > self.counted;
        self.counted = self.counted.max(risen);
        rises
    }
}

/// The three channels and port 0x61.
#[derive(Clone, Debug)]
pub struct Pit {
    channels: [Channel; 3],
    port_61: u8,
}

impl Default for Pit {
    fn default() -> Self {
        // As firmware leaves it.
        let ticking = Channel { loaded: true, started: Some(0), ..Channel::new(true) };
        Self { channels: [ticking, ticking, Channel::new(false)], port_61: 0 }
    }
}

impl Pit {
    /// Reads one of [`PORTS`].
    pub fn read(&mut self, port: u16, clock: PitClock) -> u8 {
        match port {
            PORT_61 => self.read_port_61(clock),
            // The control word cannot be read.
            CONTROL => 0xff,
            _ => self.channel(port).map_or(0xff, |channel| channel.read(clock)),
        }
    }

    /// Writes one of [`PORTS`].
    pub fn write(&mut self, port: u16, value: u8, clock: PitClock) {
        match port {
            PORT_61 => self.write_port_61(value, clock),
            CONTROL if value >> 6 == 3 => {
                for (index, channel) in self.channels.iter_mut().enumerate() {
                    if value & 2 << index != 0 {
                        channel.read_back(value, clock);
                    }
                }
            }
            CONTROL => {
                if let Some(channel) = self.channel(0x40 + u16::from(value >> 6)) {
                    channel.control(value, clock);
                }
            }
            _ => {
                if let Some(channel) = self.channel(port) {
                    channel.write(value, clock);
                }
            }
        }
    }

    /// Whether the output of channel 0 has risen since the last call, or nearly.
    pub fn ticks(&mut self, clock: PitClock, nearly: bool) -> bool {
        let [first, ..] = &mut self.channels;
        first.rises(clock, nearly)
    }

    /// Whether channel 0 does not tick more often than may interrupt the hypervisor.
    #[must_use]
    pub fn ticks_seldom(&self) -> bool {
        let [first, ..] = &self.channels;
        !first.is_periodic() || first.period() >= MIN_PERIOD
    }

    /// Whether channel 0's output is low until it has counted down.
    #[must_use]
    pub fn output_begins_low(&self) -> bool {
        let [first, ..] = &self.channels;
        first.mode == 0
    }

    /// What is to be written to the machine's channel 0 so that it goes on as this one. A periodic one begins anew;
    /// nothing while it is being loaded, and behind the tick of one that ticks once.
    pub fn follow(&mut self, clock: PitClock) -> [Option<(PitRegister, u8)>; 3] {
        let [first, ..] = &mut self.channels;
        if !first.loaded || first.low_written.is_some() {
            return [None; 3];
        }
        let count = if first.is_periodic() {
            first.start(clock);
            first.reload
        } else {
            let left = first.period().saturating_sub(first.elapsed(clock));
            if left == 0 {
                return [None; 3];
            }
            first.shown(left)
        };
        let [low, high] = count.to_le_bytes();
        let (access, low, high) = match first.access {
            AccessMode::Low => (1, Some(low), None),
            AccessMode::High => (2, None, Some(high)),
            AccessMode::LowThenHigh => (3, Some(low), Some(high)),
        };
        let control = access << 4 | first.mode << 1 | u8::from(first.decimal);
        let control = (PitRegister::Control, control);
        [
            Some(control),
            low.map(|low| (PitRegister::Channel0, low)),
            high.map(|high| (PitRegister::Channel0, high)),
        ]
    }

    fn channel(&mut self, port: u16) -> Option<&mut Channel> {
        self.channels.get_mut(usize::from(port.wrapping_sub(0x40)))
    }

    fn read_port_61(&self, clock: PitClock) -> u8 {
        let [.., speaker] = &self.channels;
        // Memory refresh toggled every 15 µs on a PC; code that delays by it is still about.
        let refresh = clock.ticks_since(0, 1_000_000 / 15) & 1 != 0;
        self.port_61
            | if refresh { PORT_61_REFRESH } else { 0 }
            | if speaker.output(clock) { PORT_61_OUTPUT } else { 0 }
    }

    fn write_port_61(&mut self, value: u8, clock: PitClock) {
        let [.., speaker] = &mut self.channels;
        speaker.set_gate(value & PORT_61_GATE != 0, clock);
        self.port_61 = value & PORT_61_WRITABLE;
    }
}

#[cfg(test)]
mod tests;
