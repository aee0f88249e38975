//! A virtual CPU whose guest gdb looks at: where it stands, and how it goes on. Nothing of this is on the way of an exit
//! while nobody is attached: the run loop has a loop of its own for it.

use arch::machine::GuestMemory as _;
use arch::register::Gpr;
use arch::segment::SegmentRegister;
use arch::vcpu::{Vcpu, exception};
use arch::{ExitReason, Gva, Vector};
use debug::breakpoints::{Breakpoint, Breakpoints, Kind};
use debug::own::Kept;
use debug::registers::Registers;
use debug::step::{flags_after, flags_for, pushed};
use debug::{Fxsave, Order, Places, Stop};
use guest::requests::Request;
use guest::vm::Next;
use insn::PagingRegisters;
use insn::flags::{Effect, effect};

use super::Running;
use crate::backend::Backend;
use crate::console::logln;
use crate::gdb::{self, Room};
use crate::housekeeping;
use crate::processors::Processor;
use crate::vcpu_slot::VcpuSlot;

/// What goes on between a virtual CPU and gdb.
pub(super) struct Debugger {
    room: Option<&'static Room>,
    pub(super) cpu: usize,
    attached: bool,
    /// gdb's breakpoints, if they are in the debug registers, and what the guest has there.
    pub(super) kept: Option<Kept>,
    /// Those in the guest's code.
    pub(super) patches: Places,
    pub(super) step: Step,
    /// That the guest's own breakpoints wait.
    pub(super) said: bool,
}

/// How it goes on.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Step {
    /// As far as it comes.
    #[default]
    None,
    /// For one instruction.
    One,
    /// To this address, in place of one instruction.
    To(u64),
}

impl Debugger {
    /// That of virtual CPU `cpu` of a guest.
    pub(super) fn of(guest: usize, cpu: usize) -> Self {
        let room = gdb::room(guest);
        if let Some(room) = room.filter(|_| cpu == 0) {
            room.begin();
        }
        let (attached, kept, patches, step) = (false, None, Places::NONE, Step::None);
        Self { room, cpu, attached, kept, patches, step, said: false }
    }

    /// Whether a gdb is attached.
    #[inline]
    pub(super) fn attached(&self) -> bool {
        self.attached
    }

    fn at_mailbox<T>(&self, work: impl FnOnce(&mut debug::DebugMailbox) -> T) -> Option<T> {
        self.room?.at_mailbox(self.cpu, work)
    }

    /// The CPU does not run the guest any more.
    pub(super) fn leave(&mut self) {
        self.at_mailbox(debug::DebugMailbox::leave);
        if let Some(room) = self.room {
            room.forget_ram();
        }
        (self.attached, self.kept, self.step) = (false, None, Step::None);
    }
}

