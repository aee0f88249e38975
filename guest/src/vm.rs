//! A virtual machine: what all of its CPUs look at without a lock ([`Guest`]), what they share behind
//! one ([`Vm`]), what one CPU has to itself ([`CpuState`]), and what an exit is handled with
//! ([`Context`]).

use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use arch::ApicId;
use arch::machine::{ConfigSpace, GuestMemory, Machine};
use arch::vcpu::{InterruptMode, Vcpu};
use eli::{Addressing, Destination, Grants, VirtualApic};

use crate::bus_locks::BusLocks;
use crate::counters::ExitCounters;
use crate::cpuid::{Answers, CpuidPolicy};
use crate::devices::Devices;
use crate::devices::ioapic::IoApic;
use crate::exits::legacy::Legacy;
use crate::exits::step::Step;
use crate::exits::tick::HaltDetector;
use crate::exits::waits::WaitDetector;
use crate::lines::{self, Line};
use crate::load::ApicStart;
use crate::msr::{ClockBase, Msrs};
use crate::pci::VirtualBus;
use crate::recent::RecentExits;
use crate::shadows::Shadows;

/// Maximum number of log lines per generation for events that a guest can repeat at will.
pub(crate) const MAX_LOGGED: u8 = 8;

/// The edge types of one back end, named once.
pub trait Platform {
    /// The virtual CPU.
    type Vcpu: Vcpu;
    type Machine: Machine;
    /// The guest's RAM.
    type Memory: GuestMemory;
    /// PCI configuration space of the guest's own functions.
    type Config: ConfigSpace;
}

/// What a guest's CPUs look at without a lock: it never changes, or is atomic.
pub struct Guest {
    /// Its name in the configuration.
    pub name: String,
    /// How physical interrupts meet it.
    pub mode: InterruptMode,
    /// The physical CPU behind each of its virtual ones. A virtual CPU's own APIC identifier is its
    /// index.
    pub cpus: Vec<ApicId>,
    /// The local APICs of its CPUs as the others see them.
    pub(crate) addressing: Vec<AtomicU64>,
    /// What CPUID says.
    pub cpuid: CpuidPolicy,
    /// How its local APICs begin.
    pub(crate) apics: ApicStart,
    /// The vectors that may reach its CPUs directly.
    pub grants: Grants,
    /// CPUs that run (bit n for CPU n).
    pub(crate) started: AtomicU64,
}

impl Guest {
    /// A guest before its first instruction.
    #[must_use]
    pub fn new(name: String, mode: InterruptMode, cpus: Vec<ApicId>, cpuid: CpuidPolicy) -> Self {
        let addressing = cpus.iter().map(|_| AtomicU64::default()).collect();
        let (grants, started) = (Grants::new(), AtomicU64::default());
        let apics = ApicStart::default();
        let guest = Self { name, mode, cpus, addressing, cpuid, apics, grants, started };
        guest.reset();
        guest
    }

    /// The same with local APICs that begin so.
    #[must_use]
    pub fn with_apics(self, apics: ApicStart) -> Self {
        let guest = Self { apics, ..self };
        guest.reset();
        guest
    }

    /// The local APIC of a CPU after reset.
    fn apic(&self, cpu: usize, bootstrap: bool) -> VirtualApic {
        let apic = VirtualApic::new(self.mode, ApicId(cpu as u32), bootstrap);
        let apic = if self.cpuid.has_deadlines() { apic } else { apic.without_deadlines() };
        let apic = if self.apics.xapic { apic.in_xapic_mode() } else { apic };
        if self.apics.virtual_wire && bootstrap { apic.in_virtual_wire_mode() } else { apic }
    }

    /// It restarts. None of its CPUs runs.
    pub fn reset(&self) {
        self.grants.clear();
        self.started.store(1, Ordering::Release);
        for cpu in 0..self.cpus.len() {
            self.set_addressing(cpu, self.apic(cpu, false).addressing());
        }
    }

    /// Whether only one of its CPUs runs.
    pub(crate) fn runs_alone(&self) -> bool {
        self.started.load(Ordering::Acquire).count_ones() == 1
    }

    /// Which interrupts the local APIC of CPU `cpu` takes, as it said last.
    #[inline]
    pub(crate) fn addressing(&self, cpu: usize) -> Option<Addressing> {
        let place = self.addressing.get(cpu)?;
        Some(Addressing::from_bits(place.load(Ordering::Acquire)))
    }

