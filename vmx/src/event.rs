//! Events in the CPU's own form: what is injected, and what an exit cut short
//! (SDM "VM-Entry Controls for Event Injection", "Information for VM Exits That Occur During Event
//! Delivery"). Pure.

use arch::Vector;
use arch::exit::Vectoring;
use arch::vcpu::{Event, EventKind, exception};

use crate::vcpu::{BLOCKING_BY_NMI, BLOCKING_BY_STI_OR_MOV_SS};

/// Bit 31 of every interruption-information field.
const VALID: u32 = 1 << 31;
/// Bit 11: an error code comes with it.
const ERROR_CODE_VALID: u32 = 1 << 11;

/// A VM-entry, VM-exit or IDT-vectoring information field.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct InterruptionInformation(pub(crate) u32);

impl InterruptionInformation {
    /// The field says something.
    pub(crate) const fn valid(self) -> bool {
        self.0 & VALID != 0
    }

    /// Bits 7:0.
    pub(crate) const fn vector(self) -> Vector {
        Vector(self.0 as u8)
    }

    /// There is an error code.
    pub(crate) const fn has_error_code(self) -> bool {
        self.0 & ERROR_CODE_VALID != 0
    }

    /// Bits 10:8; `None` for the types that no exit reports (1, 7).
    pub(crate) const fn kind(self) -> Option<EventKind> {
        match self.0 >> 8 & 7 {
            0 => Some(EventKind::ExternalInterrupt),
            2 => Some(EventKind::Nmi),
            3 => Some(EventKind::HardwareException),
            4 => Some(EventKind::SoftwareInterrupt),
            5 => Some(EventKind::PrivilegedSoftwareException),
            6 => Some(EventKind::SoftwareException),
            _ => None,
        }
    }

    /// The field says NMI.
    pub(crate) const fn is_nmi(self) -> bool {
        self.valid() && matches!(self.kind(), Some(EventKind::Nmi))
    }

    /// Bit 12 of VM-exit interruption information: the fault hit an IRET that had already ended
    /// blocking by NMI.
    pub(crate) const fn nmi_unblocking_due_to_iret(self) -> bool {
        self.0 & 1 << 12 != 0
    }
}

/// The event whose delivery an exit cut short.
pub(crate) fn vectoring(
    information: InterruptionInformation,
    error_code: u32,
) -> Option<Vectoring> {
    let kind = information.kind().filter(|_| information.valid())?;
    Some(Vectoring {
        vector: information.vector(),
        kind,
        error_code: information.has_error_code().then_some(error_code),
    })
}

/// The interruptibility state with which `event` is injected: blocking by STI ends, which no CPU takes together with
/// an interrupt and some do not take together with an NMI (SDM "Checks on Guest Non-Register State"). Nothing is
/// lost: after an entry that injects, neither STI nor MOV SS blocks, whatever the field says (SDM
/// "Interruptibility State").
pub(crate) const fn interruptibility(event: Event, state: u32) -> u32 {
    const BLOCKING_BY_STI: u32 = 1 << 0;
    match event.kind {
        EventKind::ExternalInterrupt | EventKind::Nmi => state & !BLOCKING_BY_STI,
        EventKind::HardwareException
        | EventKind::SoftwareInterrupt
        | EventKind::PrivilegedSoftwareException
        | EventKind::SoftwareException => state,
    }
}

/// Whether an NMI waits for its window: where an NMI or a shadow blocks it, where another event is injected, and behind what
/// comes first. `Some(true)`: it comes before an interrupt even if an instruction that exits ends the shadow, as
/// interrupts are looked at before the window is (SDM "Priority Among Concurrent Events").
pub(crate) const fn nmi_waits(
    state: u32,
    injected: InterruptionInformation,
    others_first: bool,
) -> Option<bool> {
    let by_nmi = state & BLOCKING_BY_NMI != 0;
    let waits =
        by_nmi || state & BLOCKING_BY_STI_OR_MOV_SS != 0 || injected.valid() || others_first;
    if waits { Some(!by_nmi) } else { None }
}

/// Whether RFLAGS has RF = 1 in the frame that `event` leaves: a fault's has, so that an instruction breakpoint is not
/// taken twice, and the CPU pushes for an injected event what the field holds (SDM "Resume Flag"; "Injected Event
/// Delivery"). #DB, #DF and #MC are not faults here.
pub(crate) const fn is_fault(event: Event) -> bool {
    let kind = matches!(event.kind, EventKind::HardwareException);
    kind && !matches!(event.vector.0, exception::DB | exception::DF | exception::MC)
}

