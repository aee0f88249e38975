//! Interrupts that need the hypervisor: first arrivals at the shadow IDT, the classic mode's
//! injection, virtual interrupts, and interprocessor interrupts.
//!
//! In the exitless mode a granted vector never comes here.

use core::sync::atomic::Ordering;

use arch::Vector;
use arch::interrupt::TriggerMode;
use arch::machine::{CpuRequest, Machine};
use arch::msr::{IA32_X2APIC_ISR0, IA32_X2APIC_TMR0};
use arch::register::{Cr0, Gpr, Rflags};
use arch::segment::DescriptorTableRegister;
use arch::vcpu::{Event, InterruptMode, StartState, Vcpu, exception};
use eli::icr::{IcrRequest, IpiKind};
use eli::{Destination, FaultAction, Reason, ShadowIdt};

use crate::devices::ioapic::RedirectionEntry;
use crate::vm::{Context, Guest, Next, Platform};

impl<P: Platform> Context<'_, P> {
    /// An intercepted exception: the guest's own, or an interrupt that met a gate of the shadow IDT.
    pub(super) fn exception(&mut self, event: Event) -> Next {
        if self.first_interrupt(event) {
            return Next::Resume;
        }
        let (shadow, memory, grants) = (self.shadow(), &*self.memory, &self.guest.grants);
        let read = self.shadow_of(self.guest_table(DescriptorTableRegister::Idtr));
        let present = |vector| {
            let own = shadow.is_some_and(|idt| idt.real_gate_present(vector, memory));
            own && (!grants.allows(vector) || read == shadow)
        };
        match eli::classify(event, self.vcpu.vectoring(), grants, present) {
            FaultAction::GrantAndRedeliver(vector) => {
                self.forget_the_fault();
                self.grant(vector, Reason::SelfArrival);
                // It is in service already: injected, it ends with the guest's own EOI.
                self.vcpu.inject(Event::interrupt(vector));
            }
            FaultAction::SoftwareInterrupt(vector) => {
                self.forget_the_fault();
                self.grant(vector, Reason::Software);
            }
            FaultAction::DropSpurious(vector) => {
                self.forget_the_fault();
                self.machine.eoi();
                self.log_limited(format_args!("dropped a stray interrupt {vector}"));
            }
            FaultAction::Reflect(event) => self.raise(self.as_of_the_real_gate(event)),
            FaultAction::TripleFault => return self.triple_fault(),
        }
        Next::Resume
    }

    /// The exit of a fault that the guest never sees has saved RFLAGS as that fault would have pushed it, with RF = 1 (SDM "Saving
    /// RIP, RSP, RFLAGS, and SSP"). The interrupt that is delivered now pushes what it finds, and the
    /// instruction meets its breakpoint.
    pub(super) fn forget_the_fault(&mut self) {
        self.vcpu.set_rflags(self.vcpu.rflags() & !Rflags::RF.bits());
    }

    /// A #NP of a closed gate is #GP where the guest's own entry is no gate at all: the CPU looks at
    /// the type first.
    fn as_of_the_real_gate(&self, event: Event) -> Event {
        const IDT: u32 = 1 << 1;
        const KIND: u8 = 0x1f;
        let code =
            event.error_code.filter(|code| event.vector.0 == exception::NP && code & IDT != 0);
        let gate = code.map(|code| Vector((code >> 3) as u8));
        let closed = gate.filter(|gate| gate.is_external() && !self.guest.grants.allows(*gate));
        let flags =
            closed.zip(self.shadow()).and_then(|(gate, idt)| idt.real_flags(gate, self.memory));
        match flags.map(|flags| flags & KIND) {
            None | Some(5..=7 | 0xe | 0xf) => event,
            Some(_) => Event::exception(exception::GP, code),
        }
    }

    /// Makes a vector the guest's: from now on it arrives with no exit.
    pub(super) fn grant(&mut self, vector: Vector, why: Reason) {
        if self.guest.mode.is_exitless() && self.guest.grants.grant(vector, why) {
            self.derive_gate(vector);
        }
    }

    /// Derives the byte of a vector's shadow gate that holds the present bit, in every table.
    fn derive_gate(&mut self, vector: Vector) {
        for (place, idt) in self.vm.shadows.tables() {
            let flags = idt.real_flags(vector, self.memory);
            if let (Some(at), Some(flags)) = (idt.flags_position(vector), flags) {
                let grants = &self.guest.grants;
                self.machine.with_shadow_page(2 * place + at.page, |shadow| {
                    idt.derive(at.page, at.offset, &[flags], grants, shadow);
                });
            }
        }
    }

    /// The shadowed table of this CPU.
    pub(super) fn shadow(&self) -> Option<ShadowIdt> {
        self.vm.shadows.of_cpu(self.cpu.index)
    }

    /// INIT reaches this CPU: its local APIC is reset, and it has no IDT any more.
    pub fn init(&mut self) {
        self.cpu.apic.init();
        self.publish_addressing();
        self.serve_8259s();
        self.cpu.idt_limit = None;
        self.place_shadow(None);
    }

    /// A start-up IPI reaches this CPU, which INIT has stopped or which has not run yet: EDX has the CPU's signature, CR0.CD
    /// and CR0.NW are as they were (SDM "IA-32 and Intel 64 Processor States Following Power-up, Reset, or INIT").
    #[cold]
    #[inline(never)]
    pub fn start(&mut self, vector: u8) {
        const CACHING: u64 = Cr0::CD.union(Cr0::NW).bits();
        let mut state = StartState::after_sipi(vector);
        let signature = self.guest.cpuid.answer(1, 0, self.cpu.index, self.machine).eax;
        state.gpr[Gpr::Rdx as usize] = signature.into();
        state.cr0 |= self.vcpu.cr0() & CACHING;
        self.vcpu.start_again(&state);
    }

    /// Which exceptions exit: #NP for the shadow's gates, and #GP while the shadowed table is too
    /// short to hold them, or the IDTR is shortened.
    pub(super) fn exception_intercepts(&mut self) {
        if !self.guest.mode.is_exitless() {
            return;
        }
        let covered = self.shadow().is_none_or(|idt| idt.covers(Vector(255)));
        let short = if covered && self.cpu.idt_limit.is_none() { 0 } else { 1 << exception::GP };
        self.vcpu.set_exception_intercepts(1 << exception::NP | short);
    }
}

