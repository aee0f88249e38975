//! Configuration space of one assigned function, as its guest sees it.
//!
//! Virtual: the command register, BARs, interrupt line and (unless a line is wired to it) pin, power state, MSI and the control
//! word of MSI-X. Capabilities that reach past the function (ATS, PRI, PASID, SR-IOV, ACS, AER,
//! resizable BARs …) or that reset it are unlinked and read as 0; of extended configuration space
//! the guest can write nothing. What lies in no capability is the device's own and passes through.
//!
//! Invariant: the physical BARs, INTx and message registers are never written on the guest's
//! behalf; what an access means for the machine is returned as an [`Effect`].

mod list;
#[cfg(test)]
mod tests;

use arch::machine::ConfigSpace;
use arch::{Bdf, Width};

use crate::bar::{Bar, BarKind, size_bars};
use crate::capability::{self, Capability, EXTENDED, capabilities, extended_capabilities};
use crate::header::{
    BAR0, BAR5, CACHE_LINE_SIZE, CAPABILITIES_POINTER, COMMAND, Command, EXPANSION_ROM,
    INTERRUPT_LINE, MULTI_FUNCTION,
};
use crate::msi::Msi;
use crate::msix::{MsixCapability, MsixControl};
use list::{List, Listed};

/// What a guest's write means for the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Effect {
    /// Nothing.
    None,
    /// Write this to the function's physical configuration space.
    PhysicalWrite {
        /// Offset, naturally aligned.
        offset: u16,
        /// Width.
        width: Width,
        /// Value.
        value: u32,
    },
    /// A BAR has a new address in the guest.
    BarMoved {
        /// Index of its (first) register.
        bar: u8,
        /// Address before.
        old: u64,
        /// Address now, as [`VirtualFunction::bar_address`] tells it.
        new: u64,
    },
    /// The command register changed.
    CommandChanged {
        /// Before.
        old: Command,
        /// Now.
        new: Command,
    },
    /// The MSI capability changed: program the real one anew.
    MsiChanged,
    /// Enable or Function Mask of MSI-X changed.
    MsixControlChanged {
        /// Before.
        old: MsixControl,
        /// Now.
        new: MsixControl,
    },
}

/// One assigned function.
#[derive(Clone, Debug)]
pub struct VirtualFunction {
    function: Bdf,
    multi_function: bool,
    command: Command,
    /// INTA is 1; 0 where the guest has no INTx of it.
    interrupt_pin: u8,
    interrupt_line: u8,
    power_state: u8,
    /// The physical BARs.
    bars: [Option<Bar>; 6],
    /// Their addresses in the guest.
    addresses: [u64; 6],
    standard: List<48>,
    extended: List<64>,
    msi: Option<Msi>,
    msix: Option<MsixCapability>,
    msix_control: MsixControl,
}

/// Offset of Device Control in the PCI Express capability.
const DEVICE_CONTROL: u16 = 8;
/// Bits of Device Control that a guest may change: Enable Relaxed Ordering, Enable No Snoop, Max
/// Read Request Size. Not Max Payload Size (the ports on the path must agree), Phantom Functions
/// (other requesters), Initiate FLR (the physical BARs would be lost) or error reporting.
const DEVICE_CONTROL_BITS: u32 = 0x7810;

impl VirtualFunction {
    /// Sizes the BARs and reads the capabilities of `function`, which must have a type 0 header.
    /// The guest finds its BARs at their physical addresses, decoding as now, bus mastering off.
    pub fn new(space: &mut impl ConfigSpace, function: Bdf) -> Self {
        let bars = size_bars(space, function, 6);
        Self::with_bars(space, function, bars)
    }

    /// The same with BARs that are known: `space` is only read.
    pub fn with_bars(space: &impl ConfigSpace, function: Bdf, bars: [Option<Bar>; 6]) -> Self {
        let decoding = Command::IO_SPACE | Command::MEMORY_SPACE;
        let mut view = Self {
            function,
            multi_function: false,
            command: Command::read(space, function) & decoding,
            interrupt_pin: 0,
            interrupt_line: 0,
            power_state: 0,
            addresses: bars.map(|bar| bar.map_or(0, |bar| bar.base)),
            bars,
            standard: List::new(),
            extended: List::new(),
            msi: None,
            msix: None,
            msix_control: MsixControl::default(),
        };
        view.list_capabilities(space);
        view
    }

