//! One entry with another nested page table, and one instruction in it ([`arch::vcpu::Vcpu::step`]).
//!
//! The trap flag makes the exit behind the instruction, with #DB intercepted, as in `svm`: the monitor trap flag would
//! be VT-x's own way, but not every hypervisor beneath has it, nor Bochs 2.7. The guest must never see that flag. So
//! an exception exits and is given to the guest after the flag is gone again, and interrupts wait.

use arch::exit::ExitReason;
use arch::register::{Efer, Rflags};
use arch::vcpu::{DebugRegisters, Event, Vcpu, exception};
use arch::{Hpa, Vector};

use crate::capability::ept_pointer;
use crate::controls::Primary;
use crate::decode::{Snapshot, decode};
use crate::event::InterruptionInformation;
use crate::field;
use crate::vcpu::{BLOCKING_BY_STI_OR_MOV_SS, VmxVcpu};

/// BS of the pending debug exceptions and of DR6.
const SINGLE_STEP: u64 = 1 << 14;
const BREAKPOINTS: u64 = 0xf;
const ENABLED_BREAKPOINT: u64 = 1 << 12;
/// NMI is none, and INT3 and INTO push what is behind them.
const NOT_INTERCEPTED: u32 = 1 << 2 | 1 << 3 | 1 << 4;
/// What a step changes of RFLAGS.
const CHANGED: u64 = Rflags::TF.union(Rflags::IF).bits();

/// What was changed for a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    /// What a step behind one instruction replaces.
    one: Option<Before>,
}

#[derive(Clone, Copy, Debug)]
struct Before {
    flags: u64,
    /// Blocking by STI or MOV SS, with which the trap flag may not be entered (SDM "Checks on Guest Non-Register
    /// State").
    blocking: u32,
    /// Debug exceptions that are pending. A single step is none of them: it would have come before the instruction that
    /// exits. Bochs tells one all the same wherever the trap flag is set.
    pending: u64,
    exceptions: u32,
    /// Of a program.
    ways: Option<Ways>,
}

/// What leads from a program into the kernel, which then has the step's flags: INT n and its kin, SYSCALL, SYSENTER. All of it
/// faults in a step: the instruction was looked at before, but another CPU may change it.
#[derive(Clone, Copy, Debug)]
struct Ways {
    idt_limit: u32,
    efer: u64,
    sysenter_cs: u32,
}

impl VmxVcpu {
    /// An instruction of the guest is over: RFLAGS.RF, which an exit saves as a fault does (SDM "Saving RIP, RSP, RFLAGS, and
    /// SSP"), was its alone, and with the trap flag a single step has come to its end.
    #[cold]
    #[inline(never)]
    pub(crate) fn end_instruction(&mut self, flags: Rflags) {
        self.set_rflags((flags - Rflags::RF).bits());
        if flags.contains(Rflags::TF) {
            self.await_trap(SINGLE_STEP);
        }
    }

    /// A debug exception for these breakpoints comes at the next entry, before all else.
    #[cold]
    pub(crate) fn await_breakpoints(&mut self, met: u8) {
        self.await_trap(ENABLED_BREAKPOINT | u64::from(met));
    }

    fn await_trap(&mut self, conditions: u64) {
        let pending = self.vmcs.read(field::GUEST_PENDING_DEBUG_EXCEPTIONS);
        self.vmcs.write(field::GUEST_PENDING_DEBUG_EXCEPTIONS, pending | conditions);
        self.others_first = true;
        self.give_way();
    }

    /// An NMI that the instruction itself has sent comes behind its traps (SDM "Priority Among Concurrent Events"), which an
    /// entry that injects would drop: it waits for its window, before which pending debug exceptions come.
    fn give_way(&mut self) {
        let injected = self.vmcs.read(field::VM_ENTRY_INTERRUPTION_INFORMATION);
        if InterruptionInformation(injected).is_nmi() {
            self.vmcs.write(field::VM_ENTRY_INTERRUPTION_INFORMATION, 0);
            self.let_nmi_wait();
        }
    }

    /// The guest's debug registers, if gdb's are not in their place.
    #[cold]
    pub(crate) fn own_breakpoints(&self) -> Option<DebugRegisters> {
        let primary = self.vmcs.read(field::PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS);
        let watched = primary & Primary::MOV_DR_EXITING.bits() != 0;
        (!watched).then(|| self.debug_registers())
    }

    pub(crate) fn begin_step(&mut self, root: Hpa, one: bool) -> Step {
        let pointer = ept_pointer(root);
        self.vmcs.write(field::EPT_POINTER, pointer);
        self.invalidate(pointer);
        let state = self.vmcs.read(field::GUEST_INTERRUPTIBILITY_STATE);
        let before = Before {
            flags: self.rflags() & CHANGED,
            blocking: state & BLOCKING_BY_STI_OR_MOV_SS,
            pending: self.vmcs.read(field::GUEST_PENDING_DEBUG_EXCEPTIONS) & !SINGLE_STEP,
            exceptions: self.vmcs.read(field::EXCEPTION_BITMAP),
            // An event that is to be delivered needs its gate.
            ways: (one && self.cpl() != 0 && !self.injecting()).then(|| self.shut_ways()),
        };
        if one {
            self.set_rflags(self.rflags() & !CHANGED | Rflags::TF.bits());
            self.vmcs
                .write(field::GUEST_INTERRUPTIBILITY_STATE, state & !BLOCKING_BY_STI_OR_MOV_SS);
            self.vmcs.write(field::GUEST_PENDING_DEBUG_EXCEPTIONS, before.pending);
            self.vmcs.write(field::EXCEPTION_BITMAP, before.exceptions | !NOT_INTERCEPTED);
        }
        Step { one: one.then_some(before) }
    }

