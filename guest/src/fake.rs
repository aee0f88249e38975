//! Scripted stand-ins for the machine, the CPU and the guest's memory, for this crate's tests.

use std::collections::BTreeMap;
use std::fmt;

use arch::exit::Exit;
use arch::interrupt::{InterruptTarget, MsiMessage};
use arch::machine::{
    CpuidResult, GuestMemory, InterruptLine, Machine, NotGuestMemory, RouteRefused,
};
use arch::register::Gpr;
use arch::segment::{DescriptorTable, DescriptorTableRegister, Segment, SegmentRegister};
use arch::vcpu::{Event, StartState, Vcpu};
use arch::{Gpa, Hpa, Vector, Width};

/// A machine whose answers a test sets.
pub(crate) struct FakeMachine {
    pub(crate) tsc: u64,
    pub(crate) tsc_khz: u64,
    pub(crate) unix_time: u64,
    pub(crate) cpuid: BTreeMap<(u32, u32), CpuidResult>,
    pub(crate) msrs: BTreeMap<u32, u64>,
}

impl Default for FakeMachine {
    fn default() -> Self {
        Self {
            tsc: 5_000_000,
            tsc_khz: 2_000_000,
            unix_time: 1_000_000_000,
            cpuid: BTreeMap::new(),
            msrs: BTreeMap::new(),
        }
    }
}

impl Machine for FakeMachine {
    fn tsc(&self) -> u64 {
        self.tsc
    }
    fn tsc_khz(&self) -> u64 {
        self.tsc_khz
    }
    fn unix_time(&self) -> u64 {
        self.unix_time
    }
    fn cpuid(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        self.cpuid.get(&(leaf, subleaf)).copied().unwrap_or_default()
    }
    fn read_msr(&mut self, msr: u32) -> Option<u64> {
        self.msrs.get(&msr).copied()
    }
    fn write_msr(&mut self, msr: u32, value: u64) -> bool {
        self.msrs.insert(msr, value).is_some()
    }
    fn write_xcr0(&mut self, _: u64) -> bool {
        false
    }
    fn port_read(&mut self, _: u16, width: Width) -> u32 {
        width.mask() as u32
    }
    fn port_write(&mut self, _: u16, _: Width, _: u32) {}
    fn mmio_read(&mut self, _: Hpa, width: Width) -> u64 {
        width.mask()
    }
    fn mmio_write(&mut self, _: Hpa, _: Width, _: u64) {}
    fn self_ipi(&mut self, _: Vector) {}
    fn eoi(&mut self) {}
    fn route(
        &mut self,
        _: InterruptLine,
        _: Option<InterruptTarget>,
    ) -> Result<MsiMessage, RouteRefused> {
        Err(RouteRefused("the fake machine has no lines"))
    }
    fn map_device(&mut self, _: Gpa, _: Hpa, _: u64) {}
    fn unmap(&mut self, _: Gpa, _: u64) {}
    fn set_shadow_page(&mut self, _: usize, _: Option<Gpa>) {}
    fn shadow_page(&mut self, _: usize) -> &mut [u8; 4096] {
        Box::leak(Box::new([0; 4096]))
    }
    fn vector_register(&self, _: u8) -> [u8; 16] {
        [0; 16]
    }
    fn console_write(&mut self, _: u8) {}
    fn console_read(&mut self) -> Option<u8> {
        None
    }
    fn log(&mut self, _: fmt::Arguments<'_>) {}
}

/// Guest RAM from address 0 on.
pub(crate) struct FakeMemory(pub(crate) Vec<u8>);

impl FakeMemory {
    fn range(&self, gpa: Gpa, length: usize) -> Result<std::ops::Range<usize>, NotGuestMemory> {
        let start = usize::try_from(gpa.as_u64()).map_err(|_| NotGuestMemory(gpa))?;
        let end = start.checked_add(length).filter(|end| *end <= self.0.len());
        Ok(start..end.ok_or(NotGuestMemory(gpa))?)
    }
}

impl GuestMemory for FakeMemory {
    fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), NotGuestMemory> {
        bytes.copy_from_slice(&self.0[self.range(gpa, bytes.len())?]);
        Ok(())
    }
    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), NotGuestMemory> {
        let range = self.range(gpa, bytes.len())?;
        self.0[range].copy_from_slice(bytes);
        Ok(())
    }
}

