//! The run loop of one virtual CPU: enter the guest, handle the exit, again. Between two exits
//! nothing here runs.

use arch::ExitReason;
use arch::vcpu::{DebugRegisters, Event, Vcpu};
use guest::requests::{Request, Requests, Signals};
use guest::vm::{Context, CpuState, Next, Outcome, Platform, Vm, VmLock};
use pci::owned::OwnedConfigSpace;
use view::registers::{Snapshot, last_exits};

use self::debugged::Debugger;
use crate::backend::Backend;
use crate::console;
use crate::machine::GuestMachine;
use crate::partition::{Edge, Instance, Partition};
use crate::processors::Processor;
use crate::ram::GuestRam;
use crate::refusal::Refusal;
use crate::vcpu_slot::{Look, VcpuSlot};
use crate::{housekeeping, watchdog};

mod debug_registers;
mod debugged;

/// A virtual CPU on the processor that calls.
struct Running<'a, B: Backend> {
    partition: &'a Partition<B>,
    instance: &'a Instance<B>,
    cpu: CpuState,
    vcpu: B::Cpu,
    /// Virtualization is on until this is dropped, after the virtual CPU.
    backend: B,
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
    let machine = instance.machine_on(processor);
    let cpu = instance.cpu_state(index, &machine);
    let (mut vcpu, backend) = instance.vcpu(index, processor)?;
    // What came after the last generation's end, such as a neighbour's doorbell.
    backend.drain(processor.apic);
    // SAFETY: ring 0, and the guest does not run yet.
    unsafe { cpu::speculation::forget() };
    watchdog::arm(partition.hardware(), &mut vcpu);
    let config = OwnedConfigSpace::new(partition.hardware().config, machine.owned.clone());
    let mut running = Running {
        partition,
        instance: &instance,
        cpu,
        vcpu,
        backend,
        ram: machine.ram.clone(),
        machine,
        config,
        waiting: index != 0,
        debugger: Debugger::of(partition.index(), index),
    };
    running.vcpu.set_debug_registers(&DebugRegisters::default());
    running.vcpu.pass_x2apic(running.cpu.apic.in_x2apic_mode());
    if !running.waiting {
        running.vcpu.load(&instance.start);
        running.enter(processor);
    }
    running.until_the_end(processor);
    if running.cpu.last_words {
        running.last_words();
    }
    running.debugger.leave();
    // Its interrupts are gone from this processor.
    running.machine.tables.lock().routes.mask_lines();
    running.backend.drain(processor.apic);
    if let Some(slot) = partition.slots().get(index) {
        slot.count(&running.cpu.counters);
    }
    Ok(())
}

