//! The run loop of one virtual CPU: enter the guest, handle the exit, again. Between two exits
//! nothing here runs.

use arch::exit::Frequent;
use arch::vcpu::{Event, StartState, Vcpu};
use arch::{Exit, ExitReason};
use guest::counters::Counter;
use guest::vm::{Context, CpuState, Next, Outcome, Platform};
use pci::owned::OwnedConfigSpace;

use self::debugged::Debugger;
use crate::backend::Backend;
use crate::console;
use crate::machine::GuestMachine;
use crate::partition::{Edge, Instance, Partition};
use crate::processors::Processor;
use crate::ram::GuestRam;
use crate::refusal::Refusal;
use crate::vcpu_slot::{self, Requests, VcpuSlot};
use crate::{housekeeping, watchdog};

mod debugged;

/// A virtual CPU on the processor that calls.
struct Running<'a, B: Backend> {
    partition: &'a Partition<B>,
    instance: &'a Instance<B>,
    cpu: CpuState,
    vcpu: B::Cpu,
    /// Virtualization is on until this is dropped, after the virtual CPU.
    _backend: B,
    machine: GuestMachine<B::Format>,
    ram: GuestRam,
    config: <Edge<B> as Platform>::Config,
    /// It waits for a start-up IPI.
    waiting: bool,
    debugger: Debugger,
}

/// Runs virtual CPU `index` until its guest's generation ends. Virtualization is off before and after. Not inlined: what it
/// holds would lie on the stack between the generations too, where much is done.
#[inline(never)]
pub(crate) fn run<B: Backend>(
    partition: &Partition<B>,
    index: usize,
    processor: &Processor,
) -> Result<(), Refusal> {
    let Some(instance) = partition.instance() else { return Ok(()) };
    let cpu = instance.cpu_state(index);
    let (mut vcpu, backend) = instance.vcpu(index, processor)?;
    // What came after the last generation's end, such as a neighbour's doorbell.
    B::drain(processor.apic);
    watchdog::arm(partition.hardware(), &mut vcpu);
    let machine = instance.machine_on(processor);
    let config = OwnedConfigSpace::new(partition.hardware().config, machine.owned.clone());
    let mut running = Running {
        partition,
        instance: &instance,
        cpu,
        vcpu,
        _backend: backend,
        ram: machine.ram.clone(),
        machine,
        config,
        waiting: index != 0,
        debugger: Debugger::of(partition.index(), index),
    };
    if !running.waiting {
        running.enter(&instance.start, processor);
    }
    running.until_the_end(processor);
    running.debugger.leave();
    // Its interrupts are gone from this processor.
    running.machine.tables.lock().routes.mask_lines();
    B::drain(processor.apic);
    if let Some(slot) = partition.slots().get(index) {
        *slot.counters.lock() = running.cpu.counters;
    }
    Ok(())
}

