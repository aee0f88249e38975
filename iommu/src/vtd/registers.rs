//! The register window of one unit (VT-d specification "Register Descriptions"): offsets, bits, and
//! the polls, which all end.

use arch::Width;
use arch::iommu::IommuError;
use arch::{Hpa, PageSize};
use cpu::physical;

/// CAP: capability.
pub(super) const CAP: u64 = 0x08;
/// ECAP: extended capability.
pub(super) const ECAP: u64 = 0x10;
/// GCMD: global command.
pub(super) const GCMD: u64 = 0x18;
/// GSTS: global status.
pub(super) const GSTS: u64 = 0x1c;
/// RTADDR: root table address.
pub(super) const RTADDR: u64 = 0x20;
/// FSTS: fault status.
pub(super) const FSTS: u64 = 0x34;
/// FECTL: fault event control.
pub(super) const FECTL: u64 = 0x38;
/// PMEN: protected memory enable.
pub(super) const PMEN: u64 = 0x64;
/// IQH: invalidation queue head.
pub(super) const IQH: u64 = 0x80;
/// IQT: invalidation queue tail.
pub(super) const IQT: u64 = 0x88;
/// IQA: invalidation queue address.
pub(super) const IQA: u64 = 0x90;
/// IRTA: interrupt remapping table address.
pub(super) const IRTA: u64 = 0xb8;

/// Bits of GCMD; each shows at the same place in GSTS.
pub(super) mod command {
    /// TE: translation enable.
    pub(in super::super) const TE: u32 = 1 << 31;
    /// SRTP: set root table pointer.
    pub(in super::super) const SRTP: u32 = 1 << 30;
    /// EAFL: enable advanced fault logging.
    pub(in super::super) const EAFL: u32 = 1 << 28;
    /// WBF: write buffer flush.
    pub(in super::super) const WBF: u32 = 1 << 27;
    /// QIE: queued invalidation enable.
    pub(in super::super) const QIE: u32 = 1 << 26;
    /// IRE: interrupt remapping enable.
    pub(in super::super) const IRE: u32 = 1 << 25;
    /// SIRTP: set interrupt remap table pointer.
    pub(in super::super) const SIRTP: u32 = 1 << 24;
    /// CFI: compatibility format interrupts pass.
    pub(in super::super) const CFI: u32 = 1 << 23;
    /// Those that stay, and must be written again with every other command.
    pub(in super::super) const LASTING: u32 = TE | EAFL | QIE | IRE | CFI;
}

/// FSTS.PFO: primary fault overflow; write 1 to clear.
pub(super) const PRIMARY_FAULT_OVERFLOW: u32 = 1 << 0;
/// FSTS.IQE and FSTS.ICE: the unit stopped at a descriptor.
pub(super) const INVALIDATION_ERRORS: u32 = 1 << 4 | 1 << 5;
/// FSTS.ITE: a device did not answer an invalidation in time.
const INVALIDATION_TIMEOUT: u32 = 1 << 6;
/// The bits of FSTS that writing 1 clears.
pub(super) const CLEARED_BY_ONES: u32 =
    PRIMARY_FAULT_OVERFLOW | INVALIDATION_ERRORS | INVALIDATION_TIMEOUT;
/// FECTL.IM: no fault event interrupt.
pub(super) const INTERRUPT_MASK: u32 = 1 << 31;
/// PMEN.PRS: protected regions are in force.
pub(super) const PROTECTED_REGION_STATUS: u32 = 1 << 0;

/// CAP.
#[derive(Clone, Copy, Debug)]
pub(super) struct Capability(pub(super) u64);

impl Capability {
    /// ND: how many domain identifiers there are.
    pub(super) const fn domains(self) -> u32 {
        1 << (4 + 2 * (self.0 & 7))
    }
    /// RWBF: the write buffer must be flushed.
    pub(super) const fn required_write_buffer_flushing(self) -> bool {
        self.0 & 1 << 4 != 0
    }
    /// PLMR or PHMR: there may be protected memory regions.
    pub(super) const fn protected_memory_regions(self) -> bool {
        self.0 & 3 << 5 != 0
    }
    /// CM: entries that are not present are cached too.
    pub(super) const fn caching_mode(self) -> bool {
        self.0 & 1 << 7 != 0
    }
    /// SAGAW: bit 1 is tables of 3 levels, bit 2 of 4.
    pub(super) const fn levels(self, levels: u8) -> bool {
        self.0 >> (8 + levels - 2) & 1 != 0
    }
    /// MGAW: bits of the widest DMA address.
    pub(super) const fn address_width(self) -> u8 {
        (self.0 >> 16 & 63) as u8 + 1
    }
    /// FRO: offset of the fault recording registers.
    pub(super) const fn fault_recording_offset(self) -> u64 {
        (self.0 >> 24 & 0x3ff) * 16
    }
    /// SSLPS: bit 34 is pages of 2 MiB, bit 35 of 1 GiB.
    pub(super) const fn largest_page(self) -> PageSize {
        match self.0 >> 34 & 3 {
            3 => PageSize::Size1G,
            1 => PageSize::Size2M,
            _ => PageSize::Size4K,
        }
    }
    /// NFR: number of fault recording registers.
    pub(super) const fn fault_records(self) -> u64 {
        (self.0 >> 40 & 0xff) + 1
    }
    /// DWD and DRD: an invalidation can wait for writes and reads under way (bits 54 and 55).
    pub(super) const fn drains(self) -> (bool, bool) {
        (self.0 & 1 << 54 != 0, self.0 & 1 << 55 != 0)
    }
}

