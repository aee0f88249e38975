//! The contract between policy and a virtual CPU, kept with a VMCB: [`arch::vcpu::Vcpu`] for
//! [`SvmVcpu`].
//!
//! Place in the path: `run` is the exit and back; the rest is what policy does in between.

use core::fmt;

use arch::Hpa;
use arch::exit::{ExitReason, Vectoring};
use arch::interrupt::InterruptRegisters;
use arch::register::{Efer, Gpr, Rflags};
use arch::segment::{DescriptorTable, DescriptorTableRegister, Segment, SegmentRegister};
use arch::vcpu::{DebugRegisters, Event, EventKind, StartState, SystemCallMsrs, Vcpu, exception};

use crate::bitmap::PermissionMaps;
use crate::controls::{self, EVENT_VALID};
use crate::decode::{VMEXIT_CPUID, VMEXIT_EXCP0, VMEXIT_MSR, length, vectoring};
use crate::nmi::exit_behind_the_delivery;
use crate::vcpu::{SvmVcpu, Unswitched};
use crate::vmcb::{ControlArea, StateSaveArea, Vmcb};

/// PAT after reset: WB, WT, UC-, UC, twice (APM "PAT Register").
pub(crate) const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// DR6 after reset.
const DR6_RESET: u64 = 0xffff_0ff0;
/// B0 to B3 of DR6, which say what is met now, and L0 to G3 of DR7.
const BREAKPOINTS: u64 = 0xf;
const BREAKPOINTS_ON: u64 = 0xff;
/// BS of DR6.
const SINGLE_STEP: u64 = 1 << 14;
/// DR7 after reset.
const DR7_RESET: u64 = 0x400;
/// Bit 0 of the VMCB's interrupt-shadow field.
const INTERRUPT_SHADOW: u64 = 1;

impl Vcpu for SvmVcpu {
    #[inline(always)]
    fn run(&mut self) -> ExitReason {
        self.enter();
        let ControlArea { exitcode, exitinfo1, .. } = self.vmcb().control;
        // The most frequent ones are told by this number alone.
        match exitcode {
            VMEXIT_CPUID => ExitReason::Cpuid,
            VMEXIT_MSR if exitinfo1 & 1 == 0 => ExitReason::ReadMsr,
            VMEXIT_MSR => ExitReason::WriteMsr,
            _ => self.last_exit(),
        }
    }

    fn step(&mut self, root: Hpa, one: bool) -> ExitReason {
        let step = self.begin_step(root, one);
        self.enter();
        let ended = self.end_step(step);
        self.watched_exit(ended)
    }

    fn vectoring(&self) -> Option<Vectoring> {
        vectoring(self.vmcb().control.exitintinfo)
    }

    #[inline(always)]
    fn instruction_length(&self, bare: u8) -> u8 {
        let Vmcb { control, save } = self.vmcb();
        if self.features.nrip_save { length(save.rip, control.nrip) } else { bare }
    }

    fn load(&mut self, state: &StartState) {
        self.gpr = state.gpr;
        self.flush();
        // Every unswitched register is written here, so what the CPU holds is not asked for.
        self.unswitched.set(Unswitched::NewestInVmcb);
        let Vmcb { control, save } = self.vmcb_mut();
        control.eventinj = 0;
        control.interrupt_shadow = 0;
        controls::set_interrupt_window(control, false);
        for (register, segment) in SegmentRegister::ALL.into_iter().zip(state.segments) {
            save.segments[StateSaveArea::segment_index(register)] = segment.into();
        }
        for (register, table) in [
            (DescriptorTableRegister::Gdtr, state.gdtr),
            (DescriptorTableRegister::Idtr, state.idtr),
        ] {
            save.segments[StateSaveArea::table_index(register)] = table.into();
        }
        let [rax, _, _, _, rsp, ..] = state.gpr;
        (save.rax, save.rsp, save.rip, save.rflags) = (rax, rsp, state.rip, state.rflags);
        (save.cr2, save.cr3) = (0, state.cr3);
        save.efer = state.efer | Efer::SVME.bits();
        (save.dr6, save.dr7, save.dbgctl) = (DR6_RESET, DR7_RESET, 0);
        save.g_pat = PAT_RESET;
        (save.star, save.lstar, save.cstar, save.sfmask) = (0, 0, 0, 0);
        (save.kernel_gs_base, save.sysenter_cs) = (0, 0);
        (save.sysenter_esp, save.sysenter_eip) = (0, 0);
        let [_, _, ss, ..] = state.segments;
        save.cpl = ss.access.dpl();
        self.show_control_registers(state.cr0, state.cr4);
        self.update_lma();
        self.reset_nmis();
    }

