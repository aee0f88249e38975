//! CR8 in the exiting mode: V_TPR, the class of the guest's task priority (APM "Virtualizing the TPR").
//!
//! An exit when it falls is not to be had, so each write of CR8 exits while an interrupt waits for one. (A pending virtual
//! interrupt whose priority does not ignore V_TPR would say it more precisely, but QEMU takes one of V_TPR's own class.)

use arch::exit::ExitReason;

use crate::vcpu::SvmVcpu;

/// V_TPR of the VMCB's virtual interrupt word.
const CLASS: u64 = 0xf;
/// In the word of control-register intercepts: writes of CR8 (APM "Layout of VMCB").
const INTERCEPT_WRITE: u32 = 1 << (16 + 8);

impl SvmVcpu {
    /// The TPR, of which the CPU has the class alone: `known` where that is as it was.
    pub(crate) fn shown_priority(&self, known: u8) -> u8 {
        let class = (self.vmcb().control.virtual_interrupt & CLASS) as u8;
        if class == known >> 4 { known } else { class << 4 }
    }

    #[inline]
    pub(crate) fn show_priority(&mut self, priority: u8, awaited: u8) {
        let control = &mut self.vmcb_mut().control;
        control.virtual_interrupt = control.virtual_interrupt & !CLASS | u64::from(priority >> 4);
        control.intercept_cr &= !INTERCEPT_WRITE;
        if awaited != 0 {
            control.intercept_cr |= INTERCEPT_WRITE;
        }
    }

    /// A write of CR8 has exited only for its moment: the CPU executes it alone.
    #[cold]
    #[inline(never)]
    pub(crate) fn write_cr8(&mut self) -> Option<ExitReason> {
        self.vmcb_mut().control.intercept_cr &= !INTERCEPT_WRITE;
        self.step_alone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vcpu::tests::vcpu;

    #[test]
    fn cr8_is_the_class_of_the_task_priority_and_its_low_half_stays_while_the_class_does() {
        let mut vcpu = vcpu();
        vcpu.vmcb_mut().control.virtual_interrupt = 1 << 24;
        vcpu.show_priority(0x6a, 0);
        assert_eq!(vcpu.vmcb().control.virtual_interrupt, 1 << 24 | 6);
        assert_eq!(vcpu.shown_priority(0x6a), 0x6a);
        vcpu.vmcb_mut().control.virtual_interrupt = 1 << 24 | 15;
        assert_eq!(vcpu.shown_priority(0x6a), 0xf0);
    }

    #[test]
    fn writes_of_cr8_exit_only_while_an_interrupt_waits_for_one() {
        let mut vcpu = vcpu();
        let exits = |vcpu: &SvmVcpu| vcpu.vmcb().control.intercept_cr & INTERCEPT_WRITE != 0;
        vcpu.show_priority(0xf0, 0);
        assert!(!exits(&vcpu));
        vcpu.show_priority(0xf0, 5);
        assert!(exits(&vcpu));
        vcpu.show_priority(0x40, 0);
        assert!(!exits(&vcpu));
    }
}
