//! A debug exception that has exited. VT-x leaves to the host what the CPU does before it delivers one: the exit changes
//! neither DR6 nor DR7 nor IA32_DEBUGCTL, and tells in the exit qualification what was to be done (SDM "Architectural
//! State Before a VM Exit"; "Exit Qualification for Debug Exceptions"), and the delivery of an injected one changes
//! none of them either (SDM "Injected-Event Delivery"). AMD-V has done it by then.

use arch::vcpu::{Event, EventKind, exception};

use crate::decode::{Snapshot, reason};
use crate::field;
use crate::vcpu::{BLOCKING_BY_STI_OR_MOV_SS, VmxVcpu};

/// B0 to B3 of DR6: they say what is met now, the rest of DR6 collects (SDM "Debug Status Register (DR6)").
const BREAKPOINTS: u64 = 0xf;
/// BD and BS.
const COLLECTED: u64 = 1 << 13 | 1 << 14;
/// RTM and BLD: 0 where it was so, and the qualification has 1.
const RTM: u64 = 1 << 16;
const BUS_LOCK: u64 = 1 << 11;
/// DR7.GD.
const GENERAL_DETECT: u64 = 1 << 13;
/// IA32_DEBUGCTL: LBR and BTF (SDM "Monitoring Branches, Exceptions, and Interrupts"; "Single-Stepping on Branches").
const LAST_BRANCHES_AND_STEP_ON_BRANCHES: u64 = 3;

/// DR6 with which the handler finds what `qualification` tells.
const fn status(before: u64, qualification: u64) -> u64 {
    let told = qualification & (BREAKPOINTS | COLLECTED);
    let active_low = if qualification & RTM == 0 { RTM } else { 0 };
    (before & !(BREAKPOINTS | RTM) | told | active_low) & !(qualification & BUS_LOCK)
}

impl VmxVcpu {
    /// Brings the registers to where the handler of the debug exception that has exited is to find them.
    #[cold]
    pub(crate) fn take_debug_exception(&mut self, snapshot: &Snapshot) {
        // Whatever held it back is over with its delivery; with the trap flag no entry takes it (SDM "Checks on Guest
        // Non-Register State").
        let state = self.vmcs.read(field::GUEST_INTERRUPTIBILITY_STATE);
        self.vmcs.write(field::GUEST_INTERRUPTIBILITY_STATE, state & !BLOCKING_BY_STI_OR_MOV_SS);
        if snapshot.is_int1() {
            // Behind the instruction, and no condition of the debug registers.
            self.pass_over(snapshot.instruction_length as u8);
        } else {
            // SAFETY: ring 0 follows from the VMCS; an exit leaves DR7 with nothing on.
            let before = unsafe { cpu::instructions::debug_status() };
            let after = status(before, snapshot.qualification);
            // SAFETY: as above; what has to be 0 in DR6 was, and stays.
            unsafe { cpu::instructions::set_debug_status(after) };
        }
        let control = self.vmcs.read(field::GUEST_DR7);
        self.vmcs.write(field::GUEST_DR7, control & !GENERAL_DETECT);
        let debugctl = self.vmcs.read(field::GUEST_IA32_DEBUGCTL);
        if debugctl & LAST_BRANCHES_AND_STEP_ON_BRANCHES != 0 {
            let without = debugctl & !LAST_BRANCHES_AND_STEP_ON_BRANCHES;
            self.vmcs.write(field::GUEST_IA32_DEBUGCTL, without);
        }
    }

    /// `event` as it is to be injected: INT1, which has just exited, as what it is and from where it is. Then a fault of its
    /// delivery is told to be at the instruction.
    pub(crate) fn as_int1(&mut self, event: Event) -> Event {
        if event.vector.0 != exception::DB {
            return event;
        }
        let told = self.snapshot().as_int1(event);
        if told != event {
            self.go_back(told.instruction_length);
        }
        told
    }
}

impl Snapshot {
    /// The exit is a debug exception.
    pub(crate) fn is_debug_exception(&self) -> bool {
        let information = self.interruption;
        self.reason() == reason::EXCEPTION_OR_NMI
            && information.valid()
            && information.kind() != Some(EventKind::Nmi)
            && information.vector().0 == exception::DB
    }

    fn is_int1(&self) -> bool {
        let kind = self.interruption.kind();
        self.is_debug_exception() && kind == Some(EventKind::PrivilegedSoftwareException)
    }

    /// The debug exception `event` with its kind and length, if this exit was INT1's.
    fn as_int1(&self, event: Event) -> Event {
        if event.kind != EventKind::HardwareException || !self.is_int1() {
            return event;
        }
        let kind = EventKind::PrivilegedSoftwareException;
        Event { kind, instruction_length: self.instruction_length as u8, ..event }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::InterruptionInformation;

    #[test]
    fn dr6_says_what_is_met_now_and_keeps_what_was_before() {
        const RESET: u64 = 0xffff_0ff0;
        for (what, before, qualification, after) in [
            ("a single step", RESET, 1 << 14, 0xffff_4ff0),
            ("a breakpoint behind a single step", 0xffff_4ff0, 1 << 2, 0xffff_4ff4),
            ("another breakpoint", 0xffff_0ff1, 1 << 3, 0xffff_0ff8),
            ("a debug register was touched", RESET, 1 << 13, 0xffff_2ff0),
            ("a bus lock", RESET, 1 << 11, 0xffff_07f0),
            ("in a transaction", RESET, 1 << 16 | 1, 0xfffe_0ff1),
            ("behind a transaction", 0xfffe_0ff1, 1, 0xffff_0ff1),
            ("what the qualification has beside, bit 12", RESET, 1 << 12 | 1, 0xffff_0ff1),
        ] {
            assert_eq!(status(before, qualification), after, "{what}");
        }
    }

    #[test]
    fn int1_is_injected_as_it_has_exited_and_no_other_debug_exception_is() {
        let debug = Event::exception(exception::DB, None);
        let injected = |information| {
            let interruption = InterruptionInformation(information);
            let snapshot = Snapshot { interruption, instruction_length: 1, ..Snapshot::default() };
            let event = snapshot.as_int1(debug);
            (event.kind, event.instruction_length)
        };
        assert_eq!(injected(0x8000_0501), (EventKind::PrivilegedSoftwareException, 1));
        for other in [0x8000_0301, 0x8000_0603, 0x501] {
            assert_eq!(injected(other), (EventKind::HardwareException, 0), "{other:#x}");
        }
    }

    #[test]
    fn a_debug_exception_is_told_from_an_nmi_and_from_what_an_exit_left_behind() {
        let is = |exit_reason, information| {
            let interruption = InterruptionInformation(information);
            Snapshot { exit_reason, interruption, ..Snapshot::default() }.is_debug_exception()
        };
        assert!(is(0, 0x8000_0301), "a condition");
        assert!(is(0, 0x8000_0501), "INT1");
        assert!(
            !is(0, 0x8000_0201) && !is(0, 0x301) && !is(0, 0x8000_0311) && !is(48, 0x8000_0301)
        );
    }
}
