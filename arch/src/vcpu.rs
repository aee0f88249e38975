//! The contract between policy and a virtual CPU: what policy asks of it, in words that are neither vendor's.
//!
//! VT-x and AMD-V each do it in their own way. What only one of them can do has a mode or an answer of its own
//! ([`InterruptMode::Posted`]; `false` of [`Vcpu::set_host_timer`]), and the method for it does nothing by default.

use core::fmt;

use crate::address::Hpa;
use crate::exit::{ExitReason, Vectoring};
use crate::interrupt::{InterruptRegisters, Vector};
use crate::register::Gpr;
use crate::segment::{
    AccessRights, DescriptorTable, DescriptorTableRegister, Segment, SegmentRegister,
};

/// What an event is (SDM "VM-Entry Controls for Event Injection"; APM "Event Injection").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventKind {
    /// External interrupt.
    ExternalInterrupt,
    /// Non-maskable interrupt.
    Nmi,
    /// Exception raised by the hardware.
    HardwareException,
    /// `INT n`.
    SoftwareInterrupt,
    /// `INT1`.
    PrivilegedSoftwareException,
    /// `INT3` or `INTO`.
    SoftwareException,
}

/// An event to deliver through the guest's IDT at the next entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// Its vector.
    pub vector: Vector,
    /// What it is.
    pub kind: EventKind,
    /// Error code that is pushed.
    pub error_code: Option<u32>,
    /// Length of the instruction, for software events.
    pub instruction_length: u8,
}

impl Event {
    /// A hardware exception.
    #[must_use]
    pub const fn exception(vector: u8, error_code: Option<u32>) -> Self {
        Self {
            vector: Vector(vector),
            kind: EventKind::HardwareException,
            error_code,
            instruction_length: 0,
        }
    }

    /// A non-maskable interrupt.
    #[must_use]
    pub const fn nmi() -> Self {
        const NMI: Vector = Vector(2);
        Self { vector: NMI, kind: EventKind::Nmi, error_code: None, instruction_length: 0 }
    }

    /// An external interrupt.
    #[must_use]
    pub const fn interrupt(vector: Vector) -> Self {
        Self { vector, kind: EventKind::ExternalInterrupt, error_code: None, instruction_length: 0 }
    }
}

/// Exception vectors that policy names (SDM "Exception and Interrupt Reference").
pub mod exception {
    /// Debug.
    pub const DB: u8 = 1;
    /// Invalid opcode.
    pub const UD: u8 = 6;
    /// Device not available.
    pub const NM: u8 = 7;
    /// Double fault.
    pub const DF: u8 = 8;
    /// Invalid TSS.
    pub const TS: u8 = 10;
    /// Segment not present: a gate that is not present raises it.
    pub const NP: u8 = 11;
    /// Stack segment.
    pub const SS: u8 = 12;
    /// General protection.
    pub const GP: u8 = 13;
    /// Page fault.
    pub const PF: u8 = 14;
    /// Floating-point error.
    pub const MF: u8 = 16;
    /// Alignment check.
    pub const AC: u8 = 17;
    /// Machine check.
    pub const MC: u8 = 18;

    /// Those that exit in every mode, bit n for vector n. A guest can have the delivery of #DB or #AC raise the same
    /// again, for ever, with nothing between that lets an interrupt, an NMI or a timer in: CVE-2015-8104 (a data
    /// breakpoint on the stack of #DB) and CVE-2015-5307 (a misaligned stack at CPL 3). As an exit each turn is one
    /// at which the host has the CPU. The decision is 0059. And machine checks, which are the host's.
    pub const ALWAYS_EXIT: u32 = 1 << DB | 1 << AC | 1 << MC;

    /// Whether an exception says that the IDT has no gate for another event, or for INT n and its kin (SDM "Error Code").
    #[must_use]
    pub const fn has_no_gate(vector: u8, error_code: Option<u32>) -> bool {
        const IDT: u32 = 1 << 1;
        vector == GP && matches!(error_code, Some(code) if code & IDT != 0)
    }
}

/// How physical interrupts meet the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InterruptMode {
    /// Straight through the guest's (shadowed) IDT, no exit.
    Exitless,
    /// Every one exits; the hypervisor injects.
    Exiting,
    /// Every physical one exits; the CPU delivers, ends and prioritizes the guest's own with no exit,
    /// those that other CPUs of the guest send among them.
    Posted,
}