impl<B: Backend> Running<'_, B> {
    fn enter(&mut self, state: &StartState, processor: &Processor) {
        self.vcpu.load(state);
        B::pass_interrupts(processor.apic, self.instance.policy.mode);
        self.arrive(processor);
    }

    /// Not inlined: `nexit stats` measures from here what an exit can reach.
    #[inline(never)]
    fn until_the_end(&mut self, processor: &Processor) {
        let Some(slot) = self.partition.slots().get(self.cpu.index) else { return };
        loop {
            B::hold_nmis();
            let requests = slot.take_requests();
            if requests.has(vcpu_slot::STOP) {
                return;
            }
            self.carry_out(requests, processor);
            if self.waiting {
                match requests.startup_vector() {
                    Some(vector) => {
                        self.enter(&StartState::after_sipi(vector), processor);
                        self.waiting = false;
                    }
                    None => self.idle(processor),
                }
                continue;
            }
            if requests.has(vcpu_slot::DEBUGGER) {
                self.look_at_desk(slot, processor);
            }
            // A loop each: nothing is asked about the mode between two exits.
            if self.debugger.attached() {
                self.run_until_asked(slot, processor, Self::run_once_debugged);
            } else if self.instance.policy.mode.is_exitless() {
                self.run_until_asked(slot, processor, Self::run_once);
            } else {
                self.run_until_asked(slot, processor, Self::run_once_delivering);
            }
        }
    }

    /// A function of its own for each `once`, so that nothing but what `once` needs is kept in
    /// registers, all of which an exit loses.
    #[inline(never)]
    fn run_until_asked(
        &mut self,
        slot: &VcpuSlot,
        processor: &Processor,
        once: impl Fn(&mut Self, &VcpuSlot, &Processor) -> Next,
    ) {
        while !slot.asked() {
            if let Next::End(outcome) = once(self, slot, processor) {
                self.end(outcome, processor);
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn end(&self, outcome: Outcome, processor: &Processor) {
        self.partition.end(outcome, processor.apic);
    }

    /// Into the guest, and what its exit asks for.
    #[inline(always)]
    fn run_once(&mut self, slot: &VcpuSlot, processor: &Processor) -> Next {
        // One call site per reason, so that each inlines into its own fast path.
        match self.vcpu.run() {
            Some(Frequent::Cpuid(length)) if self.context(()).quick_cpuid(length) => Next::Resume,
            Some(Frequent::ReadMsr(length)) => self.handle_instruction(ExitReason::ReadMsr, length),
            Some(Frequent::WriteMsr(length)) if self.context(()).quick_ipi(length) => Next::Resume,
            Some(Frequent::WriteMsr(length)) => self.handle_write_msr(length),
            Some(Frequent::Cpuid(_)) | None => self.handle_rare(slot, processor),
        }
    }

    /// The same where the hypervisor, or the CPU for it, delivers the guest's interrupts.
    #[inline(never)]
    fn run_once_delivering(&mut self, slot: &VcpuSlot, processor: &Processor) -> Next {
        self.context(()).prepare_entry();
        let frequent = self.vcpu.run();
        self.context(()).take_virtual_interrupts();
        match frequent {
            Some(Frequent::Cpuid(length)) if self.context(()).quick_cpuid(length) => Next::Resume,
            Some(Frequent::ReadMsr(length)) => self.handle_instruction(ExitReason::ReadMsr, length),
            Some(Frequent::WriteMsr(length)) => self.handle_write_msr(length),
            Some(Frequent::Cpuid(_)) | None => self.handle_rare(slot, processor),
        }
    }

    #[inline(always)]
    fn handle_instruction(&mut self, reason: ExitReason, length: u8) -> Next {
        self.handle(&Exit::instruction(reason, length))
    }

    #[inline(never)]
    fn handle_write_msr(&mut self, length: u8) -> Next {
        self.handle_instruction(ExitReason::WriteMsr, length)
    }

    /// One place for all of these exits, those of steps too: what is called once is inlined.
    #[inline(never)]
    fn handle_rare(&mut self, slot: &VcpuSlot, processor: &Processor) -> Next {
        loop {
            let exit = self.vcpu.exit();
            if self.cpu.step.wanted() {
                self.step_has_ended(exit.as_ref());
            }
            let Some(exit) = exit else {
                self.cpu.counters.count(Counter::ControlRegister);
                return Next::Resume;
            };
            if matches!(exit.reason, ExitReason::Nmi | ExitReason::PreemptionTimer) {
                *slot.counters.lock() = self.cpu.counters;
                housekeeping::attend(self.partition.hardware(), processor.apic);
            }
            let next = self.handle(&exit);
            if !self.cpu.step.wanted() || !self.make_step(slot) {
                return next;
            }
        }
    }

    /// Has the CPU do by itself what its last exit was about, with pages of its own in place of those that exit. Each
    /// page that it needs beyond is one more exit. `false`: there is something else to do first, and it exits again.
    #[cold]
    #[inline(never)]
    fn make_step(&mut self, slot: &VcpuSlot) -> bool {
        let root = self.machine.step_root().filter(|_| !slot.asked());
        let Some(root) = root else {
            self.with_lock(|context| context.end_steps());
            return false;
        };
        self.vcpu.step(root, self.cpu.step.one());
        // What it is tells `exit` again.
        let _ = self.vcpu.run();
        if !self.instance.policy.mode.is_exitless() {
            self.context(()).take_virtual_interrupts();
        }
        true
    }

    #[cold]
    #[inline(never)]
    fn step_has_ended(&mut self, exit: Option<&Exit>) {
        self.with_lock(|context| context.stepped(exit));
    }

    fn carry_out(&mut self, requests: Requests, processor: &Processor) {
        if requests.has(vcpu_slot::FLUSH) {
            self.vcpu.flush_nested();
        }
        if requests.has(vcpu_slot::INIT) {
            B::drain(processor.apic);
            self.with_lock(|context| context.init());
            self.waiting = true;
            self.debugger.leave();
        }
        if requests.has(vcpu_slot::REGISTERS) {
            self.with_lock(|context| context.dump());
        }
        if requests.has(vcpu_slot::SEND) {
            console::send_for(self.partition.index());
        }
        if requests.has(vcpu_slot::NMI) && !self.waiting {
            self.vcpu.inject(Event::nmi());
        }
    }

    /// What the CPU has to itself is handled without a lock.
    #[inline(always)]
    fn handle(&mut self, exit: &Exit) -> Next {
        match self.context(()).handle_own(exit) {
            Some(next) => next,
            None => self.handle_shared(exit),
        }
    }

    #[inline(never)]
    fn handle_shared(&mut self, exit: &Exit) -> Next {
        self.with_lock(|context| context.handle(exit))
    }

    #[inline(always)]
    fn with_lock<T>(&mut self, work: impl FnOnce(&mut Context<'_, Edge<B>>) -> T) -> T {
        let mut vm = self.instance.vm.lock();
        let result = work(&mut self.context(&mut *vm));
        if self.machine.take_nested_changed() {
            self.vcpu.flush_nested();
            self.machine.ask_others_to_flush();
        }
        result
    }

    #[inline(always)]
    fn context<V>(&mut self, vm: V) -> Context<'_, Edge<B>, V> {
        Context {
            guest: &self.instance.policy,
            vm,
            cpu: &mut self.cpu,
            vcpu: &mut self.vcpu,
            machine: &mut self.machine,
            memory: &mut self.ram,
            config: &mut self.config,
        }
    }

    /// Sleeps for about a millisecond, and does the machine's housekeeping meanwhile.
    fn idle(&self, processor: &Processor) {
        B::idle(processor.apic);
        housekeeping::attend(self.partition.hardware(), processor.apic);
    }
}
