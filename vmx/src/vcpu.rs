//! A virtual CPU: its VMCS and general registers, and the loop that enters it.
//!
//! Invariant: the VMCS is current on the CPU that holds the [`VmxVcpu`], and whatever is written to
//! it keeps the SDM's checks on guest state.

use arch::address::PAGE_SIZE;
use arch::exit::{EntryFailure, ExitReason};
use arch::register::{Cr0, Efer, Rflags};
use arch::segment::SegmentRegister;
use arch::vcpu::{Event, EventKind, StartState, Vcpu, exception};
use arch::{VcpuSetup, Vector};
use cpu::instructions::vmwrite_checked;

use crate::capability::{Features, ept_pointer};
use crate::control_register::{OwnedBits, efer_with_lma, mov_to};
use crate::controls::{EntryControls, Primary, SWITCHED};
use crate::decode::{Snapshot, decode, reason};
use crate::enable::VmxOn;
use crate::event::{InterruptionInformation, injection, interruptibility, is_fault, nmi_waits};
use crate::field::{self, Readable};
use crate::msr_lists::{self, MsrLists};
use crate::posted::Posting;
use crate::step::Step;
use crate::virtual_apic::VirtualApic;
use crate::vmcs::Vmcs;
use crate::{VmxError, error, run, setup, vmcs};

/// Interruptibility state: blocking by STI and by MOV SS (SDM "Format of Interruptibility State").
pub(crate) const BLOCKING_BY_STI_OR_MOV_SS: u32 = 3;
/// Interruptibility state: blocking by NMI; with virtual NMIs, the guest's own.
pub(crate) const BLOCKING_BY_NMI: u32 = 1 << 3;
/// The tag of the guest's translations: one guest to a processor, and 0 is the host's.
pub(crate) const VPID: u16 = 1;
/// Activity state: HLT.
pub(crate) const ACTIVITY_HLT: u32 = 1;

/// Bytes of [`VcpuSetup::memory`]: the VMXON region, for [`crate::enable()`], the VMCS, the virtual-APIC page and the lists of
/// MSRs.
pub const CPU_BYTES: u64 = 4 * PAGE_SIZE;

/// A virtual CPU on VT-x.
pub struct VmxVcpu {
    pub(crate) vmcs: Vmcs,
    pub(crate) features: Features,
    pub(crate) registers: run::Registers,
    pub(crate) cr0: OwnedBits,
    pub(crate) cr4: OwnedBits,
    pub(crate) ept_pointer: u64,
    /// An NMI waits until the guest's own blocking by NMI ends.
    pending_nmi: bool,
    /// Since the last exit a debug exception was made pending, or an NMI that no NMI blocks: it comes before an interrupt.
    pub(crate) others_first: bool,
    /// What the preemption timer counts down from.
    pub(crate) timer_count: u32,
    pub(crate) virtual_apic: Option<VirtualApic>,
    /// As the VMCS has it.
    pub(crate) tpr_threshold: u8,
}

impl VmxVcpu {
    /// Makes the virtual CPU of this physical CPU and resets it to [`StartState::after_sipi`] 0.
    ///
    /// # Errors
    /// When the CPU refuses the VMCS.
    ///
    /// # Safety
    /// * `on` is this CPU's and outlives this, and no other [`VmxVcpu`] lives on it.
    /// * Every page in `setup` is what its field says, identity-mapped, and lives as long as this; so does what
    ///   `posting` names. The bitmaps are [`crate::Bitmaps`]; the memory has [`CPU_BYTES`] bytes, all zero but the
    ///   first page, which `on` has.
    /// * The nested table and the bitmaps give the guest nothing that is not its own.
    /// * The TSS is the caller's. CR3 and the descriptor tables that this CPU has now stay, and gate 2 of the IDT
    ///   handles NMIs.
    pub unsafe fn new(
        on: &VmxOn,
        setup: &VcpuSetup,
        posting: Option<Posting>,
    ) -> Result<Self, VmxError> {
        let features = on.features;
        let virtual_apic = VirtualApic::of(setup, posting);
        let page = setup.memory.wrapping_add(PAGE_SIZE);
        // SAFETY: `on` proves root operation; the frame is free, says the caller.
        let mut vmcs = unsafe { Vmcs::make_current(page, features.capabilities.revision()) }?;
        setup::write_controls(&mut vmcs, &features, setup, virtual_apic)?;
        // SAFETY: ring 0 follows from `on`.
        if let Some(control) = unsafe { cpu::speculation::mitigations() }.host_control {
            let place = setup.memory.wrapping_add(3 * PAGE_SIZE);
            // SAFETY: an identity-mapped frame that the caller gives away; the CPU uses it at entries and exits only.
            unsafe { cpu::physical::pointer::<MsrLists>(place).write(MsrLists::new(control)) };
            msr_lists::write(&mut vmcs, place);
        }
        // SAFETY: ring 0 follows from `on`; the caller vouches for the TSS.
        unsafe { setup::write_host_state(&mut vmcs, setup.host_tss_base) };
        let mut vcpu = Self {
            vmcs,
            features,
            registers: run::Registers::default(),
            cr0: OwnedBits::cr0(&features.capabilities),
            cr4: OwnedBits::cr4(&features.capabilities, setup.cr4),
            ept_pointer: ept_pointer(setup.nested_root),
            pending_nmi: false,
            others_first: false,
            timer_count: 0,
            virtual_apic,
            tpr_threshold: 0,
        };
        vcpu.flush_nested();
        vcpu.load(&StartState::after_sipi(0));
        Ok(vcpu)
    }

