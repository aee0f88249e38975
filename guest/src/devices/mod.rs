//! The devices that every PC has, as state machines: port accesses in, values and effects out.
//!
//! Nothing here touches the machine or interrupts by itself. A port that no device claims reads as
//! all ones and takes writes silently, as an empty bus does (0x80 and 0xED, to which operating
//! systems write for the delay, are such ports).

pub mod clock;
pub mod ioapic;
pub mod pic;
pub mod pit;
pub mod power;
pub mod rtc;
pub mod uart;

use arch::machine::{Machine, PitRegister};
use arch::msr::PortRange;
use arch::{Vector, Width};

use clock::PitClock;

/// What a port write asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortEffect {
    /// Nothing.
    None,
    /// A byte of console output.
    Transmit(u8),
    /// The byte also goes to this register of the machine's PIT, if the guest has its line.
    Timer(PitRegister, u8),
    /// The guest is done.
    PowerOff,
    /// The guest wants to be restarted.
    Reboot,
}

/// One guest's devices on ports.
#[derive(Clone, Debug, Default)]
pub struct Devices {
    /// The console.
    pub uart: uart::Uart,
    pics: Option<pic::Pics>,
    pit: pit::Pit,
    rtc: rtc::Rtc,
    power: power::Power,
}

/// The device that a port belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum PortOwner {
    Uart,
    Pics,
    Pit,
    Rtc,
    Power,
    Nobody,
}

fn owner(port: u16) -> PortOwner {
    let within = |ranges: &[PortRange]| ranges.iter().any(|range| range.contains(port));
    if uart::PORTS.contains(port) {
        PortOwner::Uart
    } else if within(&power::PORTS) {
        PortOwner::Power
    } else if within(&pit::PORTS) {
        PortOwner::Pit
    } else if pic::is_port(port) {
        PortOwner::Pics
    } else if rtc::PORTS.contains(port) {
        PortOwner::Rtc
    } else {
        PortOwner::Nobody
    }
}

impl Devices {
    /// Their state after reset, with 8259s or without.
    #[must_use]
    pub fn new(legacy: bool) -> Self {
        Self { pics: legacy.then(pic::Pics::default), ..Self::default() }
    }

    /// Whether there are 8259s.
    #[must_use]
    pub const fn has_8259s(&self) -> bool {
        self.pics.is_some()
    }

    /// Whether the 8259s interrupt the CPU.
    #[must_use]
    pub fn asks(&self) -> bool {
        self.pics.as_ref().is_some_and(pic::Pics::asks)
    }

    /// The CPU takes the interrupt that the 8259s ask for.
    pub fn acknowledge(&mut self) -> Option<Vector> {
        self.pics.as_mut().map(pic::Pics::acknowledge)
    }

    /// A line of the ISA bus changes, as the 8259s see it.
    pub fn set_line(&mut self, irq: u8, up: bool) {
        if let Some(pics) = &mut self.pics {
            pics.set_line(irq, up);
        }
    }

    /// Whether the PIT's ticks are to come through the 8259s.
    #[must_use]
    pub fn ticks_wanted(&self) -> bool {
        let listens = self.pics.as_ref().is_some_and(|pics| pics.listens(pit::IRQ));
        listens && self.pit.ticks_seldom()
    }

    /// The machine's PIT may have ticked.
    pub fn tick(&mut self, machine: &impl Machine) {
        self.tick_if(true, machine);
    }

    fn tick_if(&mut self, nearly: bool, machine: &impl Machine) {
        if self.pit.ticks(PitClock::now(machine), nearly) {
            self.set_line(pit::IRQ, false);
            self.set_line(pit::IRQ, true);
        }
    }

    /// Has the machine's PIT tick as this one.
    pub fn begin_ticks(&mut self, machine: &mut impl Machine) {
        let now = PitClock::now(machine);
        for (register, value) in self.pit.follow(now).into_iter().flatten() {
            machine.pit_write(register, value);
        }
    }

