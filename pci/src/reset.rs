//! Takes a function away from its previous owner: bus mastering off, and reset.
//!
//! Three methods, best first: Function Level Reset; the power states D3hot and D0; and, if all functions behind a bridge
//! have one owner, the bridge's Secondary Bus Reset for all of them. Methods that are broken in a device are skipped
//! ([`crate::quirks`]). If a function does not return from its own reset, its bus is tried.
//!
//! Invariant: after a reset, a function has its BARs where they were, decoding and bus mastering off;
//! otherwise there is an error that says why. No function of another owner is touched.

use alloc::vec::Vec;
use core::fmt;

use arch::machine::ConfigSpace;
use arch::{Bdf, Width};

use crate::capability::{self, find};
use crate::header::{Command, EXPANSION_ROM, Function, HeaderType, VENDOR_ID};
use crate::{power, quirks};
pub(crate) use saved::Saved;
pub use way::{Way, way};

mod saved;
#[cfg(test)]
mod tests;
mod way;

/// How long transactions may be pending before a reset. The longest completion timeout that a device
/// has by itself is 50 ms ("Completion Timeout Mechanism"); Linux waits as long as this.
const MAX_PENDING_MS: u32 = 700;
/// A Function Level Reset takes as long at most ("Function Level Reset"), and as much is left to a device
/// behind a port ("Conventional Reset").
const RESET_MS: u32 = 100;
/// A conventional bus has as much after its reset: 2^25 clocks at 33 MHz (PCI Local Bus Specification,
/// "Reset").
const CONVENTIONAL_BUS_MS: u32 = 1000;
/// From here on the log says that there is a wait.
const LONG_WAIT_MS: u32 = 1000;
/// A device may go on saying that it is not ready ("Configuration Request Retry Status"), NVMe controllers
/// for many seconds. Linux gives up after as long.
const MAX_READY_MS: u32 = 60_000;
/// Between two questions.
const POLL_MS: u32 = 10;

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
            Self::Lost(bdf) => write!(
                f,
                "{bdf} does not answer {} s after its reset: power the machine off and on",
                MAX_READY_MS / 1000
            ),
        }
    }
}

impl core::error::Error for ResetError {}

/// The log's line about a reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// Transactions are still pending: it is reset all the same.
    Pending(Bdf),
    /// It does not answer yet.
    Waiting(Bdf),
    /// It does not come back from its own reset: its bus is tried.
    TryingBus(Bdf),
    /// It was not reset.
    Failed(ResetError),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pending(bdf) => write!(
                f,
                "{bdf} still has transactions pending after {MAX_PENDING_MS} ms: it is reset all the same"
            ),
            Self::Waiting(bdf) => write!(
                f,
                "{bdf} does not answer {LONG_WAIT_MS} ms after its reset: it is given {} s",
                MAX_READY_MS / 1000
            ),
            Self::TryingBus(bdf) => {
                write!(
                    f,
                    "{bdf} does not come back from its own reset: its bus is reset, if it is alone there"
                )
            }
            Self::Failed(error) => error.fmt(f),
        }
    }
}

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

fn method(space: &impl ConfigSpace, function: &Function) -> Option<Method> {
    let reset = function_level(space, function.bdf);
    if reset.is_some() && !quirks::has_broken_function_reset(function) {
        return reset;
    }
    const NO_SOFT_RESET: u32 = 1 << 3;
    let at = power::control(space, function.bdf)?;
    let soft = space.read(function.bdf, at, Width::Word) & NO_SOFT_RESET == 0;
    (soft && !quirks::has_broken_power_reset(function)).then_some(Method::PowerState(at))
}

fn function_level(space: &impl ConfigSpace, function: Bdf) -> Option<Method> {
    let read = |offset, width| space.read(function, offset, width);
    if let Some(at) = find(space, function, capability::PCI_EXPRESS).map(|c| c.offset)
        && read(at + 4, Width::Dword) & 1 << 28 != 0
    {
        let initiate = Field { offset: at + 8, width: Width::Word, bit: 1 << 15 };
        let pending = Field { offset: at + 10, width: Width::Word, bit: 1 << 5 };
        return Some(Method::FunctionLevel { initiate, pending });
    }
    let at = find(space, function, capability::ADVANCED_FEATURES)?.offset;
    let initiate = Field { offset: at + 4, width: Width::Byte, bit: 1 };
    let pending = Field { offset: at + 5, width: Width::Byte, bit: 1 };
    let offered = read(at + 3, Width::Byte) & 3 == 3;
    offered.then_some(Method::FunctionLevel { initiate, pending })
}

