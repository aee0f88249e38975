//! The hypervisor's own GDT and TSS, one pair per CPU.
//!
//! Selectors are the same on every CPU: [`CODE`], [`DATA`], [`TASK`].

use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, FS, GS, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector};
use x86_64::structures::tss::TaskStateSegment;
use x86_64::{PrivilegeLevel, structures::DescriptorTablePointer};

/// Code segment selector.
pub const CODE: SegmentSelector = SegmentSelector::new(1, PrivilegeLevel::Ring0);
/// Data segment selector.
pub const DATA: SegmentSelector = SegmentSelector::new(2, PrivilegeLevel::Ring0);
/// Task-state segment selector.
pub const TASK: SegmentSelector = SegmentSelector::new(3, PrivilegeLevel::Ring0);

/// Index (1-based in the gate) of the stack on which a double fault is taken, so that running into
/// a stack's guard page is reported instead of resetting the machine.
pub const DOUBLE_FAULT_STACK: u8 = 1;
/// The same for a machine check, which may come at any instruction, also where the stack is used up.
pub const MACHINE_CHECK_STACK: u8 = 2;

/// One CPU's GDT and TSS.
pub struct CpuTables {
    gdt: GlobalDescriptorTable,
    tss: TaskStateSegment,
}

impl CpuTables {
    /// Tables with a stack for each of the two, of which these are the ends.
    #[must_use]
    pub fn new(double_fault: u64, machine_check: u64) -> Self {
        let mut tss = TaskStateSegment::new();
        let mut stacks = tss.interrupt_stack_table;
        stacks[usize::from(DOUBLE_FAULT_STACK) - 1] = VirtAddr::new(double_fault);
        stacks[usize::from(MACHINE_CHECK_STACK) - 1] = VirtAddr::new(machine_check);
        tss.interrupt_stack_table = stacks;
        Self { gdt: GlobalDescriptorTable::new(), tss }
    }

    /// Makes these the tables of the CPU that calls.
    pub fn load(&'static mut self) {
        let tss: &'static TaskStateSegment = &self.tss;
        self.gdt.append(Descriptor::kernel_code_segment());
        self.gdt.append(Descriptor::kernel_data_segment());
        self.gdt.append(Descriptor::tss_segment(tss));
        self.gdt.load();
        // SAFETY: the selector names the 64-bit code segment just loaded.
        unsafe { CS::set_reg(CODE) };
        // SAFETY: the selector names the flat data segment just loaded.
        unsafe { SS::set_reg(DATA) };
        // SAFETY: as for SS.
        unsafe { DS::set_reg(DATA) };
        // SAFETY: as for SS.
        unsafe { ES::set_reg(DATA) };
        // SAFETY: as for SS.
        unsafe { FS::set_reg(DATA) };
        // SAFETY: as for SS.
        unsafe { GS::set_reg(DATA) };
        // SAFETY: the selector names the TSS of this table, which lives for ever.
        unsafe { load_tss(TASK) };
    }

    /// Linear address of the TSS.
    #[must_use]
    pub fn tss_base(&self) -> u64 {
        &raw const self.tss as u64
    }
}

/// GDTR of the CPU that calls.
#[must_use]
pub fn gdtr() -> DescriptorTablePointer {
    x86_64::instructions::tables::sgdt()
}

/// IDTR of the CPU that calls.
#[must_use]
pub fn idtr() -> DescriptorTablePointer {
    x86_64::instructions::tables::sidt()
}
