//! Taking a function away from whoever had it: bus mastering off, and reset.
//!
//! Three ways, best first: Function Level Reset; the power states D3hot and D0; and where a bridge has
//! nothing behind it but functions of one owner, the bridge's Secondary Bus Reset for all of them.
//!
//! Invariant: a function that is reset has its BARs where they were, decoding and bus mastering off;
//! for every other there is an error that says why. Nobody else's function is touched.

use alloc::vec::Vec;
use core::fmt;

use arch::machine::ConfigSpace;
use arch::{Bdf, Width};

use crate::capability::{self, find};
use crate::header::{BAR0, BAR5, CACHE_LINE_SIZE, Command, Function, HeaderType, VENDOR_ID};

/// Clears Bus Master of every function but bridges, and takes their INTx: a line that a guest gets may
/// be another function's too. Bridges that lead to a bus forward what masters there: no guest sees them
/// to switch that on. To be called before DMA translation is switched on: firmware hands some devices
/// over as bus masters.
pub fn quiesce<'a>(
    space: &mut impl ConfigSpace,
    functions: impl IntoIterator<Item = &'a Function>,
) {
    for function in functions {
        let command = Command::read(space, function.bdf);
        let wanted = match function.header {
            HeaderType::Device => (command - Command::BUS_MASTER) | Command::INTERRUPT_DISABLE,
            HeaderType::Bridge { secondary: 1.., .. } => command | Command::BUS_MASTER,
            HeaderType::Bridge { .. } | HeaderType::Unknown(_) => continue,
        };
        wanted.write(space, function.bdf);
    }
}

/// Why a function was not reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResetError {
    /// It offers no way of its own, and shares its bus with others or is on a root bus.
    NotSupported(Bdf),
    /// It still had transactions pending when the wait ended.
    Busy(Bdf),
    /// It did not answer again.
    Lost(Bdf),
}

impl fmt::Display for ResetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSupported(bdf) => write!(
                f,
                "{bdf} can be reset neither by Function Level Reset nor through its power states, \
                 nor its bus alone: power the machine off to give it to another guest"
            ),
            Self::Busy(bdf) => write!(
                f,
                "{bdf} still has transactions pending after 100 ms and is not reset: \
                 power the machine off to give it to another guest"
            ),
            Self::Lost(bdf) => {
                write!(f, "{bdf} does not answer 1 s after its reset: power the machine off and on")
            }
        }
    }
}

impl core::error::Error for ResetError {}

/// The ways to reset one function alone, best first.
#[derive(Clone, Copy)]
enum Method {
    /// Function Level Reset: a bit to set, and one that shows pending transactions.
    FunctionLevel { initiate: Field, pending: Field },
    /// PMCSR is at this offset; D3hot to D0 resets the function.
    PowerState(u16),
}

/// A bit in a register.
#[derive(Clone, Copy)]
struct Field {
    offset: u16,
    width: Width,
    bit: u32,
}

fn method(space: &impl ConfigSpace, function: Bdf) -> Option<Method> {
    let read = |offset, width| space.read(function, offset, width);
    if let Some(at) = find(space, function, capability::PCI_EXPRESS).map(|c| c.offset)
        && read(at + 4, Width::Dword) & 1 << 28 != 0
    {
        let initiate = Field { offset: at + 8, width: Width::Word, bit: 1 << 15 };
        let pending = Field { offset: at + 10, width: Width::Word, bit: 1 << 5 };
        return Some(Method::FunctionLevel { initiate, pending });
    }
    if let Some(at) = find(space, function, capability::ADVANCED_FEATURES).map(|c| c.offset)
        && read(at + 3, Width::Byte) & 3 == 3
    {
        let initiate = Field { offset: at + 4, width: Width::Byte, bit: 1 };
        let pending = Field { offset: at + 5, width: Width::Byte, bit: 1 };
        return Some(Method::FunctionLevel { initiate, pending });
    }
    const NO_SOFT_RESET: u32 = 1 << 3;
    let at = find(space, function, capability::POWER_MANAGEMENT)?.offset + 4;
    (read(at, Width::Word) & NO_SOFT_RESET == 0).then_some(Method::PowerState(at))
}

