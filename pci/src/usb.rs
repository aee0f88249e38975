//! USB controllers taken from the firmware, which drives them behind everybody's back, by SMIs, to have a
//! keyboard.
//!
//! Place: at bring-up, while the functions still master the bus, for all of them: firmware that goes on
//! with a controller that is nobody's would meet the IOMMU. Every wait ends, and one that firmware does
//! not give up is taken.

use arch::machine::{ConfigSpace, Width};
use arch::{Bdf, Hpa};

use crate::header::{BAR0, Command, Function};

/// A controller's registers in memory.
pub trait Registers {
    /// Reads the register at `offset`.
    fn read(&self, offset: u64) -> u32;
    /// Writes the register at `offset`.
    fn write(&mut self, offset: u64, value: u32);
}

/// Bytes of registers that are looked at.
pub const REGISTERS: u64 = 64 << 10;

/// What came of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HandOff {
    /// No USB controller, or firmware did not have it.
    Nothing,
    /// Firmware has given it up.
    Given,
    /// Firmware did not answer; the controller was taken.
    Taken,
}

/// Base class and sub-class of USB controllers.
pub const CLASS: u32 = 0x0c_03;
/// Programming interfaces of USB controllers (PCI Code and ID Assignment Specification, "Class Codes").
const UHCI: u32 = 0x0c_0300;
const OHCI: u32 = 0x0c_0310;
const EHCI: u32 = 0x0c_0320;
const XHCI: u32 = 0x0c_0330;
/// The capability by which an EHCI or xHCI controller changes hands.
const LEGACY_SUPPORT: u32 = 1;
/// No list of capabilities is longer.
const MAX_CAPABILITIES: u32 = 64;

/// Takes a USB controller from the firmware. `map` gives the [`REGISTERS`] at an address, `delay` waits
/// for the given number of milliseconds.
pub fn take<C: ConfigSpace, R: Registers>(
    space: &mut C,
    function: &Function,
    map: impl FnOnce(Hpa) -> Option<R>,
    delay: &mut dyn FnMut(u32),
) -> HandOff {
    let at = function.bdf;
    let registers = || base(space, at).and_then(map);
    match function.class {
        UHCI => uhci(space, at),
        OHCI => registers().map_or(HandOff::Nothing, |mut registers| ohci(&mut registers, delay)),
        EHCI => match registers() {
            Some(registers) => ehci(space, at, &registers, delay),
            None => HandOff::Nothing,
        },
        XHCI => registers().map_or(HandOff::Nothing, |mut registers| xhci(&mut registers, delay)),
        _ => HandOff::Nothing,
    }
}

/// What the first BAR decodes, if it is memory and decoded.
fn base(space: &impl ConfigSpace, at: Bdf) -> Option<Hpa> {
    let bar = space.read(at, BAR0, Width::Dword);
    let (is_io, is_64_bit) = (bar & 1 != 0, bar & 6 == 4);
    let high = if is_64_bit { space.read(at, BAR0 + 4, Width::Dword) } else { 0 };
    let base = u64::from(high) << 32 | u64::from(bar & !0xf);
    let decodes = Command::read(space, at).contains(Command::MEMORY_SPACE);
    (decodes && !is_io && base != 0).then_some(Hpa::new(base))
}

/// UHCI Design Guide, "Legacy Support Register": no trap makes an SMI any more, and all status is cleared.
fn uhci(space: &mut impl ConfigSpace, at: Bdf) -> HandOff {
    const LEGSUP: u16 = 0xc0;
    const TRAPS: u32 = 0x00bf;
    const STATUS: u32 = 0x8f00;
    let had = space.read(at, LEGSUP, Width::Word) & TRAPS != 0;
    space.write(at, LEGSUP, Width::Word, STATUS);
    if had { HandOff::Given } else { HandOff::Nothing }
}

/// OHCI Specification, "HcControl Register" (InterruptRouting) and "HcCommandStatus Register"
/// (OwnershipChangeRequest).
fn ohci(registers: &mut impl Registers, delay: &mut dyn FnMut(u32)) -> HandOff {
    const CONTROL: u64 = 0x04;
    const COMMAND_STATUS: u64 = 0x08;
    const INTERRUPT_DISABLE: u64 = 0x14;
    const INTERRUPT_ROUTING: u32 = 1 << 8;
    const OWNERSHIP_CHANGE_REQUEST: u32 = 1 << 3;
    const ALL: u32 = 1 << 31;
    let control = registers.read(CONTROL);
    if control & INTERRUPT_ROUTING == 0 || control == u32::MAX {
        return HandOff::Nothing;
    }
    registers.write(COMMAND_STATUS, OWNERSHIP_CHANGE_REQUEST);
    let given = wait(delay, || registers.read(CONTROL) & INTERRUPT_ROUTING == 0);
    registers.write(INTERRUPT_DISABLE, ALL);
    if !given {
        registers.write(CONTROL, control & !INTERRUPT_ROUTING);
    }
    if given { HandOff::Given } else { HandOff::Taken }
}

