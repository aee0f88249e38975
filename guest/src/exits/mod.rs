//! What to do on each exit.
//!
//! The way of an exit: the back end decodes its reason ([`Vcpu::run`]) → [`Context::handle`] counts it, delivers again
//! what it cut short, and calls its handler, with the guest's lock held where it concerns more than the CPU that exited
//! → [`Context::prepare_entry`] → the guest goes on. But in the exitless mode [`Context::take_interrupts`] comes first
//! of all. The same policy serves both vendors and the host tests' scripted CPU.

pub(crate) mod access;
mod breakpoint;
mod cache;
mod descriptor;
mod interrupt;
pub(crate) mod legacy;
mod machine_check;
mod memory;
mod port;
mod register;
mod segment_descriptor;
pub(crate) mod step;
mod system_segment;
mod task;
pub(crate) mod tick;
pub(crate) mod waits;

use arch::exit::{ControlRegisterWrite, EntryFailure, Vectoring};
use arch::interrupt::TriggerMode;
use arch::machine::Machine;
use arch::msr::IA32_X2APIC_EOI;
use arch::register::{Cr0, Gpr};
use arch::vcpu::{Event, EventKind, Vcpu, exception};
use arch::{ExitReason, Vector};

use crate::counters::Counter;
use crate::vm::{Context, MAX_LOGGED, Next, Outcome, Platform, Standstill, Stuck, VmLock};
use access::Refused;

impl<P: Platform, L: VmLock> Context<'_, P, &L> {
    /// Handles the exit with which [`Vcpu::run`] has come back.
    #[inline(always)]
    pub fn handle(&mut self, reason: ExitReason) -> Next {
        self.cpu.counters.count(self.counter(&reason));
        self.cpu.recent.keep(&reason, || self.vcpu.rip(), self.vcpu.gpr(Gpr::Rcx));
        if reason.cuts_short() {
            self.again().deliver_again();
        }
        match reason {
            ExitReason::Cpuid => self.cpuid(),
            ExitReason::ReadMsr => self.again().read_msr(),
            ExitReason::WriteMsr => self.write_msr(),
            ExitReason::Io(access) => return self.locked(|context| context.port(access)),
            ExitReason::DescriptorTable | ExitReason::LocalDescriptorTable => {
                return self.locked(|context| context.descriptor_table());
            }
            ExitReason::NestedPageFault(fault) => {
                return self.locked(|context| context.nested_page_fault(fault));
            }
            ExitReason::Exception { vector: Vector(exception::MC), .. } => {
                // Before the lock, as the CPU may be lost.
                let verdict = self.machine.machine_check();
                return self.locked(|context| context.machine_check(verdict));
            }
            ExitReason::Exception { vector, error_code, .. } => {
                let event = Event::exception(vector.0, error_code);
                return self.locked(|context| context.exception(event));
            }
            ExitReason::Nmi | ExitReason::HostTimer => {
                return self.locked(|context| context.tick());
            }
            ExitReason::ExternalInterrupt(vector) => self.again().external_interrupt(vector),
            ExitReason::LevelInterruptEnded(vector) => {
                self.again().ended(vector, TriggerMode::Level);
            }
            // The CPU has checked the reserved bits and carried the write out but for its effect: an IPI that it does not
            // send by itself, or a self-IPI that nobody can take.
            ExitReason::ApicWritten { msr, value } => {
                self.again().write_apic(msr, value);
            }
            ExitReason::InterruptWindow => {
                self.vcpu.set_interrupt_window(false);
                self.offer_legacy_interrupt();
            }
            ExitReason::Halt => {
                self.again().halt();
                self.offer_legacy_interrupt();
            }
            ExitReason::TripleFault => return self.locked(|context| context.triple_fault()),
            ExitReason::Xsetbv => self.again().xsetbv(),
            ExitReason::CacheInvalidate => self.locked(|context| context.cache_instruction()),
            ExitReason::BusLock => self.again().bus_lock(),
            ExitReason::TaskSwitch(switch) => {
                return self.locked(|context| context.task_switch(switch));
            }
            ExitReason::VirtualizationInstruction => {
                self.again().raise(Event::exception(exception::UD, None));
            }
            ExitReason::ControlRegister(_) if self.vcpu.move_to_control_register() => {}
            ExitReason::Unexpected { .. } if self.vcpu.cpl() == 3 => {
                self.again().raise_general_protection();
            }
            ExitReason::ControlRegister(write) => {
                return self.locked(|context| context.untold_register(write));
            }
            ExitReason::EntryFailure(failure) => {
                return self.locked(|context| context.entry_failed(failure));
            }
            ExitReason::Unexpected { code, qualification } => {
                return self.locked(|context| context.never_asked_for(code, qualification));
            }
            // Whoever has the debug registers watched does what is to be done.
            ExitReason::Init | ExitReason::Step | ExitReason::DebugRegister => {}
        }
        Next::Resume
    }
}

