//! The unit's register window: offsets, bits, and what is stored (VT-d specification "Register
//! Descriptions").

pub(super) const VER: u32 = 0x00;
pub(super) const CAP: u32 = 0x08;
pub(super) const ECAP: u32 = 0x10;
pub(super) const GCMD: u32 = 0x18;
pub(super) const GSTS: u32 = 0x1c;
pub(super) const RTADDR: u32 = 0x20;
pub(super) const CCMD: u32 = 0x28;
pub(super) const FSTS: u32 = 0x34;
/// FECTL, followed by FEDATA, FEADDR and FEUADDR.
pub(super) const FECTL: u32 = 0x38;
pub(super) const IQH: u32 = 0x80;
pub(super) const IQT: u32 = 0x88;
pub(super) const IQA: u32 = 0x90;
pub(super) const ICS: u32 = 0x9c;
/// IECTL, followed by IEDATA, IEADDR and IEUADDR.
pub(super) const IECTL: u32 = 0xa0;
pub(super) const IRTA: u32 = 0xb8;
/// IVA, where CAP says that it is.
pub(super) const IVA: u32 = 0x100;
/// IOTLB, behind IVA.
pub(super) const IOTLB: u32 = 0x108;
/// The first fault recording register, where CAP says that it is.
pub(super) const FRCD: u32 = 0x200;

/// So many fault recording registers.
pub(super) const FAULT_RECORDS: usize = 4;
/// Bytes of one.
pub(super) const RECORD_SIZE: u32 = 16;

/// TE in GCMD and GSTS.
pub(super) const TE: u32 = 1 << 31;
/// SRTP in GCMD, RTPS in GSTS.
pub(super) const SRTP: u32 = 1 << 30;
pub(super) const SFL: u32 = 1 << 29;
pub(super) const EAFL: u32 = 1 << 28;
pub(super) const WBF: u32 = 1 << 27;
pub(super) const QIE: u32 = 1 << 26;
pub(super) const IRE: u32 = 1 << 25;
/// SIRTP in GCMD, IRTPS in GSTS.
pub(super) const SIRTP: u32 = 1 << 24;
pub(super) const CFI: u32 = 1 << 23;

/// FSTS.PFO: a fault found no free record.
pub(super) const PFO: u32 = 1 << 0;
/// FSTS.PPF: a record holds a fault.
pub(super) const PPF: u32 = 1 << 1;
/// FSTS.IQE: the queue stopped at a descriptor.
pub(super) const IQE: u32 = 1 << 4;
/// FSTS.ICE: a device did not answer an invalidation.
pub(super) const ICE: u32 = 1 << 5;
/// The bits of FSTS that writing 1 clears.
pub(super) const FSTS_CLEARED_BY_ONES: u32 = PFO | IQE | ICE | 1 << 6;
/// FECTL.IM and IECTL.IM: no message.
pub(super) const MASKED: u32 = 1 << 31;
/// FECTL.IP and IECTL.IP: a message waits for the mask.
pub(super) const PENDING: u32 = 1 << 30;
/// IRTA.EIME.
pub(super) const EIME: u64 = 1 << 11;

const WINDOW: usize = 0x400;

/// What the registers hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Registers([u32; WINDOW / 4]);

impl Default for Registers {
    fn default() -> Self {
        Self([0; WINDOW / 4])
    }
}

impl Registers {
    /// The word at `offset`; 0 beyond the window.
    pub(super) fn get(&self, offset: u32) -> u32 {
        self.0.get(offset as usize / 4).copied().unwrap_or(0)
    }

    pub(super) fn set(&mut self, offset: u32, value: u32) {
        if let Some(word) = self.0.get_mut(offset as usize / 4) {
            *word = value;
        }
    }

    /// The quadword at `offset`.
    pub(super) fn quad(&self, offset: u32) -> u64 {
        u64::from(self.get(offset)) | u64::from(self.get(offset + 4)) << 32
    }

    pub(super) fn set_quad(&mut self, offset: u32, value: u64) {
        self.set(offset, value as u32);
        self.set(offset + 4, (value >> 32) as u32);
    }

    /// Sets bits of a word.
    pub(super) fn raise(&mut self, offset: u32, bits: u32) {
        self.set(offset, self.get(offset) | bits);
    }

    /// Clears bits of a word.
    pub(super) fn clear(&mut self, offset: u32, bits: u32) {
        self.set(offset, self.get(offset) & !bits);
    }
}
