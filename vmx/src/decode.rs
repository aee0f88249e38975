//! From a snapshot of the exit information to [`ExitReason`]. Pure.

use arch::exit::{
    ControlRegisterWrite, ExitReason, IoAccess, NestedPageFault, TaskSwitch, TaskSwitchSource,
};
use arch::vcpu::{EventKind, exception};
use arch::{Gpa, Vector, Width};

use crate::control_register::mov_to;
use crate::event::InterruptionInformation;

macro_rules! basic_exit_reasons {
    ($($name:ident = $number:literal,)*) => {
        /// SDM "VMX Basic Exit Reasons".
        pub(crate) mod reason {
            $(pub(crate) const $name: u32 = $number;)*
        }
    };
}

basic_exit_reasons! {
    EXCEPTION_OR_NMI = 0,
    EXTERNAL_INTERRUPT = 1,
    TRIPLE_FAULT = 2,
    INIT_SIGNAL = 3,
    INTERRUPT_WINDOW = 7,
    NMI_WINDOW = 8,
    TASK_SWITCH = 9,
    CPUID = 10,
    GETSEC = 11,
    HLT = 12,
    INVD = 13,
    VMCALL = 18,
    VMXON = 27,
    CONTROL_REGISTER_ACCESSES = 28,
    MOV_DR = 29,
    IO_INSTRUCTION = 30,
    RDMSR = 31,
    WRMSR = 32,
    TPR_BELOW_THRESHOLD = 43,
    VIRTUALIZED_EOI = 45,
    ACCESS_TO_GDTR_OR_IDTR = 46,
    ACCESS_TO_LDTR_OR_TR = 47,
    EPT_VIOLATION = 48,
    INVEPT = 50,
    VMX_PREEMPTION_TIMER_EXPIRED = 52,
    INVVPID = 53,
    WBINVD = 54,
    XSETBV = 55,
    APIC_WRITE = 56,
    VMFUNC = 59,
    BUS_LOCK = 74,
    SEAMCALL = 76,
    TDCALL = 77,
    RDMSR_IMMEDIATE = 84,
    WRMSRNS_IMMEDIATE = 85,
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
    /// VM-exit instruction length.
    pub(crate) instruction_length: u32,
    pub(crate) guest_physical_address: u64,
    /// At an APIC-write exit: the register, by its MSR, and what was written.
    pub(crate) apic_write: (u32, u64),
}

impl Snapshot {
    /// Basic exit reason.
    pub(crate) const fn reason(&self) -> u32 {
        self.exit_reason & 0xffff
    }

    /// The entry failed: this is no exit of the guest.
    pub(crate) const fn entry_failed(&self) -> bool {
        self.exit_reason >> 31 != 0
    }

    /// Whether the exit leaves NMIs blocked that were not, or the other way round; `None`: as they are.
    ///
    /// An event whose delivery was cut short is delivered again, so an NMI's does not block. A task switch is finished by
    /// the hypervisor: one through NMI's gate blocks, one by IRET ends it, even if it faults (SDM "Treatment of Task
    /// Switches", "Changes to Instruction Behavior in VMX Non-Root Operation").
    pub(crate) fn nmi_blocking(&self) -> Option<bool> {
        let delivers_nmi = self.vectoring.valid() && self.vectoring.kind() == Some(EventKind::Nmi);
        if self.reason() == reason::TASK_SWITCH {
            let returns = task_switch(self.qualification).source == TaskSwitchSource::Iret;
            return (delivers_nmi || returns).then_some(delivers_nmi);
        }
        if self.iret_unblocked_nmi() { Some(true) } else { delivers_nmi.then_some(false) }
    }

