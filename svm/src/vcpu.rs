//! A virtual CPU on AMD-V: [`arch::vcpu::Vcpu`] over one VMCB.
//!
//! Invariant: the VMCB is touched either by VMRUN, VMLOAD and VMSAVE or through a reference that ends
//! within the method that made it. Clean bits stay 0: the CPU reloads everything at each entry.

use core::cell::Cell;
use core::ptr::NonNull;

use arch::exit::Exit;
use arch::register::{Cr0, Efer, Gpr, Rflags};
use arch::segment::{DescriptorTable, DescriptorTableRegister, Segment, SegmentRegister};
use arch::vcpu::{Event, EventKind, InterruptMode, StartState, Vcpu};
use arch::{Hpa, Vector};

use crate::controls::{self, EVENT_VALID, Intercepts3};
use crate::decode::{VMEXIT_INTR, VMEXIT_NMI, decode};
use crate::enable::{Features, SvmError, frame};
use crate::run;
use crate::vmcb::{StateSaveArea, Vmcb};

/// PAT after reset: WB, WT, UC-, UC, twice (APM "PAT Register").
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// DR6 after reset.
const DR6_RESET: u64 = 0xffff_0ff0;
/// DR7 after reset.
const DR7_RESET: u64 = 0x400;
/// Bit 0 of the VMCB's interrupt-shadow field.
const INTERRUPT_SHADOW: u64 = 1;

/// What a virtual CPU is made of. All addresses are host-physical and start at a frame.
#[derive(Clone, Copy, Debug)]
pub struct VcpuSetup {
    /// How physical interrupts meet the guest.
    pub mode: InterruptMode,
    /// What [`crate::enable`] found on this CPU.
    pub features: Features,
    /// The nested page table's top table.
    pub nested_root: Hpa,
    /// A [`crate::MsrPermissionMap`].
    pub msr_permission_map: Hpa,
    /// A [`crate::IoPermissionMap`].
    pub io_permission_map: Hpa,
    /// A frame for the VMCB.
    pub vmcb: Hpa,
    /// The address-space identifier, from 1. Two virtual CPUs may share one only if they never run
    /// on the same physical CPU.
    pub asid: u32,
    /// Takes out the vector that the host's interrupt handlers have recorded on this CPU, if any.
    /// They leave it in service, and clear IF in the frame that they return to, so that one window
    /// takes one interrupt.
    pub take_interrupt: fn() -> Option<u8>,
}

/// Where the registers that VMRUN does not switch have their newest value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Unswitched {
    /// In the VMCB: VMLOAD before the next entry.
    NewestInVmcb,
    /// In the CPU: VMSAVE before the VMCB's copy is looked at.
    NewestInCpu,
    /// In both.
    Same,
}

/// A virtual CPU on AMD-V, bound to the physical CPU that made it.
pub struct SvmVcpu {
    vmcb: NonNull<Vmcb>,
    /// General registers in encoding order; RAX and RSP are in the VMCB.
    gpr: [u64; 16],
    features: Features,
    take_interrupt: fn() -> Option<u8>,
    unswitched: Cell<Unswitched>,
    flush_pending: bool,
}