    fn list_capabilities(&mut self, space: &impl ConfigSpace) {
        for capability in capabilities(space, self.function) {
            let length = self.offer(space, capability);
            let visible = length.is_some();
            // What is not known is not offered, up to the next capability.
            let length = length.unwrap_or(EXTENDED);
            if !self.standard.push(Listed { capability, length, visible }) {
                break;
            }
        }
        for capability in extended_capabilities(space, self.function) {
            let visible = matches!(
                capability.id,
                capability::DEVICE_SERIAL_NUMBER | capability::EXTENDED_VENDOR_SPECIFIC
            );
            if !self.extended.push(Listed { capability, length: 0x1000, visible }) {
                break;
            }
        }
    }

    /// Length of a standard capability that the guest shall see (the first of its kind).
    fn offer(&mut self, space: &impl ConfigSpace, capability: Capability) -> Option<u16> {
        let Capability { id, offset } = capability;
        if id == capability::VENDOR_SPECIFIC {
            let length = space.read(self.function, offset + 2, Width::Byte) as u16;
            return Some(length.max(4));
        }
        if self.standard.contains(id) {
            return None;
        }
        let length = match id {
            capability::POWER_MANAGEMENT | capability::VITAL_PRODUCT_DATA => 8,
            capability::PCI_EXPRESS => {
                let version = space.read(self.function, offset + 2, Width::Byte) & 0xf;
                if version < 2 { 0x14 } else { 0x3c }
            }
            capability::MSI => Msi::read(space, self.function, offset).length(),
            capability::MSI_X => 12,
            _ => return None,
        };
        if offset + length > EXTENDED {
            return None;
        }
        if id == capability::MSI {
            self.msi = Some(Msi::read(space, self.function, offset));
        } else if id == capability::MSI_X {
            let msix = MsixCapability::read(space, self.function, offset)?;
            let bar = self.bar(msix.table.bar)?;
            if !bar.is_memory() || msix.table_range().end > bar.size {
                return None;
            }
            self.msix = Some(msix);
        }
        Some(length)
    }

    /// The physical function.
    #[must_use]
    pub const fn function(&self) -> Bdf {
        self.function
    }

    /// Whether the guest finds more functions at this one's device number.
    pub const fn set_multi_function(&mut self, multi_function: bool) {
        self.multi_function = multi_function;
    }

    /// Shows the guest the function's interrupt pin, wired to input `line` of its I/O APIC. `false`
    /// where the function has none.
    pub fn wire(&mut self, space: &impl ConfigSpace, line: u8) -> bool {
        let pin = space.read(self.function, INTERRUPT_LINE + 1, Width::Byte) as u8;
        if matches!(pin, 1..=4) {
            (self.interrupt_pin, self.interrupt_line) = (pin, line);
        }
        self.interrupt_pin != 0
    }

    /// The interrupt pin that the guest sees: 1 is INTA, 0 none.
    #[must_use]
    pub const fn interrupt_pin(&self) -> u8 {
        self.interrupt_pin
    }

    /// Interrupt Line: the input that the pin is wired to, until the guest writes another.
    #[must_use]
    pub const fn line(&self) -> u8 {
        self.interrupt_line
    }

    /// The command register as the guest set it.
    #[must_use]
    pub const fn command(&self) -> Command {
        self.command
    }

    /// The physical BAR whose first register is `index`.
    #[must_use]
    pub fn bar(&self, index: u8) -> Option<&Bar> {
        self.bars.get(usize::from(index))?.as_ref()
    }

    /// The physical BARs.
    pub fn bars(&self) -> impl Iterator<Item = &Bar> {
        self.bars.iter().flatten()
    }

    /// The guest's address of the BAR whose first register is `index`.
    #[must_use]
    pub fn bar_address(&self, index: u8) -> u64 {
        self.addresses.get(usize::from(index)).copied().unwrap_or(0)
    }

    /// Takes a BAR's address away: the guest has to give it one.
    pub fn unassign_bar(&mut self, index: u8) {
        if let Some(address) = self.addresses.get_mut(usize::from(index)) {
            *address = 0;
        }
    }

