//! Power states (PCI Bus Power Management Interface Specification, "PCI Power Management States").
//!
//! Invariant: a function that was woken is as it was before, but for bus mastering, which a device does
//! not get back. Its registers answer, or the caller is told.

use arch::machine::ConfigSpace;
use arch::{Bdf, Width};

use crate::capability::{self, find};
use crate::header::{Command, Function, HeaderType};
use crate::reset::{Event, ResetError, Saved, until_ready};

/// From D3hot to D0, and back ("PCI Power Management State Transition Timing").
pub(crate) const TRANSITION_MS: u32 = 10;
/// PowerState in PMCSR.
pub(crate) const POWER_STATE: u32 = 3;
/// A one would clear it.
const PME_STATUS: u32 = 1 << 15;

/// Offset of PMCSR.
pub(crate) fn control(space: &impl ConfigSpace, function: Bdf) -> Option<u16> {
    Some(find(space, function, capability::POWER_MANAGEMENT)?.offset + 4)
}

/// Puts a function that sleeps (D1 to D3hot) into D0, and writes back what it may have lost on the way.
/// Returns whether it slept. `delay` waits for the given number of milliseconds.
///
/// # Errors
/// When it does not answer afterwards.
pub fn wake(
    space: &mut impl ConfigSpace,
    function: &Function,
    delay: &mut dyn FnMut(u32),
    report: &mut dyn FnMut(Event),
) -> Result<bool, ResetError> {
    let bdf = function.bdf;
    let Some(at) = control(space, bdf) else { return Ok(false) };
    let state = space.read(bdf, at, Width::Word);
    if state & POWER_STATE == 0 {
        return Ok(false);
    }
    let saved = Saved::read(space, bdf);
    let command = Command::read(space, bdf);
    space.write(bdf, at, Width::Word, state & !POWER_STATE & !PME_STATUS);
    delay(TRANSITION_MS);
    until_ready(space, bdf, delay, report)?;
    saved.restore(space);
    let taken = match function.header {
        HeaderType::Bridge { .. } => Command::empty(),
        HeaderType::Device | HeaderType::Unknown(_) => Command::BUS_MASTER,
    };
    (command - taken).write(space, bdf);
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeSpace;
    use crate::header::BAR0;
    use std::vec::Vec;

    const AT: Bdf = Bdf::new(0, 4, 0);
    const PMCSR: u16 = 0x44;

    /// A function in D3hot whose header is lost on the way to D0, and which answers `slow` reads late.
    struct Sleeper {
        inner: FakeSpace,
        waits: core::cell::Cell<u32>,
        slow: u32,
    }

    impl ConfigSpace for Sleeper {
        fn read(&self, function: Bdf, offset: u16, width: Width) -> u32 {
            if self.waits.get() > 0 {
                self.waits.set(self.waits.get() - 1);
                return width.mask() as u32;
            }
            self.inner.read(function, offset, width)
        }

        fn write(&mut self, function: Bdf, offset: u16, width: Width, value: u32) {
            if offset == PMCSR {
                assert_eq!(value & PME_STATUS, 0, "PME_Status is cleared by a one");
                for at in (BAR0..0x30).step_by(4) {
                    self.inner.write(function, at, Width::Dword, 0);
                }
                self.inner.write(function, 4, Width::Word, 0);
                self.waits.set(self.slow);
            }
            self.inner.write(function, offset, width, value);
        }
    }

    fn sleeper(header_type: u8, slow: u32) -> (Sleeper, Function) {
        let mut inner = FakeSpace::default();
        let device = inner.device(AT, if header_type == 1 { 0x06_0400 } else { 0x01_0802 });
        device.capability(0x40, capability::POWER_MANAGEMENT, &[3, 0, 3, 0x80]);
        device.bytes[0x0e] = header_type;
        for (at, value) in [(BAR0, 0xfebd_0000), (0x18, 0x0005_0300), (0x20, 0xfe10_fe00)] {
            device.set(at, value);
            device.set_writable(at, u32::MAX);
        }
        device.bytes[4] = 7;
        let function = Function::read(&inner, AT).unwrap();
        (Sleeper { inner, waits: 0.into(), slow }, function)
    }

    #[test]
    fn a_device_left_in_d3hot_is_woken_with_its_bars_and_masters_no_bus() {
        let (mut space, function) = sleeper(0, 0);
        let mut waited = 0;
        assert_eq!(wake(&mut space, &function, &mut |ms| waited += ms, &mut |_| {}), Ok(true));
        assert!(waited >= 10, "a transition takes 10 ms");
        assert_eq!(space.read(AT, BAR0, Width::Dword), 0xfebd_0000);
        assert_eq!(space.read(AT, 4, Width::Word), 3);
        assert_eq!(space.read(AT, PMCSR, Width::Word) & POWER_STATE, 0);
        assert_eq!(wake(&mut space, &function, &mut |_| {}, &mut |_| {}), Ok(false), "awake");
    }

    #[test]
    fn a_bridge_left_in_d3hot_keeps_its_buses_and_windows() {
        let (mut space, function) = sleeper(1, 3);
        assert_eq!(wake(&mut space, &function, &mut |_| {}, &mut |_| {}), Ok(true));
        assert_eq!(space.read(AT, 0x18, Width::Dword), 0x0005_0300);
        assert_eq!(space.read(AT, 0x20, Width::Dword), 0xfe10_fe00);
        assert_eq!(space.read(AT, 4, Width::Word), 7);
    }

    #[test]
    fn one_that_does_not_wake_is_lost_with_a_word_before_the_long_wait() {
        let (mut space, function) = sleeper(0, u32::MAX);
        let (mut waited, mut events) = (0_u32, Vec::new());
        let result = wake(&mut space, &function, &mut |ms| waited += ms, &mut |event| {
            events.push(event);
        });
        assert_eq!(result, Err(ResetError::Lost(AT)));
        assert_eq!(events, [Event::Waiting(AT)]);
        assert!((60_000..61_000).contains(&waited), "{waited}");
    }
}