    /// Into the guest and back; the exit reason.
    #[inline(always)]
    pub(crate) fn enter(&mut self) -> u32 {
        // SAFETY: `self.vmcs` is current, `write_host_state` made its host state, and the
        // registers are ours; the host runs with interrupts off.
        unsafe { run::enter(&raw mut self.registers) }
    }

    /// What [`Self::enter`] has come back with.
    #[inline(never)]
    #[expect(clippy::wildcard_enum_match_arm, reason = "most exits ask the back end for no more")]
    pub(crate) fn last_exit(&mut self, step: Option<Step>) -> ExitReason {
        let status = core::mem::replace(&mut self.registers.status, run::status::EXITED);
        let snapshot = self.snapshot();
        let entered = status == run::status::EXITED && !snapshot.entry_failed();
        if entered {
            self.others_first = false;
            self.restore_nmi_blocking(&snapshot);
        }
        if let Some(step) = step
            && let Some(reason) = self.end_step(step, entered.then_some(&snapshot))
            && entered
        {
            return reason;
        }
        if status != run::status::EXITED {
            return self.instruction_failure(status);
        }
        if snapshot.entry_failed() {
            return ExitReason::EntryFailure(EntryFailure {
                code: u64::from(snapshot.exit_reason),
                qualification: snapshot.qualification,
                meaning: "VM-entry failure",
            });
        }
        let mut reason = decode(&snapshot);
        // What else the back end has to do, for those exits only that ask for it.
        match reason {
            ExitReason::InterruptWindow if snapshot.reason() == reason::NMI_WINDOW => {
                self.set_primary(Primary::NMI_WINDOW_EXITING, false);
                self.pending_nmi = false;
                self.inject_now(Event::nmi());
            }
            ExitReason::Exception { vector: Vector(exception::DB), .. } => {
                self.take_debug_exception(&snapshot);
            }
            ExitReason::ExternalInterrupt(Some(vector)) if self.take_posted(vector) => {
                reason = ExitReason::ExternalInterrupt(None);
            }
            ExitReason::Nmi => {
                // SAFETY: the caller of `new` vouched for the gate.
                unsafe { run::take_nmi() };
                // The sender of the NMI is served after this return: no need for `exit_at_once`.
                self.restart_timer();
            }
            ExitReason::HostTimer => self.restart_timer(),
            _ => {}
        }
        reason
    }

    /// Lets the preemption timer count down from the start, where it runs.
    pub(crate) fn restart_timer(&mut self) {
        if self.timer_count != 0 {
            self.vmcs.write(field::VMX_PREEMPTION_TIMER_VALUE, self.timer_count);
        }
    }

    /// Moves RIP over an instruction.
    #[inline(always)]
    pub(crate) fn pass_over(&mut self, length: u8) {
        let (rip, length) = (self.vmcs.read(field::GUEST_RIP), u64::from(length));
        let next = rip.wrapping_add(length);
        // That it may go over is the quicker question: an instruction has 15 bytes at most.
        let near = rip as u32 > u32::MAX - 15;
        let next = if near { self.within_code(next, rip) } else { next };
        self.vmcs.write(field::GUEST_RIP, next);
    }

    /// Moves RIP back to the start of an instruction of this length.
    #[cold]
    pub(crate) fn go_back(&mut self, length: u8) {
        let rip = self.vmcs.read(field::GUEST_RIP);
        let at = self.within_code(rip.wrapping_sub(length.into()), rip);
        self.vmcs.write(field::GUEST_RIP, at);
    }

    #[cold]
    #[inline(never)]
    fn within_code(&self, rip: u64, from: u64) -> u64 {
        if (rip ^ from) >> 32 == 0 { rip } else { around(rip, self.is_64_bit_code()) }
    }

    /// CS.L counts in IA-32e mode only.
    fn is_64_bit_code(&self) -> bool {
        self.segment(SegmentRegister::Cs).access.long() && self.long_mode()
    }

