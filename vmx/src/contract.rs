//! [`Vcpu`] for [`VmxVcpu`]: each method is a few VMCS fields.

use core::arch::asm;
use core::fmt;

use arch::exit::{ExitReason, Vectoring};
use arch::interrupt::InterruptRegisters;
use arch::msr::{IA32_CSTAR, IA32_FMASK, IA32_KERNEL_GS_BASE, IA32_LSTAR, IA32_STAR};
use arch::register::{Gpr, Rflags};
use arch::segment::{
    AccessRights, DescriptorTable, DescriptorTableRegister, Segment, SegmentRegister,
};
use arch::vcpu::{DebugRegisters, Event, StartState, SystemCallMsrs, Vcpu};
use arch::{Gva, Hpa};
use cpu::instructions::{read_msr, write_msr};

use crate::bitmap::Bitmaps;
use crate::controls::{
    Controls, ExitControls, INTERRUPT_WINDOW, PinBased, Primary, exception_bitmap,
};
use crate::decode::reason;
use crate::event::{InterruptionInformation, vectoring};
use crate::field::{self, Field, Natural, W32};
use crate::vcpu::{ACTIVITY_HLT, BLOCKING_BY_STI_OR_MOV_SS, VmxVcpu};

/// DR7 and IA32_PAT after reset (SDM "IA-32 and Intel 64 Processor States Following Power-up, Reset,
/// or INIT").
const DR7_RESET: u64 = 0x400;
const PAT_RESET: u64 = 0x0007_0406_0007_0406;

const fn table_fields(register: DescriptorTableRegister) -> (Field<Natural>, Field<W32>) {
    match register {
        DescriptorTableRegister::Gdtr => (field::GUEST_GDTR_BASE, field::GUEST_GDTR_LIMIT),
        DescriptorTableRegister::Idtr => (field::GUEST_IDTR_BASE, field::GUEST_IDTR_LIMIT),
    }
}

impl Vcpu for VmxVcpu {
    #[inline(always)]
    fn run(&mut self) -> ExitReason {
        // The most frequent ones are told by this number alone.
        match self.enter() {
            reason::CPUID => ExitReason::Cpuid,
            reason::RDMSR => ExitReason::ReadMsr,
            reason::WRMSR => ExitReason::WriteMsr,
            _ => self.last_exit(None),
        }
    }

    fn step(&mut self, root: Hpa, one: bool) -> ExitReason {
        let step = self.begin_step(root, one);
        self.enter();
        self.last_exit(Some(step))
    }

    fn vectoring(&self) -> Option<Vectoring> {
        let information = InterruptionInformation(self.vmcs.read(field::IDT_VECTORING_INFORMATION));
        vectoring(information, self.vmcs.read(field::IDT_VECTORING_ERROR_CODE))
    }

    #[inline(always)]
    fn instruction_length(&self, _: u8) -> u8 {
        self.vmcs.read(field::VM_EXIT_INSTRUCTION_LENGTH) as u8
    }

    /// Paging in PAE mode must be off in `state`: the PDPTEs are not loaded from memory.
    fn load(&mut self, state: &StartState) {
        for (register, value) in Gpr::ALL.into_iter().zip(state.gpr) {
            self.set_gpr(register, value);
        }
        self.set_rip(state.rip);
        self.set_rflags(state.rflags);
        self.vmcs.write(field::GUEST_CR3, state.cr3);
        self.set_cr4(state.cr4);
        self.set_cr0_and_efer(state.cr0, state.efer);
        self.set_cr2(0);
        self.set_pat(PAT_RESET);
        for (register, segment) in SegmentRegister::ALL.into_iter().zip(state.segments) {
            self.set_segment(register, segment);
        }
        self.set_descriptor_table(DescriptorTableRegister::Gdtr, state.gdtr);
        self.set_descriptor_table(DescriptorTableRegister::Idtr, state.idtr);
        for index in 0..4 {
            self.vmcs.write(field::GUEST_PDPTE0.nth(index), 0);
        }
        self.vmcs.write(field::GUEST_DR7, DR7_RESET);
        self.vmcs.write(field::GUEST_IA32_DEBUGCTL, 0);
        self.vmcs.write(field::GUEST_IA32_SYSENTER_CS, 0);
        self.vmcs.write(field::GUEST_IA32_SYSENTER_ESP, 0);
        self.vmcs.write(field::GUEST_IA32_SYSENTER_EIP, 0);
        self.vmcs.write(field::GUEST_INTERRUPTIBILITY_STATE, 0);
        self.vmcs.write(field::GUEST_ACTIVITY_STATE, 0);
        self.vmcs.write(field::GUEST_PENDING_DEBUG_EXCEPTIONS, 0);
        self.drop_events();
        self.reset_virtual_apic();
        for msr in [IA32_STAR, IA32_LSTAR, IA32_CSTAR, IA32_FMASK, IA32_KERNEL_GS_BASE] {
            // SAFETY: every 64-bit CPU has it, 0 is allowed, and the host uses none of them.
            unsafe { write_msr(msr, 0) };
        }
    }