/// Resets the functions `owned`, of `all` in the machine, and tells `report` what went other than well.
/// `delay` waits for the given number of milliseconds.
pub fn reset_all(
    space: &mut impl ConfigSpace,
    all: &[Function],
    owned: &[Bdf],
    delay: &mut dyn FnMut(u32),
    report: &mut dyn FnMut(Event),
) {
    let mut left = Vec::new();
    let owned_functions = || all.iter().filter(|function| owned.contains(&function.bdf));
    let mut saved = Vec::new();
    for function in owned_functions() {
        // Asleep, it might not take a reset.
        if let Err(error) = power::wake(space, function, delay, report) {
            report(Event::Failed(error));
        }
        let decoding = quiet(space, function.bdf);
        saved.push((function.bdf, decoding, Saved::read(space, function.bdf)));
    }
    let saved = |function: Bdf| saved.iter().filter(move |it| it.0 == function);
    for function in owned_functions() {
        match reset(space, function, delay, report) {
            Ok(()) => saved(function.bdf).for_each(|(_, _, saved)| saved.restore(space)),
            Err(error) => left.push((function.bdf, error)),
        }
    }
    while let Some((function, error)) = left.pop() {
        let Some((bridge, behind)) = bus_of(all, function, owned) else {
            // It is handed on as it is.
            for (_, decoding, _) in saved(function) {
                (*decoding | Command::INTERRUPT_DISABLE).write(space, function);
            }
            report(Event::Failed(error));
            continue;
        };
        if error == ResetError::Lost(function) {
            report(Event::TryingBus(function));
        }
        reset_bus(space, bridge, delay);
        for function in &behind {
            match until_ready(space, *function, delay, report) {
                Ok(()) => saved(*function).for_each(|(_, _, saved)| saved.restore(space)),
                Err(error) => report(Event::Failed(error)),
            }
        }
        left.retain(|(other, _)| !behind.contains(other));
    }
}

/// Switches off decoding, bus mastering, the interrupt and the ROM. Returns the command register from before.
fn quiet(space: &mut impl ConfigSpace, function: Bdf) -> Command {
    const MESSAGE_CONTROL: u16 = 2;
    const ROM_ENABLE: u32 = 1;
    let command = Command::read(space, function);
    Command::INTERRUPT_DISABLE.write(space, function);
    for (id, enable) in [(capability::MSI, 1), (capability::MSI_X, 1 << 15)] {
        if let Some(capability) = find(space, function, id) {
            let at = capability.offset + MESSAGE_CONTROL;
            let control = space.read(function, at, Width::Word);
            space.write(function, at, Width::Word, control & !enable);
        }
    }
    let rom = space.read(function, EXPANSION_ROM, Width::Dword);
    space.write(function, EXPANSION_ROM, Width::Dword, rom & !ROM_ENABLE);
    command & (Command::IO_SPACE | Command::MEMORY_SPACE)
}

/// The bridge above `function` and all that is behind it, if that are devices of `owned` only, none of
/// which is known not to come back: a bridge there would lose its bus numbers.
fn bus_of(all: &[Function], function: Bdf, owned: &[Bdf]) -> Option<(Bdf, Vec<Bdf>)> {
    let bus = function.bus();
    let mut segment = all.iter().filter(|other| other.bdf.segment() == function.segment());
    let behind = segment.clone().filter(|other| other.bdf.bus() == bus);
    let header = HeaderType::Bridge { secondary: bus, subordinate: bus };
    let bridge = segment.find(|other| other.header == header)?;
    let ours = |other: &Function| {
        owned.contains(&other.bdf)
            && !other.is_infrastructure()
            && !quirks::has_broken_bus_reset(other)
    };
    behind.clone().all(ours).then(|| (bridge.bdf, behind.map(|other| other.bdf).collect()))
}

