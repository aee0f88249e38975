//! An exit out of bytes: numbers of which many mean something, and instructions that the decoder knows.

use arch::exit::{
    ControlRegisterWrite, EntryFailure, ExitReason, IoAccess, NestedPageFault, TaskSwitch,
    TaskSwitchSource, Vectoring,
};
use arch::vcpu::{EventKind, exception};
use arch::{Gpa, Vector, Width};

use super::tasks;
use super::world::{BAR, ECAM, HIGH_BAR, RAM};
use crate::input::Input;

/// What a CPU did, and the exit by which it came.
pub(super) struct Exit<'a> {
    pub(super) reason: ExitReason,
    pub(super) vectoring: Option<Vectoring>,
    /// Register numbers and values.
    pub(super) registers: Vec<(u8, u64)>,
    /// At RIP.
    pub(super) code: &'a [u8],
    /// CPL, modes and flags change by these; 0 leaves all as it is.
    pub(super) state: u8,
    pub(super) limit: u16,
    /// A write of the guest's to its own RAM.
    pub(super) store: Option<(u64, u64)>,
}

const KNOWN: [&[u8]; 32] = [
    &[0x8b, 0x03],
    &[0x89, 0x03],
    &[0x88, 0x03],
    &[0x66, 0x89, 0x03],
    &[0x48, 0x89, 0x07],
    &[0x48, 0x8b, 0x03],
    &[0xf3, 0xa4],
    &[0xf3, 0x48, 0xab],
    &[0xa5],
    &[0xf3, 0x6c],
    &[0xf3, 0x6e],
    &[0x6e],
    &[0xf0, 0x0f, 0xb1, 0x0b],
    &[0x87, 0x03],
    &[0x0f, 0xc1, 0x03],
    &[0x83, 0x0b, 0x01],
    &[0xff, 0x03],
    &[0x0f, 0xab, 0x03],
    &[0x0f, 0x01, 0x1b],
    &[0x0f, 0x01, 0x13],
    &[0x0f, 0x01, 0x0b],
    &[0x0f, 0x01, 0x03],
    &[0x0f, 0x00, 0xd8],
    &[0x0f, 0x00, 0x13],
    &[0x0f, 0x00, 0x03],
    &[0x0f, 0x11, 0x03],
    &[0x0f, 0x10, 0x03],
    &[0x0f, 0xae, 0x03],
    &[0xf4],
    &[0x0f, 0x30],
    &[0x0f, 0xb6, 0x03],
    &[0xc7, 0x03, 1, 2, 3, 4],
];

const KINDS: [EventKind; 6] = [
    EventKind::ExternalInterrupt,
    EventKind::Nmi,
    EventKind::HardwareException,
    EventKind::SoftwareInterrupt,
    EventKind::SoftwareException,
    EventKind::PrivilegedSoftwareException,
];

/// A number: of a kind that means something, or any.
fn number(input: &mut Input<'_>) -> u64 {
    let kind = input.byte();
    let low = u64::from(input.word());
    match kind % 16 {
        0 => low & 0xff,
        1 => 0x800 + (low & 0x3f),
        2 => 0xc000_0080 + (low & 0xf),
        3 => low % (2 * RAM),
        4 => 0xfec0_0000 + (low & 0x7f),
        5 => 0xfee0_0000 + (low & 0xfff),
        6 => ECAM + (low & 0xff) + ((low >> 8 & 0xff) << 12),
        7 => ECAM + (4 << 15) + (low & 0xfff),
        8 => BAR - 0x800 + (low & 0x7fff),
        9 => HIGH_BAR + (low & 0x3fff),
        10 => 0x8000_0000 | low & 0xfffc,
        11 => [0x1b, 0xda0, 0x6e0, 0x10, 0x3b, 0x277, 0x4b56_4d01, 0xc001_011f]
            [usize::from(low as u8 & 7)],
        12 => 0xf000_0000 + (low << 12),
        13 => (low << 48) | u64::from(input.dword()) << 16,
        _ => input.qword(),
    }
}

/// An access that the nested table stopped.
pub(super) fn fault(input: &mut Input<'_>) -> ExitReason {
    let flags = input.byte();
    ExitReason::NestedPageFault(NestedPageFault {
        gpa: Gpa::new(number(input)),
        write: flags & 1 != 0,
        fetch: flags % 32 == 6,
        table_walk: flags % 32 == 9,
    })
}