    fn gpr(&self, register: Gpr) -> u64 {
        if register == Gpr::Rax {
            self.vmcb().save.rax
        } else if register == Gpr::Rsp {
            self.vmcb().save.rsp
        } else {
            self.gpr[register as usize]
        }
    }

    fn set_gpr(&mut self, register: Gpr, value: u64) {
        if register == Gpr::Rax {
            self.vmcb_mut().save.rax = value;
        } else if register == Gpr::Rsp {
            self.vmcb_mut().save.rsp = value;
        } else {
            self.gpr[register as usize] = value;
        }
    }

    fn rip(&self) -> u64 {
        self.vmcb().save.rip
    }

    fn set_rip(&mut self, rip: u64) {
        self.vmcb_mut().save.rip = rip;
    }

    fn rflags(&self) -> u64 {
        self.vmcb().save.rflags
    }

    fn set_rflags(&mut self, rflags: u64) {
        self.vmcb_mut().save.rflags = rflags;
    }

    fn cr0(&self) -> u64 {
        self.shown_cr0()
    }

    fn set_cr0(&mut self, value: u64) {
        self.show_control_registers(value, self.shown_cr4());
        self.update_lma();
        self.flush();
    }

    fn cr2(&self) -> u64 {
        self.vmcb().save.cr2
    }

    fn set_cr2(&mut self, value: u64) {
        self.vmcb_mut().save.cr2 = value;
    }

    fn cr3(&self) -> u64 {
        self.vmcb().save.cr3
    }

    /// With nested paging the CPU reads the pointers from memory (APM "Nested Paging", "Guest CR3").
    fn set_cr3(&mut self, value: u64, _: Option<[u64; 4]>) {
        self.vmcb_mut().save.cr3 = value;
        self.flush();
    }

    fn cr4(&self) -> u64 {
        self.shown_cr4()
    }

    fn own_cr4(&self) -> u64 {
        self.vmcb().save.cr4
    }

    fn set_cr4(&mut self, value: u64) {
        self.show_control_registers(self.shown_cr0(), value);
        self.flush();
    }

    fn efer(&self) -> u64 {
        self.vmcb().save.efer & !Efer::SVME.bits()
    }

    fn set_efer(&mut self, value: u64) {
        self.vmcb_mut().save.efer = value | Efer::SVME.bits();
        self.update_lma();
        self.flush();
    }

    fn pat(&self) -> u64 {
        self.vmcb().save.g_pat
    }

    fn set_pat(&mut self, value: u64) {
        self.vmcb_mut().save.g_pat = value;
        self.flush();
    }

    fn segment(&self, register: SegmentRegister) -> Segment {
        if unswitched(register) {
            self.save_unswitched();
        }
        self.vmcb().save.segments[StateSaveArea::segment_index(register)].into()
    }

    fn set_segment(&mut self, register: SegmentRegister, segment: Segment) {
        let vmcb = if unswitched(register) { self.unswitched_mut() } else { self.vmcb_mut() };
        vmcb.save.segments[StateSaveArea::segment_index(register)] = segment.into();
        if register == SegmentRegister::Ss {
            vmcb.save.cpl = segment.access.dpl();
        }
    }

    fn descriptor_table(&self, register: DescriptorTableRegister) -> DescriptorTable {
        self.vmcb().save.segments[StateSaveArea::table_index(register)].into()
    }

