//! From a snapshot of the exit information to [`Exit`]. Pure.

use arch::exit::{ExitReason, IoAccess, NestedPageFault};
use arch::vcpu::{EventKind, exception};
use arch::{Exit, Gpa, Vector, Width};

use crate::event::{InterruptionInformation, is_software, vectoring};

/// Basic exit reasons that the back end itself must know (SDM "VMX Basic Exit Reasons").
pub(crate) mod reason {
    /// All 32 bits of the exit reason: the entry did not fail.
    pub(crate) const CPUID: u32 = 10;
    pub(crate) const RDMSR: u32 = 31;
    pub(crate) const WRMSR: u32 = 32;
    pub(crate) const EXCEPTION_OR_NMI: u16 = 0;
    pub(crate) const NMI_WINDOW: u16 = 8;
    pub(crate) const CONTROL_REGISTER_ACCESS: u16 = 28;
    pub(crate) const EPT_VIOLATION: u16 = 48;
}

/// The VM-exit information fields (SDM "VM-Exit Information Fields"). Those that the exit does not
/// define are whatever they were.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Snapshot {
    /// Exit reason, all 32 bits.
    pub(crate) exit_reason: u32,
    /// Exit qualification.
    pub(crate) qualification: u64,
    /// VM-exit interruption information.
    pub(crate) interruption: InterruptionInformation,
    /// VM-exit interruption error code.
    pub(crate) interruption_error_code: u32,
    /// IDT-vectoring information.
    pub(crate) vectoring: InterruptionInformation,
    /// IDT-vectoring error code.
    pub(crate) vectoring_error_code: u32,
    /// VM-exit instruction length.
    pub(crate) instruction_length: u32,
    /// Guest-physical address.
    pub(crate) guest_physical_address: u64,
}

impl Snapshot {
    /// Basic exit reason.
    pub(crate) const fn reason(&self) -> u16 {
        self.exit_reason as u16
    }

    /// The entry failed: this is no exit of the guest.
    pub(crate) const fn entry_failed(&self) -> bool {
        self.exit_reason >> 31 != 0
    }

    /// The exit hit an IRET after it had ended blocking by NMI: the blocking must be put back before
    /// the IRET is tried again (SDM "Information for VM Exits Due to Vectored Events", "Exit
    /// Qualification for EPT Violations").
    pub(crate) fn iret_unblocked_nmi(&self) -> bool {
        if self.vectoring.valid() {
            return false;
        }
        match self.reason() {
            reason::EXCEPTION_OR_NMI => {
                self.interruption.vector().0 != exception::DF
                    && self.interruption.nmi_unblocking_due_to_iret()
            }
            reason::EPT_VIOLATION => self.qualification & 1 << 12 != 0,
            _ => false,
        }
    }
}

/// What the exit means. Entry failures, control-register accesses and NMI windows never get here.
pub(crate) fn decode(snapshot: &Snapshot) -> Exit {
    let unexpected = ExitReason::Unexpected {
        code: u64::from(snapshot.reason()),
        qualification: snapshot.qualification,
    };
    let reason = match snapshot.reason() {
        reason::EXCEPTION_OR_NMI => exception_or_nmi(snapshot),
        1 => ExitReason::ExternalInterrupt(snapshot.interruption.vector()),
        2 => ExitReason::TripleFault,
        3 => ExitReason::Init,
        // TPR fell below its threshold, for which an interrupt waits.
        7 | 43 => ExitReason::InterruptWindow,
        10 => ExitReason::Cpuid,
        12 => ExitReason::Halt,
        13 | 54 => ExitReason::CacheInvalidate,
        // GETSEC, VMCALL to VMXON, INVEPT, INVVPID, VMFUNC.
        11 | 18..=27 | 50 | 53 | 59 => ExitReason::VirtualizationInstruction,
        30 => io(snapshot).map_or(unexpected, ExitReason::Io),
        31 => ExitReason::ReadMsr,
        32 => ExitReason::WriteMsr,
        45 => ExitReason::EndOfInterrupt(Vector(snapshot.qualification as u8)),
        46 => ExitReason::DescriptorTable,
        47 => ExitReason::LocalDescriptorTable,
        reason::EPT_VIOLATION => ExitReason::NestedPageFault(ept_violation(snapshot)),
        52 => ExitReason::PreemptionTimer,
        55 => ExitReason::Xsetbv,
        56 => ExitReason::ApicWrite(snapshot.qualification as u16 & 0xfff),
        _ => unexpected,
    };
    Exit {
        reason,
        vectoring: vectoring(
            snapshot.vectoring,
            snapshot.vectoring_error_code,
            snapshot.instruction_length,
        ),
        instruction_length: has_length(snapshot).then_some(snapshot.instruction_length as u8),
    }
}