    fn gpr(&self, register: Gpr) -> u64 {
        if register == Gpr::Rsp {
            self.vmcs.read(field::GUEST_RSP)
        } else {
            self.registers.gpr[register as usize]
        }
    }

    fn set_gpr(&mut self, register: Gpr, value: u64) {
        if register == Gpr::Rsp {
            self.vmcs.write(field::GUEST_RSP, value);
        } else {
            self.registers.gpr[register as usize] = value;
        }
    }

    fn rip(&self) -> u64 {
        self.vmcs.read(field::GUEST_RIP)
    }

    fn set_rip(&mut self, rip: u64) {
        self.vmcs.write(field::GUEST_RIP, rip);
    }

    fn rflags(&self) -> u64 {
        self.vmcs.read(field::GUEST_RFLAGS)
    }

    fn set_rflags(&mut self, rflags: u64) {
        self.vmcs.write(field::GUEST_RFLAGS, rflags);
    }

    fn cr0(&self) -> u64 {
        self.cr0.seen(self.vmcs.read(field::GUEST_CR0), self.vmcs.read(field::CR0_READ_SHADOW))
    }

    fn set_cr0(&mut self, value: u64) {
        let efer = self.efer();
        self.set_cr0_and_efer(value, efer);
    }

    fn cr2(&self) -> u64 {
        x86_64::registers::control::Cr2::read_raw()
    }

    fn set_cr2(&mut self, value: u64) {
        // SAFETY: the host never reads CR2 but in a page fault, which sets it first.
        unsafe { asm!("mov cr2, {}", in(reg) value, options(nostack, nomem, preserves_flags)) };
    }

    fn cr3(&self) -> u64 {
        self.vmcs.read(field::GUEST_CR3)
    }

    fn set_cr3(&mut self, value: u64, pointers: Option<[u64; 4]>) {
        self.vmcs.write(field::GUEST_CR3, value);
        for (index, pointer) in (0..).zip(pointers.into_iter().flatten()) {
            self.vmcs.write(field::GUEST_PDPTE0.nth(index), pointer);
        }
        self.flush_linear();
    }

    fn cr4(&self) -> u64 {
        self.cr4.seen(self.vmcs.read(field::GUEST_CR4), self.vmcs.read(field::CR4_READ_SHADOW))
    }

    fn own_cr4(&self) -> u64 {
        self.vmcs.read(field::GUEST_CR4)
    }

    fn set_cr4(&mut self, value: u64) {
        self.vmcs.write(field::GUEST_CR4, self.cr4.real(value));
        self.vmcs.write(field::CR4_READ_SHADOW, value);
        self.flush_linear();
    }

    fn efer(&self) -> u64 {
        self.vmcs.read(field::GUEST_IA32_EFER)
    }

    fn set_efer(&mut self, value: u64) {
        let cr0 = self.cr0();
        self.set_cr0_and_efer(cr0, value);
    }

    fn pat(&self) -> u64 {
        self.vmcs.read(field::GUEST_IA32_PAT)
    }

    fn set_pat(&mut self, value: u64) {
        self.vmcs.write(field::GUEST_IA32_PAT, value);
    }

    fn segment(&self, register: SegmentRegister) -> Segment {
        let index = register as u32;
        Segment {
            selector: self.vmcs.read(field::GUEST_ES_SELECTOR.nth(index)),
            base: self.vmcs.read(field::GUEST_ES_BASE.nth(index)),
            limit: self.vmcs.read(field::GUEST_ES_LIMIT.nth(index)),
            access: AccessRights(self.vmcs.read(field::GUEST_ES_ACCESS_RIGHTS.nth(index))),
        }
    }