    fn set_descriptor_table(&mut self, register: DescriptorTableRegister, table: DescriptorTable) {
        self.vmcb_mut().save.segments[StateSaveArea::table_index(register)] = table.into();
    }

    fn cpl(&self) -> u8 {
        self.vmcb().save.cpl
    }

    fn protection_keys(&self) -> u32 {
        // SAFETY: ring 0, and the guest could set CR4.PKE only on a CPU that has it; PKRU stays the guest's.
        unsafe { cpu::instructions::protection_keys() }
    }

    #[inline(always)]
    fn skip_instruction(&mut self, length: u8) {
        let Vmcb { control, save } = self.vmcb_mut();
        save.rip = save.rip.wrapping_add(u64::from(length));
        control.interrupt_shadow &= !INTERRUPT_SHADOW;
        if save.rflags & (Rflags::TF | Rflags::RF).bits() != 0 {
            self.end_instruction();
        }
    }

    fn inject(&mut self, event: Event) {
        if event.kind == EventKind::Nmi {
            return self.inject_nmi();
        }
        self.keep_nmi();
        // QEMU would deliver it once more where its thread is woken before the guest's next exit (`docs/known-issues.md`).
        if event.kind == EventKind::ExternalInterrupt && self.features.is_emulated() {
            exit_behind_the_delivery();
        }
        let nrip_save = self.features.nrip_save;
        let Vmcb { control, save } = self.vmcb_mut();
        control.eventinj = controls::eventinj(&event);
        // A software event returns behind its instruction (APM "Event Injection"): the CPU pushes
        // nRIP where it has one, else RIP.
        let software = matches!(
            event.kind,
            EventKind::SoftwareInterrupt
                | EventKind::SoftwareException
                | EventKind::PrivilegedSoftwareException
        );
        if software {
            let next = save.rip.wrapping_add(u64::from(event.instruction_length));
            *if nrip_save { &mut control.nrip } else { &mut save.rip } = next;
        }
    }

    fn injecting(&self) -> bool {
        self.vmcb().control.eventinj & EVENT_VALID != 0
    }

    fn interruptible(&self) -> bool {
        let Vmcb { control, save } = self.vmcb();
        save.rflags & Rflags::IF.bits() != 0 && control.interrupt_shadow & INTERRUPT_SHADOW == 0
    }

    fn show_interrupts(&mut self, registers: &InterruptRegisters, awaited: u8) {
        self.show_priority(registers.tpr, awaited);
    }

    fn take_interrupts(&mut self, registers: &mut InterruptRegisters) {
        registers.tpr = self.shown_priority(registers.tpr);
    }

    fn set_interrupt_window(&mut self, wanted: bool) {
        controls::set_interrupt_window(&mut self.vmcb_mut().control, wanted);
    }

    /// No exit for one comes this far: see [`SvmVcpu::access_control_register`].
    fn move_to_control_register(&mut self) -> bool {
        false
    }

    fn let_halt(&mut self) {
        controls::let_halt(&mut self.vmcb_mut().control);
    }

    /// DR6 and DR7 are the VMCB's. An exit leaves the others as the guest had them, and DR7 with nothing on (APM "#VMEXIT").
    fn debug_registers(&self) -> DebugRegisters {
        // SAFETY: AMD-V is on, so this is ring 0; DR7 is as an exit leaves it.
        let (addresses, _) = unsafe { cpu::instructions::debug_registers() };
        let StateSaveArea { dr6, dr7, .. } = self.vmcb().save;
        DebugRegisters { addresses, status: dr6, control: dr7 }
    }

    fn set_debug_registers(&mut self, registers: &DebugRegisters) {
        let save = &mut self.vmcb_mut().save;
        (save.dr6, save.dr7) = (registers.status, registers.control);
        // SAFETY: as above; DR6 is as after a reset.
        unsafe { cpu::instructions::set_debug_registers(registers.addresses, DR6_RESET) };
    }