fn exception_or_nmi(snapshot: &Snapshot) -> ExitReason {
    let information = snapshot.interruption;
    if information.kind() == Some(EventKind::Nmi) {
        return ExitReason::Nmi;
    }
    ExitReason::Exception {
        vector: information.vector(),
        error_code: information.has_error_code().then_some(snapshot.interruption_error_code),
        qualification: match information.vector().0 {
            exception::DB | exception::PF => snapshot.qualification,
            _ => 0,
        },
    }
}

/// SDM "Exit Qualification for I/O Instructions".
fn io(snapshot: &Snapshot) -> Option<IoAccess> {
    let qualification = snapshot.qualification;
    Some(IoAccess {
        port: (qualification >> 16) as u16,
        width: Width::from_bytes((qualification & 7) as u8 + 1).filter(|w| *w != Width::Qword)?,
        input: qualification & 1 << 3 != 0,
        string: qualification & 1 << 4 != 0,
        repeat: qualification & 1 << 5 != 0,
        instruction_length: snapshot.instruction_length as u8,
    })
}

/// SDM "Exit Qualification for EPT Violations".
fn ept_violation(snapshot: &Snapshot) -> NestedPageFault {
    let bit = |n: u32| snapshot.qualification & 1 << n != 0;
    NestedPageFault {
        gpa: Gpa::new(snapshot.guest_physical_address),
        write: bit(1),
        fetch: bit(2),
        table_walk: bit(7) && !bit(8),
    }
}