    fn set_segment(&mut self, register: SegmentRegister, segment: Segment) {
        let index = register as u32;
        self.vmcs.write(field::GUEST_ES_SELECTOR.nth(index), segment.selector);
        self.vmcs.write(field::GUEST_ES_BASE.nth(index), segment.base);
        self.vmcs.write(field::GUEST_ES_LIMIT.nth(index), segment.limit);
        self.vmcs.write(field::GUEST_ES_ACCESS_RIGHTS.nth(index), segment.access.0);
    }

    fn descriptor_table(&self, register: DescriptorTableRegister) -> DescriptorTable {
        let (base, limit) = table_fields(register);
        DescriptorTable {
            base: Gva::new(self.vmcs.read(base)),
            limit: self.vmcs.read(limit) as u16,
        }
    }

    fn set_descriptor_table(&mut self, register: DescriptorTableRegister, table: DescriptorTable) {
        let (base, limit) = table_fields(register);
        self.vmcs.write(base, table.base.as_u64());
        self.vmcs.write(limit, u32::from(table.limit));
    }

    fn cpl(&self) -> u8 {
        // SS.DPL is the CPL in every mode (SDM "Guest Register State").
        self.segment(SegmentRegister::Ss).access.dpl()
    }

    fn protection_keys(&self) -> u32 {
        // SAFETY: ring 0, and the guest could set CR4.PKE only on a CPU that has it; PKRU stays the guest's.
        unsafe { cpu::instructions::protection_keys() }
    }

    #[inline(always)]
    fn skip_instruction(&mut self, length: u8) {
        self.pass_over(length);
        let state = self.vmcs.read(field::GUEST_INTERRUPTIBILITY_STATE);
        if state & BLOCKING_BY_STI_OR_MOV_SS != 0 {
            self.vmcs
                .write(field::GUEST_INTERRUPTIBILITY_STATE, state & !BLOCKING_BY_STI_OR_MOV_SS);
        }
        let flags = Rflags::from_bits_retain(self.rflags());
        if flags.intersects(Rflags::TF | Rflags::RF) {
            self.end_instruction(flags);
        }
    }

    fn inject(&mut self, event: Event) {
        self.inject_or_wait(event);
    }

    fn injecting(&self) -> bool {
        InterruptionInformation(self.vmcs.read(field::VM_ENTRY_INTERRUPTION_INFORMATION)).valid()
    }

    fn interruptible(&self) -> bool {
        self.can_take_interrupt()
    }

    fn set_interrupt_window(&mut self, wanted: bool) {
        self.set_primary(INTERRUPT_WINDOW, wanted);
    }

    fn move_to_control_register(&mut self) -> bool {
        self.move_to_host_owned()
    }

    fn let_halt(&mut self) {
        self.set_primary(Primary::HLT_EXITING, false);
    }

    fn set_exception_intercepts(&mut self, bitmap: u32) {
        self.vmcs.write(field::EXCEPTION_BITMAP, exception_bitmap(bitmap));
    }

    /// DR7 is the VMCS's. An exit leaves the others as the guest had them, and DR7 with nothing on (SDM "Loading Host
    /// Control Registers, Debug Registers, MSRs").
    fn debug_registers(&self) -> DebugRegisters {
        // SAFETY: ring 0 follows from the VMCS; DR7 is as an exit leaves it.
        let (addresses, status) = unsafe { cpu::instructions::debug_registers() };
        DebugRegisters { addresses, status, control: self.vmcs.read(field::GUEST_DR7) }
    }

    fn set_debug_registers(&mut self, registers: &DebugRegisters) {
        const STATUS: u64 = 0xffff_ffff;
        let DebugRegisters { addresses, status, control } = *registers;
        // SAFETY: as above.
        unsafe { cpu::instructions::set_debug_registers(addresses, status & STATUS) };
        self.vmcs.write(field::GUEST_DR7, control);
    }

    #[inline(always)]
    fn breakpoints(&self) -> Option<DebugRegisters> {
        if self.breakpoints_on() { self.own_breakpoints() } else { None }
    }

    #[inline(always)]
    fn breakpoints_on(&self) -> bool {
        const ON: u64 = 0xff;
        self.vmcs.read(field::GUEST_DR7) & ON != 0
    }

    fn meet_breakpoints(&mut self, met: u8) {
        self.await_breakpoints(met);
    }

