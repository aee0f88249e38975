//! Exit reasons, common to VT-x and AMD-V.
//!
//! `vmx` and `svm` decode the reason once, as [`crate::vcpu::Vcpu::run`] returns; `guest` decides what to do. What else
//! the CPU has recorded of an exit is read when it is asked for ([`crate::vcpu::Vcpu::vectoring`],
//! [`crate::vcpu::Vcpu::instruction_length`]): the most frequent exits ask for little of it.

use crate::address::Gpa;
use crate::interrupt::Vector;
use crate::machine::Width;
use crate::vcpu::EventKind;

/// An event whose delivery was cut short by an exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vectoring {
    /// Its vector.
    pub vector: Vector,
    /// What it is.
    pub kind: EventKind,
    /// Its error code, where it has one.
    pub error_code: Option<u32>,
}

/// Why the guest stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExitReason {
    /// CPUID; leaf in EAX, subleaf in ECX.
    Cpuid,
    /// IN, OUT, INS or OUTS.
    Io(IoAccess),
    /// RDMSR; the index is in ECX.
    ReadMsr,
    /// WRMSR; the index is in ECX, the value in EDX:EAX.
    WriteMsr,
    /// LGDT, LIDT, SGDT or SIDT; decode the instruction at RIP to learn which.
    DescriptorTable,
    /// LLDT, LTR, SLDT or STR.
    LocalDescriptorTable,
    /// An access that the nested page table does not allow.
    NestedPageFault(NestedPageFault),
    /// An intercepted exception.
    Exception {
        /// Its vector (below 32).
        vector: Vector,
        /// Its error code, for the vectors that have one.
        error_code: Option<u32>,
        /// For #DB the debug conditions, of which bits 0 to 3 are as in DR6; for #PF the faulting address; else 0.
        qualification: u64,
    },
    /// A non-maskable interrupt arrived; the back end has already taken it in the host.
    Nmi,
    /// An external interrupt arrived (only in the modes that intercept it). The back end has acknowledged it: its
    /// vector is in service in the physical local APIC. `None`: it was gone by then, or the back end has seen to it.
    ExternalInterrupt(Option<Vector>),
    /// The guest has ended a level-triggered interrupt, which the CPU has taken out of service
    /// ([`crate::vcpu::InterruptMode::Posted`]).
    LevelInterruptEnded(Vector),
    /// The guest has written a register of its local APIC (RIP is behind the write), and what the write asks for is left
    /// to the hypervisor ([`crate::vcpu::InterruptMode::Posted`]).
    ApicWritten {
        /// The register, by its MSR in x2APIC mode.
        msr: u32,
        /// What was written.
        value: u64,
    },
    /// The guest can take an interrupt now (asked for by `set_interrupt_window`), or an NMI, which the back end had
    /// kept for it and delivers.
    InterruptWindow,
    /// The timer of [`crate::vcpu::Vcpu::set_host_timer`] has run out. Nothing has happened to the guest.
    HostTimer,
    /// HLT (only where it is intercepted).
    Halt,
    /// The guest shut its CPU down by a triple fault.
    TripleFault,
    /// XSETBV; index in ECX, value in EDX:EAX.
    Xsetbv,
    /// INVD, WBINVD or WBNOINVD.
    CacheInvalidate,
    /// A bus lock. VT-x: it has been made. AMD-V: it will be at the next entry.
    BusLock,
    /// An instruction of the virtualization extensions themselves (VMXON, VMRUN, VMCALL, SKINIT …).
    VirtualizationInstruction,
    /// A move to a control register that the CPU does not carry out: [`crate::vcpu::Vcpu::move_to_control_register`]
    /// may.
    ControlRegister(ControlRegisterWrite),
    /// An access of a debug register, where [`crate::vcpu::Vcpu::watch_debug_registers`] has them exit. It is still to be
    /// done, and nothing of it has been checked.
    DebugRegister,
    /// A task switch. VMX: none of them the CPU makes in a guest. SVM: one by an IRET that has exited for other reasons. What was being delivered where the task gate is
    /// one of the IDT, [`crate::vcpu::Vcpu::vectoring`] tells.
    TaskSwitch(TaskSwitch),
    /// What [`crate::vcpu::Vcpu::step`] was for is over: the instruction is done, or an event came before it, which
    /// the back end has delivered or left pending. It has cut nothing short. A back end also tells it where it has done
    /// by itself all that an exit was for (SVM: IRET, a write of CR8).
    Step,
    /// INIT arrived at a CPU that runs a guest.
    Init,
    /// The CPU refused to enter the guest: the state that was loaded is not allowed.
    EntryFailure(EntryFailure),
    /// A reason that this hypervisor never asks for.
    Unexpected {
        /// VMX: basic exit reason. SVM: EXITCODE.
        code: u64,
        /// VMX: exit qualification. SVM: EXITINFO1.
        qualification: u64,
    },
}

impl ExitReason {
    /// Whether the exit may have cut short the delivery of an event that is still to be delivered. An exit by one of the
    /// frequent instructions has not; an exception and a task switch decide themselves what becomes of the event; and there
    /// is none after a triple fault, a step or an entry that failed.
    #[inline(always)]
    #[must_use]
    pub const fn cuts_short(&self) -> bool {
        !matches!(
            self,
            Self::Cpuid
                | Self::ReadMsr
                | Self::WriteMsr
                | Self::DebugRegister
                | Self::Exception { .. }
                | Self::TaskSwitch(_)
                | Self::TripleFault
                | Self::Step
                | Self::EntryFailure(_)
        )
    }
}

/// A port access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IoAccess {
    /// First port.
    pub port: u16,
    /// Byte, word or doubleword.
    pub width: Width,
    /// IN or INS.
    pub input: bool,
    /// INS or OUTS: the data is in memory, the instruction must be decoded.
    pub string: bool,
    /// With a REP prefix.
    pub repeat: bool,
    /// Length of the instruction in bytes.
    pub instruction_length: u8,
}

/// An access to guest-physical memory that the nested table does not allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NestedPageFault {
    /// The address.
    pub gpa: Gpa,
    /// What was tried.
    pub write: bool,
    /// An instruction fetch.
    pub fetch: bool,
    /// The access was the CPU's own walk of the guest's page tables, not the instruction's.
    pub table_walk: bool,
}

/// Which task comes next, and why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TaskSwitch {
    /// The selector of its TSS. `None`: the link in the current TSS names it.
    pub selector: Option<u16>,
    /// What asked for it.
    pub source: TaskSwitchSource,
}

/// What a task switch comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TaskSwitchSource {
    /// A far CALL to a TSS or a task gate.
    Call,
    /// IRET with RFLAGS.NT.
    Iret,
    /// A far JMP to a TSS or a task gate.
    Jump,
    /// An exception or interrupt whose gate in the IDT is a task gate.
    IdtGate,
}

/// A write to CR0 or CR4 that the CPU leaves to the hypervisor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ControlRegisterWrite {
    /// 0 or 4.
    pub register: u8,
    /// What the exit tells of it. SVM: EXITINFO1.
    pub qualification: u64,
}

/// Why the CPU would not enter the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryFailure {
    /// VMX: VM-instruction error, or basic exit reason 33/34/41 with bit 31 set. SVM: EXITCODE.
    pub code: u64,
    /// VMX: exit qualification.
    pub qualification: u64,
    /// What it was that failed. Which rule was broken, `nexit explain` says.
    pub meaning: &'static str,
}
