//! A guest's view of the MSI capability of one function (PCI Local Bus Specification, "MSI
//! Capability Structure").
//!
//! Address, data, enable and mask are virtual; the real registers hold the message that
//! [`arch::machine::Machine::route`] gave. The guest is offered one message: without interrupt
//! remapping of its own, Linux uses no more.

use arch::interrupt::MsiMessage;
use arch::machine::ConfigSpace;
use arch::{Bdf, Width};

const ENABLE: u16 = 1;
const ADDRESS_64: u16 = 1 << 7;
const PER_VECTOR_MASKING: u16 = 1 << 8;

/// The capability as the guest sees it.
#[derive(Clone, Debug)]
pub struct Msi {
    offset: u16,
    /// Read-only bits of Message Control that the guest sees.
    features: u16,
    enabled: bool,
    masked: bool,
    address: u64,
    data: u16,
    /// What the real capability was last enabled with.
    programmed: Option<MsiMessage>,
}

impl Msi {
    /// The capability at `offset` of `function`, as after reset.
    #[must_use]
    pub fn read(space: &impl ConfigSpace, function: Bdf, offset: u16) -> Self {
        let control = space.read(function, offset + 2, Width::Word) as u16;
        Self {
            offset,
            features: control & (ADDRESS_64 | PER_VECTOR_MASKING),
            enabled: false,
            masked: false,
            address: 0,
            data: 0,
            programmed: None,
        }
    }

    /// Length of the capability in bytes.
    #[must_use]
    pub const fn length(&self) -> u16 {
        self.data_offset() + if self.features & PER_VECTOR_MASKING != 0 { 12 } else { 4 }
    }

    const fn data_offset(&self) -> u16 {
        if self.features & ADDRESS_64 != 0 { 12 } else { 8 }
    }

    /// The dword at `at` bytes into the capability, given what the device has there.
    #[must_use]
    pub fn dword(&self, at: u16, physical: u32) -> u32 {
        let data = self.data_offset();
        match at {
            0 => {
                let control = self.features | if self.enabled { ENABLE } else { 0 };
                physical & 0xffff | u32::from(control) << 16
            }
            4 => self.address as u32,
            _ if at == data => self.data.into(),
            8 => (self.address >> 32) as u32,
            _ if at == data + 4 => self.masked.into(),
            // Mask Bits end; Pending Bits are the device's.
            _ => physical & 1,
        }
    }

    /// The guest makes the dword at `at` bytes into the capability `value`.
    pub fn set_dword(&mut self, at: u16, value: u32) {
        let data = self.data_offset();
        match at {
            0 => self.enabled = value >> 16 & u32::from(ENABLE) != 0,
            4 => self.address = self.address & !0xffff_ffff | u64::from(value & !3),
            _ if at == data => self.data = value as u16,
            8 => self.address = self.address & 0xffff_ffff | u64::from(value) << 32,
            _ if at == data + 4 => self.masked = value & 1 != 0,
            _ => {}
        }
    }

    /// The message that the guest has enabled, masked or not.
    #[must_use]
    pub fn message(&self) -> Option<MsiMessage> {
        self.enabled.then_some(MsiMessage { address: self.address, data: self.data.into() })
    }

    /// The message that the function is to send: the guest has enabled it and not masked it.
    #[must_use]
    pub fn live(&self) -> Option<MsiMessage> {
        self.message().filter(|_| !self.masked)
    }

    /// What the real capability is enabled with.
    #[must_use]
    pub const fn programmed(&self) -> Option<MsiMessage> {
        self.programmed
    }