    fn shut_ways(&mut self) -> Ways {
        let before = Ways {
            idt_limit: self.vmcs.read(field::GUEST_IDTR_LIMIT),
            efer: self.vmcs.read(field::GUEST_IA32_EFER),
            sysenter_cs: self.vmcs.read(field::GUEST_IA32_SYSENTER_CS),
        };
        self.set_ways(Ways { idt_limit: 0, efer: before.efer & !Efer::SCE.bits(), sysenter_cs: 0 });
        before
    }

    fn set_ways(&mut self, ways: Ways) {
        self.vmcs.write(field::GUEST_IDTR_LIMIT, ways.idt_limit);
        self.vmcs.write(field::GUEST_IA32_EFER, ways.efer);
        self.vmcs.write(field::GUEST_IA32_SYSENTER_CS, ways.sysenter_cs);
    }

    /// Ends a step; `snapshot` is its exit, if the entry was one. What exited only for its sake is dealt with, and
    /// [`ExitReason::Step`] is told.
    pub(crate) fn end_step(
        &mut self,
        step: Step,
        snapshot: Option<&Snapshot>,
    ) -> Option<ExitReason> {
        self.vmcs.write(field::EPT_POINTER, self.ept_pointer);
        let before = step.one?;
        self.vmcs.write(field::EXCEPTION_BITMAP, before.exceptions);
        let flags = self.rflags();
        self.set_rflags(flags & !Rflags::TF.bits() | before.flags);
        if let Some(ways) = before.ways {
            self.set_ways(ways);
        }
        let reason = snapshot.map(decode);
        let Some(ExitReason::Exception { vector: Vector(vector), error_code, qualification }) =
            reason
        else {
            return self.block_again(before, None);
        };
        if vector == exception::DB {
            let pending = pending(qualification, before.flags & Rflags::TF.bits() != 0);
            self.vmcs.write(field::GUEST_PENDING_DEBUG_EXCEPTIONS, pending);
            return Some(ExitReason::Step);
        }
        if before.ways.is_some() && exception::has_no_gate(vector, error_code) {
            // INT n, which is executed again.
            return self.block_again(before, Some(ExitReason::Step));
        }
        if before.exceptions >> vector & 1 != 0 {
            return self.block_again(before, None);
        }
        if vector == exception::PF {
            self.set_cr2(qualification);
        }
        self.inject(Event::exception(vector, error_code));
        self.block_again(before, Some(ExitReason::Step))
    }

    /// The instruction is still to be done: what held interrupts back before it does so again.
    fn block_again(&mut self, before: Before, exit: Option<ExitReason>) -> Option<ExitReason> {
        let state = self.vmcs.read(field::GUEST_INTERRUPTIBILITY_STATE);
        let with = blocked(state, before.blocking);
        self.vmcs.write(field::GUEST_INTERRUPTIBILITY_STATE, with);
        let trap = held_back(with, before.flags);
        self.vmcs.write(field::GUEST_PENDING_DEBUG_EXCEPTIONS, before.pending | trap);
        exit
    }
}

/// The interruptibility state with what blocked `before` the step, if anything did: not both of the two (SDM "Checks on Guest
/// Non-Register State"), where the step has executed a MOV to SS.
const fn blocked(state: u32, before: u32) -> u32 {
    if before == 0 { state } else { state & !BLOCKING_BY_STI_OR_MOV_SS | before }
}

/// The guest's own single step where it is held back: without it an entry fails there.
const fn held_back(state: u32, flags: u64) -> u64 {
    let held = state & BLOCKING_BY_STI_OR_MOV_SS != 0 && flags & Rflags::TF.bits() != 0;
    if held { SINGLE_STEP } else { 0 }
}

/// The debug exceptions that the guest still has to get, of those that a #DB was for (SDM "Guest Non-Register State").
const fn pending(qualification: u64, stepped_by_itself: bool) -> u64 {
    let hit = qualification & BREAKPOINTS;
    let enabled = if hit == 0 { 0 } else { ENABLED_BREAKPOINT };
    hit | enabled | if stepped_by_itself { SINGLE_STEP } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_gets_its_own_debug_exceptions_and_not_ours() {
        for (qualification, own, left) in
            [(0x4000, false, 0), (0x4000, true, 0x4000), (0x4002, false, 0x1002), (2, true, 0x5002)]
        {
            assert_eq!(pending(qualification, own), left, "{qualification:#x}");
        }
    }

    #[test]
    fn one_kind_of_blocking_is_left_and_a_trap_of_the_guests_own_with_it() {
        const STI: u32 = 1;
        const MOV_SS: u32 = 2;
        const NMI: u32 = 8;
        for (state, before, left) in [
            (NMI, 0, NMI),
            (NMI, STI, NMI | STI),
            (MOV_SS, STI, STI),
            (MOV_SS, 0, MOV_SS),
            (0, MOV_SS, MOV_SS),
        ] {
            assert_eq!(blocked(state, before), left, "{state} {before}");
        }
        for (state, flags, trap) in [
            (MOV_SS, 0x302, SINGLE_STEP),
            (STI, 0x302, SINGLE_STEP),
            (MOV_SS, 0x202, 0),
            (NMI, 0x302, 0),
        ] {
            assert_eq!(held_back(state, flags), trap, "{state} {flags:#x}");
        }
    }
}
