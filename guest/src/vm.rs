//! A virtual machine: what all of its CPUs share ([`Vm`]), what one CPU has to itself
//! ([`CpuState`]), and what an exit is handled with ([`Context`]).

use alloc::string::String;
use alloc::vec::Vec;

use arch::ApicId;
use arch::machine::{ConfigSpace, GuestMemory, Machine};
use arch::vcpu::{InterruptMode, Vcpu};
use eli::{Addressing, Grants, VirtualApic};

use crate::counters::ExitCounters;
use crate::cpuid::{CpuidPolicy, Vendor};
use crate::devices::Devices;
use crate::devices::ioapic::IoApic;
use crate::exits::tick::Standstill;
use crate::lines::Line;
use crate::msr::{ClockBase, Msrs};
use crate::pci::VirtualBus;
use crate::recent::RecentExits;
use crate::shadows::Shadows;

/// The edge types of one back end, named once.
pub trait Platform {
    /// The virtual CPU.
    type Vcpu: Vcpu;
    /// The machine.
    type Machine: Machine;
    /// The guest's RAM.
    type Memory: GuestMemory;
    /// The machine's PCI configuration space.
    type Config: ConfigSpace;
}

/// What a guest's CPUs share.
pub struct Vm {
    /// Its name in the configuration.
    pub name: String,
    /// How physical interrupts meet it.
    pub mode: InterruptMode,
    /// The physical CPU behind each of its virtual ones. A virtual CPU's own APIC identifier is its
    /// index.
    pub cpus: Vec<ApicId>,
    /// The local APICs of its CPUs as the others see them.
    pub(crate) addressing: Vec<Addressing>,
    /// It was said on the console that one of them is used in xAPIC mode.
    pub(crate) xapic_said: bool,
    /// What CPUID says.
    pub cpuid: CpuidPolicy,
    /// The devices that every PC has.
    pub devices: Devices,
    /// Its I/O APIC.
    pub io_apic: IoApic,
    /// Its PCI bus.
    pub bus: VirtualBus,
    /// The physical lines that drive inputs of its I/O APIC.
    pub lines: Vec<Line>,
    /// The vectors that may reach its CPUs directly.
    pub grants: Grants,
    /// The IDTs that its CPUs have loaded.
    pub(crate) shadows: Shadows,
    /// CPUs that run (bit n for CPU n), and those of them that have halted for good.
    pub(crate) started: u64,
    pub(crate) standing: u64,
    /// The level that the console's interrupt line had last.
    pub(crate) uart_line: bool,
    /// So many of the things that the guest can repeat at will have been logged.
    pub(crate) notes: u8,
    /// A crash is worth a sentence only: the log has the state of the same crash already.
    pub terse: bool,
}

impl Vm {
    /// A guest with its devices, before its first instruction.
    #[must_use]
    pub fn new(
        name: String,
        mode: InterruptMode,
        cpus: Vec<ApicId>,
        cpuid: CpuidPolicy,
        bus: VirtualBus,
        lines: Vec<Line>,
    ) -> Self {
        Self {
            name,
            mode,
            grants: Grants::new(),
            shadows: Shadows::new(cpus.len()),
            started: 1,
            standing: 0,
            addressing: (0..cpus.len())
                .map(|cpu| VirtualApic::new(mode, ApicId(cpu as u32), false).addressing())
                .collect(),
            xapic_said: false,
            cpus,
            cpuid,
            devices: Devices::default(),
            io_apic: IoApic::default(),
            bus,
            lines,
            uart_line: false,
            notes: 0,
            terse: false,
        }
    }
}

/// What one virtual CPU has to itself.
pub struct CpuState {
    /// Its index in the guest.
    pub index: usize,
    /// Its local APIC.
    pub apic: VirtualApic,
    pub(crate) msrs: Msrs,
    /// Its exits.
    pub counters: ExitCounters,
    /// The last of them.
    pub(crate) recent: RecentExits,
    pub(crate) standstill: Standstill,
}

impl CpuState {
    /// CPU `index` of a guest, after reset. `now` is the TSC at the guest's start.
    #[must_use]
    pub fn new(
        index: usize,
        mode: InterruptMode,
        vendor: Vendor,
        clock: Option<ClockBase>,
    ) -> Self {
        let bootstrap = index == 0;
        Self {
            index,
            apic: VirtualApic::new(mode, ApicId(index as u32), bootstrap),
            msrs: Msrs::new(vendor, bootstrap, clock),
            counters: ExitCounters::new(),
            recent: RecentExits::default(),
            standstill: Standstill::default(),
        }
    }
}

/// Everything that an exit is handled with.
pub struct Context<'a, P: Platform> {
    /// The guest.
    pub vm: &'a mut Vm,
    /// The CPU that exited.
    pub cpu: &'a mut CpuState,
    /// Its registers.
    pub vcpu: &'a mut P::Vcpu,
    /// The machine.
    pub machine: &'a mut P::Machine,
    /// The guest's RAM.
    pub memory: &'a mut P::Memory,
    /// Configuration space.
    pub config: &'a mut P::Config,
}

/// How a guest ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It switched itself off.
    PowerOff,
    /// It asked to be restarted.
    Reboot,
    /// A triple fault.
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
    /// The guest has ended.
    End(Outcome),
}
