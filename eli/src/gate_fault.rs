//! Classifies an intercepted #NP: the guest's own, or that of a closed gate.
//!
//! The hypervisor intercepts #NP (and #GP, while the guest's table is short). The event whose delivery raised it has not
//! been delivered; the vector of an external interrupt is already in service in the physical local APIC.

use arch::Vector;
use arch::exit::Vectoring;
use arch::vcpu::{Event, EventKind, exception};

use crate::grants::Grants;

/// External-event bit of an error code (SDM "Error Code").
const EXT: u32 = 1 << 0;
/// Error code: the index is a gate's in the IDT.
const IDT: u32 = 1 << 1;

/// What to do about an intercepted exception.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultAction {
    /// An interrupt that only the guest itself can have raised, for a gate that the guest has
    /// made: grant the vector, derive its gate, inject it again as an external interrupt.
    GrantAndRedeliver(Vector),
    /// `INT n` for a gate that the guest has made: grant the vector, derive its gate, resume at
    /// the same instruction.
    SoftwareInterrupt(Vector),
    /// An unexpected interrupt for which the guest has no gate (left over from the
    /// firmware, or from before a reset): end it (EOI) and resume.
    DropSpurious(Vector),
    /// The guest's own exception: inject it.
    Reflect(Event),
    /// The guest's own, and its third in a row: its CPU shuts down.
    TripleFault,
}

/// Classifies `own`, an intercepted exception during the delivery of `first`. `real_gate_present` tells whether the guest
/// itself made a gate present ([`crate::ShadowIdt::real_gate_present`]). For a table that is not shadowed it is `false`,
/// because the CPU used the guest's own gate. For a granted vector it may be `true` only if the CPU reads the shadow;
/// otherwise the delivery would be retried without end.
pub fn classify(
    own: Event,
    first: Option<Vectoring>,
    grants: &Grants,
    real_gate_present: impl Fn(Vector) -> bool,
) -> FaultAction {
    let vector = own.vector;
    let code = own.error_code.unwrap_or(0);
    let gate = Vector((code >> 3) as u8);
    let of_gate = code & IDT != 0 && matches!(vector.0, exception::NP | exception::GP);
    // The exception is about the code segment behind the gate, or about something else: a gate of
    // the shadow has no part in it.
    if !of_gate || !gate.is_external() {
        return reflect(first, own);
    }
    let not_present = vector.0 == exception::NP;
    match first {
        Some(Vectoring { vector, kind: EventKind::ExternalInterrupt, .. }) if vector == gate => {
            // Another CPU may have been granting the vector at the same time: it is granted by now.
            if not_present && real_gate_present(gate) {
                return FaultAction::GrantAndRedeliver(gate);
            }
            if not_present && !grants.allows(gate) {
                return FaultAction::DropSpurious(gate);
            }
            // As on hardware: the vector stays in service, the guest gets the exception. Emulators
            // leave out EXT.
            reflect(first, Event { error_code: Some(code | EXT), ..own })
        }
        // The back ends report INT n either as an event under way or, with EXT clear, not at all.
        None | Some(Vectoring { kind: EventKind::SoftwareInterrupt, .. })
            if not_present && code & EXT == 0 && real_gate_present(gate) =>
        {
            FaultAction::SoftwareInterrupt(gate)
        }
        _ => reflect(first, own),
    }
}

/// How the CPU sees an exception for the making of a double fault
/// (SDM "Interrupt 8—Double Fault Exception (#DF)").
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

fn class(vector: Vector) -> Class {
    match vector.0 {
        // #DE, #TS, #NP, #SS, #GP; #CP.
        0 | 10..=13 | 21 => Class::Contributory,
        // #PF; #VE.
        14 | 20 => Class::PageFault,
        8 => Class::DoubleFault,
        _ => Class::Benign,
    }
}

