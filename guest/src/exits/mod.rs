//! What to do on each exit.
//!
//! The way of an exit: the back end decodes it into [`arch::Exit`] → [`Context::handle_own`] counts it
//! and calls the handler, if nothing but this CPU is concerned → else [`Context::handle`] does, with
//! the guest's lock held → [`Context::prepare_entry`] → the guest goes on. In the posted mode
//! [`Context::take_virtual_interrupts`] comes first of all. The same policy serves both vendors and
//! the host tests' scripted CPU.

pub(crate) mod access;
mod descriptor;
mod interrupt;
mod memory;
mod port;
mod register;
pub(crate) mod step;
mod system_segment;
pub(crate) mod tick;

use arch::exit::{EntryFailure, Vectoring};
use arch::interrupt::TriggerMode;
use arch::machine::Machine;
use arch::register::{Cr0, Gpr};
use arch::vcpu::{Event, EventKind, Vcpu, exception};
use arch::{Exit, ExitReason};

use crate::counters::Counter;
use crate::vm::{Context, MAX_LOGGED, Next, Outcome, Platform};
use access::Refused;

impl<P: Platform> Context<'_, P, ()> {
    /// Counts an exit, delivers again what it cut short, and handles it if it concerns nothing but
    /// the CPU that exited; else `None`, and [`Context::handle`] must.
    #[inline(always)]
    #[expect(clippy::wildcard_enum_match_arm, reason = "`handle` names the others")]
    pub fn handle_own(&mut self, exit: &Exit) -> Option<Next> {
        self.cpu.counters.count(self.counter(exit));
        if exit.reason != ExitReason::Cpuid {
            self.cpu.recent.keep(exit, self.vcpu.rip(), self.vcpu.gpr(Gpr::Rcx));
        }
        self.redeliver(exit);
        let length = exit.instruction_length;
        match exit.reason {
            ExitReason::Cpuid => self.cpuid(length),
            ExitReason::ReadMsr => self.read_msr(length),
            ExitReason::WriteMsr => self.write_own_msr(length)?,
            ExitReason::ExternalInterrupt(vector) => self.external_interrupt(vector),
            ExitReason::EndOfInterrupt(vector) => self.ended(vector, TriggerMode::Level),
            ExitReason::ApicWrite(offset) => self.apic_written(offset),
            ExitReason::InterruptWindow => self.vcpu.set_interrupt_window(false),
            ExitReason::Xsetbv => self.xsetbv(length),
            // The guest owns its devices' memory accesses; caches are coherent without it.
            ExitReason::CacheInvalidate => self.vcpu.skip_instruction(length.unwrap_or(2)),
            ExitReason::VirtualizationInstruction => {
                self.raise(Event::exception(exception::UD, None));
            }
            // The back end may have made one by itself, for a write of CR8.
            ExitReason::Step => self.take_virtual_interrupts(),
            ExitReason::Init => {}
            _ => return None,
        }
        Some(Next::Resume)
    }
}

impl<P: Platform> Context<'_, P> {
    /// Handles an exit that [`Context::handle_own`] has left.
    pub fn handle(&mut self, exit: &Exit) -> Next {
        let length = exit.instruction_length;
        match exit.reason {
            ExitReason::WriteMsr => {
                self.write_msr(length);
                Next::Resume
            }
            ExitReason::Io(access) => self.port(access),
            ExitReason::DescriptorTable | ExitReason::LocalDescriptorTable => {
                self.descriptor_table()
            }
            ExitReason::NestedPageFault(fault) => {
                self.nested_page_fault(fault, exit.vectoring.is_some())
            }
            ExitReason::Exception { .. } => self.exception(exit),
            ExitReason::Nmi | ExitReason::PreemptionTimer => self.tick(),
            ExitReason::Halt => self.halt(length),
            ExitReason::TripleFault => self.triple_fault(),
            ExitReason::ControlRegister(_) if self.vcpu.move_to_control_register() => Next::Resume,
            ExitReason::ControlRegister(write) => self.crash(format_args!(
                "it wrote to CR{} in a way that the CPU does not tell ({:#x})",
                write.register, write.qualification
            )),
            ExitReason::EntryFailure(EntryFailure { code, qualification, meaning }) => {
                let next = self.crash(format_args!(
                    "the CPU refused to enter it: {meaning} (code {code:#x}, {qualification:#x}): \
                     `nexit explain` has the rule"
                ));
                let state = core::fmt::from_fn(|f| self.vcpu.write_state(f));
                self.machine.log(format_args!("guest {}: {state}", self.guest.name));
                next
            }
            ExitReason::Unexpected { .. } if self.vcpu.cpl() == 3 => {
                self.raise_general_protection();
                Next::Resume
            }
            ExitReason::Unexpected { code, qualification } => self.crash(format_args!(
                "it exited for reason {code:#x} ({qualification:#x}), which was never asked for"
            )),
            // Handled without the lock.
            ExitReason::Cpuid
            | ExitReason::ReadMsr
            | ExitReason::ExternalInterrupt(_)
            | ExitReason::EndOfInterrupt(_)
            | ExitReason::ApicWrite(_)
            | ExitReason::InterruptWindow
            | ExitReason::Xsetbv
            | ExitReason::CacheInvalidate
            | ExitReason::VirtualizationInstruction
            | ExitReason::Step
            | ExitReason::Init => Next::Resume,
        }
    }
}

