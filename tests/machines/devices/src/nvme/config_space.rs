//! The configuration space of a controller: PCI Express endpoint of the root complex with a 64 KiB BAR, power
//! management, MSI, MSI-X and Function Level Reset. One table says what is there, one what may be written.

use super::NvmeOptions;

/// PCI power management capability.
const POWER: usize = 0x40;
/// MSI capability: 64-bit addresses, masks, four messages.
const MSI: usize = 0x50;
/// MSI-X capability.
const MSI_X: usize = 0x70;
/// PCI Express capability.
const EXPRESS: usize = 0x80;
/// Bytes of the BAR.
pub const BAR_SIZE: u64 = 0x1_0000;
/// Messages by MSI.
pub(super) const MSI_MESSAGES: u16 = 4;

/// Configuration space.
#[derive(Clone, Debug)]
pub(super) struct ConfigSpace {
    bytes: [u8; 256],
    writable: [u8; 256],
    /// A write of the upper half of the BAR counts: Bochs' firmware takes it for a BAR of its own.
    pub(super) wide: bool,
    resettable: bool,
}

impl ConfigSpace {
    /// After a reset.
    pub(super) fn new(options: &NvmeOptions, wide: bool) -> Self {
        let mut space =
            Self { bytes: [0; 256], writable: [0; 256], wide, resettable: options.reset };
        let bar_64 = if options.bar_64 { 4 } else { 0 };
        // NVM Express I/O controller; header type 0.
        space.put(0x00, &[0x34, 0x12, 0x58, 0x4e, 0, 0, 0x10, 0, 1, 0x02, 0x08, 0x01]);
        space.put(0x10, &[bar_64]);
        space.put(0x2c, &[0x34, 0x12, 0x58, 0x4e]);
        space.put(0x34, &[POWER as u8]);
        space.put(0x3d, &[u8::from(options.pin)]);
        let after_power = if options.pin { EXPRESS } else { MSI };
        let after_msi = if options.msi_x { MSI_X } else { EXPRESS };
        // Version 3; no reset by leaving D3hot.
        space.put(POWER, &[0x01, after_power as u8, 0x03, 0, 0x08]);
        // Version 2, an endpoint of the root complex.
        space.put(EXPRESS, &[0x10, 0, 0x92, 0]);
        space.put(EXPRESS + 4, &[0, 0x80, 0, if options.reset { 0x10 } else { 0 }]);
        space.put(EXPRESS + 8, &[0x10, 0x28]);

        space.allow(0x04, &[0x46, 0x05]);
        space.allow(0x0c, &[0xff]);
        space.allow(0x12, &[0xff, 0xff]);
        if options.bar_64 {
            space.allow(0x14, &[0xff; 4]);
        }
        space.allow(0x3c, &[0xff]);
        space.allow(POWER + 4, &[0x03]);
        space.allow(EXPRESS + 8, &[0xff, 0x7f]);
        if !options.pin {
            space.add_msi(after_msi);
        }
        if !options.pin && options.msi_x {
            space.add_msi_x(options.vectors);
        }
        space
    }

    fn add_msi(&mut self, next: usize) {
        self.put(MSI, &[0x05, next as u8, 2 << 1 | 0x80, 0x01]);
        self.allow(MSI + 2, &[0x71]);
        self.allow(MSI + 4, &[0xfc]);
        self.allow(MSI + 5, &[0xff; 9]);
        self.allow(MSI + 0x10, &[0x0f]);
    }

    fn add_msi_x(&mut self, vectors: u16) {
        self.put(MSI_X, &[0x11, EXPRESS as u8, vectors as u8 - 1, 0]);
        self.put(MSI_X + 4, &super::vectors::TABLE.to_le_bytes());
        self.put(MSI_X + 8, &super::vectors::PENDING_BITS.to_le_bytes());
        self.allow(MSI_X + 3, &[0xc0]);
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        let places = self.bytes.iter_mut().skip(at);
        places.zip(bytes).for_each(|(place, byte)| *place = *byte);
    }

    fn allow(&mut self, at: usize, masks: &[u8]) {
        let places = self.writable.iter_mut().skip(at);
        places.zip(masks).for_each(|(place, mask)| *place = *mask);
    }