/// ECAP.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExtendedCapability(pub(super) u64);

impl ExtendedCapability {
    /// C: the unit's table walks see the CPU's caches.
    pub(super) const fn coherent(self) -> bool {
        self.0 & 1 != 0
    }
    /// QI: queued invalidation.
    pub(super) const fn queued_invalidation(self) -> bool {
        self.0 & 1 << 1 != 0
    }
    /// IR: interrupt remapping.
    pub(super) const fn interrupt_remapping(self) -> bool {
        self.0 & 1 << 3 != 0
    }
    /// EIM: extended interrupt mode.
    pub(super) const fn extended_interrupt_mode(self) -> bool {
        self.0 & 1 << 4 != 0
    }
}

/// A unit's registers; host tests put a model in their place.
pub trait Registers {
    /// Reads the 32-bit register at `offset`.
    fn read_u32(&self, offset: u64) -> u32;
    /// Reads the 64-bit register at `offset`.
    fn read_u64(&self, offset: u64) -> u64;
    /// Writes the 32-bit register at `offset`.
    fn write_u32(&mut self, offset: u64, value: u32);
    /// Writes the 64-bit register at `offset`.
    fn write_u64(&mut self, offset: u64, value: u64);
}

/// The real registers, through the identity map.
#[derive(Debug)]
pub struct Mmio(Hpa);

impl Mmio {
    /// The window at `base`.
    ///
    /// # Safety
    /// `base` is the register base of a VT-d unit, mapped uncached, and this is its only driver.
    pub(super) const unsafe fn new(base: Hpa) -> Self {
        Self(base)
    }
}

impl Registers for Mmio {
    fn read_u32(&self, offset: u64) -> u32 {
        // SAFETY: `new`'s caller vouches for the window; the offsets are aligned and have no side
        // effects on reading.
        unsafe { physical::mmio_read(self.0.wrapping_add(offset), Width::Dword) as u32 }
    }
    fn read_u64(&self, offset: u64) -> u64 {
        // SAFETY: as for `read_u32`.
        unsafe { physical::mmio_read(self.0.wrapping_add(offset), Width::Qword) }
    }
    fn write_u32(&mut self, offset: u64, value: u32) {
        // SAFETY: `new`'s caller vouches for the window; this crate writes tables that are complete.
        unsafe { physical::mmio_write(self.0.wrapping_add(offset), Width::Dword, value.into()) }
    }
    fn write_u64(&mut self, offset: u64, value: u64) {
        // SAFETY: as for `write_u32`.
        unsafe { physical::mmio_write(self.0.wrapping_add(offset), Width::Qword, value) }
    }
}

/// Polls until `done`, which reads a register each time: at least 100 ns on hardware, so that the
/// deadline is no shorter than 0.1 s.
///
/// # Errors
/// When the deadline has passed.
pub(super) fn poll(what: &'static str, mut done: impl FnMut() -> bool) -> Result<(), IommuError> {
    const POLLS: u32 = 1_000_000;
    for _ in 0..POLLS {
        if done() {
            return Ok(());
        }
        core::hint::spin_loop();
    }
    Err(IommuError::TimedOut(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_of_a_known_unit_are_read() {
        // A client machine's unit, as Linux prints them: cap d2008c40660462 ecap f050da.
        let cap = Capability(0x00d2_008c_4066_0462);
        assert_eq!((cap.domains(), cap.address_width(), cap.fault_records()), (256, 39, 1));
        assert!(cap.levels(4) && !cap.levels(3));
        assert_eq!(cap.largest_page(), PageSize::Size1G);
        assert_eq!(Capability(1 << 34).largest_page(), PageSize::Size2M);
        assert_eq!(Capability(1 << 35).largest_page(), PageSize::Size4K);
        assert_eq!(cap.fault_recording_offset(), 0x400);
        assert_eq!(cap.drains(), (true, true));
        assert!(cap.protected_memory_regions() && !cap.caching_mode());
        let ecap = ExtendedCapability(0x00f0_50da);
        assert!(ecap.queued_invalidation() && ecap.interrupt_remapping());
        assert!(ecap.extended_interrupt_mode() && !ecap.coherent());
    }

    #[test]
    fn a_poll_ends() {
        assert_eq!(poll("nothing", || false), Err(IommuError::TimedOut("nothing")));
    }
}