fn reason(input: &mut Input<'_>) -> ExitReason {
    let (kind, flags) = (input.byte(), input.byte());
    let vector = Vector(input.byte());
    if let Some(rare) = rare(kind, flags, vector) {
        return rare;
    }
    match kind % 24 {
        0 => ExitReason::Cpuid,
        1..=3 => ExitReason::Io(IoAccess {
            port: if flags & 0x80 == 0 {
                number(input) as u16
            } else {
                0xcf8 + u16::from(vector.0 & 7)
            },
            width: [Width::Byte, Width::Word, Width::Dword][usize::from(flags & 3) % 3],
            input: flags & 4 != 0,
            string: flags & 8 != 0,
            repeat: flags & 16 != 0,
            instruction_length: 1 + (flags >> 6),
        }),
        4 => ExitReason::ReadMsr,
        5..=7 => ExitReason::WriteMsr,
        8 => ExitReason::DescriptorTable,
        9 => ExitReason::LocalDescriptorTable,
        10..=13 => fault(input),
        14 => ExitReason::Exception {
            vector: Vector([11, 13, 8, 14, 1, 17][usize::from(flags) % 6]),
            error_code: (flags & 16 != 0).then_some(u32::from(vector.0) << 3 | 2),
            qualification: 0,
        },
        15 => ExitReason::ExternalInterrupt((flags & 1 == 0).then_some(vector)),
        16 => [ExitReason::Nmi, ExitReason::HostTimer, ExitReason::InterruptWindow]
            [usize::from(flags) % 3],
        17 => ExitReason::Halt,
        18 => ExitReason::Xsetbv,
        19 => ExitReason::CacheInvalidate,
        20 => ExitReason::LevelInterruptEnded(vector),
        21 => {
            let value = u64::from(input.dword()) << 32 | u64::from(input.dword());
            ExitReason::ApicWritten { msr: 0x800 + u32::from(vector.0), value }
        }
        22 => ExitReason::VirtualizationInstruction,
        _ => [
            ExitReason::ControlRegister(ControlRegisterWrite {
                register: flags & 4,
                qualification: 0,
            }),
            ExitReason::Init,
            ExitReason::Unexpected { code: 99, qualification: 0 },
            ExitReason::TripleFault,
        ][usize::from(flags) % 4],
    }
}

/// What the lower numbers have no place for.
fn rare(kind: u8, flags: u8, vector: Vector) -> Option<ExitReason> {
    const SOURCES: [TaskSwitchSource; 4] = [
        TaskSwitchSource::Call,
        TaskSwitchSource::Iret,
        TaskSwitchSource::Jump,
        TaskSwitchSource::IdtGate,
    ];
    Some(match kind {
        240..=248 => ExitReason::TaskSwitch(TaskSwitch {
            selector: match flags >> 2 & 3 {
                0 | 1 => Some(tasks::NEW),
                2 => Some(u16::from(vector.0)),
                _ => None,
            },
            source: SOURCES[usize::from(flags & 3)],
        }),
        249 | 250 => ExitReason::BusLock,
        251 => ExitReason::DebugRegister,
        252 => ExitReason::EntryFailure(EntryFailure {
            code: flags.into(),
            qualification: vector.0.into(),
            meaning: "any",
        }),
        253.. => ExitReason::Exception {
            vector: Vector(exception::MC),
            error_code: None,
            qualification: 0,
        },
        _ => return None,
    })
}

/// The error code that an exception of the CPU has.
fn error_code(vector: u8, kind: EventKind) -> Option<u32> {
    let has = kind == EventKind::HardwareException && matches!(vector, 8 | 10..=14 | 17 | 21);
    has.then_some(u32::from(vector) << 3)
}

impl<'a> Exit<'a> {
    pub(super) const fn switches(&self) -> bool {
        matches!(self.reason, ExitReason::TaskSwitch(_))
    }

    pub(super) fn read(input: &mut Input<'a>) -> Self {
        let head = input.byte();
        let registers = (0..head & 7).map(|_| (input.byte() & 15, number(input))).collect();
        let code =
            if head & 8 == 0 { input.one_of(&KNOWN) } else { input.bytes(usize::from(head >> 4)) };
        let store = (head & 0xc0 == 0x40).then(|| (number(input) % RAM, input.qword()));
        let (state, limit) = (input.byte(), input.word());
        let vectoring = (head & 0xe0 == 0xc0).then(|| {
            let (vector, kind) = (input.byte(), input.one_of(&KINDS));
            Vectoring { vector: Vector(vector), kind, error_code: error_code(vector, kind) }
        });
        Self { reason: reason(input), vectoring, registers, code, state, limit, store }
    }
}
