//! What the guest reads.

use arch::Width;
use arch::machine::ConfigSpace;

use super::VirtualFunction;
use super::list::Listed;
use crate::bar::{Bar, BarKind};
use crate::capability::{self, EXTENDED};
use crate::header::{
    BAR0, BAR5, CACHE_LINE_SIZE, CAPABILITIES_POINTER, COMMAND, EXPANSION_ROM, INTERRUPT_LINE,
    MULTI_FUNCTION,
};

impl VirtualFunction {
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
    pub(super) fn dword(&self, space: &impl ConfigSpace, offset: u16) -> Option<u32> {
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
    pub(super) fn bar_at(&self, offset: u16) -> Option<(&Bar, bool)> {
        let index = (offset - BAR0) as u8 / 4;
        if let Some(bar) = self.bar(index) {
            return Some((bar, false));
        }
        let below = self.bar(index.checked_sub(1)?)?;
        (below.kind == BarKind::Memory64).then_some((below, true))
    }

    pub(super) fn bar_register(&self, offset: u16) -> u32 {
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
}