impl<B: Backend> Running<'_, B> {
    /// The CPU is about to run the guest: what gdb has ordered is for it, too.
    pub(super) fn arrive(&mut self, processor: &Processor) {
        match self.debugger.at_mailbox(debug::DebugMailbox::arrive) {
            None | Some(Order::Leave) => {}
            Some(Order::Go { breakpoints, patches, .. }) => {
                self.go_on(Order::Go { step: false, breakpoints, patches })
            }
            Some(Order::Stay) => {
                self.debugger.at_mailbox(debug::DebugMailbox::want);
                if let Some(slot) = self.partition.slots().get(self.debugger.cpu) {
                    slot.ask(processor.apic, Request::Debugger);
                }
            }
        }
    }

    /// The guest has crashed here: it waits for a gdb first, where the configuration says so.
    #[cold]
    pub(super) fn wait_for_gdb(&mut self, slot: &VcpuSlot, processor: &Processor) {
        if !self.partition.waits_for_gdb() || self.debugger.room.is_none() {
            return;
        }
        let (name, cpu) = (&self.instance.policy.name, self.debugger.cpu);
        logln!(
            "guest {name}: CPU {cpu} waits for gdb, and the guest with it; `stop {name}` ends it"
        );
        self.stand(Stop::Crashed, slot, processor);
    }

    /// gdb may want it to stand.
    #[cold]
    pub(super) fn look_at_mailbox(&mut self, slot: &VcpuSlot, processor: &Processor) {
        if self.debugger.at_mailbox(|mailbox| mailbox.wanted()) == Some(true) {
            self.stand(Stop::Asked, slot, processor);
        }
    }

    /// Stands until gdb, or the guest's end, says otherwise. Interrupts are off here: what comes waits in the local APIC.
    fn stand(&mut self, why: Stop, slot: &VcpuSlot, processor: &Processor) {
        let registers = self.registers();
        if let Some(room) = self.debugger.room {
            room.show(&self.ram);
        }
        self.debugger.at_mailbox(|mailbox| mailbox.stand(why, registers));
        while !slot.shall_stop() {
            housekeeping::attend(self.partition.hardware(), processor.apic);
            if let Some((order, changed)) =
                self.debugger.at_mailbox(debug::DebugMailbox::take).flatten()
            {
                if let Some(registers) = changed {
                    self.set_registers(&registers);
                }
                return self.go_on(order);
            }
            core::hint::spin_loop();
        }
    }

    fn go_on(&mut self, order: Order) {
        let (step, breakpoints) = match order {
            Order::Stay => return,
            Order::Go { step, breakpoints, patches } => {
                (self.debugger.attached, self.debugger.patches) = (true, patches);
                (step, breakpoints)
            }
            Order::Leave => {
                (self.debugger.attached, self.debugger.patches) = (false, Places::NONE);
                (false, None)
            }
        };
        self.debugger.step = if step { self.choose_step() } else { Step::None };
        match self.debugger.step {
            Step::None => self.place(breakpoints),
            // Its own #DB is told from others by there being none.
            Step::One => self.place(None),
            Step::To(address) => {
                let kind = Kind::Execute { software: false };
                let address = self.linear_of(address).as_u64();
                let mut only = Breakpoints::default();
                only.add(Breakpoint { address, length: 1, kind });
                self.place(only.registers());
            }
        }
    }

    /// How one instruction is done without the guest's noticing.
    fn choose_step(&mut self) -> Step {
        let rip = self.vcpu.rip();
        if self.vcpu.injecting() {
            // A fault: where its handler comes back.
            return Step::To(rip);
        }
        if let Effect::Leaves(length) = self.effect() {
            return Step::To(rip.wrapping_add(length.into()));
        }
        Step::One
    }

    /// What the instruction at RIP does with the flags.
    fn effect(&self) -> Effect {
        let bits64 = insn::Mode::of(&self.vcpu) == insn::Mode::Bits64;
        match insn::fetch_instruction(&self.vcpu, &self.ram) {
            Ok((bytes, length)) => effect(bytes.get(..length).unwrap_or_default(), bits64),
            Err(_) => Effect::Plain,
        }
    }

    /// As [`Running::run_once`], and looks at each exit whether it is gdb's.
    #[inline(never)]
    pub(super) fn run_once_debugged(&mut self, slot: &VcpuSlot, processor: &Processor) -> Next {
        match self.debugger.step {
            Step::One => self.step_once(slot, processor),
            Step::None | Step::To(_) => self.run_to_breakpoint(slot, processor),
        }
    }

    fn run_to_breakpoint(&mut self, slot: &VcpuSlot, processor: &Processor) -> Next {
        let reason = self.exit_of(Vcpu::run);
        if let ExitReason::Exception { vector: Vector(exception::DB), qualification, .. } = reason
            && let Some(why) = self.met(qualification)
        {
            self.stand(why, slot, processor);
            return Next::Resume;
        }
        let next = self.handle(reason, slot, processor);
        if reason == ExitReason::DebugRegister {
            self.access_debug_register();
        }
        next
    }

    fn exit_of(&mut self, enter: impl FnOnce(&mut B::Cpu) -> ExitReason) -> ExitReason {
        let exitless = self.instance.policy.mode.is_exitless();
        if !exitless {
            self.context().prepare_entry();
        }
        let reason = enter(&mut self.vcpu);
        if !exitless {
            self.context().take_interrupts();
        }
        reason
    }

    /// One instruction. What exits without having done it, such as the watchdog's call, is no step.
    fn step_once(&mut self, slot: &VcpuSlot, processor: &Processor) -> Next {
        let (rip, flags) = (self.vcpu.rip(), self.vcpu.rflags());
        let (effect, cpl) = (self.effect(), self.vcpu.cpl());
        self.vcpu.set_rflags(flags_for(flags));
        let root = self.machine.tables.lock().nested.root();
        let reason = self.exit_of(|vcpu| vcpu.step(root, true));
        let done = self.vcpu.debug_exception();
        let mut next = self.handle(reason, slot, processor);
        if next == Next::Step {
            next = self.make_steps(slot, processor);
        }
        let after = flags_after(flags, self.vcpu.rflags(), effect, cpl, done);
        self.vcpu.set_rflags(after);
        if done && effect == Effect::Pushes {
            self.correct_pushed(flags);
        }
        let over = done || self.vcpu.rip() != rip || self.vcpu.injecting();
        if over && next == Next::Resume {
            self.stand(Stop::Step, slot, processor);
        }
        next
    }

    /// The flags that the guest has pushed are those of the step.
    fn correct_pushed(&mut self, flags: u64) {
        let second = self.vcpu.gpr(Gpr::Rsp).wrapping_add(1);
        let base = match insn::Mode::of(&self.vcpu) {
            insn::Mode::Bits64 => 0,
            insn::Mode::Bits16 | insn::Mode::Bits32 => self.vcpu.segment(SegmentRegister::Ss).base,
        };
        let gva = Gva::new(base.wrapping_add(second));
        let mut byte = [0];
        if let Ok(gpa) = self.paging().translate(&self.ram, gva)
            && self.ram.read(gpa, &mut byte).is_ok()
        {
            let _ = self.ram.write(gpa, &byte.map(|byte| pushed(byte, flags)));
        }
    }

    /// The linear address of an offset in the code segment.
    pub(super) fn linear_of(&self, rip: u64) -> Gva {
        let base = || self.vcpu.segment(SegmentRegister::Cs).base;
        let bits64 = insn::Mode::of(&self.vcpu) == insn::Mode::Bits64;
        Gva::new(if bits64 { rip } else { base().wrapping_add(rip) & 0xffff_ffff })
    }

    pub(super) fn paging(&self) -> PagingRegisters {
        let vcpu = &self.vcpu;
        PagingRegisters { cr0: vcpu.cr0(), cr3: vcpu.cr3(), cr4: vcpu.cr4(), efer: vcpu.efer() }
    }

    fn registers(&self) -> Registers {
        use SegmentRegister::{Cs, Ds, Es, Fs, Gs, Ss};
        let vcpu = &self.vcpu;
        Registers {
            general: ORDER.map(|register| vcpu.gpr(register)),
            rip: vcpu.rip(),
            rflags: vcpu.rflags() as u32,
            segments: [Cs, Ss, Ds, Es, Fs, Gs].map(|which| vcpu.segment(which).selector.into()),
            bases: [Fs, Gs].map(|which| vcpu.segment(which).base),
            // As the guest has left them: the hypervisor uses none.
            fpu: Fxsave(cpu::instructions::fxsave()),
            // SAFETY: ring 0, as everywhere here.
            upper: unsafe { cpu::instructions::upper_halves() },
            shows_upper: false,
            paging: self.paging(),
            cr2: vcpu.cr2(),
            calls: vcpu.system_call_msrs(),
            debug: self.own_debug_registers(),
        }
    }

    fn set_registers(&mut self, registers: &Registers) {
        for (register, value) in ORDER.into_iter().zip(registers.general) {
            self.vcpu.set_gpr(register, value);
        }
        // Outside of 64-bit mode a CPU refuses to enter a guest with more (Intel SDM, "Checks on Guest RIP, RFLAGS, and
        // SSP").
        let bits64 = insn::Mode::of(&self.vcpu) == insn::Mode::Bits64;
        self.vcpu.set_rip(if bits64 { registers.rip } else { registers.rip & 0xffff_ffff });
        // Bit 1 is always set, and what is reserved never.
        const CHANGEABLE: u64 = 0x0025_7fd5;
        self.vcpu.set_rflags(u64::from(registers.rflags) & CHANGEABLE | 2);
        // SAFETY: they are this guest's own, as gdb has changed them; `Fxsave` keeps MXCSR to the bits there are.
        unsafe { cpu::instructions::fxrstor(registers.fpu.0) };
        if let Some(upper) = registers.upper {
            // SAFETY: as above; there are some only where the CPU has given them.
            unsafe { cpu::instructions::set_upper_halves(upper) };
        }
    }
}

/// gdb's order of the general registers.
const ORDER: [Gpr; 16] = [
    Gpr::Rax,
    Gpr::Rbx,
    Gpr::Rcx,
    Gpr::Rdx,
    Gpr::Rsi,
    Gpr::Rdi,
    Gpr::Rbp,
    Gpr::Rsp,
    Gpr::R8,
    Gpr::R9,
    Gpr::R10,
    Gpr::R11,
    Gpr::R12,
    Gpr::R13,
    Gpr::R14,
    Gpr::R15,
];