/// The result of the exception `event` during the delivery of `first`: the exception itself, a double fault, or
/// shutdown.
#[must_use]
pub fn reflect(first: Option<Vectoring>, event: Event) -> FaultAction {
    let first = match first {
        Some(Vectoring { kind: EventKind::HardwareException, vector, .. }) => class(vector),
        _ => Class::Benign,
    };
    match (first, class(event.vector)) {
        (Class::Contributory, Class::Contributory)
        | (Class::PageFault, Class::Contributory | Class::PageFault) => {
            FaultAction::Reflect(Event::exception(exception::DF, Some(0)))
        }
        (Class::DoubleFault, Class::Contributory | Class::PageFault) => FaultAction::TripleFault,
        _ => FaultAction::Reflect(event),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grants::Reason;

    /// An exception with error code `code`, raised while `first` was being delivered.
    type Exit = (Event, Option<Vectoring>);

    fn exit(vector: u8, code: u32, first: Option<(u8, EventKind)>) -> Exit {
        let vectoring = first.map(|(vector, kind)| Vectoring {
            vector: Vector(vector),
            kind,
            error_code: None,
        });
        (Event::exception(vector, Some(code)), vectoring)
    }

    fn classify(exit: &Exit, grants: &Grants, real: impl Fn(Vector) -> bool) -> FaultAction {
        super::classify(exit.0, exit.1, grants, real)
    }

    fn gate_code(vector: u8, ext: u32) -> u32 {
        u32::from(vector) << 3 | IDT | ext
    }

    fn np(code: u32) -> FaultAction {
        FaultAction::Reflect(Event::exception(exception::NP, Some(code)))
    }

    #[test]
    fn every_external_vector_is_granted_on_its_first_arrival() {
        for vector in 32..=255 {
            for ext in [0, 1] {
                let exit =
                    exit(11, gate_code(vector, ext), Some((vector, EventKind::ExternalInterrupt)));
                let verdict = classify(&exit, &Grants::new(), |gate| gate == Vector(vector));
                assert_eq!(verdict, FaultAction::GrantAndRedeliver(Vector(vector)));
            }
        }
    }

    #[test]
    fn an_interrupt_without_a_gate_is_the_guests_only_if_it_asked_for_it() {
        let grants = Grants::new();
        let exit = exit(11, gate_code(0x50, 0), Some((0x50, EventKind::ExternalInterrupt)));
        let spurious = FaultAction::DropSpurious(Vector(0x50));
        assert_eq!(classify(&exit, &grants, |_| false), spurious);
        grants.grant(Vector(0x50), Reason::Device);
        assert_eq!(classify(&exit, &grants, |_| false), np(gate_code(0x50, EXT)));
    }

    #[test]
    fn int_n_works_as_the_guests_own_gate_says() {
        for first in [None, Some((0x80, EventKind::SoftwareInterrupt))] {
            let exit = exit(11, gate_code(0x80, 0), first);
            let software = FaultAction::SoftwareInterrupt(Vector(0x80));
            assert_eq!(classify(&exit, &Grants::new(), |_| true), software);
            let own = np(gate_code(0x80, 0));
            assert_eq!(classify(&exit, &Grants::new(), |_| false), own);
        }
    }

    #[test]
    fn a_vector_that_another_cpu_has_just_been_granted_is_tried_again() {
        let grants = Grants::new();
        let vector = Vector(0x50);
        grants.grant(vector, Reason::Device);
        for (kind, ext, again) in [
            (EventKind::ExternalInterrupt, EXT, FaultAction::GrantAndRedeliver(vector)),
            (EventKind::SoftwareInterrupt, 0, FaultAction::SoftwareInterrupt(vector)),
        ] {
            let exit = exit(11, gate_code(0x50, 0), Some((0x50, kind)));
            assert_eq!(classify(&exit, &grants, |_| true), again);
            assert_eq!(classify(&exit, &grants, |_| false), np(gate_code(0x50, ext)));
        }
    }

    #[test]
    fn what_the_hardware_calls_external_is_not_taken_for_int_n() {
        let exit = exit(11, gate_code(0x80, EXT), None);
        let own = np(gate_code(0x80, EXT));
        assert_eq!(classify(&exit, &Grants::new(), |_| true), own);
    }

    #[test]
    fn a_missing_code_segment_behind_a_gate_is_the_guests_own_fault() {
        let exit = exit(11, 0x81, Some((0x50, EventKind::ExternalInterrupt)));
        assert_eq!(classify(&exit, &Grants::new(), |_| true), np(0x81));
    }

    #[test]
    fn gates_of_exceptions_are_the_guests_own() {
        let code = gate_code(6, 1);
        let first = Some((6, EventKind::HardwareException));
        assert_eq!(classify(&exit(11, code, first), &Grants::new(), |_| true), np(code));
    }

    #[test]
    fn a_short_table_gives_the_guest_the_fault_that_hardware_would() {
        let exit = exit(13, gate_code(0x50, 1), Some((0x50, EventKind::ExternalInterrupt)));
        let gp = FaultAction::Reflect(Event::exception(exception::GP, Some(gate_code(0x50, 1))));
        assert_eq!(classify(&exit, &Grants::new(), |_| true), gp);
    }

    #[test]
    fn faults_in_a_row_make_double_and_triple_faults() {
        let hardware = |vector| Some((vector, EventKind::HardwareException));
        let verdict = |first, second| classify(&exit(second, 0, first), &Grants::new(), |_| false);
        let double = FaultAction::Reflect(Event::exception(exception::DF, Some(0)));
        assert_eq!(verdict(hardware(14), 11), double);
        assert_eq!(verdict(hardware(13), 11), double);
        assert_eq!(verdict(hardware(13), 14), FaultAction::Reflect(Event::exception(14, Some(0))));
        assert_eq!(verdict(hardware(8), 11), FaultAction::TripleFault);
        assert_eq!(verdict(hardware(1), 11), np(0));
        assert_eq!(verdict(Some((13, EventKind::SoftwareInterrupt)), 11), np(0));
    }
}