/// Resets the functions `owned`, of `all` in the machine, and hands `failed` those that could not be.
/// `delay` waits for so many milliseconds.
pub fn reset_all(
    space: &mut impl ConfigSpace,
    all: &[Function],
    owned: &[Bdf],
    delay: &mut dyn FnMut(u32),
    failed: &mut dyn FnMut(ResetError),
) {
    let mut left = Vec::new();
    for function in owned {
        match reset(space, *function, delay) {
            Ok(()) => {}
            Err(ResetError::NotSupported(_)) => left.push(*function),
            Err(error) => failed(error),
        }
    }
    while let Some(function) = left.pop() {
        let Some((bridge, behind)) = bus_of(all, function, owned) else {
            failed(ResetError::NotSupported(function));
            continue;
        };
        reset_bus(space, bridge, &behind, delay).unwrap_or_else(&mut *failed);
        left.retain(|other| !behind.contains(other));
    }
}

/// The bridge above `function` and all that is behind it, if that are devices of `owned` only: a bridge
/// there would lose its bus numbers.
fn bus_of(all: &[Function], function: Bdf, owned: &[Bdf]) -> Option<(Bdf, Vec<Bdf>)> {
    let bus = function.bus();
    let mut segment = all.iter().filter(|other| other.bdf.segment() == function.segment());
    let behind = segment.clone().filter(|other| other.bdf.bus() == bus);
    let header = HeaderType::Bridge { secondary: bus, subordinate: bus };
    let bridge = segment.find(|other| other.header == header)?;
    let ours = |other: &Function| owned.contains(&other.bdf) && !other.is_infrastructure();
    behind.clone().all(ours).then(|| (bridge.bdf, behind.map(|other| other.bdf).collect()))
}

/// Resets everything behind a bridge (PCI-to-PCI Bridge Architecture Specification, "Bridge Control
/// Register").
fn reset_bus(
    space: &mut impl ConfigSpace,
    bridge: Bdf,
    behind: &[Bdf],
    delay: &mut dyn FnMut(u32),
) -> Result<(), ResetError> {
    const BRIDGE_CONTROL: u16 = 0x3e;
    const SECONDARY_BUS_RESET: u32 = 1 << 6;
    let saved: Vec<Saved> = behind.iter().map(|function| Saved::quiet(space, *function)).collect();
    let control = space.read(bridge, BRIDGE_CONTROL, Width::Word);
    space.write(bridge, BRIDGE_CONTROL, Width::Word, control | SECONDARY_BUS_RESET);
    delay(2);
    space.write(bridge, BRIDGE_CONTROL, Width::Word, control);
    delay(100);
    let mut result = Ok(());
    for (function, saved) in behind.iter().zip(&saved) {
        result = saved.restore(space, *function, delay).and(result);
    }
    result
}

/// Resets `function` alone (PCI Express Base Specification, "Function Level Reset"; PCI Power
/// Management Interface Specification, "D3hot State"). `delay` waits for so many milliseconds.
///
/// # Errors
/// When the function has no such reset, stays busy, or does not come back.
fn reset(
    space: &mut impl ConfigSpace,
    function: Bdf,
    delay: &mut dyn FnMut(u32),
) -> Result<(), ResetError> {
    let method = method(space, function).ok_or(ResetError::NotSupported(function))?;
    let saved = Saved::quiet(space, function);
    match method {
        Method::FunctionLevel { initiate, pending } => {
            let idle = |space: &_| {
                ConfigSpace::read(space, function, pending.offset, pending.width) & pending.bit == 0
            };
            if !wait(delay, 100, || idle(&*space)) {
                return Err(ResetError::Busy(function));
            }
            let value = space.read(function, initiate.offset, initiate.width) | initiate.bit;
            space.write(function, initiate.offset, initiate.width, value);
        }
        Method::PowerState(at) => {
            space.write(function, at, Width::Word, 3);
            delay(10);
            space.write(function, at, Width::Word, 0);
        }
    }
    delay(100);
    saved.restore(space, function, delay)
}

/// Asks `done` every 10 ms, for `limit` ms at most.
fn wait(delay: &mut dyn FnMut(u32), limit: u32, done: impl Fn() -> bool) -> bool {
    (0..limit / 10).any(|_| {
        let is_done = done();
        if !is_done {
            delay(10);
        }
        is_done
    })
}

/// What a reset loses and the firmware had set up.
struct Saved {
    bars: [u32; 6],
    cache_line_and_latency: u32,
    /// Offset and value of Device Control.
    device_control: Option<(u16, u32)>,
}

fn bar_offsets() -> impl Iterator<Item = u16> {
    (BAR0..=BAR5).step_by(4)
}

