//! CR0 and CR4: what the guest sees, and what the CPU holds. AMD-V has no mask as VT-x has one. So writes exit, and reads do
//! while the two differ. The CPU then executes the access by itself and alone, with the registers as the guest sees them,
//! and afterwards the host's bits are put back.
//!
//! The host's are CR0.CD and CR0.NW, clear (a guest must not switch the caches of the core off), and CR4.MCE, set (a
//! machine check with it clear would be a shutdown). A bit of CR4 whose feature the guest is not shown is refused, and NW
//! without CD is, which the CPU refuses (APM "CR0 Register") but QEMU does not: it would not enter a guest with that.
//!
//! CR4 is left to the guest where there are no decode assists, which means in QEMU: it raises no machine checks, and a
//! Linux without INVPCID, which QEMU has not either, would exit some 65 times more until it has started, by flushes through
//! CR4.PGE.

use arch::Gva;
use arch::exit::ExitReason;
use arch::register::{Cr0, Cr4, GuestCr4};
use arch::segment::DescriptorTableRegister;
use arch::vcpu::{Event, Vcpu, exception};
use cpu::segments::gdtr;

use crate::controls::Intercepts3;
use crate::vcpu::SvmVcpu;

/// CR0's bits that the host keeps clear.
const CACHING: u64 = Cr0::CD.union(Cr0::NW).bits();
const MCE: u64 = Cr4::MCE.bits();

/// In the word of control-register intercepts: reads and writes (APM "Layout of VMCB").
const READ_CR0: u32 = 1 << 0;
const READ_CR4: u32 = 1 << 4;
const WRITE_CR0: u32 = 1 << 16;
const WRITE_CR4: u32 = 1 << (16 + 4);
/// The rest of the word is not of this file.
const OWN: u32 = READ_CR0 | READ_CR4 | WRITE_CR0 | WRITE_CR4;
/// Writes of CR0 that change more than TS or MP of what the CPU holds. Where that is not what the guest sees, each exits.
const CHANGE_CR0: u32 = Intercepts3::CR0_SEL_WRITE.bits();

/// The host's bits as the guest has set them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Shown {
    /// CR0.CD and CR0.NW.
    caching: u64,
    /// CR4.MCE.
    machine_checks: u64,
}

impl SvmVcpu {
    /// CR0 as the guest sees it.
    pub(crate) fn shown_cr0(&self) -> u64 {
        self.vmcb().save.cr0 & !CACHING | self.shown.caching
    }

    /// CR4 as the guest sees it.
    pub(crate) fn shown_cr4(&self) -> u64 {
        self.vmcb().save.cr4 & !MCE | self.shown.machine_checks
    }

    /// Has the guest see `cr0` and `cr4`, the CPU hold the host's bits, and exit what has to.
    pub(crate) fn show_control_registers(&mut self, cr0: u64, cr4: u64) {
        let owned = self.features.decode_assists;
        let machine_checks = if owned { known(self.cr4) & MCE } else { cr4 & MCE };
        self.shown = Shown { caching: cr0 & CACHING, machine_checks: cr4 & MCE };
        let differs = (cr0 & CACHING != 0, (cr4 ^ machine_checks) & MCE != 0);
        let vmcb = self.vmcb_mut();
        vmcb.save.cr0 = cr0 & !CACHING;
        vmcb.save.cr4 = cr4 & !MCE | machine_checks;
        let exits = [(differs.0, READ_CR0 | WRITE_CR0), (differs.1, READ_CR4), (owned, WRITE_CR4)];
        let exits =
            exits.into_iter().filter(|(exits, _)| *exits).fold(0, |all, (_, bit)| all | bit);
        vmcb.control.intercept_cr = vmcb.control.intercept_cr & !OWN | exits;
        vmcb.control.intercept_3 |= CHANGE_CR0;
    }