    /// Whether a device is at `port`. Such a port must not be handed to the guest raw.
    #[must_use]
    pub fn claims(port: u16) -> bool {
        owner(port) != PortOwner::Nobody
    }

    /// The ports of all devices.
    pub fn ranges() -> impl Iterator<Item = PortRange> {
        let single = [uart::PORTS, rtc::PORTS].into_iter();
        single.chain(power::PORTS).chain(pit::PORTS).chain(pic::PORTS)
    }

    /// IN of `width` bytes at `port`.
    pub fn read(&mut self, port: u16, width: Width, machine: &impl Machine) -> u32 {
        match owner(port) {
            PortOwner::Nobody if width == Width::Byte => 0xff,
            PortOwner::Power => self.power.read(port, width, PitClock::now(machine)),
            // The other devices have byte registers only: a wider access takes consecutive ones.
            PortOwner::Uart
            | PortOwner::Pics
            | PortOwner::Pit
            | PortOwner::Rtc
            | PortOwner::Nobody => (0..u16::from(width.bytes()).min(4)).fold(0, |value, index| {
                let byte = self.read_byte(port.wrapping_add(index), machine);
                value | u32::from(byte) << (8 * index)
            }),
        }
    }

    /// How many registers an access of `width` bytes at `port` reaches, one behind the other.
    #[must_use]
    pub fn registers(port: u16, width: Width) -> u16 {
        let power = power::PORTS.iter().any(|range| range.contains(port));
        if power { 1 } else { u16::from(width.bytes()).min(4) }
    }

    /// OUT at `port` to one of its [`Self::registers`].
    pub fn write(
        &mut self,
        port: u16,
        width: Width,
        value: u32,
        machine: &impl Machine,
    ) -> PortEffect {
        if owner(port) == PortOwner::Power {
            return self.power.write(port, width, value);
        }
        self.write_byte(port, value as u8, machine)
    }

    fn read_byte(&mut self, port: u16, machine: &impl Machine) -> u8 {
        match owner(port) {
            PortOwner::Uart => self.uart.read(port - uart::PORTS.first),
            PortOwner::Pics => {
                self.tick_if(false, machine);
                self.pics.as_mut().map_or(0xff, |pics| pics.read(port))
            }
            PortOwner::Pit => self.pit.read(port, PitClock::now(machine)),
            // The index port cannot be read.
            PortOwner::Rtc if port == rtc::PORTS.first => 0xff,
            PortOwner::Rtc => self.rtc.read(machine.unix_time()),
            PortOwner::Power | PortOwner::Nobody => 0xff,
        }
    }