/// EHCI Specification, "HCCPARAMS" (EECP) and "USB Legacy Support Extended Capability".
fn ehci(
    space: &mut impl ConfigSpace,
    at: Bdf,
    registers: &impl Registers,
    delay: &mut dyn FnMut(u32),
) -> HandOff {
    const HCCPARAMS: u64 = 0x08;
    let mut offset = (registers.read(HCCPARAMS) >> 8 & 0xfc) as u16;
    for _ in 0..MAX_CAPABILITIES {
        if !(0x40..0xfc).contains(&offset) {
            break;
        }
        let capability = space.read(at, offset, Width::Dword);
        if capability & 0xff == LEGACY_SUPPORT {
            let result = take_from_firmware(&mut Config { space, at, offset }, delay);
            // Control and status: no event makes an SMI.
            space.write(at, offset + 4, Width::Dword, 0);
            return result;
        }
        offset = (capability >> 8 & 0xfc) as u16;
    }
    HandOff::Nothing
}

/// xHCI Specification, "HCCPARAMS1" (xECP) and "USB Legacy Support Capability".
fn xhci(registers: &mut impl Registers, delay: &mut dyn FnMut(u32)) -> HandOff {
    const HCCPARAMS1: u64 = 0x10;
    /// Bits of USBLEGCTLSTS that are reserved, and its events, cleared by writing 1. The rest enables SMIs.
    const RESERVED: u32 = 0x000e_1fee;
    const EVENTS: u32 = 0xe000_0000;
    let parameters = registers.read(HCCPARAMS1);
    let mut offset = u64::from(parameters >> 16) * 4;
    for _ in 0..MAX_CAPABILITIES {
        if !(0x20..REGISTERS - 8).contains(&offset) || parameters == u32::MAX {
            break;
        }
        let capability = registers.read(offset);
        if capability & 0xff == LEGACY_SUPPORT {
            let result = take_from_firmware(&mut Memory { registers, offset }, delay);
            let control = registers.read(offset + 4);
            registers.write(offset + 4, control & RESERVED | EVENTS);
            return result;
        }
        match u64::from(capability >> 8 & 0xff) * 4 {
            0 => break,
            next => offset += next,
        }
    }
    HandOff::Nothing
}

/// The register USBLEGSUP.
trait Semaphores {
    fn read(&self) -> u32;
    fn write(&mut self, value: u32);
}

struct Config<'a, C> {
    space: &'a mut C,
    at: Bdf,
    offset: u16,
}

impl<C: ConfigSpace> Semaphores for Config<'_, C> {
    fn read(&self) -> u32 {
        self.space.read(self.at, self.offset, Width::Dword)
    }
    fn write(&mut self, value: u32) {
        self.space.write(self.at, self.offset, Width::Dword, value);
    }
}

struct Memory<'a, R> {
    registers: &'a mut R,
    offset: u64,
}

impl<R: Registers> Semaphores for Memory<'_, R> {
    fn read(&self) -> u32 {
        self.registers.read(self.offset)
    }
    fn write(&mut self, value: u32) {
        self.registers.write(self.offset, value);
    }
}

/// Sets the system's semaphore and waits until the firmware clears its own.
fn take_from_firmware(semaphores: &mut impl Semaphores, delay: &mut dyn FnMut(u32)) -> HandOff {
    const FIRMWARE: u32 = 1 << 16;
    const SYSTEM: u32 = 1 << 24;
    let before = semaphores.read();
    semaphores.write(before | SYSTEM);
    if before & FIRMWARE == 0 {
        return HandOff::Nothing;
    }
    if wait(delay, || semaphores.read() & FIRMWARE == 0) {
        return HandOff::Given;
    }
    semaphores.write(before & !FIRMWARE | SYSTEM);
    HandOff::Taken
}

/// Waits for a second at most.
fn wait(delay: &mut dyn FnMut(u32), mut done: impl FnMut() -> bool) -> bool {
    const STEP_MS: u32 = 10;
    const STEPS: u32 = 100;
    for _ in 0..STEPS {
        if done() {
            return true;
        }
        delay(STEP_MS);
    }
    done()
}

#[cfg(test)]
mod tests;