    /// The exit, as of a VMCB that VMRUN refuses, is QEMU's by a MOV that sets a reserved bit of CR3 or CR4, which is #GP by the
    /// manual (`docs/known-issues.md`). The state is the guest's then; of a refused VMRUN QEMU leaves the hypervisor's, with this GDTR.
    pub(crate) fn is_at_a_reserved_bit(&self) -> bool {
        let guests = self.descriptor_table(DescriptorTableRegister::Gdtr);
        self.features.is_emulated() && guests.base != Gva::new(gdtr().base.as_u64())
    }

    /// The guest stands at an access of CR0 or CR4: the CPU executes it.
    #[cold]
    #[inline(never)]
    pub(crate) fn access_control_register(&mut self) -> Option<ExitReason> {
        let (cr0, cr4, rip) = (self.shown_cr0(), self.shown_cr4(), self.vmcb().save.rip);
        let vmcb = self.vmcb_mut();
        vmcb.control.intercept_cr &= !OWN;
        vmcb.control.intercept_3 &= !CHANGE_CR0;
        (vmcb.save.cr0, vmcb.save.cr4) = (cr0, cr4);
        let ended = self.step_alone();
        self.accessed_control_register([cr0, cr4], rip);
        ended
    }

    /// What the access at `rip` has come to. `old`: CR0 and CR4 as the guest saw them before.
    fn accessed_control_register(&mut self, old: [u64; 2], rip: u64) {
        let save = &self.vmcb().save;
        let [cr0, cr4] = [save.cr0, save.cr4];
        let refused = cr4 & !old[1] & !self.cr4.allowed != 0 || cr0 & CACHING == Cr0::NW.bits();
        let [cr0, cr4] = if refused { old } else { [cr0, cr4] };
        self.show_control_registers(cr0, cr4);
        self.update_lma();
        self.flush();
        if refused {
            self.set_rip(rip);
            self.inject(Event::exception(exception::GP, Some(0)));
        }
    }
}