impl InterruptMode {
    /// Whether a physical interrupt goes straight to the guest.
    #[must_use]
    pub const fn is_exitless(self) -> bool {
        matches!(self, Self::Exitless)
    }
}

/// Instructions that the CPU has and that raise #UD in its guests all the same: CPUID must not show them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Withheld {
    /// RDTSCP and RDPID.
    pub rdtscp: bool,
    /// INVPCID.
    pub invpcid: bool,
    /// XSAVES and XRSTORS.
    pub xsaves: bool,
}

/// The debug registers (SDM "Debug Registers"; APM "Debug Registers").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DebugRegisters {
    /// DR0 to DR3: where breakpoints are.
    pub addresses: [u64; 4],
    /// DR6: what has happened.
    pub status: u64,
    /// DR7: which of them are on, and for what.
    pub control: u64,
}

impl Default for DebugRegisters {
    /// As after a reset.
    fn default() -> Self {
        Self { addresses: [0; 4], status: 0xffff_0ff0, control: 0x400 }
    }
}

/// MSRs of system calls, which a guest reads and writes without an exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SystemCallMsrs {
    /// IA32_STAR.
    pub star: u64,
    /// IA32_LSTAR.
    pub lstar: u64,
    /// IA32_CSTAR.
    pub cstar: u64,
    /// IA32_FMASK.
    pub fmask: u64,
    /// IA32_KERNEL_GS_BASE: what SWAPGS brings.
    pub kernel_gs_base: u64,
    /// IA32_SYSENTER_CS, IA32_SYSENTER_ESP, IA32_SYSENTER_EIP.
    pub sysenter: [u64; 3],
}

/// Register state at a guest CPU's first instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StartState {
    /// General registers in encoding order.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// CR0 as the guest sees it.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4 as the guest sees it.
    pub cr4: u64,
    /// IA32_EFER as the guest sees it.
    pub efer: u64,
    /// Segment registers in the order of [`SegmentRegister::ALL`].
    pub segments: [Segment; 8],
    /// GDTR.
    pub gdtr: DescriptorTable,
    /// IDTR.
    pub idtr: DescriptorTable,
}

impl StartState {
    /// The state after RESET or INIT (SDM "IA-32 and Intel 64 Processor States Following Power-up,
    /// Reset, or INIT"), with CS:IP as a start-up IPI with `vector` sets it.
    #[must_use]
    pub const fn after_sipi(vector: u8) -> Self {
        let data = Segment { selector: 0, base: 0, limit: 0xffff, access: AccessRights::DATA16 };
        let code = Segment {
            selector: (vector as u16) << 8,
            base: (vector as u64) << 12,
            limit: 0xffff,
            access: AccessRights::CODE16,
        };
        let ldtr = Segment { selector: 0, base: 0, limit: 0xffff, access: AccessRights(0x82) };
        let tr = Segment { selector: 0, base: 0, limit: 0xffff, access: AccessRights::TSS_BUSY };
        let table = DescriptorTable { base: crate::Gva::new(0), limit: 0xffff };
        Self {
            gpr: [0; 16],
            rip: 0,
            rflags: 2,
            cr0: 0x10,
            cr3: 0,
            cr4: 0,
            efer: 0,
            segments: [data, code, data, data, data, data, ldtr, tr],
            gdtr: table,
            idtr: table,
        }
    }
}

/// A virtual CPU, current on the physical CPU that calls.
///
/// Getters speak of the guest as it sees itself: what the hypervisor must keep in a register
/// (CR4.VMXE, EFER.SVME …) is hidden from `cr0`, `cr4` and `efer` and kept by their setters.
pub trait Vcpu {
    /// Enters the guest and comes back at its next exit, with its reason. NMIs have been taken, and where external
    /// interrupts exit, the one that did has been acknowledged, when this returns.
    fn run(&mut self) -> ExitReason;
    /// [`Self::run`] with the nested page table at `root`. With `one` the exit comes behind the next instruction, as
    /// [`ExitReason::Step`], if none came before.
    fn step(&mut self, root: Hpa, one: bool) -> ExitReason;
    /// The event whose delivery through the guest's IDT was under way when the exit happened (VMX: IDT-vectoring
    /// information; SVM: EXITINTINFO). It has not been delivered. Not for [`ExitReason::Step`].
    fn vectoring(&self) -> Option<Vectoring>;
    /// Length of the instruction that caused the exit. `bare` is its length without prefixes, for a CPU that does not
    /// tell: a needless prefix would be taken for the next instruction's there. Compilers emit none.
    fn instruction_length(&self, bare: u8) -> u8;

