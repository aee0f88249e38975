//! Power-off and reset: the ACPI fixed hardware (PM1a block and PM timer), port 0xCF9, and the
//! keyboard controller's reset line.
//!
//! Every one of them is the guest's word for "I am done" or "restart me"; none reaches the machine.
//! (ACPI Specification, "ACPI Register Model"; Intel PCH data sheets, "Reset Control Register".)

use arch::Width;
use arch::msr::PortRange;

use super::PortEffect;
use super::clock::PitClock;

/// PM1a event block: 16 bits of status, 16 bits of enable.
pub const PM1A_EVENT: u16 = 0x600;
/// PM1a control block: 16 bits.
pub const PM1A_CONTROL: u16 = 0x604;
/// The PM timer, for a guest that does not read the machine's.
pub const PM_TIMER: u16 = 0x608;
/// The reset register of the FADT …
pub const RESET: u16 = 0xcf9;
/// … and the value that resets.
pub const RESET_VALUE: u8 = 6;
/// Sleep type of S5 ("soft off") in the DSDT and in PM1a control.
pub const SLEEP_TYPE_S5: u8 = 5;

/// All ports of this file. 0xCF9 lies within PCI's 0xCF8–0xCFB: a byte access there is this one, a
/// doubleword at 0xCF8 is PCI's.
pub const PORTS: [PortRange; 5] = [
    PortRange { first: PM1A_EVENT, last: PM_TIMER + 3 },
    PortRange { first: RESET, last: RESET },
    PortRange { first: KEYBOARD_DATA, last: KEYBOARD_DATA },
    PortRange { first: KEYBOARD_COMMAND, last: KEYBOARD_COMMAND },
    PortRange { first: SYSTEM_CONTROL_A, last: SYSTEM_CONTROL_A },
];

const KEYBOARD_DATA: u16 = 0x60;
const KEYBOARD_COMMAND: u16 = 0x64;
const SYSTEM_CONTROL_A: u16 = 0x92;
const PM_TIMER_HZ: u64 = 3_579_545;
/// SCI_EN: the hardware is in ACPI mode, always.
const CONTROL_SCI_ENABLE: u16 = 1 << 0;
const CONTROL_SLEEP_ENABLE: u16 = 1 << 13;
/// SLP_TYP and bus-master reload are kept as written.
const CONTROL_KEPT: u16 = 0x1c02;
const RESET_CPU: u8 = 1 << 2;
const A20_ENABLED: u8 = 1 << 1;
const FAST_RESET: u8 = 1 << 0;

/// The registers.
#[derive(Clone, Debug, Default)]
pub struct Power {
    enable: u16,
    control: u16,
    reset: u8,
}

impl Power {
    /// Reads `width` bytes at one of [`PORTS`].
    #[must_use]
    pub fn read(&self, port: u16, width: Width, clock: PitClock) -> u32 {
        let (first, register) = match port {
            PM1A_EVENT..PM1A_CONTROL => (PM1A_EVENT, u32::from(self.enable) << 16),
            PM1A_CONTROL..PM_TIMER => (PM1A_CONTROL, u32::from(self.control | CONTROL_SCI_ENABLE)),
            PM_TIMER.. if port < PM_TIMER + 4 => {
                (PM_TIMER, clock.ticks_since(0, PM_TIMER_HZ) as u32)
            }
            RESET => (RESET, u32::from(self.reset)),
            // No keyboard, as the FADT says; its controller always takes the next command, so that
            // a guest that waits for that before its reset command does not wait.
            KEYBOARD_COMMAND => (KEYBOARD_COMMAND, 0),
            SYSTEM_CONTROL_A => (SYSTEM_CONTROL_A, u32::from(A20_ENABLED)),
            _ => (port, u32::MAX),
        };
        register >> (8 * (port - first)) & width.mask() as u32
    }