/// A CPU that holds what it is given.
pub(crate) struct FakeVcpu {
    pub(crate) state: StartState,
    pub(crate) pat: u64,
}

impl Default for FakeVcpu {
    fn default() -> Self {
        Self { state: StartState::after_sipi(0), pat: 0x0007_0406_0007_0406 }
    }
}

impl Vcpu for FakeVcpu {
    fn run(&mut self) -> Exit {
        panic!("the fake CPU does not run")
    }
    fn load(&mut self, state: &StartState) {
        self.state = *state;
    }
    fn gpr(&self, register: Gpr) -> u64 {
        self.state.gpr[register as usize]
    }
    fn set_gpr(&mut self, register: Gpr, value: u64) {
        self.state.gpr[register as usize] = value;
    }
    fn rip(&self) -> u64 {
        self.state.rip
    }
    fn set_rip(&mut self, rip: u64) {
        self.state.rip = rip;
    }
    fn rflags(&self) -> u64 {
        self.state.rflags
    }
    fn set_rflags(&mut self, rflags: u64) {
        self.state.rflags = rflags;
    }
    fn cr0(&self) -> u64 {
        self.state.cr0
    }
    fn set_cr0(&mut self, value: u64) {
        self.state.cr0 = value;
    }
    fn cr2(&self) -> u64 {
        0
    }
    fn set_cr2(&mut self, _: u64) {}
    fn cr3(&self) -> u64 {
        self.state.cr3
    }
    fn cr4(&self) -> u64 {
        self.state.cr4
    }
    fn set_cr4(&mut self, value: u64) {
        self.state.cr4 = value;
    }
    fn efer(&self) -> u64 {
        self.state.efer
    }
    fn set_efer(&mut self, value: u64) {
        self.state.efer = value;
    }
    fn pat(&self) -> u64 {
        self.pat
    }
    fn set_pat(&mut self, value: u64) {
        self.pat = value;
    }
    fn segment(&self, register: SegmentRegister) -> Segment {
        self.state.segments[register as usize]
    }
    fn set_segment(&mut self, register: SegmentRegister, segment: Segment) {
        self.state.segments[register as usize] = segment;
    }
    fn descriptor_table(&self, register: DescriptorTableRegister) -> DescriptorTable {
        match register {
            DescriptorTableRegister::Gdtr => self.state.gdtr,
            DescriptorTableRegister::Idtr => self.state.idtr,
        }
    }
    fn set_descriptor_table(&mut self, register: DescriptorTableRegister, table: DescriptorTable) {
        match register {
            DescriptorTableRegister::Gdtr => self.state.gdtr = table,
            DescriptorTableRegister::Idtr => self.state.idtr = table,
        }
    }
    fn cpl(&self) -> u8 {
        self.state.segments[SegmentRegister::Ss as usize].access.dpl()
    }
    fn skip_instruction(&mut self, length: u8) {
        self.state.rip += u64::from(length);
    }
    fn inject(&mut self, _: Event) {}
    fn injecting(&self) -> bool {
        false
    }
    fn interruptible(&self) -> bool {
        true
    }
    fn set_interrupt_window(&mut self, _: bool) {}
    fn set_exception_intercepts(&mut self, _: u32) {}
    fn set_halt_exiting(&mut self, _: bool) {}
    fn flush_nested(&mut self) {}
    fn set_preemption_timer(&mut self, _: Option<u64>) -> bool {
        false
    }
    fn halted(&self) -> bool {
        false
    }
}
