//! A virtual CPU and memory for tests: plain fields behind the contracts.

use std::cell::Cell;
use std::collections::BTreeMap;

use arch::exit::{ExitReason, Vectoring};
use arch::machine::{GuestMemory, NotGuestMemory};
use arch::register::Gpr;
use arch::segment::{
    AccessRights, DescriptorTable, DescriptorTableRegister, Segment, SegmentRegister,
};
use arch::vcpu::{Event, StartState, Vcpu};
use arch::{Gpa, Hpa};

use crate::Mode;

/// Registers that tests set; whatever else the contract has is inert.
pub(crate) struct FakeVcpu {
    pub(crate) gpr: [u64; 16],
    pub(crate) rip: u64,
    pub(crate) rflags: u64,
    pub(crate) cr: [u64; 5],
    pub(crate) efer: u64,
    pub(crate) segments: [Segment; 8],
    pub(crate) cpl: u8,
    pub(crate) pkru: u32,
}

impl FakeVcpu {
    pub(crate) fn new(mode: Mode) -> Self {
        let (cs, cr0, efer) = match mode {
            Mode::Bits16 => (AccessRights::CODE16, 0x10, 0),
            Mode::Bits32 => (AccessRights::CODE32, 0x11, 0),
            Mode::Bits64 => (AccessRights::CODE64, 0x8000_0011, 0x500),
        };
        let segment = |access| Segment { selector: 8, base: 0, limit: u32::MAX, access };
        let mut segments = [segment(AccessRights::DATA32); 8];
        segments[SegmentRegister::Cs as usize] = segment(cs);
        let cr = [cr0, 0, 0, 0, 0];
        Self { gpr: [0; 16], rip: 0, rflags: 2, cr, efer, segments, cpl: 0, pkru: 0 }
    }
}

impl Vcpu for FakeVcpu {
    fn run(&mut self) -> ExitReason {
        ExitReason::Init
    }
    fn step(&mut self, _: Hpa, _: bool) -> ExitReason {
        ExitReason::Step
    }
    fn vectoring(&self) -> Option<Vectoring> {
        None
    }
    fn instruction_length(&self, bare: u8) -> u8 {
        bare
    }
    fn move_to_control_register(&mut self) -> bool {
        false
    }
    fn load(&mut self, _: &StartState) {}
    fn gpr(&self, register: Gpr) -> u64 {
        self.gpr[register as usize]
    }
    fn set_gpr(&mut self, register: Gpr, value: u64) {
        self.gpr[register as usize] = value;
    }
    fn rip(&self) -> u64 {
        self.rip
    }
    fn set_rip(&mut self, rip: u64) {
        self.rip = rip;
    }
    fn rflags(&self) -> u64 {
        self.rflags
    }
    fn set_rflags(&mut self, rflags: u64) {
        self.rflags = rflags;
    }
    fn cr0(&self) -> u64 {
        self.cr[0]
    }
    fn cr2(&self) -> u64 {
        self.cr[2]
    }
    fn set_cr2(&mut self, value: u64) {
        self.cr[2] = value;
    }
    fn cr3(&self) -> u64 {
        self.cr[3]
    }
    fn cr4(&self) -> u64 {
        self.cr[4]
    }
    fn set_cr0(&mut self, value: u64) {
        self.cr[0] = value;
    }
    fn set_cr3(&mut self, value: u64, _: Option<[u64; 4]>) {
        self.cr[3] = value;
    }
    fn set_cr4(&mut self, value: u64) {
        self.cr[4] = value;
    }
    fn efer(&self) -> u64 {
        self.efer
    }
    fn set_efer(&mut self, value: u64) {
        self.efer = value;
    }
    fn pat(&self) -> u64 {
        0
    }
    fn set_pat(&mut self, _: u64) {}
    fn segment(&self, register: SegmentRegister) -> Segment {
        self.segments[register as usize]
    }
    fn set_segment(&mut self, register: SegmentRegister, segment: Segment) {
        self.segments[register as usize] = segment;
    }
    fn descriptor_table(&self, _: DescriptorTableRegister) -> DescriptorTable {
        DescriptorTable::default()
    }
    fn set_descriptor_table(&mut self, _: DescriptorTableRegister, _: DescriptorTable) {}
    fn cpl(&self) -> u8 {
        self.cpl
    }
    fn protection_keys(&self) -> u32 {
        self.pkru
    }
    fn skip_instruction(&mut self, length: u8) {
        self.rip += u64::from(length);
    }
    fn inject(&mut self, _: Event) {}
    fn injecting(&self) -> bool {
        false
    }
    fn interruptible(&self) -> bool {
        false
    }
    fn set_interrupt_window(&mut self, _: bool) {}
    fn let_halt(&mut self) {}
    fn set_exception_intercepts(&mut self, _: u32) {}
    fn flush_nested(&mut self) {}
    fn pass_x2apic(&mut self, _: bool) {}
    fn set_host_timer(&mut self, _: Option<u64>) -> bool {
        false
    }
    fn halted(&self) -> Option<bool> {
        None
    }
    fn write_state(&self, _: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        Ok(())
    }
}

/// Sparse memory below `size`; what was never written is zero.
pub(crate) struct FakeMemory {
    pub(crate) size: u64,
    pub(crate) bytes: BTreeMap<u64, u8>,
    /// How many reads there were.
    pub(crate) reads: Cell<usize>,
}

impl FakeMemory {
    pub(crate) fn new(size: u64) -> Self {
        Self { size, bytes: BTreeMap::new(), reads: Cell::new(0) }
    }

    pub(crate) fn set_u64(&mut self, at: u64, value: u64) {
        self.write(Gpa::new(at), &value.to_le_bytes()).unwrap();
    }

    pub(crate) fn set_u32(&mut self, at: u64, value: u32) {
        self.write(Gpa::new(at), &value.to_le_bytes()).unwrap();
    }

    fn check(&self, gpa: Gpa, length: usize) -> Result<(), NotGuestMemory> {
        let end = gpa.checked_add(length as u64).ok_or(NotGuestMemory(gpa))?;
        if end.as_u64() <= self.size { Ok(()) } else { Err(NotGuestMemory(gpa)) }
    }
}

impl GuestMemory for FakeMemory {
    fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), NotGuestMemory> {
        self.check(gpa, bytes.len())?;
        self.reads.set(self.reads.get() + 1);
        for (at, byte) in (gpa.as_u64()..).zip(bytes) {
            *byte = self.bytes.get(&at).copied().unwrap_or(0);
        }
        Ok(())
    }

    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), NotGuestMemory> {
        self.check(gpa, bytes.len())?;
        self.bytes.extend((gpa.as_u64()..).zip(bytes.iter().copied()));
        Ok(())
    }
}
