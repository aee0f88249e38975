//! A virtual CPU on AMD-V: its VMCB, its general registers, and the way into the guest and back.
//!
//! Invariant: the VMCB is touched either by VMRUN, VMLOAD and VMSAVE or through a reference that ends
//! within the method that made it. Clean bits stay 0: the CPU reloads everything at each entry.

use core::cell::Cell;
use core::ptr::NonNull;

use arch::address::PAGE_SIZE;
use arch::exit::ExitReason;
use arch::register::{Cr0, Efer, GuestCr4};
use arch::vcpu::{StartState, Vcpu};
use arch::{Hpa, VcpuSetup, Vector};

use crate::bitmap::PermissionMaps;
use crate::control_register::Shown;
use crate::controls;
use crate::decode::{
    VMEXIT_BUSLOCK, VMEXIT_CR0_READ, VMEXIT_CR0_SEL_WRITE, VMEXIT_CR0_WRITE, VMEXIT_CR4_READ,
    VMEXIT_CR4_WRITE, VMEXIT_CR8_WRITE, VMEXIT_GP, VMEXIT_ICEBP, VMEXIT_INTR, VMEXIT_INVALID,
    VMEXIT_IRET, VMEXIT_NMI, decode,
};
use crate::enable::{Features, SvmOn};
use crate::nmi::Nmis;
use crate::run;
use crate::vmcb::Vmcb;

/// The tag of the guest's translations: one guest to a processor, and 0 is the host's.
const ASID: u32 = 1;

/// Bytes of [`VcpuSetup::memory`]: the host's two save areas, for [`crate::enable()`], and the VMCB.
pub const CPU_BYTES: u64 = 3 * PAGE_SIZE;

/// Where the registers that VMRUN does not switch have their newest value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unswitched {
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
    pub(crate) gpr: [u64; 16],
    pub(crate) features: Features,
    pub(crate) cr4: GuestCr4,
    pub(crate) shown: Shown,
    pub(crate) unswitched: Cell<Unswitched>,
    pub(crate) nested_root: Hpa,
    pub(crate) nmis: Nmis,
    /// Where the host's TR is.
    host: Hpa,
}

impl SvmVcpu {
    /// Makes a virtual CPU in the state after reset, with #NP intercepted in the exitless mode.
    ///
    /// # Safety
    /// `on` is this CPU's and outlives the virtual CPU. Every page in `setup` is what its field says, identity-mapped,
    /// and lives as long as the virtual CPU; the maps are [`PermissionMaps`], the memory has [`CPU_BYTES`] bytes, of
    /// which `on` has the first two pages. The maps and the nested table give the guest nothing that is not its own. The host
    /// keeps to what this crate's front page says it gives up, and its IDT is that of [`cpu::exceptions`].
    pub unsafe fn new(on: &SvmOn, setup: &VcpuSetup) -> Self {
        // SAFETY: as the caller promises.
        unsafe { Self::with(on.features, on.host(), setup) }
    }

    /// [`Self::new`] on a CPU with these features.
    ///
    /// # Safety
    /// As for [`Self::new`].
    unsafe fn with(features: Features, host: Hpa, setup: &VcpuSetup) -> Self {
        let vmcb = cpu::physical::pointer::<Vmcb>(setup.memory.wrapping_add(2 * PAGE_SIZE));
        // SAFETY: an identity-mapped frame that the caller gives away, aligned and large enough.
        let vmcb = unsafe { &mut *vmcb };
        *vmcb = Vmcb::zeroed();
        let mut vcpu = Self {
            vmcb: NonNull::from(vmcb),
            gpr: [0; 16],
            features,
            cr4: setup.cr4,
            shown: Shown::default(),
            unswitched: Cell::new(Unswitched::NewestInVmcb),
            nested_root: setup.nested_root,
            nmis: Nmis::default(),
            host,
        };
        let control = &mut vcpu.vmcb_mut().control;
        controls::set_intercepts(control, setup.mode);
        if features.bus_lock_threshold {
            control.intercept_5 |= controls::INTERCEPT_BUSLOCK;
        }
        control.np_enable = 1;
        control.n_cr3 = setup.nested_root.as_u64();
        control.msrpm_base_pa = setup.bitmaps.as_u64();
        control.iopm_base_pa = setup.bitmaps.as_u64() + PermissionMaps::IO_OFFSET;
        control.guest_asid = ASID;
        vcpu.load(&StartState::after_sipi(0));
        vcpu
    }

    pub(crate) fn vmcb(&self) -> &Vmcb {
        // SAFETY: `new` made it valid and owns the frame; the guest is not running, as `run` holds
        // `&mut self`.
        unsafe { self.vmcb.as_ref() }
    }

    pub(crate) fn vmcb_mut(&mut self) -> &mut Vmcb {
        // SAFETY: as for `vmcb`, and `&mut self` excludes every other reference.
        unsafe { self.vmcb.as_mut() }
    }

    fn vmcb_address(&self) -> u64 {
        self.vmcb.as_ptr() as u64
    }

    /// Brings the VMCB's copy of the unswitched registers up to date.
    pub(crate) fn save_unswitched(&self) {
        if self.unswitched.get() == Unswitched::NewestInCpu {
            // SAFETY: SVM is on, as `new`'s caller promised; no reference to the VMCB is alive in
            // this method or, as all end in the methods that made them, in a caller.
            unsafe { run::vmsave(self.vmcb_address()) };
            self.unswitched.set(Unswitched::Same);
        }
    }

