//! How a controller interrupts: by MSI-X, by MSI, or by its pin.

use super::Controller;
use crate::bus::Bus;

/// Where the MSI-X table is in BAR 0.
pub(super) const TABLE: u32 = 0x2000;
/// Where the pending bits are.
pub(super) const PENDING_BITS: u32 = 0x3000;
/// The most entries of the table.
pub(super) const MAX_VECTORS: usize = 8;
/// Bytes of the table at most.
pub(super) const TABLE_SIZE: u32 = 16 * MAX_VECTORS as u32;

const INTA: u8 = 1;

/// What is to be sent, and where to.
#[derive(Clone, Debug)]
pub(super) struct Vectors {
    /// Address, upper address, data, mask.
    table: [[u32; 4]; MAX_VECTORS],
    /// MSI-X messages that wait for their mask.
    pending: u32,
    /// MSI messages that do.
    msi_pending: u32,
    pin_up: bool,
}

impl Vectors {
    pub(super) const fn new() -> Self {
        Self { table: [[0, 0, 0, 1]; MAX_VECTORS], pending: 0, msi_pending: 0, pin_up: false }
    }

    /// Reads the table.
    pub(super) fn read(&self, offset: u32) -> u32 {
        let word = offset as usize / 4;
        self.table.get(word / 4).map_or(0, |entry| entry[word % 4])
    }

    pub(super) fn write(&mut self, offset: u32, value: u32) {
        const WRITABLE: [u32; 4] = [!3, !0, !0, 1];
        let word = offset as usize / 4;
        if let Some(entry) = self.table.get_mut(word / 4) {
            entry[word % 4] = value & WRITABLE[word % 4];
        }
    }

    pub(super) const fn pending_bits(&self) -> u32 {
        self.pending
    }

    /// The pin goes down, whatever it stood for.
    pub(super) fn reset(&mut self) {
        *self = Self { pin_up: self.pin_up, ..Self::new() };
    }
}

impl Controller {
    /// Has something to say by message `number`.
    pub(super) fn raise(&mut self, bus: &mut Bus<'_>, number: u16) {
        if self.space.msi_x().0 {
            if usize::from(number) < usize::from(self.options.vectors) {
                self.vectors.pending |= 1 << number;
            }
        } else if let Some(messages) = self.space.msi_messages() {
            let number = if number < messages { number } else { 0 };
            self.vectors.msi_pending |= 1 << number;
        }
        self.send_pending(bus);
    }

    /// Sends what may be sent.
    pub(super) fn send_pending(&mut self, bus: &mut Bus<'_>) {
        self.move_pin(bus);
        let (msi_x, masked) = self.space.msi_x();
        if self.space.masters() {
            if msi_x && !masked {
                self.send_msi_x(bus);
            } else if !msi_x && self.space.msi_messages().is_some() {
                self.send_msi(bus);
            }
        }
        self.space.set_msi_pending(self.vectors.msi_pending);
    }

    fn send_msi_x(&mut self, bus: &mut Bus<'_>) {
        for (number, [low, high, data, mask]) in self.vectors.table.into_iter().enumerate() {
            let bit = 1 << number;
            if self.vectors.pending & bit != 0 && mask & 1 == 0 {
                self.vectors.pending &= !bit;
                self.send(bus, u64::from(high) << 32 | u64::from(low), data);
            }
        }
    }

    fn send_msi(&mut self, bus: &mut Bus<'_>) {
        let (address, data) = self.space.msi_message();
        let masks = self.space.msi_masks() | self.masks;
        for number in 0..super::config_space::MSI_MESSAGES {
            let bit = 1 << number;
            if self.vectors.msi_pending & bit & !masks != 0 {
                self.vectors.msi_pending &= !bit;
                self.send(bus, address, u32::from(data | number));
            }
        }
    }

    fn send(&mut self, bus: &mut Bus<'_>, address: u64, data: u32) {
        self.counters.messages += 1;
        if !bus.message(self.requester(), address, data) {
            self.counters.refused += 1;
        }
    }

    /// The pin is up while there are answers that nobody has taken.
    fn move_pin(&mut self, bus: &mut Bus<'_>) {
        if !self.options.pin {
            return;
        }
        let waits = self.csts & super::READY != 0
            && self.completions.iter().flatten().any(|queue| {
                queue.interrupts && queue.head != queue.tail && self.masks >> queue.vector & 1 == 0
            });
        self.space.set_pin_status(waits);
        let up = waits && self.space.pin_allowed();
        if up != self.vectors.pin_up {
            self.vectors.pin_up = up;
            self.counters.messages += u64::from(up);
            bus.host.move_pin(self.options.device, INTA, up);
        }
    }
}
