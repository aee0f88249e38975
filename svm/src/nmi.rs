//! The guest's non-maskable interrupts. AMD-V does not know that a guest serves one, but by virtual NMIs, which not every
//! CPU has: while one is served IRET exits (APM "Interrupt and Exception Intercepts"; the way is the same everywhere).
//!
//! One NMI is served and one more waits, as the CPU itself has it (APM "NMI (Non-Maskable Interrupt)"). What waits never
//! replaces an event that is to be delivered, nor is it replaced: it comes behind that event's delivery.

use arch::exit::{ExitReason, TaskSwitch, TaskSwitchSource};
use arch::register::{Cr0, Efer, Rflags};
use arch::vcpu::{Event, EventKind};

use crate::controls::{self, EVENT_VALID, Intercepts3};
use crate::decode::{VMEXIT_IRET, vectoring};
use crate::vcpu::SvmVcpu;
use crate::vmcb::{ControlArea, StateSaveArea};

/// What holds NMIs back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Blocking {
    #[default]
    Nothing,
    /// One is served: the next IRET exits.
    Served,
    /// The IRET here has exited and is still to be executed.
    Iret(u64),
}

/// The NMIs of a guest's CPU.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Nmis {
    blocking: Blocking,
    pending: bool,
}

impl Nmis {
    /// One is served or waits.
    #[inline]
    pub(crate) fn any(self) -> bool {
        self.pending || self.blocking != Blocking::Nothing
    }
}

impl SvmVcpu {
    /// An NMI comes.
    pub(crate) fn inject_nmi(&mut self) {
        self.nmis.pending = true;
        self.deliver_nmi();
    }

    /// Another event is to be delivered: an NMI that would have been waits.
    pub(crate) fn keep_nmi(&mut self) {
        let eventinj = self.vmcb().control.eventinj;
        if eventinj & EVENT_VALID != 0
            && eventinj as u32 == controls::eventinj(&Event::nmi()) as u32
        {
            self.block_nmis(Blocking::Nothing);
            self.nmis.pending = true;
            exit_behind_the_delivery();
        }
    }

    /// Forgets all of them.
    pub(crate) fn reset_nmis(&mut self) {
        self.block_nmis(Blocking::Nothing);
        self.nmis.pending = false;
    }

    /// At an exit that is not frequent: an NMI whose delivery was cut short is not served, and an IRET is executed alone
    /// where another NMI waits for its end: what ended that is told, if the exit is not one of its own.
    pub(crate) fn look_at_iret(&mut self) -> Option<ExitReason> {
        let ControlArea { exitcode, exitintinfo, .. } = self.vmcb().control;
        if vectoring(exitintinfo).is_some_and(|event| event.kind == EventKind::Nmi) {
            self.block_nmis(Blocking::Nothing);
        }
        if exitcode != VMEXIT_IRET {
            return None;
        }
        if self.returns_to_a_task() {
            self.block_nmis(Blocking::Nothing);
            let source = TaskSwitchSource::Iret;
            return Some(ExitReason::TaskSwitch(TaskSwitch { selector: None, source }));
        }
        self.block_nmis(Blocking::Iret(self.vmcb().save.rip));
        if self.nmis.pending { self.step_alone() } else { None }
    }

    /// Whether the IRET at which the guest stands is a task switch. The hypervisor carries that one out: executed alone it
    /// would save the step's trap flag in the TSS.
    fn returns_to_a_task(&self) -> bool {
        const NESTED_TASK: u64 = 1 << 14;
        let StateSaveArea { cr0, efer, rflags, .. } = self.vmcb().save;
        rflags & NESTED_TASK != 0
            && rflags & Rflags::VM.bits() == 0
            && cr0 & Cr0::PE.bits() != 0
            && efer & Efer::LMA.bits() == 0
    }

    /// Delivers the NMI that waits, if nothing holds it back any more.
    pub(crate) fn deliver_nmi(&mut self) {
        if let Blocking::Iret(at) = self.nmis.blocking
            && at != self.vmcb().save.rip
        {
            self.block_nmis(Blocking::Nothing);
        }
        match self.nmis.blocking {
            _ if !self.nmis.pending => {}
            Blocking::Served => {}
            // It is executed alone next time.
            Blocking::Iret(_) => self.block_nmis(Blocking::Served),
            Blocking::Nothing if self.vmcb().control.eventinj & EVENT_VALID != 0 => {
                exit_behind_the_delivery();
            }
            Blocking::Nothing => {
                self.nmis.pending = false;
                self.block_nmis(Blocking::Served);
                self.vmcb_mut().control.eventinj = controls::eventinj(&Event::nmi());
            }
        }
    }

    fn block_nmis(&mut self, blocking: Blocking) {
        self.nmis.blocking = blocking;
        let intercept = Intercepts3::IRET.bits();
        let word = &mut self.vmcb_mut().control.intercept_3;
        *word = if blocking == Blocking::Served { *word | intercept } else { *word & !intercept };
    }
}

/// Has the CPU exit behind the delivery of the event with which it enters: an NMI of the host waits for the guest (GIF is
/// clear), where it comes between that event and the first instruction of its handler.
#[cfg(not(test))]
pub(crate) fn exit_behind_the_delivery() {
    let apic = cpu::local_apic::LocalApic::current();
    apic.send_nmi(apic.id());
}

/// A test enters no guest.
#[cfg(test)]
pub(crate) fn exit_behind_the_delivery() {
    tests::ASKED_FOR.set(tests::ASKED_FOR.get() + 1);
}

#[cfg(test)]
mod tests;