/// Whether the VM-exit instruction length is that of an instruction that caused the exit
/// (SDM "Information for VM Exits Due to Instruction Execution").
fn has_length(snapshot: &Snapshot) -> bool {
    match snapshot.reason() {
        reason::EXCEPTION_OR_NMI => snapshot.interruption.kind().is_some_and(is_software),
        10..=27
        | 28..=32
        | 36
        | 39
        | 40
        | 46
        | 47
        | 50
        | 51
        | 53..=55
        | 57..=59
        | 61
        | 63
        | 64
        | 67
        | 68 => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch::Vector;
    use arch::exit::Vectoring;
    use proptest::prelude::*;

    fn exit(reason: u32) -> Snapshot {
        Snapshot { exit_reason: reason, instruction_length: 2, ..Snapshot::default() }
    }

    #[test]
    fn a_gate_that_is_not_present_tells_whose_vector_it_was() {
        let decoded = decode(&Snapshot {
            interruption: InterruptionInformation(0x8000_0b0b),
            interruption_error_code: 0x203,
            vectoring: InterruptionInformation(0x8000_0040),
            ..exit(0)
        });
        assert_eq!(
            decoded.reason,
            ExitReason::Exception { vector: Vector(11), error_code: Some(0x203), qualification: 0 }
        );
        assert_eq!(
            decoded.vectoring,
            Some(Vectoring {
                vector: Vector(0x40),
                kind: EventKind::ExternalInterrupt,
                error_code: None,
                instruction_length: None
            })
        );
        assert_eq!(decoded.instruction_length, None);
    }

    #[test]
    fn a_software_interrupt_keeps_its_length() {
        let decoded = decode(&Snapshot {
            interruption: InterruptionInformation(0x8000_0b0b),
            vectoring: InterruptionInformation(0x8000_0480),
            ..exit(0)
        });
        let vectoring = decoded.vectoring.unwrap();
        assert_eq!(vectoring.kind, EventKind::SoftwareInterrupt);
        assert_eq!(vectoring.instruction_length, Some(2));
    }

    #[test]
    fn an_nmi_is_not_an_exception() {
        let snapshot = Snapshot { interruption: InterruptionInformation(0x8000_0202), ..exit(0) };
        assert_eq!(decode(&snapshot).reason, ExitReason::Nmi);
    }

    #[test]
    fn page_faults_carry_their_address() {
        let snapshot = Snapshot {
            interruption: InterruptionInformation(0x8000_0b0e),
            interruption_error_code: 2,
            qualification: 0x1234_5678,
            ..exit(0)
        };
        assert_eq!(
            decode(&snapshot).reason,
            ExitReason::Exception {
                vector: Vector(14),
                error_code: Some(2),
                qualification: 0x1234_5678
            }
        );
    }

    #[test]
    fn a_rep_outsb_to_the_uart_is_told_in_full() {
        let snapshot = Snapshot { qualification: 0x03f8_0030, ..exit(30) };
        assert_eq!(
            decode(&snapshot).reason,
            ExitReason::Io(IoAccess {
                port: 0x3f8,
                width: Width::Byte,
                input: false,
                string: true,
                repeat: true,
                instruction_length: 2
            })
        );
        let no_such_width = Snapshot { qualification: 7, ..exit(30) };
        assert!(matches!(decode(&no_such_width).reason, ExitReason::Unexpected { code: 30, .. }));
    }

    #[test]
    fn a_walk_of_the_guests_tables_is_told_from_its_own_access() {
        let fault = |qualification| {
            let snapshot = Snapshot { qualification, guest_physical_address: 0x1000, ..exit(48) };
            let ExitReason::NestedPageFault(fault) = decode(&snapshot).reason else {
                panic!("exit 48 is not a nested page fault");
            };
            fault
        };
        let write = fault(0x182);
        assert_eq!(write.gpa, Gpa::new(0x1000));
        assert!(write.write && !write.fetch && !write.table_walk);
        assert!(fault(0x081).table_walk);
        assert!(fault(0x184).fetch);
    }

    #[test]
    fn every_number_means_one_reason() {
        for (number, name) in [
            (1, "ExternalInterrupt"),
            (2, "TripleFault"),
            (3, "Init"),
            (7, "InterruptWindow"),
            (9, "Unexpected"),
            (10, "Cpuid"),
            (11, "VirtualizationInstruction"),
            (12, "Halt"),
            (13, "CacheInvalidate"),
            (18, "VirtualizationInstruction"),
            (27, "VirtualizationInstruction"),
            (28, "Unexpected"),
            (30, "Io"),
            (31, "ReadMsr"),
            (32, "WriteMsr"),
            (46, "DescriptorTable"),
            (47, "LocalDescriptorTable"),
            (48, "NestedPageFault"),
            (49, "Unexpected"),
            (52, "PreemptionTimer"),
            (54, "CacheInvalidate"),
            (55, "Xsetbv"),
            (56, "ApicWrite"),
        ] {
            let reason = std::format!("{:?}", decode(&exit(number)).reason);
            assert!(reason.starts_with(name), "{number}: {reason}");
        }
    }

    #[test]
    fn an_iret_that_faults_gets_its_nmi_blocking_back() {
        let page_fault = InterruptionInformation(0x8000_1b0e);
        let fault = Snapshot { interruption: page_fault, ..exit(0) };
        assert!(fault.iret_unblocked_nmi());
        let delivering = Snapshot { vectoring: InterruptionInformation(0x8000_0202), ..fault };
        assert!(!delivering.iret_unblocked_nmi(), "the bit says nothing during a delivery");
        let double = Snapshot { interruption: InterruptionInformation(0x8000_1b08), ..exit(0) };
        assert!(!double.iret_unblocked_nmi());
        assert!(Snapshot { qualification: 1 << 12, ..exit(48) }.iret_unblocked_nmi());
        assert!(!Snapshot { qualification: 1 << 12, ..exit(30) }.iret_unblocked_nmi());
    }

    proptest! {
        #[test]
        fn any_snapshot_is_decoded(
            exit_reason: u32, qualification: u64, interruption: u32, vectoring: u32, length: u32,
        ) {
            let exit = decode(&Snapshot {
                exit_reason, qualification,
                interruption: InterruptionInformation(interruption),
                vectoring: InterruptionInformation(vectoring),
                instruction_length: length,
                ..Snapshot::default()
            });
            let kind = vectoring >> 8 & 7;
            prop_assert_eq!(exit.vectoring.is_some(), vectoring >> 31 == 1 && kind != 1 && kind != 7);
        }
    }
}
