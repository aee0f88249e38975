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
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One TSC tick per nanosecond.
    fn at_us(us: u64) -> PitClock {
        PitClock { tsc: us * 1000, tsc_khz: 1_000_000 }
    }

    fn load(pit: &mut Pit, control: u8, port: u16, count: u16, clock: PitClock) {
        pit.write(CONTROL, control, clock);
        let [low, high] = count.to_le_bytes();
        pit.write(port, low, clock);
        pit.write(port, high, clock);
    }

    fn read_word(pit: &mut Pit, port: u16, clock: PitClock) -> u16 {
        let low = pit.read(port, clock);
        u16::from_le_bytes([low, pit.read(port, clock)])
    }

    #[test]
    fn channel_2_counts_50_ms_through_its_gate_as_linux_calibrates() {
        let mut pit = Pit::default();
        pit.write(PORT_61, 1, at_us(0));
        load(&mut pit, 0xb0, 0x42, 59_659, at_us(0));
        assert_eq!(pit.read(PORT_61, at_us(49_990)) & PORT_61_OUTPUT, 0);
        assert_ne!(pit.read(PORT_61, at_us(50_010)) & PORT_61_OUTPUT, 0);
    }

    #[test]
    fn a_closed_gate_holds_channel_2() {
        let mut pit = Pit::default();
        load(&mut pit, 0xb0, 0x42, 1000, at_us(0));
        assert_eq!(read_word(&mut pit, 0x42, at_us(5000)), 1000);
        assert_eq!(pit.read(PORT_61, at_us(5000)) & PORT_61_OUTPUT, 0);
    }

    fn output(pit: &mut Pit, us: u64) -> bool {
        pit.read(PORT_61, at_us(us)) & PORT_61_OUTPUT != 0
    }

    fn gate(pit: &mut Pit, open: bool, us: u64) {
        pit.write(PORT_61, open.into(), at_us(us));
    }

    /// Data sheet, "Gate Pin Operations Summary": in modes 0 and 4 a low gate stops the count and does no more.
    #[test]
    fn in_modes_0_and_4_the_gate_stops_the_count_and_lets_it_go_on() {
        for (control, counting) in [(0xb0, false), (0xb8, true)] {
            let mut pit = Pit::default();
            gate(&mut pit, true, 0);
            load(&mut pit, control, 0x42, 11_932, at_us(0));
            assert_eq!(output(&mut pit, 4_000), counting, "{control:#x}");
            gate(&mut pit, false, 4_000);
            let rest = 11_932 - 4_772;
            assert_eq!(read_word(&mut pit, 0x42, at_us(4_000)), rest);
            assert_eq!(read_word(&mut pit, 0x42, at_us(90_000)), rest, "it stands still");
            assert_eq!(output(&mut pit, 90_000), counting);
            gate(&mut pit, true, 90_000);
            assert_eq!(read_word(&mut pit, 0x42, at_us(91_000)), rest - 1_193);
            assert_eq!((output(&mut pit, 95_990), output(&mut pit, 96_010)), (counting, true));
            gate(&mut pit, false, 96_010);
            assert!(output(&mut pit, 97_000), "a closed gate takes nothing back");
            // Half of another count: mode 0 waits for the rest of it.
            pit.write(0x42, 0x10, at_us(98_000));
            assert_eq!(output(&mut pit, 98_000), counting);
            gate(&mut pit, true, 98_000);
            assert_eq!(output(&mut pit, 190_000), counting, "{control:#x}");
        }
    }

    /// The same for modes 1 and 5: a rising gate begins, a low one does nothing.
    #[test]
    fn in_modes_1_and_5_the_gate_begins_a_count_that_it_does_not_stop() {
        for (control, counting) in [(0xb2, false), (0xba, true)] {
            let mut pit = Pit::default();
            gate(&mut pit, true, 0);
            load(&mut pit, control, 0x42, 11_932, at_us(0));
            assert!(output(&mut pit, 5_000), "it has not begun, {control:#x}");
            assert_eq!(read_word(&mut pit, 0x42, at_us(5_000)), 0, "nor is its count loaded");
            gate(&mut pit, false, 5_000);
            gate(&mut pit, true, 6_000);
            gate(&mut pit, false, 7_000);
            assert_eq!(read_word(&mut pit, 0x42, at_us(8_000)), 11_932 - 2_386);
            assert_eq!((output(&mut pit, 8_000), output(&mut pit, 17_000)), (counting, true));
            // A count that is written meanwhile is the next one's.
            gate(&mut pit, true, 20_000);
            [0, 1].into_iter().for_each(|byte| pit.write(0x42, byte, at_us(21_000)));
            assert_eq!(read_word(&mut pit, 0x42, at_us(22_000)), 11_932 - 2_386);
            gate(&mut pit, false, 22_000);
            gate(&mut pit, true, 23_000);
            assert_eq!(read_word(&mut pit, 0x42, at_us(23_000)), 0x100);
            assert_eq!((output(&mut pit, 23_100), output(&mut pit, 23_300)), (counting, true));
        }
    }

    #[test]
    fn the_strobe_of_modes_4_and_5_is_one_clock_long() {
        for control in [0xb8, 0xba] {
            let mut pit = Pit::default();
            load(&mut pit, control, 0x42, 100, at_us(0));
            gate(&mut pit, true, 0);
            let low: Vec<u64> = (0..200).filter(|us| !output(&mut pit, *us)).collect();
            assert_eq!(low, [84], "{control:#x}");
        }
    }

    /// The same for modes 2 and 3: a low gate stops the count with the output high, a rising one begins anew.
    #[test]
    fn in_modes_2_and_3_the_gate_stops_the_count_and_begins_anew() {
        for (control, far) in [(0xb4, 1_193), (0xb6, 2 * 1_193)] {
            let mut pit = Pit::default();
            gate(&mut pit, true, 0);
            load(&mut pit, control, 0x42, 11_932, at_us(0));
            gate(&mut pit, false, 8_000);
            let stopped = read_word(&mut pit, 0x42, at_us(8_000));
            assert_eq!((output(&mut pit, 8_000), output(&mut pit, 90_000)), (true, true));
            assert_eq!(read_word(&mut pit, 0x42, at_us(90_000)), stopped);
            gate(&mut pit, true, 90_000);
            let count = read_word(&mut pit, 0x42, at_us(91_000));
            assert_eq!(count, 11_932 - far, "{control:#x}");
        }
    }

    #[test]
    fn a_channel_counts_decimal_digits_if_it_is_told_to() {
        let mut pit = Pit::default();
        gate(&mut pit, true, 0);
        load(&mut pit, 0xb1, 0x42, 0x2000, at_us(0));
        assert_eq!(read_word(&mut pit, 0x42, at_us(1_000)), 0x0807);
        assert!(!output(&mut pit, 1_600) && output(&mut pit, 1_700));
        assert_eq!(read_word(&mut pit, 0x42, at_us(2_000)), 0x9614, "through 9999");
        load(&mut pit, 0xb5, 0x42, 0, at_us(0));
        assert_eq!(read_word(&mut pit, 0x42, at_us(0)), 0, "10,000");
        assert_eq!(read_word(&mut pit, 0x42, at_us(1_000)), 0x8807);
        pit.write(CONTROL, 0xe8, at_us(0));
        assert_eq!(pit.read(0x42, at_us(0)), 0x80 | 0x35, "its status says so");
        // The machine's, too.
        load(&mut pit, 0x31, 0x40, 0x2000, at_us(0));
        let written: Vec<u8> =
            pit.follow(at_us(1_000)).into_iter().flatten().map(|it| it.1).collect();
        assert_eq!(written, [0x31, 0x07, 0x08]);
    }

    #[test]
    fn the_status_says_whether_a_count_is_loaded() {
        let mut pit = Pit::default();
        let status = |pit: &mut Pit| {
            pit.write(CONTROL, 0xe8, at_us(0));
            pit.read(0x42, at_us(0))
        };
        pit.write(CONTROL, 0xb0, at_us(0));
        assert_eq!(status(&mut pit), 0x70);
        load(&mut pit, 0xb0, 0x42, 100, at_us(0));
        assert_eq!(status(&mut pit), 0x30);
        load(&mut pit, 0xb2, 0x42, 100, at_us(0));
        assert_eq!(status(&mut pit), 0xf2);
        gate(&mut pit, true, 0);
        assert_eq!(status(&mut pit), 0x32);
    }

    #[test]
    fn a_latched_count_stands_still_until_it_has_been_read() {
        let mut pit = Pit::default();
        load(&mut pit, 0x34, 0x40, 10_000, at_us(0));
        pit.write(CONTROL, 0x00, at_us(1000));
        let latched = read_word(&mut pit, 0x40, at_us(3000));
        assert_eq!(latched, 10_000 - 1193);
        assert_eq!(read_word(&mut pit, 0x40, at_us(2000)), 10_000 - 2386);
    }

    #[test]
    fn read_back_gives_status_then_count() {
        let mut pit = Pit::default();
        load(&mut pit, 0x34, 0x40, 10_000, at_us(0));
        pit.write(CONTROL, 0xc2, at_us(0));
        assert_eq!(pit.read(0x40, at_us(0)), 0x80 | 0x30 | 2 << 1);
        assert_eq!(read_word(&mut pit, 0x40, at_us(1000)), 10_000);
    }

    #[test]
    fn one_byte_access_modes_use_one_byte() {
        let mut pit = Pit::default();
        pit.write(CONTROL, 0x90, at_us(0));
        pit.write(0x42, 0x12, at_us(0));
        assert_eq!(pit.read(0x42, at_us(0)), 0x12);
        assert_eq!(pit.read(0x42, at_us(0)), 0x12);
    }

    #[test]
    fn a_periodic_channel_0_ticks_once_a_period_also_by_a_clock_that_is_a_little_off() {
        for (control, off) in [(0x34, 0_i64), (0x36, 0), (0x34, 400), (0x36, -400)] {
            let mut pit = Pit::default();
            load(&mut pit, control, 0x40, 11_932, at_us(0));
            assert!(!pit.ticks(at_us(100), true));
            for tick in 1..50_u64 {
                let now = at_us((10_000 * tick).saturating_add_signed(off));
                assert!(pit.ticks(now, true), "{control:#x} {tick}");
                for later in [now, at_us(10_000 * tick + 2_000)] {
                    assert!(!pit.ticks(later, true) && !pit.ticks(later, false));
                }
            }
        }
    }

    #[test]
    fn a_one_shot_ticks_once_for_each_count() {
        for control in [0x30, 0x38] {
            let mut pit = Pit::default();
            pit.write(CONTROL, control, at_us(0));
            assert!(!pit.ticks(at_us(90_000), true), "no count yet");
            for begin in [100_000, 200_000] {
                load(&mut pit, control, 0x40, 11_932, at_us(begin));
                assert!(!pit.ticks(at_us(begin + 9_000), true));
                assert!(!pit.ticks(at_us(begin + 9_999), false));
                assert!(pit.ticks(at_us(begin + 9_999), true));
                assert!(!pit.ticks(at_us(begin + 90_000), false));
            }
        }
    }

    #[test]
    fn only_a_period_below_50_us_is_too_often() {
        let mut pit = Pit::default();
        assert!(pit.ticks_seldom());
        for (control, count, seldom) in [(0x34, 59, false), (0x36, 60, true), (0x38, 1, true)] {
            load(&mut pit, control, 0x40, count, at_us(0));
            assert_eq!(pit.ticks_seldom(), seldom);
        }
    }

    #[test]
    fn the_machines_is_loaded_as_this_one_is() {
        let written = |pit: &mut Pit| {
            let writes = pit.follow(at_us(0)).into_iter().flatten();
            writes.map(|(register, value)| (register == PitRegister::Control, value)).collect()
        };
        let mut pit = Pit::default();
        let all: Vec<(bool, u8)> = written(&mut pit);
        assert_eq!(all, [(true, 0x36), (false, 0), (false, 0)], "as firmware leaves it");
        pit.write(CONTROL, 0x14, at_us(0));
        assert_eq!(written(&mut pit), Vec::new(), "no count yet");
        pit.write(0x40, 200, at_us(0));
        assert_eq!(written(&mut pit), [(true, 0x14), (false, 200)]);
        load(&mut pit, 0x34, 0x40, 0x1234, at_us(0));
        pit.write(0x40, 1, at_us(0));
        assert_eq!(written(&mut pit), Vec::new(), "half of a count");
        load(&mut pit, 0x30, 0x40, 0x1234, at_us(0));
        assert_eq!(written(&mut pit), [(true, 0x30), (false, 0x34), (false, 0x12)]);
        let behind: Vec<_> = pit.follow(at_us(5_000)).into_iter().flatten().collect();
        assert_eq!(behind, [], "it has ticked");
        let half = pit.follow(at_us(2_000));
        assert_eq!(half[1..], [0xe2, 0x08].map(|byte| Some((PitRegister::Channel0, byte))));
    }

    #[test]
    fn the_refresh_bit_toggles() {
        let mut pit = Pit::default();
        let one = pit.read(PORT_61, at_us(7)) & PORT_61_REFRESH;
        let other = pit.read(PORT_61, at_us(22)) & PORT_61_REFRESH;
        assert_ne!(one, other);
    }

    proptest! {
        #[test]
        fn periodic_counters_stay_in_their_period(
            reload in 2u16.., square: bool, us in 0u64..1 << 40
        ) {
            let mut pit = Pit::default();
            load(&mut pit, if square { 0x36 } else { 0x34 }, 0x40, reload, at_us(0));
            let count = read_word(&mut pit, 0x40, at_us(us));
            prop_assert!(count <= reload);
        }

        #[test]
        fn any_sequence_of_accesses_is_survived(
            accesses in proptest::collection::vec(
                (0u16..5, any::<Option<u8>>(), any::<u64>(), any::<u32>()), 0..64)
        ) {
            let mut pit = Pit::default();
            for (port, value, tsc, khz) in accesses {
                let port = if port == 4 { PORT_61 } else { 0x40 + port };
                let clock = PitClock { tsc, tsc_khz: khz.into() };
                match value {
                    Some(value) => pit.write(port, value, clock),
                    None => { pit.read(port, clock); }
                }
            }
        }
    }
}