    /// The MSI capability.
    pub const fn msi(&mut self) -> Option<&mut Msi> {
        self.msi.as_mut()
    }

    /// The MSI-X capability.
    #[must_use]
    pub const fn msix(&self) -> Option<&MsixCapability> {
        self.msix.as_ref()
    }

    /// Enable and Function Mask of MSI-X as the guest set them.
    #[must_use]
    pub const fn msix_control(&self) -> MsixControl {
        self.msix_control
    }

    /// The guest reads `width` (byte, word or dword) at `offset`, naturally aligned.
    #[must_use]
    pub fn read(&self, space: &impl ConfigSpace, offset: u16, width: Width) -> u32 {
        let value = match self.dword(space, offset & !3) {
            Some(dword) => dword >> (8 * (offset & 3)),
            None => space.read(self.function, offset, width),
        };
        value & width.mask() as u32
    }

    /// What the guest sees in a dword; `None` where it sees what the device has.
    fn dword(&self, space: &impl ConfigSpace, offset: u16) -> Option<u32> {
        const INTERRUPT_STATUS: u32 = 1 << 19;
        let physical = || space.read(self.function, offset, Width::Dword);
        match offset {
            COMMAND => {
                let hidden = if self.interrupt_pin == 0 { INTERRUPT_STATUS } else { 0 };
                let status = physical() & 0xffff_0000 & !hidden;
                Some(status | u32::from(self.command.bits()))
            }
            CACHE_LINE_SIZE => {
                let multi = u32::from(MULTI_FUNCTION) << 16;
                Some(physical() & !multi | if self.multi_function { multi } else { 0 })
            }
            BAR0..=BAR5 => Some(self.bar_register(offset)),
            EXPANSION_ROM => Some(0),
            CAPABILITIES_POINTER => Some(self.standard.first().into()),
            INTERRUPT_LINE => {
                let pin = u32::from(self.interrupt_pin) << 8;
                Some(physical() & 0xffff_0000 | pin | u32::from(self.interrupt_line))
            }
            0x40..EXTENDED => self.standard_dword(offset, physical),
            EXTENDED.. => Some(self.extended_dword(offset, physical)),
            _ => None,
        }
    }

    /// The BAR whose register is at `offset`, and whether that is its upper half.
    fn bar_at(&self, offset: u16) -> Option<(&Bar, bool)> {
        let index = (offset - BAR0) as u8 / 4;
        if let Some(bar) = self.bar(index) {
            return Some((bar, false));
        }
        let below = self.bar(index.checked_sub(1)?)?;
        (below.kind == BarKind::Memory64).then_some((below, true))
    }

    fn bar_register(&self, offset: u16) -> u32 {
        match self.bar_at(offset) {
            Some((bar, true)) => (self.bar_address(bar.index) >> 32) as u32,
            Some((bar, false)) => self.bar_address(bar.index) as u32 | bar.flags(),
            None => 0,
        }
    }

    fn standard_dword(&self, offset: u16, physical: impl Fn() -> u32) -> Option<u32> {
        const NO_SOFT_RESET: u32 = 1 << 3;
        const FUNCTION_LEVEL_RESET: u32 = 1 << 28;
        let (Listed { capability, visible, .. }, next) = self.standard.at(offset)?;
        if !visible {
            return Some(0);
        }
        let within = offset - capability.offset;
        let dword = match (capability.id, within) {
            (capability::POWER_MANAGEMENT, 4) => {
                physical() & !3 | u32::from(self.power_state) | NO_SOFT_RESET
            }
            (capability::PCI_EXPRESS, 4) => physical() & !FUNCTION_LEVEL_RESET,
            (capability::MSI_X, 0) => {
                physical() & 0x3fff_ffff | u32::from(self.msix_control.bits()) << 16
            }
            (capability::MSI, _) => {
                self.msi.as_ref().map_or(0, |msi| msi.dword(within, physical()))
            }
            _ => physical(),
        };
        Some(if within == 0 { dword & !0xff00 | u32::from(next) << 8 } else { dword })
    }