impl<B: Backend> Running<'_, B> {
    /// Its registers are those of its first instruction.
    fn enter(&mut self, processor: &Processor) {
        processor.apic.accept_all();
        self.arrive(processor);
    }

    /// Not inlined: `nexit stats` measures from here what an exit can reach.
    #[inline(never)]
    fn until_the_end(&mut self, processor: &Processor) {
        let Some(slot) = self.partition.slots().get(self.cpu.index) else { return };
        loop {
            self.backend.hold_nmis();
            let requests = slot.take_requests();
            if requests.has(Request::Stop) {
                return;
            }
            self.carry_out(requests, slot, processor);
            if self.hear(requests.signals(self.waiting), processor) {
                continue;
            }
            if self.waiting {
                self.idle(processor);
                continue;
            }
            if requests.has(Request::Debugger) {
                self.look_at_mailbox(slot, processor);
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
            match once(self, slot, processor) {
                Next::Resume => {}
                rare @ (Next::Step | Next::End(_)) => self.go_on_with(rare, slot, processor),
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn go_on_with(&mut self, mut next: Next, slot: &VcpuSlot, processor: &Processor) {
        if next == Next::Step {
            next = self.make_steps(slot, processor);
        }
        if let Next::End(outcome) = next {
            if matches!(outcome, Outcome::TripleFault | Outcome::Crash) {
                self.wait_for_gdb(slot, processor);
            }
            self.partition.end(outcome, processor.apic);
        }
    }

    /// Into the guest, and what its exit asks for.
    #[inline(always)]
    #[expect(clippy::wildcard_enum_match_arm, reason = "`handle` takes them all")]
    fn run_once(&mut self, slot: &VcpuSlot, processor: &Processor) -> Next {
        match self.vcpu.run() {
            // The compiler makes a short way through `handle` for each of these, the most frequent.
            ExitReason::Cpuid => self.context().handle(ExitReason::Cpuid),
            ExitReason::ReadMsr => self.context().handle(ExitReason::ReadMsr),
            ExitReason::WriteMsr => self.context().handle(ExitReason::WriteMsr),
            rare => self.handle(rare, slot, processor),
        }
    }

    /// The same where the hypervisor, or the CPU for it, delivers the guest's interrupts.
    #[inline(never)]
    fn run_once_delivering(&mut self, slot: &VcpuSlot, processor: &Processor) -> Next {
        self.context().prepare_entry();
        let reason = self.vcpu.run();
        self.context().take_interrupts();
        self.handle(reason, slot, processor)
    }

    #[inline(never)]
    fn handle(&mut self, reason: ExitReason, slot: &VcpuSlot, processor: &Processor) -> Next {
        if matches!(reason, ExitReason::Nmi | ExitReason::HostTimer) {
            self.attend(slot, processor);
        }
        self.context().handle(reason)
    }

    /// The host has the CPU, which the guest did not ask for.
    #[cold]
    #[inline(never)]
    fn attend(&self, slot: &VcpuSlot, processor: &Processor) {
        slot.count(&self.cpu.counters);
        housekeeping::attend(self.partition.hardware(), processor.apic);
    }

    /// Has the CPU do by itself what its last exit was about, with pages of its own in place of those that exit. Each
    /// page that it needs beyond is one more exit. Where there is something else to do first, it exits again.
    #[cold]
    #[inline(never)]
    fn make_steps(&mut self, slot: &VcpuSlot, processor: &Processor) -> Next {
        while let Some(root) = self.machine.step_root().filter(|_| !slot.asked()) {
            let reason = self.vcpu.step(root, self.cpu.step.one());
            if !self.instance.policy.mode.is_exitless() {
                self.context().take_interrupts();
            }
            self.with_lock(|context| context.stepped(&reason));
            let next = self.handle(reason, slot, processor);
            if next != Next::Step {
                return next;
            }
        }
        self.with_lock(|context| context.end_steps());
        Next::Resume
    }

    fn carry_out(&mut self, requests: Requests, slot: &VcpuSlot, processor: &Processor) {
        if requests.has(Request::Flush) {
            self.with_lock(|context| context.table_changed());
        }
        if requests.has(Request::Look) {
            self.show(slot, processor);
        }
        if requests.has(Request::Send) {
            console::send_for(self.partition.index());
        }
    }

    /// What the guest's other CPUs signal. `true`: it has been reset or started, and is to look again what is asked.
    fn hear(&mut self, Signals { init, start, nmi }: Signals, processor: &Processor) -> bool {
        if init {
            self.backend.drain(processor.apic);
            self.with_lock(|context| context.init());
            self.waiting = true;
            // The guest's debug registers are its own again.
            self.place(None);
            self.vcpu.set_debug_registers(&DebugRegisters::default());
            self.debugger.leave();
        }
        if let Some(vector) = start {
            self.with_lock(|context| context.start(vector));
            self.enter(processor);
            self.waiting = false;
        }
        if nmi {
            self.vcpu.inject(Event::nmi());
        }
        init || start.is_some()
    }

    /// Leaves what it holds for the monitor, and tells the processor that has asked.
    #[cold]
    fn show(&self, slot: &VcpuSlot, processor: &Processor) {
        let asker = slot.show(self.look());
        if asker == processor.apic.id() {
            housekeeping::attend(self.partition.hardware(), processor.apic);
        } else {
            processor.apic.send_nmi(asker);
        }
    }

    /// What it says of itself.
    fn look(&self) -> Look {
        let mut registers = Snapshot::of(&self.vcpu, &self.ram);
        if let Some(limit) = self.cpu.idt_limit {
            registers.set_idt_limit(limit);
        }
        Look { registers, recent: self.cpu.recent.clone(), waiting: self.waiting }
    }

    /// Logs what it held when its guest ended.
    #[cold]
    fn last_words(&self) {
        let Look { registers, recent, .. } = self.look();
        let (name, index) = (&self.instance.policy.name, self.partition.index());
        let who = alloc::format!("guest {name}, CPU {}", self.cpu.index);
        let exits = last_exits(&alloc::format!("{recent}"));
        for line in registers.lines(&who).iter().chain(&exits) {
            console::log_of(index, format_args!("{line}"));
        }
    }

    fn with_lock<T>(&mut self, work: impl FnOnce(&mut Context<'_, Edge<B>>) -> T) -> T {
        self.context().locked(work)
    }

    #[inline(always)]
    fn context(&mut self) -> Context<'_, Edge<B>, &Instance<B>> {
        Context {
            guest: &self.instance.policy,
            vm: self.instance,
            cpu: &mut self.cpu,
            vcpu: &mut self.vcpu,
            machine: &mut self.machine,
            memory: &mut self.ram,
            config: &mut self.config,
        }
    }

    /// Sleeps for about a millisecond, and does the machine's housekeeping meanwhile.
    fn idle(&self, processor: &Processor) {
        self.backend.idle(processor.apic);
        housekeeping::attend(self.partition.hardware(), processor.apic);
    }
}

impl<B: Backend> VmLock for Instance<B> {
    #[inline(always)]
    fn with<T>(&self, work: impl FnOnce(&mut Vm) -> T) -> T {
        work(&mut self.vm.lock())
    }
}