    /// The exit hit an IRET after it had ended blocking by NMI: the blocking must be put back before
    /// the IRET is tried again (SDM "Information for VM Exits Due to Vectored Events", "Exit
    /// Qualification for EPT Violations").
    fn iret_unblocked_nmi(&self) -> bool {
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

/// What the exit means. Entry failures never get here.
pub(crate) fn decode(snapshot: &Snapshot) -> ExitReason {
    let qualification = snapshot.qualification;
    let unexpected = ExitReason::Unexpected { code: snapshot.reason().into(), qualification };
    match snapshot.reason() {
        reason::EXCEPTION_OR_NMI => exception_or_nmi(snapshot),
        reason::EXTERNAL_INTERRUPT => {
            ExitReason::ExternalInterrupt(Some(snapshot.interruption.vector()))
        }
        reason::TRIPLE_FAULT => ExitReason::TripleFault,
        reason::INIT_SIGNAL => ExitReason::Init,
        // TPR fell below its threshold, for which an interrupt waits.
        reason::INTERRUPT_WINDOW | reason::NMI_WINDOW | reason::TPR_BELOW_THRESHOLD => {
            ExitReason::InterruptWindow
        }
        reason::TASK_SWITCH => ExitReason::TaskSwitch(task_switch(qualification)),
        reason::CPUID => ExitReason::Cpuid,
        reason::HLT => ExitReason::Halt,
        reason::INVD | reason::WBINVD => ExitReason::CacheInvalidate,
        reason::GETSEC
        | reason::VMCALL..=reason::VMXON
        | reason::INVEPT
        | reason::INVVPID
        | reason::VMFUNC
        // No control asks for these: a CPU that has them exits whatever the guest is shown.
        | reason::SEAMCALL
        | reason::TDCALL
        | reason::RDMSR_IMMEDIATE
        | reason::WRMSRNS_IMMEDIATE => ExitReason::VirtualizationInstruction,
        reason::CONTROL_REGISTER_ACCESSES => match mov_to(qualification) {
            Some((register, _)) => {
                ExitReason::ControlRegister(ControlRegisterWrite { register, qualification })
            }
            None => unexpected,
        },
        reason::MOV_DR => ExitReason::DebugRegister,
        reason::IO_INSTRUCTION => io(snapshot).map_or(unexpected, ExitReason::Io),
        reason::RDMSR => ExitReason::ReadMsr,
        reason::WRMSR => ExitReason::WriteMsr,
        reason::VIRTUALIZED_EOI => ExitReason::LevelInterruptEnded(Vector(qualification as u8)),
        reason::ACCESS_TO_GDTR_OR_IDTR => ExitReason::DescriptorTable,
        reason::ACCESS_TO_LDTR_OR_TR => ExitReason::LocalDescriptorTable,
        reason::EPT_VIOLATION => ExitReason::NestedPageFault(ept_violation(snapshot)),
        reason::VMX_PREEMPTION_TIMER_EXPIRED => ExitReason::HostTimer,
        reason::XSETBV => ExitReason::Xsetbv,
        reason::BUS_LOCK => ExitReason::BusLock,
        reason::APIC_WRITE => {
            let (msr, value) = snapshot.apic_write;
            ExitReason::ApicWritten { msr, value }
        }
        _ => unexpected,
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

/// SDM "Exit Qualification for Task Switches".
fn task_switch(qualification: u64) -> TaskSwitch {
    let source = match qualification >> 30 & 3 {
        0 => TaskSwitchSource::Call,
        1 => TaskSwitchSource::Iret,
        2 => TaskSwitchSource::Jump,
        _ => TaskSwitchSource::IdtGate,
    };
    TaskSwitch { selector: Some(qualification as u16), source }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::vectoring;
    use proptest::prelude::*;

    fn exit(reason: u32) -> Snapshot {
        Snapshot { exit_reason: reason, instruction_length: 2, ..Snapshot::default() }
    }

    #[test]
    fn a_gate_that_is_not_present_is_an_exception_with_its_error_code() {
        let decoded = decode(&Snapshot {
            interruption: InterruptionInformation(0x8000_0b0b),
            interruption_error_code: 0x203,
            ..exit(reason::EXCEPTION_OR_NMI)
        });
        let (vector, error_code) = (Vector(11), Some(0x203));
        assert_eq!(decoded, ExitReason::Exception { vector, error_code, qualification: 0 });
    }

    #[test]
    fn an_nmi_is_not_an_exception() {
        let snapshot = Snapshot { interruption: InterruptionInformation(0x8000_0202), ..exit(0) };
        assert_eq!(decode(&snapshot), ExitReason::Nmi);
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
            decode(&snapshot),
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
            decode(&snapshot),
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
        assert!(matches!(decode(&no_such_width), ExitReason::Unexpected { code: 30, .. }));
    }

    #[test]
    fn a_walk_of_the_guests_tables_is_told_from_its_own_access() {
        let fault = |qualification| {
            let snapshot = Snapshot { qualification, guest_physical_address: 0x1000, ..exit(48) };
            let ExitReason::NestedPageFault(fault) = decode(&snapshot) else {
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
            (8, "InterruptWindow"),
            (9, "TaskSwitch"),
            (10, "Cpuid"),
            (11, "VirtualizationInstruction"),
            (12, "Halt"),
            (13, "CacheInvalidate"),
            (18, "VirtualizationInstruction"),
            (27, "VirtualizationInstruction"),
            (28, "ControlRegister"),
            (29, "DebugRegister"),
            (30, "Io"),
            (31, "ReadMsr"),
            (32, "WriteMsr"),
            (45, "LevelInterruptEnded"),
            (46, "DescriptorTable"),
            (47, "LocalDescriptorTable"),
            (48, "NestedPageFault"),
            (49, "Unexpected"),
            (52, "HostTimer"),
            (54, "CacheInvalidate"),
            (55, "Xsetbv"),
            (56, "ApicWritten"),
            (74, "BusLock"),
            (76, "VirtualizationInstruction"),
            (77, "VirtualizationInstruction"),
            (84, "VirtualizationInstruction"),
            (85, "VirtualizationInstruction"),
        ] {
            let reason = std::format!("{:?}", decode(&exit(number)));
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

    #[test]
    fn a_task_switch_says_which_task_and_why() {
        let switch = |qualification| decode(&Snapshot { qualification, ..exit(9) });
        for (bits, source) in [
            (0, TaskSwitchSource::Call),
            (1, TaskSwitchSource::Iret),
            (2, TaskSwitchSource::Jump),
            (3, TaskSwitchSource::IdtGate),
        ] {
            let expected = ExitReason::TaskSwitch(TaskSwitch { selector: Some(0x58), source });
            assert_eq!(switch(bits << 30 | 0x58), expected);
        }
    }

    #[test]
    fn a_task_switch_through_the_gate_of_nmi_blocks_nmis_and_one_by_iret_ends_that() {
        let nmi = InterruptionInformation(0x8000_0202);
        let (gate, iret) = (3 << 30, 1 << 30);
        let switch = |qualification| Snapshot { qualification, ..exit(9) };
        assert_eq!(Snapshot { vectoring: nmi, ..switch(gate) }.nmi_blocking(), Some(true));
        assert_eq!(switch(iret).nmi_blocking(), Some(false));
        assert_eq!(switch(gate).nmi_blocking(), None);
        assert_eq!(Snapshot { vectoring: nmi, ..exit(48) }.nmi_blocking(), Some(false));
    }

    proptest! {
        #[test]
        fn any_snapshot_is_decoded(
            exit_reason: u32, qualification: u64, interruption: u32, event: u32, length: u32,
        ) {
            let _ = decode(&Snapshot {
                exit_reason, qualification,
                interruption: InterruptionInformation(interruption),
                vectoring: InterruptionInformation(event),
                instruction_length: length,
                ..Snapshot::default()
            });
            let kind = event >> 8 & 7;
            let cut_short = vectoring(InterruptionInformation(event), 0).is_some();
            prop_assert_eq!(cut_short, event >> 31 == 1 && kind != 1 && kind != 7);
        }
    }
}
