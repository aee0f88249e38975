//! A record of a function's BARs from before any guest ran.
//!
//! Invariant: later values are compared with the record and never trusted: a guest can reprogram some devices (FPGAs,
//! network cards and displays).

use core::fmt;

use arch::machine::ConfigSpace;
use arch::{Bdf, Width};

use crate::bar::{Bar, size_bars};
use crate::header::{BAR0, Command, Function, HeaderType};

/// The BARs of one function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    pub function: Bdf,
    /// The BARs, by the index of their first register.
    pub bars: [Option<Bar>; 6],
    /// Which of I/O Space and Memory Space it decoded.
    pub decodes: Command,
    registers: [u32; 6],
    /// How many of the registers there are.
    count: usize,
}

/// A BAR register differs from its record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Changed {
    pub function: Bdf,
    /// Index of the register.
    pub register: u8,
    /// The recorded value.
    pub was: u32,
    /// The value now.
    pub is: u32,
}

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { function, register, was, is } = self;
        write!(
            f,
            "{function}: BAR register {register} is {is:#010x}, but was {was:#010x} at boot: the device \
             is not given to a guest again until the machine is switched off and on"
        )
    }
}

impl core::error::Error for Changed {}

impl Record {
    /// Reads and sizes the BARs of a function, which is quiet. Those of a host bridge and other bridges
    /// without a bus behind them are left alone: some may not be switched off for a moment, and no guest
    /// gets one.
    pub fn take(space: &mut impl ConfigSpace, function: &Function) -> Self {
        let count = match function.header {
            HeaderType::Device if !function.is_infrastructure() => 6,
            HeaderType::Bridge { .. } => 2,
            HeaderType::Device | HeaderType::Unknown(_) => 0,
        };
        let bdf = function.bdf;
        let decodes = Command::read(space, bdf) & (Command::IO_SPACE | Command::MEMORY_SPACE);
        let mut registers = [0; 6];
        for (register, offset) in registers.iter_mut().zip(offsets()).take(count) {
            *register = space.read(bdf, offset, Width::Dword);
        }
        let bars = if count == 0 { [None; 6] } else { size_bars(space, bdf, count) };
        Self { function: bdf, bars, decodes, registers, count }
    }

    /// Whether the function decoded what this BAR is for.
    #[must_use]
    pub const fn decodes(&self, bar: &Bar) -> bool {
        let space = if bar.is_memory() { Command::MEMORY_SPACE } else { Command::IO_SPACE };
        self.decodes.contains(space)
    }

    /// Writes the registers as they were. The function does not decode meanwhile.
    pub fn restore(&self, space: &mut impl ConfigSpace) {
        for (register, offset) in self.registers.iter().zip(offsets()).take(self.count) {
            space.write(self.function, offset, Width::Dword, *register);
        }
    }

    /// Whether the registers still have the recorded values.
    ///
    /// # Errors
    /// Names the first that differs.
    pub fn check(&self, space: &impl ConfigSpace) -> Result<(), Changed> {
        for (index, (was, offset)) in
            self.registers.iter().zip(offsets()).take(self.count).enumerate()
        {
            let is = space.read(self.function, offset, Width::Dword);
            if is != *was {
                let (function, register) = (self.function, index as u8);
                return Err(Changed { function, register, was: *was, is });
            }
        }
        Ok(())
    }
}

fn offsets() -> impl Iterator<Item = u16> {
    (0..6).map(|index| BAR0 + 4 * index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{FakeSpace, arbitrary_bars};
    use proptest::prelude::*;
    use std::string::ToString;

    const AT: Bdf = Bdf::new(0, 4, 0);

    proptest! {
        #[test]
        fn what_was_recorded_comes_back_whatever_the_registers_say_later(
            bars in arbitrary_bars(), lies: [u32; 6],
        ) {
            let mut space = FakeSpace::default();
            space.device(AT, 0x01_0802).set_bars(&bars);
            let function = Function::read(&space, AT).unwrap();
            let record = Record::take(&mut space, &function);
            prop_assert_eq!(record.bars, bars);
            for (index, lie) in lies.into_iter().enumerate() {
                space.write(AT, BAR0 + 4 * index as u16, Width::Dword, lie);
            }
            record.restore(&mut space);
            prop_assert_eq!(record.check(&space), Ok(()));
            prop_assert_eq!(size_bars(&mut space, AT, 6), bars);
        }
    }

    #[test]
    fn a_device_that_keeps_another_address_is_noticed() {
        let mut space = FakeSpace::default();
        let device = space.device(AT, 0x01_0802);
        device.set(BAR0, 0xfebd_0000);
        device.set_writable(BAR0, 0xffff_0000);
        let function = Function::read(&space, AT).unwrap();
        let record = Record::take(&mut space, &function);
        assert_eq!(record.check(&space), Ok(()));
        let device = space.functions.get_mut(&AT).unwrap();
        device.set(BAR0, 0x0010_0000);
        device.set_writable(BAR0, 0);
        record.restore(&mut space);
        let changed = record.check(&space).unwrap_err();
        assert_eq!((changed.was, changed.is), (0xfebd_0000, 0x0010_0000));
        assert!(changed.to_string().starts_with("00:04.0: BAR register 0 is 0x00100000"));
    }

    #[test]
    fn a_host_bridge_is_not_switched_off_for_its_size() {
        let mut space = FakeSpace::default();
        let bridge = space.device(AT, 0x06_0000);
        bridge.set(BAR0, 0xe000_0000);
        bridge.bytes[4] = 6;
        let before = bridge.clone();
        let function = Function::read(&space, AT).unwrap();
        assert_eq!(Record::take(&mut space, &function).bars, [None; 6]);
        assert_eq!(space.functions[&AT].bytes, before.bytes);
    }
}