impl SvmVcpu {
    /// Makes a virtual CPU in the state after reset, with #NP intercepted in the exitless mode.
    ///
    /// # Errors
    /// When the CPU has no such ASID or an address is no frame's.
    ///
    /// # Safety
    /// [`crate::enable`] has succeeded on this CPU, on which alone the virtual CPU is used. The
    /// addresses are identity-mapped; the VMCB's frame is given away; the maps and the nested table
    /// outlive the virtual CPU, and the table gives the guest no memory that is not its own. The
    /// host keeps to what this crate's front page says it gives up, and its IDT has the handlers
    /// that `take_interrupt` speaks of and one for NMI.
    pub unsafe fn new(setup: &VcpuSetup) -> Result<Self, SvmError> {
        let asids = setup.features.asids;
        if setup.asid == 0 || setup.asid >= asids {
            return Err(SvmError::AsidOutOfRange { asid: setup.asid, asids });
        }
        let maps = [setup.msr_permission_map, setup.io_permission_map];
        for at in [setup.vmcb, setup.nested_root].into_iter().chain(maps) {
            frame(at)?;
        }
        let vmcb =
            cpu::physical::non_null::<Vmcb>(setup.vmcb).ok_or(SvmError::NotAFrame(setup.vmcb))?;
        // SAFETY: an identity-mapped frame that the caller gives away, aligned and large enough.
        unsafe { vmcb.write(Vmcb::zeroed()) };
        let mut vcpu = Self {
            vmcb,
            gpr: [0; 16],
            features: setup.features,
            take_interrupt: setup.take_interrupt,
            unswitched: Cell::new(Unswitched::NewestInVmcb),
            flush_pending: true,
        };
        let control = &mut vcpu.vmcb_mut().control;
        controls::set_intercepts(control, setup.mode);
        control.np_enable = 1;
        control.n_cr3 = setup.nested_root.as_u64();
        control.msrpm_base_pa = setup.msr_permission_map.as_u64();
        control.iopm_base_pa = setup.io_permission_map.as_u64();
        control.guest_asid = setup.asid;
        vcpu.load(&StartState::after_sipi(0));
        Ok(vcpu)
    }

    fn vmcb(&self) -> &Vmcb {
        // SAFETY: `new` made it valid and owns the frame; the guest is not running, as `run` holds
        // `&mut self`.
        unsafe { self.vmcb.as_ref() }
    }

    fn vmcb_mut(&mut self) -> &mut Vmcb {
        // SAFETY: as for `vmcb`, and `&mut self` excludes every other reference.
        unsafe { self.vmcb.as_mut() }
    }

    fn vmcb_address(&self) -> u64 {
        self.vmcb.as_ptr() as u64
    }

    /// Brings the VMCB's copy of the unswitched registers up to date.
    fn save_unswitched(&self) {
        if self.unswitched.get() == Unswitched::NewestInCpu {
            // SAFETY: SVM is on, as `new`'s caller promised; no reference to the VMCB is alive in
            // this method or, as all end in the methods that made them, in a caller.
            unsafe { run::vmsave(self.vmcb_address()) };
            self.unswitched.set(Unswitched::Same);
        }
    }

    /// The VMCB, to change an unswitched register in.
    fn unswitched_mut(&mut self) -> &mut Vmcb {
        self.save_unswitched();
        self.unswitched.set(Unswitched::NewestInVmcb);
        self.vmcb_mut()
    }

    /// Lets the next entry drop the guest's cached translations. VMRUN itself drops none, not even
    /// when it loads another CR3.
    fn before_entry(&mut self) {
        let flush = if core::mem::take(&mut self.flush_pending) {
            controls::flush(self.features.flush_by_asid)
        } else {
            0
        };
        self.vmcb_mut().control.tlb_control = flush;
    }

    fn enter(&mut self) {
        self.before_entry();
        let vmcb = self.vmcb_address();
        if self.unswitched.get() == Unswitched::NewestInVmcb {
            // SAFETY: SVM is on and the host needs none of these registers, as `new`'s caller
            // promised.
            unsafe { run::vmload(vmcb) };
        }
        // SAFETY: SVM is on, the VMCB is this one's alone, the registers are an array of sixteen,
        // and the nested table is sound, as `new`'s caller promised.
        unsafe { run::vmrun(vmcb, &raw mut self.gpr) };
        self.unswitched.set(Unswitched::NewestInCpu);
    }

    /// Takes in the host what made the guest exit, and says which vector it was.
    fn take_pending(&mut self) -> Option<Vector> {
        match self.vmcb().control.exitcode {
            VMEXIT_NMI => {
                // SAFETY: `vmrun` returns with IF = 0; the handler is there, as `new`'s caller
                // promised.
                unsafe { run::take_nmi() };
                None
            }
            VMEXIT_INTR => {
                // SAFETY: as above.
                unsafe { run::take_interrupt() };
                (self.take_interrupt)().map(Vector)
            }
            _ => None,
        }
    }