    /// Its CPUs that a destination names (bit n for CPU n).
    #[inline(always)]
    pub(crate) fn named(&self, destination: Destination, sender: usize) -> u64 {
        // Most name one CPU, and an identifier is an index.
        if let Destination::Physical(ApicId(id)) = destination
            && (id as usize) < self.cpus.len()
        {
            return 1 << (id & 63);
        }
        self.all_named(destination, sender)
    }

    #[inline(never)]
    fn all_named(&self, destination: Destination, sender: usize) -> u64 {
        let named = |cpu: &usize| {
            let apic = self.addressing(*cpu);
            apic.is_some_and(|apic| apic.accepts(destination, *cpu == sender))
        };
        (0..self.cpus.len().min(64)).filter(named).fold(0, |set, cpu| set | 1 << cpu)
    }

    pub(crate) fn set_addressing(&self, cpu: usize, apic: Addressing) {
        if let Some(place) = self.addressing.get(cpu) {
            place.store(apic.bits(), Ordering::Release);
        }
    }
}

/// What a guest's CPUs share, behind the guest's lock.
pub struct Vm {
    /// The devices that every PC has.
    pub devices: Devices,
    /// Its I/O APIC.
    pub io_apic: IoApic,
    /// Its PCI bus.
    pub bus: VirtualBus,
    /// The physical lines that drive inputs of its I/O APIC.
    pub lines: Vec<Line>,
    /// The IDTs that its CPUs have loaded.
    pub(crate) shadows: Shadows,
    /// A vector from 32 on has come to one of its CPUs.
    pub(crate) interrupted: bool,
    /// The log already says that a local APIC is used in xAPIC mode.
    pub(crate) xapic_said: bool,
    /// CPUs that have halted for good (bit n for CPU n).
    pub(crate) halted_cpus: u64,
    /// What is between its 8259s and its first CPU.
    pub(crate) legacy: Legacy,
    /// The level that the console's interrupt line had last.
    pub(crate) uart_line: bool,
    /// Number of such lines logged so far.
    pub(crate) logged: u8,
    /// Log one line per crash: the log already has the registers of such a crash.
    pub crash_logged: bool,
}

impl Vm {
    /// The devices of a guest of `cpus` CPUs, before its first instruction.
    #[must_use]
    pub fn new(cpus: usize, bus: VirtualBus, lines: Vec<Line>) -> Self {
        Self {
            shadows: Shadows::new(cpus),
            interrupted: false,
            halted_cpus: 0,
            xapic_said: false,
            devices: Devices::new(lines::legacy(&lines)),
            io_apic: IoApic::new(lines::inputs(&lines)),
            bus,
            lines,
            legacy: Legacy::default(),
            uart_line: false,
            logged: 0,
            crash_logged: false,
        }
    }

    /// Called when the log of the previous, short generations already says everything. From here on it only says
    /// how the generation ends.
    pub fn be_quiet(&mut self) {
        self.xapic_said = true;
        self.legacy.be_quiet();
        self.logged = MAX_LOGGED;
        self.bus.be_quiet();
    }
}

/// What one virtual CPU has to itself.
pub struct CpuState {
    /// Its index in the guest.
    pub index: usize,
    /// Its local APIC.
    pub apic: VirtualApic,
    pub(crate) msrs: Msrs,
    pub(crate) cpuid: Answers,
    /// Its exits.
    pub counters: ExitCounters,
    /// The last of them.
    pub recent: RecentExits,
    /// It has ended in a way that only its registers explain: they are to be logged.
    pub last_words: bool,
    pub(crate) halt_detector: HaltDetector,
    pub(crate) wait_detector: WaitDetector,
    /// The TSC at the guest's start.
    pub(crate) began: u64,
    /// An interrupt of the 8259s waits until it can be taken here.
    pub(crate) legacy_waits: bool,
    pub(crate) bus_locks: BusLocks,
    /// It stands at a HLT that ended in an exit and that the CPU is to carry out.
    pub(crate) halting: bool,
    /// The limit of the IDTR that the guest has loaded, while the CPU's own ends behind the exceptions.
    pub idt_limit: Option<u16>,
    /// What it does by itself, with other pages in place of those that exit.
    pub step: Step,
    /// Where it exited last with bytes that are not what exited.
    pub(crate) stuck: Option<Stuck>,
    /// Breakpoints that the instruction that is carried out for it has met, bit n for DRn.
    pub(crate) met: u8,
}

