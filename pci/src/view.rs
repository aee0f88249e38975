//! Configuration space of one assigned function, as its guest sees it.
//!
//! Virtual: the command register, BARs, interrupt line and (unless a line is wired to it) pin, power state, MSI and the control
//! word of MSI-X. Capabilities that reach past the function (ATS, PRI, PASID, SR-IOV, ACS, AER,
//! resizable BARs …) or that reset it are unlinked and read as 0; of extended configuration space
//! the guest can write nothing. What lies in no capability reads as the device has it, and takes no write but
//! those that `exceptions` names.
//!
//! Invariant: the physical BARs, INTx and message registers are never written on the guest's
//! behalf; what an access means for the machine is returned as an [`Effect`].

mod exceptions;
mod list;
mod read;
#[cfg(test)]
mod tests;
mod write;

use arch::machine::ConfigSpace;
use arch::{Bdf, Width};

use crate::bar::{Bar, size_bars};
use crate::capability::{self, Capability, EXTENDED, capabilities, extended_capabilities};
use crate::header::{Command, INTERRUPT_LINE, REVISION_ID, VENDOR_ID};
use crate::msi::Msi;
use crate::msix::{self, MsixCapability, MsixControl};
use list::{List, Listed};
pub use write::Effect;

/// One assigned function.
#[derive(Clone, Debug)]
pub struct VirtualFunction {
    function: Bdf,
    /// Vendor ID.
    vendor: u16,
    /// Class Code.
    class: u32,
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
            vendor: space.read(function, VENDOR_ID, Width::Word) as u16,
            class: space.read(function, REVISION_ID, Width::Dword) >> 8,
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

    /// Length of a standard capability that the guest sees (the first of its kind).
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
            capability::MSI_X => msix::LENGTH,
            _ => return None,
        };
        if offset + length > EXTENDED {
            return None;
        }
        if id == capability::MSI {
            self.msi = Some(Msi::read(space, self.function, offset));
        } else if id == capability::MSI_X {
            self.msix =
                Some(MsixCapability::read_within(space, self.function, offset, &self.bars)?);
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
}
