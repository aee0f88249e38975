//! The I/O APIC's registers (Intel 82093AA data sheet, "Register Description").

use arch::Hpa;
use arch::machine::Width;

use crate::physical::{mmio_read, mmio_write};

const INDEX: u64 = 0x00;
const WINDOW: u64 = 0x10;
const VERSION_REGISTER: u32 = 1;
const REDIRECTION_TABLE: u32 = 0x10;
/// A redirection entry that is masked and otherwise zero.
const MASKED: u64 = 1 << 16;

/// One I/O APIC.
#[derive(Clone, Copy, Debug)]
pub struct IoApic {
    base: Hpa,
    /// Its identifier, as the MADT names it.
    pub id: u8,
    /// The first global system interrupt of its inputs.
    pub first_gsi: u32,
    /// Number of inputs.
    pub inputs: u32,
}

impl IoApic {
    /// The I/O APIC whose registers are at `base`, every input masked; `None` where nothing answers.
    ///
    /// # Safety
    /// `base` is the register page of an I/O APIC, mapped uncached, and nobody else drives it.
    #[must_use]
    pub unsafe fn new(base: Hpa, id: u8, first_gsi: u32) -> Option<Self> {
        let mut this = Self { base, id, first_gsi, inputs: 0 };
        let version = this.read(VERSION_REGISTER);
        if version == u32::MAX {
            return None;
        }
        this.inputs = (version >> 16 & 0xff) + 1;
        for input in 0..this.inputs {
            this.set_redirection(input, MASKED);
        }
        Some(this)
    }

    /// The input that a global system interrupt is wired to, if it is one of this I/O APIC's.
    #[must_use]
    pub fn input(&self, gsi: u32) -> Option<u32> {
        gsi.checked_sub(self.first_gsi).filter(|input| *input < self.inputs)
    }

    /// Writes a redirection entry: masked while its halves do not belong together, and edge-triggered, which
    /// clears Remote IRR: no EOI of the old vector could any more.
    pub fn set_redirection(&self, input: u32, entry: u64) {
        let low = REDIRECTION_TABLE + 2 * input;
        self.write(low, MASKED as u32);
        self.write(low + 1, (entry >> 32) as u32);
        self.write(low, entry as u32);
    }

    /// Masks an input. Its vector and trigger mode stay: what is in service is still ended by its EOI, which is
    /// broadcast and finds Remote IRR by them.
    pub fn mask(&self, input: u32) {
        let low = REDIRECTION_TABLE + 2 * input;
        self.write(low, self.read(low) | MASKED as u32);
    }

    fn register(&self, offset: u64) -> Hpa {
        self.base.wrapping_add(offset)
    }

    fn read(&self, register: u32) -> u32 {
        // SAFETY: `new`'s caller vouched for the page.
        unsafe { mmio_write(self.register(INDEX), Width::Dword, u64::from(register)) };
        // SAFETY: as above.
        unsafe { mmio_read(self.register(WINDOW), Width::Dword) as u32 }
    }

    fn write(&self, register: u32, value: u32) {
        // SAFETY: `new`'s caller vouched for the page.
        unsafe { mmio_write(self.register(INDEX), Width::Dword, u64::from(register)) };
        // SAFETY: as above.
        unsafe { mmio_write(self.register(WINDOW), Width::Dword, u64::from(value)) };
    }
}