    /// Loads every register of `state` and clears whatever was to be injected.
    fn load(&mut self, state: &StartState);
    /// [`Self::load`] of a CPU that INIT has stopped, which keeps IA32_PAT and the MSRs of system calls (SDM "IA-32 and
    /// Intel 64 Processor States Following Power-up, Reset, or INIT").
    fn start_again(&mut self, state: &StartState) {
        let (pat, calls) = (self.pat(), self.system_call_msrs());
        self.load(state);
        self.set_pat(pat);
        self.set_system_call_msrs(&calls);
    }

    /// Reads a general register.
    fn gpr(&self, register: Gpr) -> u64;
    /// Writes a general register, all 64 bits.
    fn set_gpr(&mut self, register: Gpr, value: u64);
    /// Instruction pointer.
    fn rip(&self) -> u64;
    /// Sets the instruction pointer and leaves the interrupt shadow as it is.
    fn set_rip(&mut self, rip: u64);
    /// Flags.
    fn rflags(&self) -> u64;
    /// Sets the flags.
    fn set_rflags(&mut self, rflags: u64);
    /// CR0 as the guest sees it.
    fn cr0(&self) -> u64;
    /// Sets CR0 as the guest sees it (EFER.LMA follows).
    fn set_cr0(&mut self, value: u64);
    /// CR2.
    fn cr2(&self) -> u64;
    /// Sets CR2.
    fn set_cr2(&mut self, value: u64);
    /// CR3.
    fn cr3(&self) -> u64;
    /// Sets CR3. `pointers`: what the four page-directory pointers behind it hold, where the guest's paging is PAE.
    fn set_cr3(&mut self, value: u64, pointers: Option<[u64; 4]>);
    /// CR4 as the guest sees it.
    fn cr4(&self) -> u64;
    /// CR4 as the CPU has it: quicker, and the same in the bits that the guest may change.
    fn own_cr4(&self) -> u64 {
        self.cr4()
    }
    /// Sets CR4 as the guest sees it.
    fn set_cr4(&mut self, value: u64);
    /// IA32_EFER as the guest sees it.
    fn efer(&self) -> u64;
    /// Sets IA32_EFER as the guest sees it (LMA follows CR0.PG and LME).
    fn set_efer(&mut self, value: u64);
    /// IA32_PAT.
    fn pat(&self) -> u64;
    /// Sets IA32_PAT; the caller has checked that every byte is a memory type.
    fn set_pat(&mut self, value: u64);
    /// A segment register.
    fn segment(&self, register: SegmentRegister) -> Segment;
    /// Loads a segment register with its hidden part.
    fn set_segment(&mut self, register: SegmentRegister, segment: Segment);
    /// GDTR or IDTR.
    fn descriptor_table(&self, register: DescriptorTableRegister) -> DescriptorTable;
    /// Loads GDTR or IDTR.
    fn set_descriptor_table(&mut self, register: DescriptorTableRegister, table: DescriptorTable);
    /// Current privilege level, 0 to 3.
    fn cpl(&self) -> u8;
    /// PKRU. The CPU has protection keys, as the guest has set CR4.PKE.
    fn protection_keys(&self) -> u32;

    /// Moves RIP over an instruction of `length` bytes that the hypervisor has carried out, and ends
    /// the interrupt shadow of the instruction before it. RFLAGS.RF is clear then. With RFLAGS.TF a single-step trap (#DB)
    /// comes behind it.
    fn skip_instruction(&mut self, length: u8);

