//! From the exit record in the VMCB to a neutral [`ExitReason`]
//! (APM volume 2, "SVM Intercept Exit Codes", "Exit Codes" of each intercept, "EXITINTINFO").
//!
//! Pure: the VMCB is the snapshot. The two places where QEMU's emulator differs from the manual are
//! named; the manual's behaviour is right at both.

use arch::exit::{EntryFailure, ExitReason, IoAccess, NestedPageFault, Vectoring};
use arch::vcpu::{EventKind, exception};
use arch::{Gpa, Vector, Width};

use crate::controls::{EVENT_ERROR_CODE_VALID, EVENT_VALID};
use crate::vmcb::{ControlArea, Vmcb};

macro_rules! exit_codes {
    ($($name:ident = $code:literal),* $(,)?) => {
        $(#[doc = concat!("EXITCODE `", stringify!($name), "`")] pub const $name: u64 = $code;)*
    };
}

exit_codes! {
    VMEXIT_CR0_READ = 0x00,
    VMEXIT_CR4_READ = 0x04,
    VMEXIT_CR0_WRITE = 0x10,
    VMEXIT_CR4_WRITE = 0x14,
    VMEXIT_CR8_WRITE = 0x18,
    VMEXIT_DR0_READ = 0x20,
    VMEXIT_DR15_WRITE = 0x3f,
    VMEXIT_EXCP0 = 0x40,
    VMEXIT_GP = 0x4d,
    VMEXIT_EXCP31 = 0x5f,
    VMEXIT_INTR = 0x60,
    VMEXIT_NMI = 0x61,
    VMEXIT_INIT = 0x63,
    VMEXIT_VINTR = 0x64,
    VMEXIT_CR0_SEL_WRITE = 0x65,
    VMEXIT_IDTR_READ = 0x66,
    VMEXIT_IDTR_WRITE = 0x6a,
    VMEXIT_CPUID = 0x72,
    VMEXIT_IRET = 0x74,
    VMEXIT_INVD = 0x76,
    VMEXIT_HLT = 0x78,
    VMEXIT_INVLPGA = 0x7a,
    VMEXIT_IOIO = 0x7b,
    VMEXIT_MSR = 0x7c,
    VMEXIT_FERR_FREEZE = 0x7e,
    VMEXIT_SHUTDOWN = 0x7f,
    VMEXIT_VMRUN = 0x80,
    VMEXIT_SKINIT = 0x86,
    VMEXIT_ICEBP = 0x88,
    VMEXIT_WBINVD = 0x89,
    VMEXIT_XSETBV = 0x8d,
    VMEXIT_BUSLOCK = 0xa5,
    VMEXIT_NPF = 0x400,
    // QEMU writes 32 bits of it.
    VMEXIT_INVALID = 0xffff_ffff,
}

/// Decodes the exit that `vmcb` records. `acknowledged`: the vector that the host took, at an external-interrupt exit.
#[must_use]
pub fn decode(vmcb: &Vmcb, acknowledged: Option<Vector>) -> ExitReason {
    let control = &vmcb.control;
    let unexpected =
        ExitReason::Unexpected { code: control.exitcode, qualification: control.exitinfo1 };
    match control.exitcode {
        VMEXIT_CPUID => ExitReason::Cpuid,
        VMEXIT_MSR if control.exitinfo1 & 1 == 0 => ExitReason::ReadMsr,
        VMEXIT_MSR => ExitReason::WriteMsr,
        VMEXIT_IOIO => io(vmcb).map_or(unexpected, ExitReason::Io),
        VMEXIT_NPF => ExitReason::NestedPageFault(nested_page_fault(control)),
        VMEXIT_DR0_READ..=VMEXIT_DR15_WRITE => ExitReason::DebugRegister,
        VMEXIT_EXCP0..=VMEXIT_EXCP31 => exception_exit(vmcb),
        // No condition of the debug registers.
        VMEXIT_ICEBP => {
            let vector = Vector(exception::DB);
            ExitReason::Exception { vector, error_code: None, qualification: 0 }
        }
        // CR0.NE is clear, and the guest's floating-point error would be the machine's interrupt 13. The guest gets the
        // exception, as on VT-x, where NE is always set.
        VMEXIT_FERR_FREEZE => {
            let vector = Vector(exception::MF);
            ExitReason::Exception { vector, error_code: None, qualification: 0 }
        }
        VMEXIT_NMI => ExitReason::Nmi,
        VMEXIT_INTR => ExitReason::ExternalInterrupt(acknowledged),
        VMEXIT_VINTR => ExitReason::InterruptWindow,
        VMEXIT_HLT => ExitReason::Halt,
        VMEXIT_IDTR_READ | VMEXIT_IDTR_WRITE => ExitReason::DescriptorTable,
        VMEXIT_XSETBV => ExitReason::Xsetbv,
        VMEXIT_INVD | VMEXIT_WBINVD => ExitReason::CacheInvalidate,
        VMEXIT_INVLPGA | VMEXIT_VMRUN..=VMEXIT_SKINIT => ExitReason::VirtualizationInstruction,
        VMEXIT_BUSLOCK => ExitReason::BusLock,
        VMEXIT_SHUTDOWN => ExitReason::TripleFault,
        VMEXIT_INIT => ExitReason::Init,
        // VMEXIT_INVALID is -1; -2 and -3 are refusals of encrypted guests.
        code if (code as u32).cast_signed() < 0 => entry_failure(code),
        _ => unexpected,
    }
}

/// Distance of two instruction pointers: the low byte is right even where IP or EIP wraps. Exits by intercepted
/// instructions leave RIP at the instruction, and nRIP behind it.
pub(crate) const fn length(rip: u64, next_rip: u64) -> u8 {
    next_rip.wrapping_sub(rip) as u8
}

/// APM "EXITINFO1 for IOIO Intercept"; EXITINFO2 is the next RIP.
fn io(vmcb: &Vmcb) -> Option<IoAccess> {
    let info = vmcb.control.exitinfo1;
    Some(IoAccess {
        port: (info >> 16) as u16,
        width: Width::from_bytes((info >> 4) as u8 & 7)?,
        input: info & 1 != 0,
        string: info & 1 << 2 != 0,
        repeat: info & 1 << 3 != 0,
        instruction_length: length(vmcb.save.rip, vmcb.control.exitinfo2),
    })
}

/// APM "Nested versus Guest Page Faults, Fault Ordering": a page-fault error code, and in bit 33
/// that the access was to the guest's page tables.
const fn nested_page_fault(control: &ControlArea) -> NestedPageFault {
    NestedPageFault {
        gpa: Gpa::new(control.exitinfo2),
        write: control.exitinfo1 & 1 << 1 != 0,
        fetch: control.exitinfo1 & 1 << 4 != 0,
        table_walk: control.exitinfo1 & 1 << 33 != 0,
    }
}

fn exception_exit(vmcb: &Vmcb) -> ExitReason {
    let vector = (vmcb.control.exitcode - VMEXIT_EXCP0) as u8;
    let has_error_code = matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30);
    ExitReason::Exception {
        vector: Vector(vector),
        error_code: has_error_code.then_some(vmcb.control.exitinfo1 as u32),
        qualification: match vector {
            exception::DB => vmcb.save.dr6,
            exception::PF => vmcb.control.exitinfo2,
            _ => 0,
        },
    }
}