    #[inline(always)]
    fn breakpoints(&self) -> Option<DebugRegisters> {
        let Vmcb { control, save } = self.vmcb();
        let own = save.dr7 & BREAKPOINTS_ON != 0 && control.intercept_dr == 0;
        own.then(|| self.debug_registers())
    }

    #[inline(always)]
    fn breakpoints_on(&self) -> bool {
        self.vmcb().save.dr7 & BREAKPOINTS_ON != 0
    }

    fn meet_breakpoints(&mut self, met: u8) {
        let save = &mut self.vmcb_mut().save;
        save.dr6 = save.dr6 & !BREAKPOINTS | u64::from(met);
        self.inject(Event::exception(exception::DB, None));
    }

    fn watch_debug_registers(&mut self, wanted: bool) {
        controls::watch_debug_registers(&mut self.vmcb_mut().control, wanted);
    }

    fn system_call_msrs(&self) -> SystemCallMsrs {
        self.save_unswitched();
        let save = &self.vmcb().save;
        SystemCallMsrs {
            star: save.star,
            lstar: save.lstar,
            cstar: save.cstar,
            fmask: save.sfmask,
            kernel_gs_base: save.kernel_gs_base,
            sysenter: [save.sysenter_cs, save.sysenter_esp, save.sysenter_eip],
        }
    }

    fn set_system_call_msrs(&mut self, msrs: &SystemCallMsrs) {
        let save = &mut self.unswitched_mut().save;
        (save.star, save.lstar, save.cstar, save.sfmask) =
            (msrs.star, msrs.lstar, msrs.cstar, msrs.fmask);
        save.kernel_gs_base = msrs.kernel_gs_base;
        [save.sysenter_cs, save.sysenter_esp, save.sysenter_eip] = msrs.sysenter;
    }

    fn debug_exception(&self) -> bool {
        self.vmcb().control.exitcode == VMEXIT_EXCP0 + u64::from(exception::DB)
    }

    fn set_exception_intercepts(&mut self, bitmap: u32) {
        self.vmcb_mut().control.intercept_exceptions = exception::ALWAYS_EXIT | bitmap;
    }

    fn pass_x2apic(&mut self, pass: bool) {
        let control = &mut self.vmcb_mut().control;
        let maps = control.iopm_base_pa - PermissionMaps::IO_OFFSET;
        control.msrpm_base_pa = if pass { maps } else { maps + PermissionMaps::XAPIC_OFFSET };
    }

    fn flush_nested(&mut self) {
        self.flush();
    }

    /// AMD-V has none.
    fn set_host_timer(&mut self, _ticks: Option<u64>) -> bool {
        false
    }

    /// AMD-V does not tell: an exit out of HLT leaves RIP behind it, as if the guest had been woken.
    fn halted(&self) -> Option<bool> {
        None
    }

    /// The quadwords of the VMCB that are not 0, by offset.
    fn write_state(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("vmcb")?;
        let words = self.vmcb().words().iter().enumerate();
        for (index, word) in words.filter(|(_, word)| **word != 0) {
            write!(f, " {:x}={word:x}", index * 8)?;
        }
        Ok(())
    }
}

impl SvmVcpu {
    /// An instruction was carried out: RFLAGS.RF was its alone, and with the trap flag a single-step trap comes behind it.
    #[cold]
    #[inline(never)]
    fn end_instruction(&mut self) {
        let save = &mut self.vmcb_mut().save;
        let flags = Rflags::from_bits_retain(save.rflags);
        save.rflags = (flags - Rflags::RF).bits();
        if flags.contains(Rflags::TF) {
            save.dr6 |= SINGLE_STEP;
            self.inject(Event::exception(exception::DB, None));
        }
    }
}

/// Whether VMRUN leaves `register` alone (APM "VMLOAD").
pub(crate) const fn unswitched(register: SegmentRegister) -> bool {
    matches!(
        register,
        SegmentRegister::Fs | SegmentRegister::Gs | SegmentRegister::Ldtr | SegmentRegister::Tr
    )
}