    fn extended_dword(&self, offset: u16, physical: impl Fn() -> u32) -> u32 {
        match self.extended.at(offset) {
            Some((Listed { capability, visible: true, .. }, next)) => {
                let dword = physical();
                let header = offset == capability.offset;
                if header { dword & 0xf_ffff | u32::from(next) << 20 } else { dword }
            }
            // The list starts at 0x100: a null capability leads to the first visible one.
            Some(_) if offset == EXTENDED => u32::from(self.extended.first()) << 20,
            _ => 0,
        }
    }

    /// The guest writes `width` (byte, word or dword) at `offset`, naturally aligned.
    pub fn write(
        &mut self,
        space: &impl ConfigSpace,
        offset: u16,
        width: Width,
        value: u32,
    ) -> Effect {
        let value = value & width.mask() as u32;
        let shift = 8 * u32::from(offset & 3);
        let mask = (width.mask() as u32) << shift;
        let merged = |old: u32| old & !mask | value << shift;
        let at = offset & !3;
        match at {
            COMMAND => self.set_command(merged(self.command.bits().into())),
            BAR0..=BAR5 => self.set_bar(at, merged(self.bar_register(at))),
            INTERRUPT_LINE => {
                self.interrupt_line = merged(self.interrupt_line.into()) as u8;
                Effect::None
            }
            0x40..EXTENDED => match self.standard.at(at) {
                None => Effect::PhysicalWrite { offset, width, value },
                Some((Listed { visible: false, .. }, _)) => Effect::None,
                Some((Listed { capability, .. }, _)) => {
                    let seen = self.dword(space, at).unwrap_or(0);
                    let access = Access { offset, width, value, seen, merged: merged(seen) };
                    self.set_standard(capability, access)
                }
            },
            _ => Effect::None,
        }
    }

    fn set_command(&mut self, value: u32) -> Effect {
        let old = self.command;
        let new = Command::from_bits_truncate(value as u16);
        self.command = new;
        if old == new { Effect::None } else { Effect::CommandChanged { old, new } }
    }

    fn set_bar(&mut self, offset: u16, value: u32) -> Effect {
        let Some((&Bar { index, size, .. }, upper)) = self.bar_at(offset) else {
            return Effect::None;
        };
        let Some(address) = self.addresses.get_mut(usize::from(index)) else {
            return Effect::None;
        };
        let old = *address;
        let (kept, written) = if upper {
            (old & 0xffff_ffff, u64::from(value) << 32)
        } else {
            (old & !0xffff_ffff, u64::from(value))
        };
        // The flag bits lie below the size.
        let new = (kept | written) & !(size - 1);
        *address = new;
        if old == new { Effect::None } else { Effect::BarMoved { bar: index, old, new } }
    }

    fn set_standard(&mut self, capability: Capability, access: Access) -> Effect {
        const VPD_WRITE: u32 = 1 << 15;
        let Access { offset, width, value, seen, merged } = access;
        let within = offset - capability.offset;
        match (capability.id, within & !3) {
            (capability::POWER_MANAGEMENT, 4) => self.power_state = merged as u8 & 3,
            // A read request passes; a write request would change the device for good.
            (capability::VITAL_PRODUCT_DATA, 0)
                if within == 2 && width == Width::Word && value & VPD_WRITE == 0 =>
            {
                return Effect::PhysicalWrite { offset, width, value };
            }
            (capability::PCI_EXPRESS, DEVICE_CONTROL) if within < DEVICE_CONTROL + 2 => {
                let value = seen & !DEVICE_CONTROL_BITS | merged & DEVICE_CONTROL_BITS;
                let offset = capability.offset + DEVICE_CONTROL;
                let value = value & 0xffff;
                return Effect::PhysicalWrite { offset, width: Width::Word, value };
            }
            (capability::MSI, at) => {
                if let Some(msi) = self.msi.as_mut() {
                    msi.set_dword(at, merged);
                    return Effect::MsiChanged;
                }
            }
            (capability::MSI_X, 0) => {
                let old = self.msix_control;
                let new = MsixControl::new((merged >> 16) as u16);
                self.msix_control = new;
                if old != new {
                    return Effect::MsixControlChanged { old, new };
                }
            }
            _ => {}
        }
        Effect::None
    }
}

/// A guest's write, with the dword around it as the guest sees it before and would see it after.
struct Access {
    offset: u16,
    width: Width,
    value: u32,
    seen: u32,
    merged: u32,
}