    fn write_byte(&mut self, port: u16, value: u8, machine: &impl Machine) -> PortEffect {
        match owner(port) {
            PortOwner::Uart => {
                let sent = self.uart.write(port - uart::PORTS.first, value);
                return sent.map_or(PortEffect::None, PortEffect::Transmit);
            }
            PortOwner::Pics => {
                self.tick_if(false, machine);
                if let Some(pics) = &mut self.pics {
                    pics.write(port, value);
                }
            }
            PortOwner::Pit => {
                self.pit.write(port, value, PitClock::now(machine));
                if let Some(register) = pit::of_channel_0(port, value) {
                    if self.pit.output_begins_low() {
                        self.set_line(pit::IRQ, false);
                    }
                    return PortEffect::Timer(register, value);
                }
            }
            PortOwner::Rtc if port == rtc::PORTS.first => self.rtc.select(value),
            PortOwner::Rtc | PortOwner::Power | PortOwner::Nobody => {}
        }
        PortEffect::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeMachine;
    use proptest::prelude::*;

    #[test]
    fn the_ports_that_are_claimed_are_those_that_are_listed() {
        for port in 0..=u16::MAX {
            let listed = Devices::ranges().any(|range| range.contains(port));
            assert_eq!(Devices::claims(port), listed, "{port:#x}");
        }
    }

    #[test]
    fn an_empty_port_reads_as_ones_and_takes_writes() {
        let (mut devices, machine) = (Devices::new(true), FakeMachine::default());
        for width in [Width::Byte, Width::Word, Width::Dword] {
            assert_eq!(devices.read(0x80, width, &machine), width.mask() as u32);
            assert_eq!(devices.write(0xed, width, 0, &machine), PortEffect::None);
        }
    }

    #[test]
    fn each_device_is_reached_at_its_ports() {
        let (mut devices, mut machine) = (Devices::new(true), FakeMachine::default());
        machine.unix_time = 59;
        assert_eq!(devices.write(0x3f8, Width::Byte, 0x41, &machine), PortEffect::Transmit(0x41));
        assert_eq!(devices.read(0x3fd, Width::Byte, &machine), 0x60);
        devices.write(0x70, Width::Byte, 0, &machine);
        assert_eq!(devices.read(0x71, Width::Byte, &machine), 0x59);
        devices.write(0x21, Width::Byte, 0xfb, &machine);
        assert_eq!(devices.read(0x21, Width::Byte, &machine), 0xfb);
        assert_eq!(devices.write(0x604, Width::Word, 0x3400, &machine), PortEffect::PowerOff);
        assert_eq!(devices.write(0xcf9, Width::Byte, 6, &machine), PortEffect::Reboot);
        for (port, register) in [(0x43, PitRegister::Control), (0x40, PitRegister::Channel0)] {
            let effect = devices.write(port, Width::Byte, 0x34, &machine);
            assert_eq!(effect, PortEffect::Timer(register, 0x34));
        }
        for (port, value) in [(0x43, 0xb0), (0x43, 0xc2), (0x42, 1), (0x41, 1), (0x61, 0)] {
            let others = devices.write(port, Width::Byte, value, &machine);
            assert_eq!(others, PortEffect::None, "channel 0 alone is the guest's: {port:#x}");
        }
        assert_eq!(devices.read(0x61, Width::Byte, &machine) & 0x0f, 0);
    }

    #[test]
    fn without_8259s_their_ports_are_empty_and_still_nobody_elses() {
        let (mut devices, machine) = (Devices::new(false), FakeMachine::default());
        devices.write(0x21, Width::Byte, 0xfb, &machine);
        assert_eq!(devices.read(0x21, Width::Byte, &machine), 0xff);
        assert!(Devices::claims(0x21));
    }

    #[test]
    fn a_wide_access_takes_consecutive_byte_registers() {
        let (mut devices, machine) = (Devices::new(true), FakeMachine::default());
        assert_eq!(Devices::registers(0x3fb, Width::Dword), 4);
        assert_eq!(Devices::registers(0x604, Width::Word), 1);
        for (port, byte) in (0x3fb..).zip([3, 8, 3, 0]) {
            devices.write(port, Width::Byte, byte, &machine);
        }
        assert_eq!(devices.read(0x3fb, Width::Word, &machine), 0x0803);
        assert_eq!(devices.read(0x3ff, Width::Word, &machine), 0xff00);
    }

    proptest! {
        #[test]
        fn any_access_is_answered_within_its_width(
            accesses in proptest::collection::vec((any::<u16>(), 0usize..3, any::<Option<u32>>()), 0..128)
        ) {
            let (mut devices, machine) = (Devices::new(true), FakeMachine::default());
            for (port, width, value) in accesses {
                let port = if port & 1 == 0 { port >> 5 } else { port };
                let width = [Width::Byte, Width::Word, Width::Dword][width];
                match value {
                    Some(value) => { devices.write(port, width, value, &machine); }
                    None => {
                        let value = devices.read(port, width, &machine);
                        prop_assert_eq!(u64::from(value) & !width.mask(), 0);
                    }
                }
            }
        }
    }
}