    /// Reads what this exit defines.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let vmcs = &self.vmcs;
        let mut snapshot = Snapshot {
            exit_reason: vmcs.read(field::EXIT_REASON),
            qualification: vmcs.read(field::EXIT_QUALIFICATION),
            interruption: InterruptionInformation(
                vmcs.read(field::VM_EXIT_INTERRUPTION_INFORMATION),
            ),
            vectoring: InterruptionInformation(vmcs.read(field::IDT_VECTORING_INFORMATION)),
            instruction_length: vmcs.read(field::VM_EXIT_INSTRUCTION_LENGTH),
            ..Snapshot::default()
        };
        match snapshot.reason() {
            reason::EXCEPTION_OR_NMI => {
                snapshot.interruption_error_code =
                    vmcs.read(field::VM_EXIT_INTERRUPTION_ERROR_CODE);
            }
            reason::EPT_VIOLATION => {
                snapshot.guest_physical_address = vmcs.read(field::GUEST_PHYSICAL_ADDRESS);
            }
            reason::APIC_WRITE => {
                snapshot.apic_write = self.written_register(snapshot.qualification as u16 & 0xfff);
            }
            _ => {}
        }
        snapshot
    }

    /// Puts the guest's blocking by NMI where it belongs when an IRET or the delivery of an NMI is
    /// to be done again.
    fn restore_nmi_blocking(&mut self, snapshot: &Snapshot) {
        let Some(blocks) = snapshot.nmi_blocking() else { return };
        let state = self.vmcs.read(field::GUEST_INTERRUPTIBILITY_STATE);
        let state = if blocks { state | BLOCKING_BY_NMI } else { state & !BLOCKING_BY_NMI };
        self.vmcs.write(field::GUEST_INTERRUPTIBILITY_STATE, state);
    }

    /// [`Vcpu::move_to_control_register`]: the guest writes a bit that the host owns.
    pub(crate) fn move_to_host_owned(&mut self) -> bool {
        let Some((register, source)) = mov_to(self.vmcs.read(field::EXIT_QUALIFICATION)) else {
            return false;
        };
        let value = self.gpr(source) & if self.is_64_bit_code() { !0 } else { 0xffff_ffff };
        let (owned, shadow) = if register == 0 {
            (self.cr0, field::CR0_READ_SHADOW)
        } else {
            (self.cr4, field::CR4_READ_SHADOW)
        };
        if owned.allows(value) {
            // And again: it no longer differs from the shadow in a host-owned bit, so the CPU itself carries it out,
            // with all of its checks, the switch of IA32_EFER.LMA and the load of the PDPTEs.
            self.vmcs.write(shadow, value);
        } else {
            self.inject_now(Event::exception(exception::GP, Some(0)));
        }
        true
    }

    fn long_mode(&self) -> bool {
        let entry = EntryControls::from_bits_retain(self.vmcs.read(field::VM_ENTRY_CONTROLS));
        entry.contains(EntryControls::IA32E_MODE_GUEST)
    }

    /// Sets CR0 and IA32_EFER (each as the guest sees it) together with the entry control that
    /// follows from them.
    pub(crate) fn set_cr0_and_efer(&mut self, cr0: u64, efer: u64) {
        self.vmcs.write(field::GUEST_CR0, self.cr0.real(cr0));
        self.vmcs.write(field::CR0_READ_SHADOW, cr0);
        let efer = efer_with_lma(efer, cr0);
        self.vmcs.write(field::GUEST_IA32_EFER, efer);
        let mut entry = EntryControls::from_bits_retain(self.vmcs.read(field::VM_ENTRY_CONTROLS));
        entry.set(EntryControls::IA32E_MODE_GUEST, efer & Efer::LMA.bits() != 0);
        self.vmcs.write(field::VM_ENTRY_CONTROLS, entry.bits());
        self.flush_linear();
    }

    /// Switches primary controls.
    pub(crate) fn set_primary(&mut self, which: Primary, wanted: bool) {
        let field = field::PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS;
        let mut primary = Primary::from_bits_retain(self.vmcs.read(field));
        primary.set(which, wanted);
        self.vmcs.write(field, primary.bits());
    }

    /// Injects at the next entry. An NMI waits for its window where the guest blocks it and where another event is to
    /// be delivered first: the window opens behind that delivery. Neither replaces the other.
    pub(crate) fn inject_or_wait(&mut self, event: Event) {
        let field = self.vmcs.read(field::VM_ENTRY_INTERRUPTION_INFORMATION);
        let before = InterruptionInformation(field);
        if event.kind == EventKind::Nmi {
            let state = self.vmcs.read(field::GUEST_INTERRUPTIBILITY_STATE);
            if let Some(first) = nmi_waits(state, before, self.others_first) {
                self.others_first |= first;
                return self.let_nmi_wait();
            }
        } else if before.is_nmi() {
            self.let_nmi_wait();
        }
        self.inject_now(event);
    }

    pub(crate) fn let_nmi_wait(&mut self) {
        self.pending_nmi = true;
        self.set_primary(Primary::NMI_WINDOW_EXITING, true);
    }

    fn inject_now(&mut self, event: Event) {
        let event = self.as_int1(event);
        let protected = self.vmcs.read(field::GUEST_CR0) & Cr0::PE.bits() != 0;
        let (information, error_code) = injection(event, protected);
        let state = self.vmcs.read(field::GUEST_INTERRUPTIBILITY_STATE);
        let with = interruptibility(event, state);
        if with != state {
            self.vmcs.write(field::GUEST_INTERRUPTIBILITY_STATE, with);
        }
        if is_fault(event) {
            self.set_rflags(self.rflags() | Rflags::RF.bits());
        }
        self.vmcs.write(field::VM_ENTRY_INTERRUPTION_INFORMATION, information.0);
        self.vmcs.write(field::VM_ENTRY_EXCEPTION_ERROR_CODE, error_code);
        self.vmcs.write(field::VM_ENTRY_INSTRUCTION_LENGTH, u32::from(event.instruction_length));
        // Delivery wakes a halted guest, but not every event may be injected into one.
        self.vmcs.write(field::GUEST_ACTIVITY_STATE, 0);
    }

    /// Forgets every event that waits for delivery, and the windows with them.
    pub(crate) fn drop_events(&mut self) {
        self.vmcs.write(field::VM_ENTRY_INTERRUPTION_INFORMATION, 0);
        self.pending_nmi = false;
        self.others_first = false;
        self.set_primary(SWITCHED, false);
    }

    /// Drops this CPU's translations that came through the nested table.
    pub(crate) fn invalidate_nested(&mut self) {
        self.invalidate(self.ept_pointer);
    }

    pub(crate) fn invalidate(&self, pointer: u64) {
        let kind = vmcs::invalidation_type(self.features.capabilities.invept_single());
        // SAFETY: `self.vmcs` proves root operation; `check` found INVEPT and one of its types.
        unsafe { vmcs::invept(kind, pointer) };
    }

    /// Drops the guest's linear translations. Without VPIDs every entry does it.
    pub(crate) fn flush_linear(&mut self) {
        if self.features.vpid {
            let kind = vmcs::invalidation_type(self.features.capabilities.invvpid_single());
            // SAFETY: as above; VPIDs are used only where INVVPID and one of its types exist.
            unsafe { vmcs::invvpid(kind, VPID.into()) };
        }
    }

    /// Whether an interrupt can be taken at the next entry. A debug exception or an NMI that waits comes first, and the one would
    /// not come at all with an interrupt that is injected (SDM "Delivery of Pending Debug Exceptions after VM Entry").
    pub(crate) fn can_take_interrupt(&self) -> bool {
        let shadow =
            self.vmcs.read(field::GUEST_INTERRUPTIBILITY_STATE) & BLOCKING_BY_STI_OR_MOV_SS;
        shadow == 0 && self.rflags() & Rflags::IF.bits() != 0 && !self.others_first
    }

    /// VMLAUNCH or VMRESUME itself failed.
    fn instruction_failure(&self, status: u64) -> ExitReason {
        let valid = status == run::status::FAIL_VALID;
        let number = if valid { self.vmcs.instruction_error() } else { 0 };
        let primary = self.vmcs.read(field::PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS);
        let tertiary = primary & Primary::ACTIVATE_TERTIARY_CONTROLS.bits() != 0;
        let meaning = error::instruction_error(number, tertiary);
        let code = u64::from(number);
        ExitReason::EntryFailure(EntryFailure { code, qualification: 0, meaning })
    }
}

/// Has the next entry on this CPU exit before the guest's first instruction: its preemption timer has
/// nothing left to count (SDM "VMX-Preemption Timer"). For the host's NMI handler: an NMI that comes
/// between the last look at what was asked and the entry would else be heard at the next exit only.
pub(crate) fn exit_at_once() {
    // SAFETY: the handlers are the host's. Only `restart_timer` writes the field, too, and it does so
    // before that look.
    unsafe { vmwrite_checked(field::VMX_PREEMPTION_TIMER_VALUE.encoding(), 0) };
}

/// RIP behind a step over 4 GiB, up or down: outside of 64-bit mode the low half goes around alone. With more, an entry fails
/// (SDM "Checks on Guest RIP, RFLAGS, and SSP").
const fn around(rip: u64, bits64: bool) -> u64 {
    if bits64 { rip } else { rip & 0xffff_ffff }
}