impl<P: Platform, V> Context<'_, P, V> {
    /// A physical interrupt where they exit; it is in service in the physical local APIC.
    pub(super) fn external_interrupt(&mut self, vector: Option<Vector>) {
        let Some(vector) = vector else { return };
        let level = self.physical_bit(IA32_X2APIC_TMR0, vector);
        let trigger = if level { TriggerMode::Level } else { TriggerMode::Edge };
        let accepted = self.cpu.apic.accept(vector, trigger);
        // A level-triggered line keeps its interrupt in service until the guest ends it.
        if !(accepted && level) {
            self.machine.eoi();
        }
    }

    /// A vector's bit in one of the physical local APIC's 256-bit registers.
    fn physical_bit(&mut self, register: u32, vector: Vector) -> bool {
        let word = self.machine.read_msr(register + u32::from(vector.0 / 32)).unwrap_or(0);
        word >> (vector.0 % 32) & 1 != 0
    }

    /// The guest ended an interrupt, in the exiting mode. One of higher priority that still waits
    /// for its injection may be in service above it: it is ended with it, and its line, which is
    /// still up, raises it again.
    pub(super) fn ended(&mut self, vector: Vector, trigger: TriggerMode) {
        for _ in 0..=u8::MAX {
            if trigger == TriggerMode::Edge || !self.physical_bit(IA32_X2APIC_ISR0, vector) {
                break;
            }
            self.machine.eoi();
        }
    }

    /// Ends what is in service in the physical local APIC.
    pub(super) fn end_all_in_service(&mut self) {
        for _ in 0..=u8::MAX {
            let word = |word| self.machine.read_msr(IA32_X2APIC_ISR0 + word).unwrap_or(0);
            if (0..8).map(word).all(|bits| bits == 0) {
                break;
            }
            self.machine.eoi();
        }
    }

    /// Raises a virtual interrupt on this CPU.
    #[inline(always)]
    pub(super) fn deliver(&mut self, vector: Vector) {
        match self.guest.mode {
            // A physical self-IPI: the guest takes it as it takes any other, and ends it itself.
            InterruptMode::Exitless => self.machine.self_ipi(vector),
            InterruptMode::Exiting | InterruptMode::Posted => {
                self.cpu.apic.accept(vector, TriggerMode::Edge);
            }
        }
    }

    /// Raises an interrupt on virtual CPU `cpu`. It is lost where the guest has switched that one's
    /// local APIC off, as on hardware.
    #[inline(always)]
    pub(super) fn deliver_to(&mut self, cpu: usize, vector: Vector) {
        match self.guest.addressing(cpu) {
            Some(apic) if !apic.enabled() => {}
            _ if cpu == self.cpu.index => self.deliver(vector),
            _ => self.machine.send_ipi(cpu, vector),
        }
    }

    /// Sends an interprocessor interrupt to those of the guest's own CPUs that it is for. Its vector
    /// is granted.
    #[inline(always)]
    pub(super) fn send_ipi(&mut self, request: IcrRequest) {
        let mut cpus = self.guest.named(request.destination, self.cpu.index);
        match request.kind {
            IpiKind::Fixed => {
                while cpus != 0 {
                    self.deliver_to(cpus.trailing_zeros() as usize, request.vector);
                    cpus &= cpus - 1;
                }
            }
            IpiKind::LowestPriority if cpus != 0 => {
                self.deliver_to(cpus.trailing_zeros() as usize, request.vector);
            }
            IpiKind::LowestPriority => {}
            IpiKind::Nmi | IpiKind::Init | IpiKind::Startup => {
                signal(self.guest, self.cpu.index, self.vcpu, self.machine, request, cpus);
            }
        }
    }

    /// The virtual CPU that an input of the I/O APIC interrupts, if it interrupts any.
    pub(super) fn receiver(&self, entry: RedirectionEntry) -> Option<usize> {
        let live = !entry.masked() && entry.delivers_vector();
        let cpu = addressee(self.guest, entry.destination(), entry.logical());
        cpu.filter(|_| live)
    }

    /// After each exit but in the exitless mode: what the CPU has delivered meanwhile and the guest has ended, and the
    /// priority that it has set by CR8.
    pub fn take_interrupts(&mut self) {
        self.vcpu.take_interrupts(&mut self.cpu.apic.pending.registers);
    }

    /// Before each entry but in the exitless mode: shows the CPU what is due. In the exiting mode injects it, or asks
    /// for the moment to.
    #[inline(always)]
    pub fn prepare_entry(&mut self) {
        let pending = &self.cpu.apic.pending;
        self.vcpu.show_interrupts(&pending.registers, pending.held_back_by_tpr());
        if self.guest.mode == InterruptMode::Posted {
            // An entry into a halt looks for requests, and one that can be delivered ends it (SDM "Evaluation of Pending
            // Virtual Interrupts"). Bochs (2.7 and 3.0) does not look there, and the guest would sleep over it.
            if pending.next().is_some()
                && self.vcpu.interruptible()
                && self.vcpu.halted() == Some(true)
            {
                self.vcpu.wake();
            }
            return;
        }
        let halting = core::mem::take(&mut self.cpu.halting);
        let Some(vector) = self.cpu.apic.pending.next() else {
            self.vcpu.set_interrupt_window(self.cpu.legacy_waits);
            if halting {
                self.vcpu.let_halt();
            }
            return;
        };
        if self.vcpu.injecting() || !self.vcpu.interruptible() {
            self.vcpu.set_interrupt_window(true);
            if halting {
                self.vcpu.let_halt();
            }
            return;
        }
        self.vcpu.inject(Event::interrupt(vector));
        self.cpu.apic.pending.injected(vector);
        let more = self.cpu.legacy_waits || self.cpu.apic.pending.next().is_some();
        self.vcpu.set_interrupt_window(more);
    }
}