    fn watch_debug_registers(&mut self, wanted: bool) {
        self.set_primary(Primary::MOV_DR_EXITING, wanted);
    }

    /// The CPU switches those of SYSENTER alone; the host uses none of the others.
    fn system_call_msrs(&self) -> SystemCallMsrs {
        // SAFETY: every 64-bit CPU has these, and reading one changes nothing.
        let read = |msr| unsafe { read_msr(msr) };
        SystemCallMsrs {
            star: read(IA32_STAR),
            lstar: read(IA32_LSTAR),
            cstar: read(IA32_CSTAR),
            fmask: read(IA32_FMASK),
            kernel_gs_base: read(IA32_KERNEL_GS_BASE),
            sysenter: [
                self.vmcs.read(field::GUEST_IA32_SYSENTER_CS).into(),
                self.vmcs.read(field::GUEST_IA32_SYSENTER_ESP),
                self.vmcs.read(field::GUEST_IA32_SYSENTER_EIP),
            ],
        }
    }

    fn set_system_call_msrs(&mut self, msrs: &SystemCallMsrs) {
        for (msr, value) in [
            (IA32_STAR, msrs.star),
            (IA32_LSTAR, msrs.lstar),
            (IA32_CSTAR, msrs.cstar),
            (IA32_FMASK, msrs.fmask),
            (IA32_KERNEL_GS_BASE, msrs.kernel_gs_base),
        ] {
            // SAFETY: every 64-bit CPU has it, it has held this value, and the host uses none of them.
            unsafe { write_msr(msr, value) };
        }
        let [cs, esp, eip] = msrs.sysenter;
        self.vmcs.write(field::GUEST_IA32_SYSENTER_CS, cs as u32);
        self.vmcs.write(field::GUEST_IA32_SYSENTER_ESP, esp);
        self.vmcs.write(field::GUEST_IA32_SYSENTER_EIP, eip);
    }

    fn debug_exception(&self) -> bool {
        self.snapshot().is_debug_exception()
    }

    fn show_interrupts(&mut self, registers: &InterruptRegisters, awaited: u8) {
        self.show(registers, awaited);
    }

    fn take_interrupts(&mut self, registers: &mut InterruptRegisters) {
        self.take(registers);
    }

    fn accept_interrupts(&mut self, accepts: bool) {
        if let Some(posting) = self.posting() {
            posting.set_reachable(accepts);
        }
    }

    fn pass_x2apic(&mut self, pass: bool) {
        let bitmaps = self.vmcs.read(field::ADDRESS_OF_IO_BITMAP_A) - Bitmaps::IO_OFFSET;
        let msrs = if pass { bitmaps } else { bitmaps + Bitmaps::XAPIC_OFFSET };
        self.vmcs.write(field::ADDRESS_OF_MSR_BITMAPS, msrs);
    }

    fn flush_nested(&mut self) {
        self.invalidate_nested();
    }

    /// The preemption timer. It goes on over exits (on a CPU that cannot save it, it starts again at each) and starts
    /// again when it has fired, until it is switched off.
    fn set_host_timer(&mut self, ticks: Option<u64>) -> bool {
        let Some(shift) = self.features.preemption_timer_shift else {
            return false;
        };
        let (pin_based, exit) = Controls::preemption_timer(
            PinBased::from_bits_retain(self.vmcs.read(field::PIN_BASED_VM_EXECUTION_CONTROLS)),
            ExitControls::from_bits_retain(self.vmcs.read(field::VM_EXIT_CONTROLS)),
            self.features.capabilities.saves_preemption_timer(),
            ticks.is_some(),
        );
        self.vmcs.write(field::PIN_BASED_VM_EXECUTION_CONTROLS, pin_based.bits());
        self.vmcs.write(field::VM_EXIT_CONTROLS, exit.bits());
        if let Some(ticks) = ticks {
            self.timer_count = u32::try_from(ticks >> shift).unwrap_or(u32::MAX).max(1);
            self.restart_timer();
        }
        true
    }

    fn halted(&self) -> Option<bool> {
        Some(self.vmcs.read(field::GUEST_ACTIVITY_STATE) == ACTIVITY_HLT)
    }

    fn wake(&mut self) {
        self.vmcs.write(field::GUEST_ACTIVITY_STATE, 0);
    }

    fn write_state(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_vmcs(f)
    }
}