    /// Programs the real capability: with `message`, or with `None` off, whoever enabled it. It is
    /// switched off for a moment only where the message differs from the one that is there, and
    /// unmasked only when that is.
    pub fn program(
        &mut self,
        space: &mut impl ConfigSpace,
        function: Bdf,
        message: Option<MsiMessage>,
    ) {
        let control = self.offset + 2;
        let differs = message.is_none() || self.programmed != message;
        if differs {
            space.write(function, control, Width::Word, 0);
        }
        if let Some(message) = message.filter(|_| differs) {
            space.write(function, self.offset + 4, Width::Dword, message.address as u32);
            if self.features & ADDRESS_64 != 0 {
                let high = (message.address >> 32) as u32;
                space.write(function, self.offset + 8, Width::Dword, high);
            }
            space.write(function, self.offset + self.data_offset(), Width::Word, message.data);
        }
        if self.features & PER_VECTOR_MASKING != 0 {
            // Every message but the one that the guest is offered stays masked.
            let mask = !u32::from(!self.masked);
            space.write(function, self.offset + self.data_offset() + 4, Width::Dword, mask);
        }
        if differs && message.is_some() {
            space.write(function, control, Width::Word, ENABLE.into());
        }
        self.programmed = message;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability;
    use crate::fake::FakeSpace;
    use proptest::prelude::*;

    const AT: Bdf = Bdf::new(0, 4, 0);

    fn space(features: u16) -> FakeSpace {
        let mut space = FakeSpace::default();
        let mut body = [0; 22];
        // Offers 16 messages, to see that the guest is offered one.
        body[..2].copy_from_slice(&(features | 4 << 1).to_le_bytes());
        space.device(AT, 0).capability(0x50, capability::MSI, &body);
        space
    }

    proptest! {
        /// Against the layout tables of the specification, written out by offset.
        #[test]
        fn registers_are_where_the_specification_has_them(
            wide: bool, maskable: bool, address: u64, data: u16, mask: bool,
        ) {
            let features = if wide { ADDRESS_64 } else { 0 } | if maskable { PER_VECTOR_MASKING } else { 0 };
            let space = space(features);
            let mut msi = Msi::read(&space, AT, 0x50);
            let expected_length = match (wide, maskable) {
                (false, false) => 12, (true, false) => 16, (false, true) => 20, (true, true) => 24,
            };
            prop_assert_eq!(msi.length(), expected_length);
            let (data_at, mask_at) = if wide { (12, 16) } else { (8, 12) };
            msi.set_dword(4, address as u32);
            if wide { msi.set_dword(8, (address >> 32) as u32); }
            msi.set_dword(data_at, data.into());
            if maskable { msi.set_dword(mask_at, mask.into()); }
            prop_assert_eq!(msi.message(), None);
            msi.set_dword(0, 0x71 << 16 | 5);
            prop_assert_eq!(msi.dword(0, 0x7005), u32::from(features | 1) << 16 | 0x7005);
            let seen = if wide { address & !3 } else { address & 0xffff_fffc };
            prop_assert_eq!(msi.message(), Some(MsiMessage { address: seen, data: data.into() }));
            prop_assert_eq!(msi.dword(4, 0), seen as u32);
            prop_assert_eq!(msi.dword(data_at, 0), u32::from(data));
            if wide { prop_assert_eq!(msi.dword(8, 0), (seen >> 32) as u32); }
            if maskable { prop_assert_eq!(msi.dword(mask_at, 0), u32::from(mask)); }
        }
    }

    #[test]
    fn the_device_gets_the_routed_message_and_only_once() {
        let mut space = space(ADDRESS_64 | PER_VECTOR_MASKING);
        let mut msi = Msi::read(&space, AT, 0x50);
        let routed = MsiMessage { address: 0xfee0_0018, data: 0 };
        msi.program(&mut space, AT, Some(routed));
        assert_eq!(space.read(AT, 0x54, Width::Dword), 0xfee0_0018);
        assert_eq!(space.read(AT, 0x52, Width::Word), 1);
        assert_eq!(space.read(AT, 0x60, Width::Dword), !1);
        space.write(AT, 0x54, Width::Dword, 0);
        msi.set_dword(16, 1);
        msi.program(&mut space, AT, Some(routed));
        assert_eq!(space.read(AT, 0x54, Width::Dword), 0, "an equal message is not written again");
        assert_eq!(space.read(AT, 0x60, Width::Dword), !0);
        msi.program(&mut space, AT, None);
        assert_eq!(space.read(AT, 0x52, Width::Word), 0);
    }
}