    /// Delivers `event` at the next entry. One at a time: a second call replaces the first.
    fn inject(&mut self, event: Event);
    /// Whether an event is already to be delivered at the next entry.
    fn injecting(&self) -> bool;
    /// Whether the guest can take an external interrupt at the next entry: IF is set and there is
    /// no interrupt shadow.
    fn interruptible(&self) -> bool;
    /// Asks for [`crate::ExitReason::InterruptWindow`] as soon as the guest can take an interrupt, and for
    /// [`crate::ExitReason::Halt`] where it halts before. The window ends a halt by itself (SDM "Other Causes of VM
    /// Exits"; APM "Virtual Interrupts"), but KVM, where Nexit is its guest, leaves the CPU halted.
    fn set_interrupt_window(&mut self, wanted: bool);
    /// Carries out the write of a control register for which the guest has exited
    /// ([`crate::ExitReason::ControlRegister`]), or raises #GP for it; `false` where the exit does not tell what is
    /// written.
    fn move_to_control_register(&mut self) -> bool;
    /// From here to the next call of [`Self::set_interrupt_window`] HLT does not exit: the CPU halts in the guest.
    fn let_halt(&mut self);
    /// Which exceptions exit, beside [`exception::ALWAYS_EXIT`]: bit n for vector n. At the exit all registers are as
    /// the guest's handler is to find them, DR6 and DR7 too: [`Self::inject`] is all that is left to do.
    fn set_exception_intercepts(&mut self, bitmap: u32);
    /// The guest's debug registers.
    fn debug_registers(&self) -> DebugRegisters {
        DebugRegisters::default()
    }
    /// Sets them.
    fn set_debug_registers(&mut self, _: &DebugRegisters) {}
    /// The guest's breakpoints, where any is on. None while its debug registers are another's
    /// ([`Self::watch_debug_registers`]): what they hold is not for the guest.
    fn breakpoints(&self) -> Option<DebugRegisters> {
        None
    }
    /// Whether any breakpoint is on, of whomever: quicker.
    fn breakpoints_on(&self) -> bool {
        self.breakpoints().is_some()
    }
    /// What was carried out and is passed over has met these breakpoints, bit n for DRn: a trap (#DB) comes behind it, the same
    /// as that of a single step, if there is one.
    fn meet_breakpoints(&mut self, _: u8) {}
    /// Whether the guest's accesses of debug registers exit ([`crate::ExitReason::DebugRegister`]), and INT1, as the #DB that
    /// it raises. Not from the start, though a back end may have INT1 exit always.
    fn watch_debug_registers(&mut self, _: bool) {}
    /// The guest's MSRs of system calls.
    fn system_call_msrs(&self) -> SystemCallMsrs {
        SystemCallMsrs::default()
    }
    /// Sets them to what they were.
    fn set_system_call_msrs(&mut self, _: &SystemCallMsrs) {}
    /// Whether the last exit was a debug exception, a step's own too.
    fn debug_exception(&self) -> bool {
        false
    }
    /// Before an entry, but not in [`InterruptMode::Exitless`]: shows the guest's interrupts to the CPU. In
    /// [`InterruptMode::Posted`] it delivers them. In [`InterruptMode::Exiting`] it only keeps TPR, for CR8; and with
    /// `awaited`, a class above 0, an exit comes when the guest lets interrupts of that class through
    /// ([`crate::ExitReason::InterruptWindow`] or [`crate::ExitReason::Step`]).
    fn show_interrupts(&mut self, _: &InterruptRegisters, _awaited: u8) {}
    /// After an exit, in the same modes: what the CPU and the guest have made of what was shown. TMR stays as it is.
    fn take_interrupts(&mut self, _: &mut InterruptRegisters) {}
    /// Whether the guest's local APIC takes interrupts: only then may the guest's other CPUs, where they can without an
    /// exit, send it some. From the start and after [`Self::load`] it does not.
    fn accept_interrupts(&mut self, _: bool) {}
    /// Whether what passes of the MSRs of x2APIC mode does so, as it does from the start: in xAPIC mode they all are to exit.
    fn pass_x2apic(&mut self, pass: bool);

    /// The nested page table changed: drop what this CPU has cached of it before the next entry.
    fn flush_nested(&mut self);

    /// Has the guest exit by [`ExitReason::HostTimer`] about each `ticks` of the TSC, or no more. `false` where the CPU
    /// has no timer for it.
    fn set_host_timer(&mut self, ticks: Option<u64>) -> bool;
    /// Whether the CPU halts in the guest (HLT not intercepted, guest inactive); `None` where it does not tell.
    fn halted(&self) -> Option<bool>;
    /// Ends that halt: the next entry delivers an interrupt.
    fn wake(&mut self) {}

    /// Writes down what the CPU looks at before it enters, for `nexit explain`: `vmcs` or `vmcb`, then
    /// ` NUMBER=VALUE` for each field, in hexadecimal.
    ///
    /// # Errors
    /// The formatter's.
    fn write_state(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;
}