/// The bits that the CPU is known to have.
const fn known(cr4: GuestCr4) -> u64 {
    cr4.allowed | cr4.hidden
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{
        VMEXIT_CR0_READ, VMEXIT_CR0_SEL_WRITE, VMEXIT_CR0_WRITE, VMEXIT_CR4_READ, VMEXIT_CR4_WRITE,
    };
    use crate::vcpu::tests::{modern_vcpu, vcpu};

    const PE: u64 = 1;
    const CD: u64 = 1 << 30;
    const NW: u64 = 1 << 29;
    const PAE: u64 = 1 << 5;

    /// The guest's access has put these values into the registers.
    fn accessed(vcpu: &mut SvmVcpu, cr0: u64, cr4: u64) {
        let (old, rip) = ([vcpu.cr0(), vcpu.cr4()], vcpu.rip());
        let save = &mut vcpu.vmcb_mut().save;
        (save.cr0, save.cr4, save.rip) = (cr0, cr4, rip + 3);
        vcpu.accessed_control_register(old, rip);
    }

    /// CR0 and CR4 in the CPU, and what exits beside changes of CR0 and writes of CR4.
    fn held(vcpu: &SvmVcpu) -> (u64, u64, u32) {
        let vmcb = vcpu.vmcb();
        assert_ne!(vmcb.control.intercept_cr & WRITE_CR4, 0, "each write exits");
        assert_ne!(vmcb.control.intercept_3 & CHANGE_CR0, 0);
        (vmcb.save.cr0, vmcb.save.cr4, vmcb.control.intercept_cr & OWN & !WRITE_CR4)
    }

    #[test]
    fn machine_checks_are_on_and_caches_too_whatever_the_guest_writes_and_it_reads_what_it_wrote() {
        let mut vcpu = modern_vcpu();
        assert_eq!(held(&vcpu), (0x10, MCE, READ_CR4), "after a reset");
        assert_eq!((vcpu.cr0(), vcpu.cr4()), (0x10, 0));
        accessed(&mut vcpu, CD | 0x10 | PE, PAE);
        assert_eq!(held(&vcpu), (0x11, PAE | MCE, READ_CR0 | WRITE_CR0 | READ_CR4));
        assert_eq!((vcpu.cr0(), vcpu.cr4()), (CD | 0x11, PAE));
        accessed(&mut vcpu, 0x11, PAE | MCE);
        assert_eq!(held(&vcpu), (0x11, PAE | MCE, 0), "what is as it seems is read with no exit");
        assert_eq!((vcpu.cr0(), vcpu.cr4()), (0x11, PAE | MCE));
        assert!(!vcpu.injecting());
        vcpu.set_cr0(CD | 0x11);
        vcpu.set_cr4(PAE);
        assert_eq!(held(&vcpu), (0x11, PAE | MCE, READ_CR0 | WRITE_CR0 | READ_CR4));
        assert_eq!((vcpu.cr0(), vcpu.cr4()), (CD | 0x11, PAE));
    }

    #[test]
    fn a_bit_of_a_hidden_feature_is_a_fault_at_its_instruction() {
        let mut vcpu = modern_vcpu();
        vcpu.set_rip(0x1000);
        accessed(&mut vcpu, 0x11, PAE | 1 << 32);
        assert_eq!(
            (vcpu.cr4(), vcpu.rip(), vcpu.vmcb().control.eventinj),
            (0, 0x1000, 0x8000_0b0d)
        );
        let mut vcpu = modern_vcpu();
        vcpu.set_rip(0x1000);
        accessed(&mut vcpu, 0x11, PAE | 1 << 4);
        assert_eq!((vcpu.cr4(), vcpu.rip(), vcpu.injecting()), (PAE | 1 << 4, 0x1003, false));
    }

    #[test]
    fn write_through_with_caches_on_is_a_fault_at_its_instruction() {
        let mut vcpu = modern_vcpu();
        vcpu.set_rip(0x1000);
        accessed(&mut vcpu, CD | 0x11, PAE);
        vcpu.set_rip(0x1000);
        accessed(&mut vcpu, NW | 0x11, PAE);
        assert_eq!((vcpu.cr0(), vcpu.rip()), (CD | 0x11, 0x1000));
        assert_eq!(vcpu.vmcb().control.eventinj, 0x8000_0b0d);
        let mut vcpu = modern_vcpu();
        accessed(&mut vcpu, CD | NW | 0x11, PAE);
        assert_eq!((vcpu.cr0(), vcpu.injecting()), (CD | NW | 0x11, false));
    }

    #[test]
    fn each_exit_by_an_access_executes_it_with_what_the_guest_sees_and_lets_nothing_else_by() {
        for code in [
            VMEXIT_CR0_READ,
            VMEXIT_CR4_READ,
            VMEXIT_CR0_WRITE,
            VMEXIT_CR0_SEL_WRITE,
            VMEXIT_CR4_WRITE,
        ] {
            let mut vcpu = modern_vcpu();
            accessed(&mut vcpu, CD | 0x11, PAE);
            vcpu.vmcb_mut().control.exitcode = code;
            // What the CPU did in between is not known to a test: it executed nothing, and told the same exit.
            let _ = vcpu.access_control_register();
            assert_eq!(
                held(&vcpu),
                (0x11, PAE | MCE, READ_CR0 | WRITE_CR0 | READ_CR4),
                "{code:#x}"
            );
        }
    }

    #[test]
    fn without_decode_assists_cr4_is_the_guests_and_the_caches_are_not() {
        let mut vcpu = vcpu();
        vcpu.set_cr4(PAE);
        vcpu.set_cr0(CD | 0x11);
        let vmcb = vcpu.vmcb();
        assert_eq!((vmcb.save.cr0, vmcb.save.cr4), (0x11, PAE));
        assert_eq!(vmcb.control.intercept_cr & OWN, READ_CR0 | WRITE_CR0);
        assert_eq!((vcpu.cr0(), vcpu.cr4()), (CD | 0x11, PAE));
    }
}