/// A CPU at an instruction that it does not come past.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stuck {
    pub(crate) at: Standstill,
    /// How often it has exited so.
    pub(crate) tries: u8,
    /// The TSC at the first of them.
    pub(crate) since: u64,
}

/// An instruction that the guest has not come past: with another register, it has executed something since.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Standstill {
    pub(crate) rip: u64,
    pub(crate) bytes: [u8; insn::MAX_LENGTH],
    pub(crate) registers: [u64; 16],
}

impl CpuState {
    /// CPU `index` of a guest, after reset. `now` is the TSC at the guest's start.
    #[must_use]
    pub fn new(index: usize, guest: &Guest, now: u64, machine: &impl Machine) -> Self {
        let bootstrap = index == 0;
        let clock = guest.cpuid.kvmclock().then_some(ClockBase { tsc: now });
        Self {
            index,
            apic: guest.apic(index, bootstrap),
            msrs: Msrs::new(guest.cpuid.vendor(), clock, guest.cpuid.xsaves(machine)),
            cpuid: Answers::new(&guest.cpuid, index, machine),
            counters: ExitCounters::new(),
            recent: RecentExits::default(),
            last_words: false,
            halt_detector: HaltDetector::default(),
            wait_detector: WaitDetector::default(),
            began: now,
            legacy_waits: false,
            bus_locks: BusLocks::default(),
            halting: false,
            idt_limit: None,
            step: Step::default(),
            stuck: None,
            met: 0,
        }
    }
}

/// The lock that a guest's [`Vm`] is behind.
pub trait VmLock {
    /// Does `work` with it held.
    fn with<T>(&self, work: impl FnOnce(&mut Vm) -> T) -> T;
}

/// Everything that an exit is handled with: `V` is the guest's [`Vm`], or the lock that it is behind.
pub struct Context<'a, P: Platform, V = &'a mut Vm> {
    pub guest: &'a Guest,
    /// What its CPUs share.
    pub vm: V,
    /// The CPU that exited.
    pub cpu: &'a mut CpuState,
    /// Its registers.
    pub vcpu: &'a mut P::Vcpu,
    pub machine: &'a mut P::Machine,
    /// The guest's RAM.
    pub memory: &'a mut P::Memory,
    /// Configuration space.
    pub config: &'a mut P::Config,
}

impl<P: Platform, L: VmLock> Context<'_, P, &L> {
    /// The same once more, for a handler of a rare exit: it is put together in memory for that one alone, and for the
    /// frequent ones, which are inlined, not at all.
    #[inline(always)]
    pub(crate) fn again(&mut self) -> Context<'_, P, &L> {
        Context {
            guest: self.guest,
            vm: self.vm,
            cpu: self.cpu,
            vcpu: self.vcpu,
            machine: self.machine,
            memory: self.memory,
            config: self.config,
        }
    }

    /// Does `work` with the guest's lock held. What CPUs have cached of the nested table is dropped where `work` has
    /// changed it.
    #[inline(always)]
    pub fn locked<T>(&mut self, work: impl FnOnce(&mut Context<'_, P>) -> T) -> T {
        self.again().into_locked(work)
    }

    #[inline(never)]
    fn into_locked<T>(self, work: impl FnOnce(&mut Context<'_, P>) -> T) -> T {
        let Self { guest, vm, cpu, vcpu, machine, memory, config } = self;
        vm.with(|vm| {
            let mut context = Context { guest, vm, cpu, vcpu, machine, memory, config };
            let result = work(&mut context);
            if context.machine.nested_changed() {
                context.vcpu.flush_nested();
            }
            result
        })
    }
}

/// How a guest ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It switched itself off.
    PowerOff,
    /// It asked to be restarted.
    Reboot,
    TripleFault,
    /// The user stopped it.
    Stopped,
    /// It halted for good: HLT with interrupts off.
    Halted,
    /// It did something that cannot be carried out; the sentence is on the console.
    Crash,
}

impl Outcome {
    /// The word in reports.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::PowerOff => "poweroff",
            Self::Reboot => "reboot",
            Self::TripleFault => "triple_fault",
            Self::Stopped => "stopped",
            Self::Halted => "halted",
            Self::Crash => "crash",
        }
    }
}

/// What comes after an exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Next {
    /// The guest goes on.
    Resume,
    /// The CPU makes a step of its own ([`crate::exits::step`]).
    Step,
    /// The guest has ended.
    End(Outcome),
}