impl<P: Platform, V> Context<'_, P, V> {
    /// The counter of an exit: a trapped EOI and a shadow gate's #NP have their own.
    #[inline(always)]
    fn counter(&self, reason: &ExitReason) -> Counter {
        // Not by `==`, which the compiler may make a function of: each exit comes by here.
        if matches!(reason, ExitReason::WriteMsr)
            && self.vcpu.gpr(Gpr::Rcx) as u32 == IA32_X2APIC_EOI
        {
            return Counter::Eoi;
        }
        let external = |event: Vectoring| event.kind == EventKind::ExternalInterrupt;
        if matches!(reason, ExitReason::Exception { .. })
            && self.vcpu.vectoring().is_some_and(external)
        {
            return Counter::ShadowGate;
        }
        Counter::of(reason)
    }

    /// Delivers an event again whose delivery the exit has cut short. `INT n` and its kin are executed again, as RIP
    /// still points at them.
    #[inline(never)]
    fn deliver_again(&mut self) {
        let Some(event) = self.vcpu.vectoring() else { return };
        let again = matches!(
            event.kind,
            EventKind::ExternalInterrupt | EventKind::Nmi | EventKind::HardwareException
        );
        if again {
            self.vcpu.inject(Event {
                vector: event.vector,
                kind: event.kind,
                error_code: event.error_code,
                instruction_length: 0,
            });
        }
    }

    /// Delivers an exception to the guest. Real mode has no error codes.
    fn raise(&mut self, event: Event) {
        let protected = self.vcpu.cr0() & Cr0::PE.bits() != 0;
        let error_code = event.error_code.filter(|_| protected);
        self.vcpu.inject(Event { error_code, ..event });
    }

    fn raise_general_protection(&mut self) {
        self.raise(Event::exception(exception::GP, Some(0)));
    }
}

impl<P: Platform> Context<'_, P> {
    /// Goes on behind an instruction that was carried out, or tells the guest why it was not.
    fn done(&mut self, result: Result<(), Refused>) -> Next {
        match result {
            Ok(()) => {
                self.cpu.stuck = None;
                Next::Resume
            }
            Err(refused) => self.refused(refused),
        }
    }

    /// An instruction could not be carried out on the guest's behalf.
    fn refused(&mut self, refused: Refused) -> Next {
        match refused {
            Refused::Fault(event, cr2) => {
                if let Some(address) = cr2 {
                    self.vcpu.set_cr2(address.as_u64());
                }
                self.raise(event);
                Next::Resume
            }
            Refused::Unknown(error) => self.stuck(format_args!("{error}")),
            Refused::Unreachable(fault) => self.stuck(format_args!("{fault}")),
            Refused::Another => {
                self.stuck(format_args!("the instruction is none that exits as it did"))
            }
        }
    }

    /// The bytes at RIP are not the instruction that exited. Another CPU of the guest may have changed them since, so
    /// it is executed again. If the same happens with the same bytes and registers again and again for a second, no CPU
    /// knows them either: from CPL 3 they are an exception, as a program must never end its guest; else the guest cannot
    /// go on. That another CPU hits the moment each time is not to be expected; but it may stand in the midst of its
    /// change, where a hypervisor beneath has others to run, and QEMU executes the old bytes until it goes on.
    #[cold]
    #[inline(never)]
    fn stuck(&mut self, sentence: core::fmt::Arguments<'_>) -> Next {
        const ENOUGH: u8 = 64;
        let bytes = insn::fetch_instruction(self.vcpu, self.memory).map(|(bytes, _)| bytes);
        let at = Standstill {
            rip: self.vcpu.rip(),
            bytes: bytes.unwrap_or_default(),
            registers: Gpr::ALL.map(|register| self.vcpu.gpr(register)),
        };
        let now = self.machine.tsc();
        let before = self.cpu.stuck.filter(|before| before.at == at);
        let (tries, since) = before.map_or((1, now), |it| (it.tries.saturating_add(1), it.since));
        let second = self.machine.tsc_khz().saturating_mul(1000);
        if tries < ENOUGH || now.saturating_sub(since) < second {
            self.cpu.stuck = Some(Stuck { at, tries, since });
            // A little longer each time: two CPUs that go in step, as an emulator's do, would meet so again and again.
            (0..tries).for_each(|_| core::hint::spin_loop());
            return Next::Resume;
        }
        self.cpu.stuck = None;
        if self.vcpu.cpl() == 3 {
            self.raise(Event::exception(exception::UD, None));
            return Next::Resume;
        }
        self.crash(sentence)
    }

    fn entry_failed(&mut self, failure: EntryFailure) -> Next {
        let EntryFailure { code, qualification, meaning } = failure;
        let next = self.crash(format_args!(
            "the CPU refused to enter it: {meaning} (code {code:#x}, {qualification:#x}): \
             `nexit explain` has the rule"
        ));
        let state = core::fmt::from_fn(|f| self.vcpu.write_state(f));
        self.machine.log(format_args!("guest {}: {state}", self.guest.name));
        next
    }

    fn triple_fault(&mut self) -> Next {
        self.machine.log(format_args!("guest {}: triple fault", self.guest.name));
        self.last_words();
        Next::End(Outcome::TripleFault)
    }

    /// Logs what a guest can make happen again and again, a few times.
    fn log_limited(&mut self, sentence: core::fmt::Arguments<'_>) {
        if self.vm.logged < MAX_LOGGED {
            self.vm.logged += 1;
            self.machine.log(format_args!("guest {}: {sentence}", self.guest.name));
        }
    }

    #[cold]
    fn untold_register(&mut self, write: ControlRegisterWrite) -> Next {
        let ControlRegisterWrite { register, qualification } = write;
        self.crash(format_args!(
            "it wrote to CR{register} in a way that the CPU does not tell ({qualification:#x})"
        ))
    }

    #[cold]
    fn never_asked_for(&mut self, code: u64, qualification: u64) -> Next {
        self.crash(format_args!(
            "it exited for reason {code:#x} ({qualification:#x}), which was never asked for"
        ))
    }

    /// Ends the guest with a sentence and its state.
    fn crash(&mut self, sentence: core::fmt::Arguments<'_>) -> Next {
        self.machine.log(format_args!("guest {}: stopped: {sentence}", self.guest.name));
        self.last_words();
        Next::End(Outcome::Crash)
    }

    fn last_words(&mut self) {
        self.cpu.last_words = !self.vm.crash_logged;
    }
}

#[cfg(test)]
mod tests;
