//! What a guest's write comes to: virtual registers change here, the rest is an [`Effect`].

use arch::Width;
use arch::machine::ConfigSpace;

use super::VirtualFunction;
use super::list::Listed;
use crate::bar::Bar;
use crate::capability::{self, Capability, EXTENDED};
use crate::header::{BAR0, BAR5, COMMAND, Command, INTERRUPT_LINE};
use crate::msix::MsixControl;

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
        width: Width,
        value: u32,
    },
    /// A BAR has a new address in the guest, which [`VirtualFunction::bar_address`] tells.
    BarMoved,
    /// The command register changed.
    CommandChanged {
        /// Before.
        old: Command,
        /// Now.
        new: Command,
    },
    /// The MSI capability changed: program the real one again.
    MsiChanged,
    /// Enable or Function Mask of MSI-X changed.
    MsixControlChanged {
        /// Before.
        old: MsixControl,
        /// Now.
        new: MsixControl,
    },
}

/// Offset of Device Control in the PCI Express capability.
const DEVICE_CONTROL: u16 = 8;
/// Bits of Device Control that a guest may change: Enable Relaxed Ordering, Enable No Snoop, Max
/// Read Request Size. Not Max Payload Size (the ports on the path must agree), Phantom Functions
/// (other requesters), Initiate FLR (the physical BARs would be lost) or error reporting.
const DEVICE_CONTROL_BITS: u32 = 0x7810;

impl VirtualFunction {
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
                None => self.set_other(space, offset, width, value),
                Some((Listed { visible: false, .. }, _)) => Effect::None,
                Some((Listed { capability, .. }, _)) => {
                    let seen = self.dword(space, at).unwrap_or(0);
                    let access = ConfigWrite { offset, width, value, seen, merged: merged(seen) };
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
        if old == new { Effect::None } else { Effect::BarMoved }
    }

    /// What no capability holds: see [`super::exceptions`].
    fn set_other(&self, space: &impl ConfigSpace, offset: u16, width: Width, value: u32) -> Effect {
        let bits = super::exceptions::writable(self.vendor, self.class, offset, width);
        if bits == 0 {
            return Effect::None;
        }
        let kept = space.read(self.function, offset, width) & !bits;
        Effect::PhysicalWrite { offset, width, value: kept | value & bits }
    }

    fn set_standard(&mut self, capability: Capability, access: ConfigWrite) -> Effect {
        const VPD_WRITE: u32 = 1 << 15;
        let ConfigWrite { offset, width, value, seen, merged } = access;
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
struct ConfigWrite {
    offset: u16,
    width: Width,
    value: u32,
    seen: u32,
    merged: u32,
}