impl<P: Platform, V> Context<'_, P, V> {
    /// The counter of an exit: a trapped EOI and a shadow gate's #NP have their own.
    fn counter(&self, exit: &Exit) -> Counter {
        use arch::msr::IA32_X2APIC_EOI;
        let msr = self.vcpu.gpr(arch::register::Gpr::Rcx) as u32;
        match (exit.reason, exit.vectoring) {
            (ExitReason::WriteMsr, _) if msr == IA32_X2APIC_EOI => Counter::Eoi,
            (
                ExitReason::Exception { .. },
                Some(Vectoring { kind: EventKind::ExternalInterrupt, .. }),
            ) => Counter::ShadowGate,
            (reason, _) => Counter::of(&reason),
        }
    }

    /// An exit cut an event's delivery short: deliver it again. Not where the exit is an exception,
    /// which decides itself what becomes of the event. `INT n` and its kin are executed again, as
    /// RIP still points at them.
    fn redeliver(&mut self, exit: &Exit) {
        if !matches!(exit.reason, ExitReason::Exception { .. } | ExitReason::TripleFault) {
            self.deliver_again(exit);
        }
    }

    fn deliver_again(&mut self, exit: &Exit) {
        let Some(event) = exit.vectoring else { return };
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
    /// it is executed again. If the same happens with the same bytes again and again, and nothing else between, no CPU
    /// knows them either: from CPL 3 they are an exception, as a program must never end its guest; else the guest cannot
    /// go on. That another CPU hits the moment each time is not to be expected.
    #[cold]
    #[inline(never)]
    fn stuck(&mut self, sentence: core::fmt::Arguments<'_>) -> Next {
        const MAX_TRIES: u8 = 64;
        let bytes = insn::fetch_instruction(self.vcpu, self.memory).map(|(bytes, _)| bytes);
        let here = (self.vcpu.rip(), bytes.unwrap_or_default());
        let before = self.cpu.stuck.filter(|(rip, bytes, _)| (*rip, *bytes) == here);
        let tries = before.map_or(1, |(_, _, tries)| tries + 1);
        if tries < MAX_TRIES {
            self.cpu.stuck = Some((here.0, here.1, tries));
            return Next::Resume;
        }
        self.cpu.stuck = None;
        if self.vcpu.cpl() == 3 {
            self.raise(Event::exception(exception::UD, None));
            return Next::Resume;
        }
        self.crash(sentence)
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

    /// Ends the guest with a sentence and its state.
    fn crash(&mut self, sentence: core::fmt::Arguments<'_>) -> Next {
        self.machine.log(format_args!("guest {}: stopped: {sentence}", self.guest.name));
        self.last_words();
        Next::End(Outcome::Crash)
    }

    fn last_words(&mut self) {
        if !self.vm.crash_logged {
            self.dump();
        }
    }

    /// Logs registers, the last exits and the code at RIP.
    pub fn dump(&mut self) {
        let (vcpu, name) = (&*self.vcpu, &self.guest.name);
        self.machine.log(format_args!(
            "guest {name}: rip {:#x} rsp {:#x} rflags {:#x} cr0 {:#x} cr2 {:#x} cr3 {:#x} cr4 {:#x} \
             efer {:#x}",
            vcpu.rip(),
            vcpu.gpr(arch::register::Gpr::Rsp),
            vcpu.rflags(),
            vcpu.cr0(),
            vcpu.cr2(),
            vcpu.cr3(),
            vcpu.cr4(),
            vcpu.efer()
        ));
        let registers = arch::register::Gpr::ALL.map(|register| vcpu.gpr(register));
        self.machine.log(format_args!("guest {name}: registers in encoding order {registers:x?}"));
        self.machine.log(format_args!("guest {name}: last exits: {}", self.cpu.recent));
        if let Ok((bytes, length)) = insn::fetch_instruction(vcpu, self.memory) {
            let code = bytes.get(..length).unwrap_or(&bytes);
            self.machine.log(format_args!("guest {name}: code {code:02x?}"));
        }
    }
}

#[cfg(test)]
mod tests;