/// Sends what has no vector to `cpus`; `own` sends.
#[inline(never)]
fn signal(
    guest: &Guest,
    own: usize,
    vcpu: &mut impl Vcpu,
    machine: &mut impl Machine,
    request: IcrRequest,
    cpus: u64,
) {
    for cpu in (0..64).filter(|cpu| cpus >> cpu & 1 != 0) {
        let ask = match request.kind {
            IpiKind::Nmi if cpu == own => {
                vcpu.inject(Event::nmi());
                continue;
            }
            // To the CPU that sends them they mean nothing.
            IpiKind::Init | IpiKind::Startup if cpu == own => continue,
            IpiKind::Nmi => CpuRequest::Nmi,
            IpiKind::Init => {
                guest.started.fetch_and(!(1 << cpu), Ordering::AcqRel);
                CpuRequest::Init
            }
            IpiKind::Startup => {
                guest.started.fetch_or(1 << cpu, Ordering::AcqRel);
                CpuRequest::Start(request.vector.0)
            }
            IpiKind::Fixed | IpiKind::LowestPriority => return,
        };
        machine.request(cpu, ask);
    }
}

/// The first of a guest's CPUs that a message's destination field names.
pub(super) fn addressee(guest: &Guest, destination: u8, logical: bool) -> Option<usize> {
    let set = Destination::of_byte(destination, logical);
    (0..guest.cpus.len())
        .find(|cpu| guest.addressing(*cpu).is_some_and(|apic| apic.accepts(set, false)))
}