/// VM-entry interruption information and error code for `event`. A hardware exception carries an
/// error code exactly where the CPU wants one: never in real-address mode, else for the vectors that
/// have one (SDM "Checks on VM-Entry Control Fields").
pub(crate) fn injection(event: Event, protected_mode: bool) -> (InterruptionInformation, u32) {
    let kind = match event.kind {
        EventKind::ExternalInterrupt => 0,
        EventKind::Nmi => 2,
        EventKind::HardwareException => 3,
        EventKind::SoftwareInterrupt => 4,
        EventKind::PrivilegedSoftwareException => 5,
        EventKind::SoftwareException => 6,
    };
    let mut information = VALID | kind << 8 | u32::from(event.vector.0);
    let pushes = matches!(event.vector.0, 8 | 10..=14 | 17 | 21);
    if event.kind == EventKind::HardwareException && protected_mode && pushes {
        information |= ERROR_CODE_VALID;
    }
    (InterruptionInformation(information), event.error_code.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KINDS: [EventKind; 6] = [
        EventKind::ExternalInterrupt,
        EventKind::Nmi,
        EventKind::HardwareException,
        EventKind::SoftwareInterrupt,
        EventKind::PrivilegedSoftwareException,
        EventKind::SoftwareException,
    ];

    #[test]
    fn an_nmi_that_waits_comes_before_an_interrupt_but_where_an_nmi_blocks_it() {
        const NOTHING: InterruptionInformation = InterruptionInformation(0);
        const SHADOWS: [u32; 2] = [1, 2];
        const NMI: u32 = 8;
        assert_eq!(nmi_waits(0, NOTHING, false), None);
        for shadow in SHADOWS {
            assert_eq!(nmi_waits(shadow, NOTHING, false), Some(true), "{shadow}");
            // Its handler may have interrupts on.
            assert_eq!(nmi_waits(NMI | shadow, NOTHING, false), Some(false), "{shadow}");
        }
        assert_eq!(nmi_waits(NMI, NOTHING, false), Some(false));
        assert_eq!(nmi_waits(0, InterruptionInformation(VALID), false), Some(true));
        assert_eq!(nmi_waits(0, NOTHING, true), Some(true));
    }

    /// What an instruction sends itself is given to the entry before its trap is known.
    #[test]
    fn of_all_events_that_are_injected_an_nmi_alone_is_one() {
        for kind in KINDS {
            let event = Event { vector: Vector(2), kind, error_code: None, instruction_length: 0 };
            let (information, _) = injection(event, true);
            assert_eq!(information.is_nmi(), kind == EventKind::Nmi, "{kind:?}");
        }
        assert!(!InterruptionInformation(2 << 8 | 2).is_nmi(), "nothing is injected");
    }

    proptest! {
        #[test]
        fn what_is_injected_reads_back_as_the_same_event(
            vector: u8, kind in proptest::sample::select(&KINDS[..]), code: u32, length in 0_u8..16,
            protected: bool,
        ) {
            let event = Event {
                vector: Vector(vector), kind, error_code: Some(code), instruction_length: length,
            };
            let (information, error) = injection(event, protected);
            let back = vectoring(information, error).unwrap();
            prop_assert_eq!((back.vector, back.kind), (event.vector, event.kind));
            let pushes = kind == EventKind::HardwareException && protected
                && [8, 10, 11, 12, 13, 14, 17, 21].contains(&vector);
            prop_assert_eq!(back.error_code, pushes.then_some(code));
        }

        #[test]
        fn without_the_valid_bit_nothing_was_cut_short(raw in 0_u32..1 << 31, code: u32) {
            prop_assert_eq!(vectoring(InterruptionInformation(raw), code), None);
        }
    }

    #[test]
    fn no_nmi_or_interrupt_is_injected_while_sti_blocks() {
        let nmi = Event::nmi();
        for (state, with) in [(0, 0), (1, 0), (2, 2), (8, 8), (9, 8)] {
            assert_eq!(interruptibility(nmi, state), with);
            assert_eq!(interruptibility(Event::interrupt(Vector(0x40)), state), with);
            assert_eq!(interruptibility(Event::exception(13, Some(0)), state), state);
        }
    }

    #[test]
    fn a_fault_and_nothing_else_leaves_the_resume_flag_set() {
        let fault = |vector| is_fault(Event::exception(vector, None));
        assert_eq!([13, 14, 6, 11].map(fault), [true; 4]);
        assert_eq!([1, 8, 18].map(fault), [false; 3]);
        assert!(!is_fault(Event::nmi()) && !is_fault(Event::interrupt(Vector(0x40))));
    }

    #[test]
    fn encodings_are_those_that_worked_on_a_machine() {
        let np = injection(Event::exception(11, Some(0x123)), true);
        assert_eq!(np, (InterruptionInformation(0x8000_0b0b), 0x123));
        assert_eq!(injection(Event::exception(6, None), true).0.0, 0x8000_0306);
        assert_eq!(injection(Event::interrupt(Vector(0x40)), true).0.0, 0x8000_0040);
        assert_eq!(injection(Event::exception(13, Some(0)), false).0.0, 0x8000_030d);
    }
}