const fn entry_failure(code: u64) -> ExitReason {
    ExitReason::EntryFailure(EntryFailure { code, qualification: 0, meaning: "VMEXIT_INVALID" })
}

/// APM "EXITINTINFO". QEMU leaves an old value behind with only the valid bit (31) cleared.
pub(crate) fn vectoring(info: u64) -> Option<Vectoring> {
    if info & EVENT_VALID == 0 {
        return None;
    }
    let vector = Vector(info as u8);
    let kind = match info >> 8 & 7 {
        0 => EventKind::ExternalInterrupt,
        2 => EventKind::Nmi,
        4 => EventKind::SoftwareInterrupt,
        // QEMU calls an external interrupt under delivery an exception. No exception has such a
        // vector, so on hardware this arm is never taken.
        _ if vector.is_external() => EventKind::ExternalInterrupt,
        // #BP and #OF only come from INT3 and INTO.
        _ if matches!(vector.0, 3 | 4) => EventKind::SoftwareException,
        _ => EventKind::HardwareException,
    };
    let error_code = (info & EVENT_ERROR_CODE_VALID != 0).then_some((info >> 32) as u32);
    Some(Vectoring { vector, kind, error_code })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn exit(exitcode: u64, exitinfo1: u64, exitinfo2: u64) -> ExitReason {
        decode(&record(exitcode, exitinfo1, exitinfo2), None)
    }

    /// An exit at RIP 0x1000.
    fn record(exitcode: u64, exitinfo1: u64, exitinfo2: u64) -> Vmcb {
        let mut vmcb = Vmcb::zeroed();
        vmcb.save.rip = 0x1000;
        vmcb.control.exitcode = exitcode;
        vmcb.control.exitinfo1 = exitinfo1;
        vmcb.control.exitinfo2 = exitinfo2;
        vmcb
    }

    #[test]
    fn every_code_means_one_reason() {
        let vector = Vector(exception::MF);
        let floating_point_error =
            ExitReason::Exception { vector, error_code: None, qualification: 0 };
        let cases = [
            (VMEXIT_CPUID, 0, ExitReason::Cpuid),
            (VMEXIT_MSR, 0, ExitReason::ReadMsr),
            (VMEXIT_MSR, 1, ExitReason::WriteMsr),
            (VMEXIT_FERR_FREEZE, 0, floating_point_error),
            (VMEXIT_HLT, 0, ExitReason::Halt),
            (VMEXIT_IDTR_READ, 0, ExitReason::DescriptorTable),
            (VMEXIT_IDTR_WRITE, 0, ExitReason::DescriptorTable),
            (VMEXIT_XSETBV, 0, ExitReason::Xsetbv),
            (VMEXIT_INVD, 0, ExitReason::CacheInvalidate),
            (VMEXIT_WBINVD, 0, ExitReason::CacheInvalidate),
            (VMEXIT_VINTR, 0, ExitReason::InterruptWindow),
            (VMEXIT_INVLPGA, 0, ExitReason::VirtualizationInstruction),
            (0x81, 0, ExitReason::VirtualizationInstruction),
            (VMEXIT_BUSLOCK, 0, ExitReason::BusLock),
            (VMEXIT_DR0_READ + 7, 0, ExitReason::DebugRegister),
            (VMEXIT_DR15_WRITE - 8, 0, ExitReason::DebugRegister),
            (0x87, 0, ExitReason::Unexpected { code: 0x87, qualification: 0 }),
        ];
        for (code, info1, reason) in cases {
            assert_eq!(exit(code, info1, 0), reason);
        }
    }

    #[test]
    fn port_accesses_take_their_length_from_exitinfo2() {
        let access = IoAccess {
            port: 0x3fd,
            width: Width::Byte,
            input: true,
            string: false,
            repeat: false,
            instruction_length: 2,
        };
        assert_eq!(exit(VMEXIT_IOIO, 0x3fd_0211, 0x1002), ExitReason::Io(access));
        let repeated = IoAccess {
            port: 0xcfc,
            width: Width::Dword,
            input: false,
            string: true,
            repeat: true,
            instruction_length: 2,
        };
        assert_eq!(exit(VMEXIT_IOIO, 0xcfc_024c, 0x1002), ExitReason::Io(repeated));
    }

    #[test]
    fn nested_faults_say_what_was_tried() {
        let fault = |info1| nested_page_fault(&record(VMEXIT_NPF, info1, 0xfee0_0300).control);
        let read = NestedPageFault {
            gpa: Gpa::new(0xfee0_0300),
            write: false,
            fetch: false,
            table_walk: false,
        };
        assert_eq!(fault(1 << 32 | 0b101), read);
        assert_eq!(fault(1 << 32 | 0b111), NestedPageFault { write: true, ..read });
        assert_eq!(fault(1 << 32 | 0b1_0100), NestedPageFault { fetch: true, ..read });
        let walk = NestedPageFault { write: true, table_walk: true, ..read };
        assert_eq!(fault(1 << 33 | 0b111), walk);
        let reason = ExitReason::NestedPageFault(walk);
        assert_eq!(exit(VMEXIT_NPF, 1 << 33 | 0b111, 0xfee0_0300), reason);
    }

    #[test]
    fn exceptions_carry_what_belongs_to_them() {
        let reason = |vector, error_code, qualification| ExitReason::Exception {
            vector: Vector(vector),
            error_code,
            qualification,
        };
        assert_eq!(exit(0x4b, 0x3e2, 7), reason(11, Some(0x3e2), 0));
        assert_eq!(exit(0x4e, 2, 0xdead_0000), reason(14, Some(2), 0xdead_0000));
        assert_eq!(exit(0x46, 9, 9), reason(6, None, 0));
        let mut vmcb = record(0x41, 0, 0);
        vmcb.save.dr6 = 0xffff_4ff0;
        assert_eq!(decode(&vmcb, None), reason(1, None, 0xffff_4ff0));
    }

    #[test]
    fn an_external_interrupt_has_the_vector_that_the_host_took() {
        for taken in [Some(Vector(0x31)), None] {
            let reason = decode(&record(VMEXIT_INTR, 0, 0), taken);
            assert_eq!(reason, ExitReason::ExternalInterrupt(taken));
        }
    }

    #[test]
    fn a_closed_gate_is_told_apart_by_whose_interrupt_it_was() {
        let kind = |info| vectoring(info).map(|v| (v.vector.0, v.kind));
        let external = Some((0x41, EventKind::ExternalInterrupt));
        assert_eq!(kind(0x8000_0041), external, "as the manual says");
        assert_eq!(kind(0x8000_0341), external, "as QEMU says");
        assert_eq!(kind(0x8000_0480), Some((0x80, EventKind::SoftwareInterrupt)));
        assert_eq!(kind(0x0000_0341), None, "QEMU's leftover");
    }

    #[test]
    fn other_events_under_delivery_keep_their_kind_and_error_code() {
        let event =
            |vector, kind, error_code| Some(Vectoring { vector: Vector(vector), kind, error_code });
        let page_fault = event(14, EventKind::HardwareException, Some(6));
        assert_eq!(vectoring(0x6_8000_0b0e), page_fault);
        assert_eq!(vectoring(0x8000_0202), event(2, EventKind::Nmi, None));
        assert_eq!(vectoring(0x8000_0303), event(3, EventKind::SoftwareException, None));
    }

    #[test]
    fn a_refused_entry_is_told_apart_in_either_width() {
        for code in [u64::MAX, 0xffff_ffff] {
            let meaning = "VMEXIT_INVALID";
            let failure = EntryFailure { code, qualification: 0, meaning };
            assert_eq!(exit(code, 0, 0), ExitReason::EntryFailure(failure));
        }
    }

    proptest! {
        #[test]
        fn every_record_decodes(
            code in prop_oneof![0u64..0x90, 0x400u64..0x404, any::<u64>()],
            info1: u64, info2: u64, intinfo: u64,
        ) {
            let _ = decode(&record(code, info1, info2), None);
            prop_assert_eq!(vectoring(intinfo).is_some(), intinfo & 1 << 31 != 0);
        }
    }
}