    /// EFER.LMA as the CPU would have set it.
    fn update_lma(&mut self) {
        let save = &mut self.vmcb_mut().save;
        let mut efer = Efer::from_bits_retain(save.efer);
        let paging = Cr0::from_bits_retain(save.cr0).contains(Cr0::PG);
        efer.set(Efer::LMA, paging && efer.contains(Efer::LME));
        save.efer = efer.bits();
    }
}

impl Vcpu for SvmVcpu {
    fn run(&mut self) -> Exit {
        loop {
            self.enter();
            let acknowledged = self.take_pending();
            let exit = decode(self.vmcb(), self.features.nrip_save, acknowledged);
            let control = &mut self.vmcb_mut().control;
            // Delivered, or reported in EXITINTINFO: whether to deliver again is policy's to say.
            control.eventinj = 0;
            // An interrupt that was gone when the host opened its window is nobody's.
            if control.exitcode != VMEXIT_INTR || acknowledged.is_some() {
                return exit;
            }
        }
    }

    fn load(&mut self, state: &StartState) {
        self.gpr = state.gpr;
        self.flush_pending = true;
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
        (save.cr0, save.cr2, save.cr3, save.cr4) = (state.cr0, 0, state.cr3, state.cr4);
        save.efer = state.efer | Efer::SVME.bits();
        (save.dr6, save.dr7, save.dbgctl) = (DR6_RESET, DR7_RESET, 0);
        save.g_pat = PAT_RESET;
        (save.star, save.lstar, save.cstar, save.sfmask) = (0, 0, 0, 0);
        (save.kernel_gs_base, save.sysenter_cs) = (0, 0);
        (save.sysenter_esp, save.sysenter_eip) = (0, 0);
        let [_, _, ss, ..] = state.segments;
        save.cpl = ss.access.dpl();
        self.update_lma();
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
        self.vmcb().save.cr0
    }

    fn set_cr0(&mut self, value: u64) {
        self.vmcb_mut().save.cr0 = value;
        self.update_lma();
        self.flush_pending = true;
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

    fn cr4(&self) -> u64 {
        self.vmcb().save.cr4
    }

    fn set_cr4(&mut self, value: u64) {
        self.vmcb_mut().save.cr4 = value;
        self.flush_pending = true;
    }

    fn efer(&self) -> u64 {
        self.vmcb().save.efer & !Efer::SVME.bits()
    }

    fn set_efer(&mut self, value: u64) {
        self.vmcb_mut().save.efer = value | Efer::SVME.bits();
        self.update_lma();
        self.flush_pending = true;
    }

    fn pat(&self) -> u64 {
        self.vmcb().save.g_pat
    }

    fn set_pat(&mut self, value: u64) {
        self.vmcb_mut().save.g_pat = value;
        self.flush_pending = true;
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

    fn skip_instruction(&mut self, length: u8) {
        let Vmcb { control, save } = self.vmcb_mut();
        save.rip = save.rip.wrapping_add(u64::from(length));
        control.interrupt_shadow &= !INTERRUPT_SHADOW;
    }

    fn inject(&mut self, event: Event) {
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

    fn set_interrupt_window(&mut self, wanted: bool) {
        controls::set_interrupt_window(&mut self.vmcb_mut().control, wanted);
    }

    fn set_exception_intercepts(&mut self, bitmap: u32) {
        self.vmcb_mut().control.intercept_exceptions = bitmap;
    }

    fn set_halt_exiting(&mut self, wanted: bool) {
        controls::set_intercept(&mut self.vmcb_mut().control, Intercepts3::HLT, wanted);
    }

    fn flush_nested(&mut self) {
        self.flush_pending = true;
    }

    /// AMD-V has none.
    fn set_preemption_timer(&mut self, _ticks: Option<u64>) -> bool {
        false
    }

    /// AMD-V does not tell: an exit out of HLT leaves RIP behind it, as if the guest had been woken.
    fn halted(&self) -> bool {
        false
    }
}

/// Whether VMRUN leaves `register` alone (APM "VMLOAD").
const fn unswitched(register: SegmentRegister) -> bool {
    matches!(
        register,
        SegmentRegister::Fs | SegmentRegister::Gs | SegmentRegister::Ldtr | SegmentRegister::Tr
    )
}

#[cfg(test)]
mod tests;