    /// Writes `width` bytes at one of [`PORTS`].
    pub fn write(&mut self, port: u16, width: Width, value: u32) -> PortEffect {
        let byte = value as u8;
        match port {
            // Status bits are never set: nothing to clear. Enable is the high half.
            PM1A_EVENT if width == Width::Dword => self.enable = (value >> 16) as u16,
            0x602 if width == Width::Word => self.enable = value as u16,
            PM1A_CONTROL if width != Width::Byte => return self.sleep(value as u16),
            0x605 => return self.sleep(u16::from(byte) << 8 | self.control & 0xff),
            RESET => {
                self.reset = byte & !RESET_CPU;
                if byte & RESET_CPU != 0 {
                    return PortEffect::Reboot;
                }
            }
            // Commands 0xF0–0xFF pulse output lines that have a 0 in bits 3:0; bit 0 is reset.
            KEYBOARD_COMMAND if byte & 0xf1 == 0xf0 => return PortEffect::Reboot,
            SYSTEM_CONTROL_A if byte & FAST_RESET != 0 => return PortEffect::Reboot,
            _ => {}
        }
        PortEffect::None
    }

    fn sleep(&mut self, value: u16) -> PortEffect {
        self.control = value & CONTROL_KEPT;
        let sleep_type = (value >> 10) as u8 & 7;
        if value & CONTROL_SLEEP_ENABLE != 0 && sleep_type == SLEEP_TYPE_S5 {
            return PortEffect::PowerOff;
        }
        PortEffect::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCK: PitClock = PitClock { tsc: 2_000_000, tsc_khz: 1000 };

    #[test]
    fn sleeping_in_s5_is_power_off_and_only_with_sleep_enable() {
        let mut power = Power::default();
        let s5 = u32::from(SLEEP_TYPE_S5) << 10;
        assert_eq!(power.write(PM1A_CONTROL, Width::Word, s5 | 1), PortEffect::None);
        assert_eq!(power.read(PM1A_CONTROL, Width::Word, CLOCK), s5 | 1);
        assert_eq!(power.write(PM1A_CONTROL, Width::Word, s5 | 1 << 13), PortEffect::PowerOff);
        assert_eq!(power.write(0x605, Width::Byte, (s5 | 1 << 13) >> 8), PortEffect::PowerOff);
        assert_eq!(power.write(PM1A_CONTROL, Width::Word, 1 << 13), PortEffect::None);
    }

    #[test]
    fn the_hardware_is_always_in_acpi_mode() {
        assert_eq!(Power::default().read(PM1A_CONTROL, Width::Word, CLOCK), 1);
    }

    #[test]
    fn event_enable_is_kept_and_status_stays_clear() {
        let mut power = Power::default();
        power.write(0x602, Width::Word, 0x120);
        power.write(PM1A_EVENT, Width::Word, 0xffff);
        assert_eq!(power.read(0x602, Width::Word, CLOCK), 0x120);
        assert_eq!(power.read(PM1A_EVENT, Width::Word, CLOCK), 0);
    }

    #[test]
    fn the_pm_timer_runs_at_its_frequency() {
        let power = Power::default();
        assert_eq!(power.read(PM_TIMER, Width::Dword, CLOCK), 2 * 3_579_545);
        assert_eq!(power.read(PM_TIMER + 1, Width::Byte, CLOCK), ((2 * 3_579_545) >> 8) & 0xff);
    }

    #[test]
    fn every_way_to_reset_is_a_reboot_and_nothing_else_is() {
        let mut power = Power::default();
        for (port, value) in [(RESET, 6), (RESET, 0xe), (0x64, 0xfe), (0x64, 0xf0), (0x92, 3)] {
            assert_eq!(power.write(port, Width::Byte, value), PortEffect::Reboot, "{port:#x}");
        }
        for (port, value) in [(RESET, 2), (0x64, 0xff), (0x64, 0xd1), (0x92, 2), (0x60, 0xfe)] {
            assert_eq!(power.write(port, Width::Byte, value), PortEffect::None, "{port:#x}");
        }
        assert_eq!(power.read(RESET, Width::Byte, CLOCK), 2);
        assert_eq!(power.read(0x64, Width::Byte, CLOCK) & 2, 0, "ready for a command");
    }
}