/// Resets everything behind a bridge (PCI-to-PCI Bridge Architecture Specification, "Bridge Control
/// Register"), and waits until a link is up again (PCI Express Base Specification, "Conventional Reset").
fn reset_bus(space: &mut impl ConfigSpace, bridge: Bdf, delay: &mut dyn FnMut(u32)) {
    const BRIDGE_CONTROL: u16 = 0x3e;
    const SECONDARY_BUS_RESET: u32 = 1 << 6;
    let control = space.read(bridge, BRIDGE_CONTROL, Width::Word);
    space.write(bridge, BRIDGE_CONTROL, Width::Word, control | SECONDARY_BUS_RESET);
    delay(2);
    space.write(bridge, BRIDGE_CONTROL, Width::Word, control & !SECONDARY_BUS_RESET);
    let express = find(space, bridge, capability::PCI_EXPRESS);
    let Some(at) = express.map(|c| c.offset).filter(|at| is_port(space, bridge, *at)) else {
        return delay(CONVENTIONAL_BUS_MS);
    };
    delay(RESET_MS);
    if space.read(bridge, at + LINK_CAPABILITIES, Width::Dword) & LINK_ACTIVE_REPORTING != 0 {
        let up = || space.read(bridge, at + LINK_STATUS, Width::Word) & LINK_ACTIVE != 0;
        let waited = wait(delay, LONG_WAIT_MS, up);
        // A link that was not up at once is young: devices have their time from there on.
        if waited > 0 {
            delay(RESET_MS);
        }
    }
}

const LINK_CAPABILITIES: u16 = 0x0c;
/// Data Link Layer Link Active Reporting Capable.
const LINK_ACTIVE_REPORTING: u32 = 1 << 20;
const LINK_STATUS: u16 = 0x12;
/// Data Link Layer Link Active.
const LINK_ACTIVE: u32 = 1 << 13;

/// A root port or the downstream port of a switch, whose secondary bus is a link.
fn is_port(space: &impl ConfigSpace, bridge: Bdf, express: u16) -> bool {
    matches!(space.read(bridge, express + 2, Width::Word) >> 4 & 0xf, 4 | 6)
}

/// Resets `function` alone (PCI Express Base Specification, "Function Level Reset"; PCI Power
/// Management Interface Specification, "D3hot State"), until it answers again.
fn reset(
    space: &mut impl ConfigSpace,
    function: &Function,
    delay: &mut dyn FnMut(u32),
    report: &mut dyn FnMut(Event),
) -> Result<(), ResetError> {
    let bdf = function.bdf;
    match method(space, function).ok_or(ResetError::NotSupported(bdf))? {
        Method::FunctionLevel { initiate, pending } => {
            let idle = || space.read(bdf, pending.offset, pending.width) & pending.bit == 0;
            wait(delay, MAX_PENDING_MS, idle);
            if space.read(bdf, pending.offset, pending.width) & pending.bit != 0 {
                report(Event::Pending(bdf));
            }
            let value = space.read(bdf, initiate.offset, initiate.width) | initiate.bit;
            space.write(bdf, initiate.offset, initiate.width, value);
            delay(RESET_MS + quirks::rest_after_function_reset_ms(function));
        }
        Method::PowerState(at) => {
            for state in [power::POWER_STATE, 0] {
                space.write(bdf, at, Width::Word, state);
                delay(power::TRANSITION_MS);
            }
        }
    }
    until_ready(space, bdf, delay, report)
}

/// Waits until the function's registers can be read again.
pub(crate) fn until_ready(
    space: &impl ConfigSpace,
    function: Bdf,
    delay: &mut dyn FnMut(u32),
    report: &mut dyn FnMut(Event),
) -> Result<(), ResetError> {
    /// Vendor ID while a device answers with Configuration Request Retry Status.
    const NOT_YET: u32 = 1;
    let ready = || {
        let identity = space.read(function, VENDOR_ID, Width::Dword);
        identity != u32::MAX && identity & 0xffff != NOT_YET
    };
    if wait(delay, LONG_WAIT_MS, ready) < LONG_WAIT_MS || ready() {
        return Ok(());
    }
    report(Event::Waiting(function));
    wait(delay, MAX_READY_MS - LONG_WAIT_MS, ready);
    if ready() { Ok(()) } else { Err(ResetError::Lost(function)) }
}

/// Asks `done` now and then, for `limit` ms at most. Returns how long it waited.
fn wait(delay: &mut dyn FnMut(u32), limit: u32, done: impl Fn() -> bool) -> u32 {
    let mut waited = 0;
    while waited < limit && !done() {
        delay(POLL_MS);
        waited += POLL_MS;
    }
    waited
}