    /// The VMCB, to change an unswitched register in.
    pub(crate) fn unswitched_mut(&mut self) -> &mut Vmcb {
        self.save_unswitched();
        self.unswitched.set(Unswitched::NewestInVmcb);
        self.vmcb_mut()
    }

    /// Lets the next entry drop the guest's cached translations. VMRUN itself drops none, not even
    /// when it loads another CR3.
    pub(crate) fn flush(&mut self) {
        self.vmcb_mut().control.tlb_control = controls::flush(self.features.flush_by_asid);
    }

    /// Forgets what was asked for one entry only. An event has been delivered, or is reported in
    /// EXITINTINFO: whether to deliver it again is policy's to say.
    #[inline]
    pub(crate) fn entered(&mut self) {
        let control = &mut self.vmcb_mut().control;
        control.tlb_control = 0;
        control.eventinj = 0;
    }

    /// Into the guest and back.
    #[inline(always)]
    pub(crate) fn enter(&mut self) {
        let vmcb = self.vmcb_address();
        if self.unswitched.get() == Unswitched::NewestInVmcb {
            cpu::exceptions::use_own_stacks(false);
            // SAFETY: SVM is on and the host needs none of these registers, as `new`'s caller
            // promised; no gate leads to the TSS any more.
            unsafe { run::vmload(vmcb) };
        }
        // SAFETY: SVM is on, the VMCB is this one's alone, the registers are an array of sixteen,
        // and the nested table is sound, as `new`'s caller promised.
        unsafe { run::vmrun(vmcb, &raw mut self.gpr) };
        self.unswitched.set(Unswitched::NewestInCpu);
        self.entered();
    }

    /// What [`Self::enter`] has come back with.
    #[inline(never)]
    pub(crate) fn last_exit(&mut self) -> ExitReason {
        self.take_task_register();
        match self.vmcb().control.exitcode {
            VMEXIT_BUSLOCK | VMEXIT_CR0_READ | VMEXIT_CR4_READ | VMEXIT_CR0_WRITE
            | VMEXIT_CR0_SEL_WRITE | VMEXIT_CR4_WRITE | VMEXIT_INTR | VMEXIT_NMI
            | VMEXIT_CR8_WRITE | VMEXIT_ICEBP | VMEXIT_INVALID => self.watched_exit(None),
            _ if self.nmis.any() => self.watched_exit(None),
            _ => decode(self.vmcb(), None),
        }
    }

    /// What takes longer than a frequent exit, or goes deeper, has the host's TSS and the stacks that it names.
    fn take_task_register(&self) {
        // A test has no TR.
        if !cfg!(test) {
            self.save_unswitched();
            // SAFETY: SVM is on, `on` has stored the host's, and the guest's is in its VMCB.
            unsafe { run::take_task_register(self.host) };
        }
        self.unswitched.set(Unswitched::NewestInVmcb);
    }

    /// The same where there is something to do first, or may be, for a guest that serves an NMI or for which one waits.
    /// `ended`: what ended a step. The frequent exits are not watched: none of them cuts short an NMI's delivery, and
    /// behind the delivery of another event there comes an exit for the one that waits.
    #[cold]
    #[inline(never)]
    pub(crate) fn watched_exit(&mut self, ended: Option<ExitReason>) -> ExitReason {
        let ended = ended.or_else(|| self.look_at_iret());
        let reason = ended.unwrap_or_else(|| self.attend());
        self.deliver_nmi();
        reason
    }

    /// The host takes what made the guest exit, if it was an NMI or an interrupt.
    fn attend(&mut self) -> ExitReason {
        let mut acknowledged = None;
        match self.vmcb().control.exitcode {
            // SAFETY: `vmrun` returns with IF = 0; the handler is there, as `new`'s caller promised.
            VMEXIT_NMI => unsafe { run::take_nmi() },
            // SAFETY: as above.
            VMEXIT_INTR => acknowledged = unsafe { run::take_interrupt() }.map(Vector),
            // The instruction is executed again, and this time may lock the bus.
            VMEXIT_BUSLOCK => self.vmcb_mut().control.bus_lock_counter = 1,
            // The handler of its #DB finds RIP behind it.
            VMEXIT_ICEBP => {
                let behind = self.rip().wrapping_add(self.instruction_length(1).into());
                self.set_rip(behind);
            }
            // It is for its moment only, which has been seen.
            VMEXIT_IRET => return ExitReason::Step,
            VMEXIT_CR8_WRITE => {
                let ended = self.write_cr8();
                return self.watched_exit(ended);
            }
            VMEXIT_CR0_READ | VMEXIT_CR4_READ | VMEXIT_CR0_WRITE | VMEXIT_CR0_SEL_WRITE
            | VMEXIT_CR4_WRITE => {
                let ended = self.access_control_register();
                return self.watched_exit(ended);
            }
            VMEXIT_INVALID if self.is_at_a_reserved_bit() => {
                let control = &mut self.vmcb_mut().control;
                (control.exitcode, control.exitinfo1) = (VMEXIT_GP, 0);
            }
            _ => {}
        }
        decode(self.vmcb(), acknowledged)
    }

    /// EFER.LMA as the CPU would have set it.
    pub(crate) fn update_lma(&mut self) {
        let save = &mut self.vmcb_mut().save;
        let mut efer = Efer::from_bits_retain(save.efer);
        let paging = Cr0::from_bits_retain(save.cr0).contains(Cr0::PG);
        efer.set(Efer::LMA, paging && efer.contains(Efer::LME));
        save.efer = efer.bits();
    }
}

#[cfg(test)]
pub(crate) mod tests;
