//! The virtual machine control block as the CPU reads and writes it
//! (APM volume 2, "Layout of VMCB").
//!
//! Invariant: every field lies at the manual's offset (asserted below). Reserved bytes stay zero.

use core::mem::{offset_of, size_of, zeroed};

use arch::segment::{DescriptorTableRegister, SegmentRegister};

/// A segment register or descriptor-table register in the state save area
/// (APM "Segment State in the VMCB").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct VmcbSegment {
    pub selector: u16,
    /// Descriptor bits 40–47 in bits 0–7, bits 52–55 in bits 8–11.
    pub attributes: u16,
    /// Limit in bytes.
    pub limit: u32,
    pub base: u64,
}

/// VMCB control area. Names are the manual's.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct ControlArea {
    pub intercept_cr: u32,
    pub intercept_dr: u32,
    pub intercept_exceptions: u32,
    /// Intercept vector 3 ([`crate::controls::Intercepts3`]).
    pub intercept_3: u32,
    /// Intercept vector 4 ([`crate::controls::Intercepts4`]).
    pub intercept_4: u32,
    pub intercept_5: u32,
    reserved_018: [u8; 0x24],
    pub pause_filter_threshold: u16,
    pub pause_filter_count: u16,
    pub iopm_base_pa: u64,
    pub msrpm_base_pa: u64,
    pub tsc_offset: u64,
    pub guest_asid: u32,
    pub tlb_control: u32,
    /// V_TPR, V_IRQ, V_INTR_PRIO, V_IGN_TPR, V_INTR_MASKING, V_INTR_VECTOR
    /// ([`crate::controls`] has the bits).
    pub virtual_interrupt: u64,
    /// Bit 0: the guest is in an interrupt shadow.
    pub interrupt_shadow: u64,
    pub exitcode: u64,
    pub exitinfo1: u64,
    pub exitinfo2: u64,
    pub exitintinfo: u64,
    /// Bit 0: nested paging.
    pub np_enable: u64,
    reserved_098: [u8; 0x10],
    pub eventinj: u64,
    pub n_cr3: u64,
    pub lbr_virtualization_enable: u64,
    pub vmcb_clean_bits: u32,
    reserved_0c4: u32,
    pub nrip: u64,
    reserved_0d0: [u8; 0x50],
    /// Bus locks that the guest may make until the next exits.
    pub bus_lock_counter: u16,
    reserved_122: [u8; 0x2de],
}

/// VMCB state save area. Names are the manual's.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct StateSaveArea {
    /// ES, CS, SS, DS, FS, GS, GDTR, LDTR, IDTR, TR: [`StateSaveArea::segment_index`] and
    /// [`StateSaveArea::table_index`] find one.
    pub segments: [VmcbSegment; 10],
    reserved_0a0: [u8; 0x2b],
    pub cpl: u8,
    reserved_0cc: u32,
    pub efer: u64,
    reserved_0d8: [u8; 0x70],
    pub cr4: u64,
    pub cr3: u64,
    pub cr0: u64,
    pub dr7: u64,
    pub dr6: u64,
    pub rflags: u64,
    pub rip: u64,
    reserved_180: [u8; 0x58],
    pub rsp: u64,
    pub s_cet: u64,
    pub ssp: u64,
    pub isst_addr: u64,
    pub rax: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub cr2: u64,
    reserved_248: [u8; 0x20],
    pub g_pat: u64,
    pub dbgctl: u64,
    reserved_278: [u8; 0x988],
}

impl StateSaveArea {
    /// Where `register` lies in [`StateSaveArea::segments`].
    #[must_use]
    pub const fn segment_index(register: SegmentRegister) -> usize {
        match register {
            SegmentRegister::Es => 0,
            SegmentRegister::Cs => 1,
            SegmentRegister::Ss => 2,
            SegmentRegister::Ds => 3,
            SegmentRegister::Fs => 4,
            SegmentRegister::Gs => 5,
            SegmentRegister::Ldtr => 7,
            SegmentRegister::Tr => 9,
        }
    }

    /// Where `register` lies in [`StateSaveArea::segments`].
    #[must_use]
    pub const fn table_index(register: DescriptorTableRegister) -> usize {
        match register {
            DescriptorTableRegister::Gdtr => 6,
            DescriptorTableRegister::Idtr => 8,
        }
    }
}

/// The whole block: one 4 KiB frame.
#[derive(Clone, Debug)]
#[repr(C, align(4096))]
pub struct Vmcb {
    pub control: ControlArea,
    pub save: StateSaveArea,
}

impl Vmcb {
    /// A block of zeros.
    #[must_use]
    pub const fn zeroed() -> Self {
        // SAFETY: every field is an integer or an array of integers, for which all zeros is a value.
        unsafe { zeroed() }
    }

    /// Its quadwords.
    #[must_use]
    pub const fn words(&self) -> &[u64; 512] {
        // SAFETY: integers and arrays of integers without padding (their offsets and the size are asserted
        // below), aligned to 4,096 bytes.
        unsafe { &*(&raw const *self).cast() }
    }
}

macro_rules! offsets {
    ($area:ty: $($field:ident = $offset:literal),* $(,)?) => {
        $(const _: () = assert!(offset_of!($area, $field) == $offset);)*
    };
}

offsets!(ControlArea:
    intercept_cr = 0x000, intercept_dr = 0x004, intercept_exceptions = 0x008, intercept_3 = 0x00c,
    intercept_4 = 0x010, intercept_5 = 0x014, pause_filter_threshold = 0x03c,
    pause_filter_count = 0x03e, iopm_base_pa = 0x040, msrpm_base_pa = 0x048, tsc_offset = 0x050,
    guest_asid = 0x058, tlb_control = 0x05c, virtual_interrupt = 0x060, interrupt_shadow = 0x068,
    exitcode = 0x070, exitinfo1 = 0x078, exitinfo2 = 0x080, exitintinfo = 0x088, np_enable = 0x090,
    eventinj = 0x0a8, n_cr3 = 0x0b0, lbr_virtualization_enable = 0x0b8, vmcb_clean_bits = 0x0c0,
    nrip = 0x0c8, bus_lock_counter = 0x120,
);
offsets!(StateSaveArea:
    segments = 0x000, reserved_0a0 = 0x0a0, cpl = 0x0cb,
    efer = 0x0d0, cr4 = 0x148, cr3 = 0x150, cr0 = 0x158, dr7 = 0x160, dr6 = 0x168, rflags = 0x170,
    rip = 0x178, rsp = 0x1d8, s_cet = 0x1e0, ssp = 0x1e8, isst_addr = 0x1f0, rax = 0x1f8,
    star = 0x200, lstar = 0x208, cstar = 0x210, sfmask = 0x218, kernel_gs_base = 0x220,
    sysenter_cs = 0x228, sysenter_esp = 0x230, sysenter_eip = 0x238, cr2 = 0x240, g_pat = 0x268,
    dbgctl = 0x270,
);
offsets!(Vmcb: control = 0x000, save = 0x400);
const _: () = assert!(size_of::<VmcbSegment>() == 16);
const _: () = assert!(size_of::<Vmcb>() == 4096);