    pub(super) fn byte(&self, at: usize) -> u8 {
        self.bytes.get(at).copied().unwrap_or(0)
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.byte(at), self.byte(at + 1)])
    }

    fn dword(&self, at: usize) -> u32 {
        u32::from(self.word(at)) | u32::from(self.word(at + 2)) << 16
    }

    /// Writes a byte. Whether it asks for a Function Level Reset.
    pub(super) fn write(&mut self, at: usize, value: u8) -> bool {
        const INITIATE_RESET: u8 = 0x80;
        let upper_half = (0x14..0x18).contains(&at);
        if upper_half && !self.wide {
            return false;
        }
        if let (Some(byte), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
            *byte = *byte & !mask | value & mask;
        }
        self.resettable && at == EXPRESS + 9 && value & INITIATE_RESET != 0
    }

    /// Where the registers answer; `None` where they do not.
    pub(super) fn bar(&self) -> Option<u64> {
        const MEMORY: u8 = 1 << 1;
        let low = u64::from(self.dword(0x10)) & !(BAR_SIZE - 1);
        let at = low | u64::from(self.dword(0x14)) << 32;
        // Not below 1 MiB, nor where the machine's own registers are, nor beyond the bus.
        let free = (1 << 20..1 << 38).contains(&at) && !(0xfe00_0000..1 << 32).contains(&at);
        (self.byte(4) & MEMORY != 0 && free).then_some(at)
    }

    /// Whether it is in a state other than D0.
    pub(super) fn sleeps(&self) -> bool {
        self.byte(POWER + 4) & 3 != 0
    }

    /// Whether it may master the bus.
    pub(super) fn masters(&self) -> bool {
        self.byte(4) & 1 << 2 != 0 && !self.sleeps()
    }

    /// Whether its pin may rise.
    pub(super) fn pin_allowed(&self) -> bool {
        self.byte(5) & 1 << 2 == 0
    }

    /// Interrupt Status.
    pub(super) fn set_pin_status(&mut self, up: bool) {
        let status = self.byte(6) & !(1 << 3) | u8::from(up) << 3;
        self.put(6, &[status]);
    }

    /// MSI-X Enable and Function Mask.
    pub(super) fn msi_x(&self) -> (bool, bool) {
        let control = self.word(MSI_X + 2);
        (control & 1 << 15 != 0, control & 1 << 14 != 0)
    }

    /// How many messages MSI may send; `None` where it is off.
    pub(super) fn msi_messages(&self) -> Option<u16> {
        let control = self.word(MSI + 2);
        (control & 1 != 0).then_some((1 << (control >> 4 & 7)).min(MSI_MESSAGES))
    }

    /// Address and data of MSI's first message.
    pub(super) fn msi_message(&self) -> (u64, u16) {
        let address = u64::from(self.dword(MSI + 8)) << 32 | u64::from(self.dword(MSI + 4));
        (address, self.word(MSI + 0x0c))
    }

    /// MSI's mask bits.
    pub(super) fn msi_masks(&self) -> u32 {
        self.dword(MSI + 0x10)
    }

    /// MSI's pending bits.
    pub(super) fn set_msi_pending(&mut self, pending: u32) {
        self.put(MSI + 0x14, &pending.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(space: &mut ConfigSpace, at: usize, bytes: &[u8]) -> bool {
        bytes
            .iter()
            .enumerate()
            .fold(false, |reset, (index, byte)| reset | space.write(at + index, *byte))
    }

    #[test]
    fn a_bar_is_sized_placed_and_hidden() {
        let mut space = ConfigSpace::new(&NvmeOptions::default(), true);
        write(&mut space, 0x10, &[0xff; 8]);
        assert_eq!((space.dword(0x10), space.dword(0x14)), (0xffff_0004, 0xffff_ffff));
        write(&mut space, 0x10, &0x1_2345_0000_u64.to_le_bytes());
        assert_eq!(space.bar(), None, "memory decoding is off");
        write(&mut space, 4, &[6]);
        assert_eq!(space.bar(), Some(0x1_2345_0000));
        write(&mut space, 0x10, &0xfed9_0000_u64.to_le_bytes());
        assert_eq!(space.bar(), None, "that is the unit's place");
    }

    #[test]
    fn the_firmware_does_not_reach_the_upper_half_of_the_bar() {
        let mut space = ConfigSpace::new(&NvmeOptions::default(), false);
        write(&mut space, 0x14, &[0xff; 4]);
        assert_eq!(space.dword(0x14), 0);
    }

    #[test]
    fn capabilities_are_those_of_the_options() {
        let list = |options: &NvmeOptions| {
            let space = ConfigSpace::new(options, true);
            let next = |at: &usize| Some(usize::from(space.byte(at + 1))).filter(|at| *at != 0);
            let all = std::iter::successors(Some(usize::from(space.byte(0x34))), next);
            all.map(|at| space.byte(at)).collect::<Vec<_>>()
        };
        let options = NvmeOptions::default();
        assert_eq!(list(&options), [0x01, 0x05, 0x11, 0x10]);
        assert_eq!(list(&NvmeOptions { msi_x: false, ..options.clone() }), [0x01, 0x05, 0x10]);
        assert_eq!(list(&NvmeOptions { pin: true, ..options }), [0x01, 0x10]);
    }

    #[test]
    fn a_reset_is_asked_for_only_where_it_can_be() {
        let mut space = ConfigSpace::new(&NvmeOptions::default(), true);
        assert!(!write(&mut space, EXPRESS + 8, &[0x10, 0x28]));
        assert!(write(&mut space, EXPRESS + 8, &[0x10, 0xa8]));
        assert_eq!(space.byte(EXPRESS + 9), 0x28, "the bit reads as 0");
        let mut space = ConfigSpace::new(&NvmeOptions { reset: false, ..Default::default() }, true);
        assert!(!write(&mut space, EXPRESS + 8, &[0x10, 0xa8]));
    }
}
