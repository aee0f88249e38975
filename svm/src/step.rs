//! One entry with another nested page table, and one instruction in it ([`arch::vcpu::Vcpu::step`]).
//!
//! AMD-V has no exit behind an instruction of its own: the trap flag makes one, with #DB intercepted. The guest must
//! never see that flag. So whatever would push RFLAGS before the instruction is done exits, too: exceptions are given
//! to the guest after the flag is gone again, and an interrupt waits for the next entry.

use arch::Hpa;
use arch::exit::ExitReason;
use arch::register::{Efer, Rflags};
use arch::segment::DescriptorTableRegister;
use arch::vcpu::{Event, Vcpu, exception};

use crate::controls::Intercepts3;
use crate::decode::{VMEXIT_EXCP0, VMEXIT_EXCP31, VMEXIT_INTR, decode};
use crate::vcpu::SvmVcpu;
use crate::vmcb::{StateSaveArea, Vmcb};

/// BS and B0 to B3 of DR6.
const SINGLE_STEP: u64 = 1 << 14;
const BREAKPOINTS: u64 = 0xf;
/// NMI is none, and INT3 and INTO push what is behind them.
const NOT_INTERCEPTED: u32 = 1 << 2 | 1 << 3 | 1 << 4;

/// What was changed for a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    /// The words that a step behind one instruction replaces.
    one: Option<Before>,
}

#[derive(Clone, Copy, Debug)]
struct Before {
    trap_flag: u64,
    dr6: u64,
    exceptions: u32,
    intercept_3: u32,
    /// Of a program.
    ways: Option<Ways>,
}

/// What leads from a program into the kernel and shows it the step's flags: INT n and its kin, SYSCALL. Both fault in a step: the
/// instruction was looked at before, but another CPU may change it.
#[derive(Clone, Copy, Debug)]
struct Ways {
    idt_limit: u32,
    efer: u64,
}

const IDTR: usize = StateSaveArea::table_index(DescriptorTableRegister::Idtr);

impl SvmVcpu {
    pub(crate) fn begin_step(&mut self, root: Hpa, one: bool) -> Step {
        // An event that is to be delivered needs its gate.
        let program = one && self.cpl() != 0 && !self.injecting();
        let Vmcb { control, save } = self.vmcb_mut();
        control.n_cr3 = root.as_u64();
        let before = Before {
            trap_flag: save.rflags & Rflags::TF.bits(),
            dr6: save.dr6,
            exceptions: control.intercept_exceptions,
            intercept_3: control.intercept_3,
            ways: program.then_some(Ways { idt_limit: save.segments[IDTR].limit, efer: save.efer }),
        };
        if program {
            save.segments[IDTR].limit = 0;
            save.efer &= !Efer::SCE.bits();
        }
        if one {
            save.rflags |= Rflags::TF.bits();
            save.dr6 &= !(SINGLE_STEP | BREAKPOINTS);
            control.intercept_exceptions |= !NOT_INTERCEPTED;
            control.intercept_3 |= Intercepts3::INTR.bits();
        }
        self.flush();
        Step { one: one.then_some(before) }
    }

    /// Executes the instruction at which the guest has exited, with no other intercept of it, and comes back at the exit
    /// behind it or at any other: as [`Self::end_step`] tells it.
    #[cold]
    pub(crate) fn step_alone(&mut self) -> Option<ExitReason> {
        let step = self.begin_step(self.nested_root, true);
        // A test enters no guest.
        #[cfg(not(test))]
        self.enter();
        #[cfg(test)]
        self.entered();
        self.end_step(step)
    }

    /// Ends a step. What exited only for its sake is dealt with, and [`ExitReason::Step`] is told.
    pub(crate) fn end_step(&mut self, step: Step) -> Option<ExitReason> {
        let root = self.nested_root.as_u64();
        self.vmcb_mut().control.n_cr3 = root;
        self.flush();
        let before = step.one?;
        let Vmcb { control, save } = self.vmcb_mut();
        let exitcode = control.exitcode;
        control.intercept_exceptions = before.exceptions;
        control.intercept_3 = before.intercept_3;
        if let Some(ways) = before.ways {
            save.segments[IDTR].limit = ways.idt_limit;
            save.efer = ways.efer;
        }
        // An instruction that has cleared the flag has loaded it.
        if before.trap_flag == 0 {
            save.rflags &= !Rflags::TF.bits();
        }
        let hit = save.dr6 & BREAKPOINTS;
        save.dr6 =
            save.dr6 & !(SINGLE_STEP | BREAKPOINTS) | before.dr6 & (SINGLE_STEP | BREAKPOINTS);
        match exitcode {
            VMEXIT_INTR if before.intercept_3 & Intercepts3::INTR.bits() == 0 => {
                Some(ExitReason::Step)
            }
            VMEXIT_EXCP0..=VMEXIT_EXCP31 => {
                let vector = (exitcode - VMEXIT_EXCP0) as u8;
                if vector == exception::DB {
                    let trap = if before.trap_flag == 0 { 0 } else { SINGLE_STEP };
                    save.dr6 = save.dr6 & !BREAKPOINTS | hit | before.dr6 & BREAKPOINTS | trap;
                    if hit | trap != 0 {
                        self.inject(Event::exception(vector, None));
                    }
                } else if let ExitReason::Exception { error_code, qualification, .. } =
                    decode(self.vmcb(), None)
                {
                    if before.ways.is_some() && exception::has_no_gate(vector, error_code) {
                        // INT n, which is executed again.
                        return Some(ExitReason::Step);
                    }
                    if before.exceptions >> vector & 1 != 0 {
                        return None;
                    }
                    if vector == exception::PF {
                        self.set_cr2(qualification);
                    }
                    self.inject(Event::exception(vector, error_code));
                }
                Some(ExitReason::Step)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