impl Saved {
    /// Makes the function quiet, and reads it.
    fn quiet(space: &mut impl ConfigSpace, function: Bdf) -> Self {
        Command::INTERRUPT_DISABLE.write(space, function);
        let mut bars = [0; 6];
        for (bar, offset) in bars.iter_mut().zip(bar_offsets()) {
            *bar = space.read(function, offset, Width::Dword);
        }
        let control = find(space, function, capability::PCI_EXPRESS).map(|c| c.offset + 8);
        Self {
            bars,
            cache_line_and_latency: space.read(function, CACHE_LINE_SIZE, Width::Word),
            device_control: control.map(|at| (at, space.read(function, at, Width::Word))),
        }
    }

    /// Writes it back, once the function answers again.
    fn restore(
        &self,
        space: &mut impl ConfigSpace,
        function: Bdf,
        delay: &mut dyn FnMut(u32),
    ) -> Result<(), ResetError> {
        let answers = || !matches!(space.read(function, VENDOR_ID, Width::Word), 0xffff | 1);
        if !wait(delay, 1000, answers) {
            return Err(ResetError::Lost(function));
        }
        for (bar, offset) in self.bars.iter().zip(bar_offsets()) {
            space.write(function, offset, Width::Dword, *bar);
        }
        space.write(function, CACHE_LINE_SIZE, Width::Word, self.cache_line_and_latency);
        if let Some((at, value)) = self.device_control {
            space.write(function, at, Width::Word, value);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeSpace;
    use crate::header::scan;
    use std::vec;
    use std::vec::Vec;

    const AT: Bdf = Bdf::new(0, 4, 0);

    /// A device whose BARs are lost when the bit is set.
    struct Resettable {
        inner: FakeSpace,
        bit: (u16, u32),
        dead_after: bool,
        resets: u32,
    }

    impl ConfigSpace for Resettable {
        fn read(&self, function: Bdf, offset: u16, width: Width) -> u32 {
            if self.dead_after && self.resets > 0 {
                return width.mask() as u32;
            }
            self.inner.read(function, offset, width)
        }

        fn write(&mut self, function: Bdf, offset: u16, width: Width, value: u32) {
            if offset == self.bit.0 && value & self.bit.1 == self.bit.1 {
                self.resets += 1;
                self.inner.write(function, BAR0, Width::Dword, 0);
                assert_eq!(self.inner.read(function, 4, Width::Word), 0x400, "not quiet at reset");
                return;
            }
            self.inner.write(function, offset, width, value);
        }
    }

    fn device(id: u16, body: &[u8], bit: (u16, u32)) -> Resettable {
        let mut inner = FakeSpace::default();
        let device = inner.device(AT, 0x010802);
        device.capability(0x40, id, body);
        device.set(BAR0, 0xfebd_0000);
        device.set_writable(BAR0, 0xffff_0000);
        device.bytes[4] = 7;
        Resettable { inner, bit, dead_after: false, resets: 0 }
    }

    fn express() -> Resettable {
        device(capability::PCI_EXPRESS, &[2, 0, 0, 0, 0, 0x10, 0x20, 0x28, 0, 0], (0x48, 1 << 15))
    }

    #[test]
    fn every_method_resets_once_and_restores_the_bars() {
        let advanced = device(capability::ADVANCED_FEATURES, &[6, 3, 0, 0], (0x44, 1));
        let power = device(capability::POWER_MANAGEMENT, &[3, 0, 0, 0], (0x44, 3));
        for mut space in [express(), advanced, power] {
            let mut waited = 0;
            assert_eq!(reset(&mut space, AT, &mut |ms| waited += ms), Ok(()));
            assert_eq!(space.resets, 1);
            assert!(waited >= 100);
            assert_eq!(space.read(AT, BAR0, Width::Dword), 0xfebd_0000);
            assert_eq!(space.read(AT, 4, Width::Word), 0x400);
        }
    }

    #[test]
    fn what_cannot_be_reset_says_so() {
        let mut plain = device(capability::POWER_MANAGEMENT, &[3, 0, 8, 0], (0x44, 3));
        assert_eq!(reset(&mut plain, AT, &mut |_| {}), Err(ResetError::NotSupported(AT)));
        let mut busy = express();
        busy.inner.functions.get_mut(&AT).unwrap().bytes[0x4a] = 0x20;
        assert_eq!(reset(&mut busy, AT, &mut |_| {}), Err(ResetError::Busy(AT)));
        let mut dead = express();
        dead.dead_after = true;
        assert_eq!(reset(&mut dead, AT, &mut |_| {}), Err(ResetError::Lost(AT)));
    }

    /// A root port at 00:01.0 with two functions behind it that have no reset of their own, and a
    /// device on the root bus that has none either.
    struct Bus {
        inner: FakeSpace,
        resets: u32,
    }

    const BRIDGE: Bdf = Bdf::new(0, 1, 0);
    const PAIR: [Bdf; 2] = [Bdf::new(1, 0, 0), Bdf::new(1, 0, 1)];

    impl ConfigSpace for Bus {
        fn read(&self, function: Bdf, offset: u16, width: Width) -> u32 {
            self.inner.read(function, offset, width)
        }

        fn write(&mut self, function: Bdf, offset: u16, width: Width, value: u32) {
            if (function, offset) == (BRIDGE, 0x3e) && value & 0x40 != 0 {
                self.resets += 1;
                for function in PAIR {
                    assert_eq!(self.inner.read(function, 4, Width::Word), 0x400, "not quiet");
                    self.inner.write(function, BAR0, Width::Dword, 0);
                }
            }
            self.inner.write(function, offset, width, value);
        }
    }

    fn bus() -> (Bus, Vec<Function>) {
        let mut inner = FakeSpace::default();
        inner.bridge(BRIDGE, 1);
        inner.functions.get_mut(&BRIDGE).unwrap().set_writable(0x3c, 0xffff_0000);
        for at in PAIR.into_iter().chain([AT]) {
            let device = inner.device(at, 0x01_0802);
            device.bytes[0x0e] = 0x80;
            device.set(BAR0, 0xfebd_0000);
            device.set_writable(BAR0, 0xffff_0000);
            device.bytes[4] = 7;
        }
        let all = scan(&inner, 0, [0]).collect();
        (Bus { inner, resets: 0 }, all)
    }

    fn failures(space: &mut impl ConfigSpace, all: &[Function], owned: &[Bdf]) -> Vec<ResetError> {
        let mut failures = Vec::new();
        reset_all(space, all, owned, &mut |_| {}, &mut |error| failures.push(error));
        failures
    }

    #[test]
    fn a_bus_of_one_owner_is_reset_once_for_all_its_functions() {
        let (mut bus, all) = bus();
        assert_eq!(failures(&mut bus, &all, &PAIR), []);
        assert_eq!((bus.resets, bus.read(BRIDGE, 0x3e, Width::Word)), (1, 0));
        for function in PAIR {
            assert_eq!(bus.read(function, BAR0, Width::Dword), 0xfebd_0000);
            assert_eq!(bus.read(function, 4, Width::Word), 0x400);
        }
    }

    #[test]
    fn a_namesake_in_another_segment_does_not_keep_a_bus_from_its_reset() {
        let (mut bus, mut all) = bus();
        let far = |bdf: Bdf| Function { bdf: bdf.in_segment(1), ..all[0] };
        // The bridge and a device there come first.
        all = [vec![far(BRIDGE), far(PAIR[1])], all.clone()].concat();
        assert_eq!(failures(&mut bus, &all, &PAIR), []);
        assert_eq!(bus.resets, 1);
    }

    #[test]
    fn a_bus_is_not_reset_under_others_nor_where_there_is_no_bridge() {
        let (mut bus, all) = bus();
        let refused = |function| [ResetError::NotSupported(function)];
        assert_eq!(failures(&mut bus, &all, &PAIR[..1]), refused(PAIR[0]));
        assert_eq!(failures(&mut bus, &all, &[AT]), refused(AT));
        bus.inner.functions.get_mut(&PAIR[1]).unwrap().set(8, 0x0604_0000);
        let all: Vec<_> = scan(&bus.inner, 0, [0]).collect();
        assert_eq!(failures(&mut bus, &all, &PAIR[..1]), refused(PAIR[0]), "beside a bridge");
        assert_eq!(bus.resets, 0);
    }

    #[test]
    fn quiesce_leaves_no_bus_master_but_bridges_that_lead_somewhere() {
        let mut space = FakeSpace::default();
        space.device(AT, 0).bytes[4] = 7;
        let (bridge, unused) = (Bdf::new(0, 1, 0), Bdf::new(0, 2, 0));
        space.bridge(bridge, 1);
        space.bridge(unused, 0);
        space.write(bridge, 4, Width::Word, 3);
        let functions: Vec<_> = scan(&space, 0, [0]).collect();
        quiesce(&mut space, &functions);
        assert_eq!(space.read(AT, 4, Width::Word), 0x403);
        assert_eq!(space.read(bridge, 4, Width::Word), 7);
        assert_eq!(space.read(unused, 4, Width::Word), 0);
    }
}
