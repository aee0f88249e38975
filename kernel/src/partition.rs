//! A partition: one guest with the CPUs, memory and devices that the configuration gives it, from
//! its building over each new beginning to its end.
//!
//! Invariant: by the time that a function may master the bus, its DMA domain is the guest's memory
//! and nothing else, and by the first entry everything that passes without an exit is the guest's.

mod devices;
mod files;
mod irqs;
mod memory;
mod shared;

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use arch::msr::{MsrPass, PortRange};
use arch::vcpu::{InterruptMode, StartState};
use arch::{ApicId, Bdf, Hpa};
use config::{Afterwards, GuestConfig};
use cpu::config_space::MachineConfigSpace;
use cpu::instructions;
use cpu::local_apic::LocalApic;
use guest::cpuid::{CpuidPolicy, Vendor};
use guest::lines::Line;
use guest::memory_map::MemoryMap;
use guest::msr::ClockBase;
use guest::pci::{Host, VirtualBus};
use guest::vm::{CpuState, Outcome, Platform, Vm};
use mem::Table;
use spin::Mutex;

use crate::backend::{Backend, VcpuParts};
use crate::bring_up::Hardware;
use crate::console::logln;
use crate::machine::GuestMachine;
use crate::monitor::Watched;
use crate::processors::Processor;
use crate::ram::GuestRam;
use crate::refusal::{Refusal, refuse};
use crate::seat::Seat;

pub(crate) use devices::functions;
use devices::{
    assign, check_ports, map_bars, port_passes, quiet_uart, reset_functions, routes, virtual_bus,
};
use files::{Files, load};
use memory::{allocate, map_ram, memory_map};
pub(crate) use shared::{Share, shared_bytes, shares};

/// The edge types of a back end, for policy.
pub(crate) struct Edge<B>(core::marker::PhantomData<B>);

impl<B: Backend> Platform for Edge<B> {
    type Vcpu = B::Cpu;
    type Machine = GuestMachine<B::Format>;
    type Memory = GuestRam;
    type Config = MachineConfigSpace;
}

/// A guest, ready to be entered.
pub(crate) struct Partition<B: Backend> {
    /// Its index in the configuration.
    pub(crate) index: usize,
    guest: GuestConfig,
    functions: Vec<Bdf>,
    shares: Vec<Share>,
    files: Files,
    map: MemoryMap,
    pub(crate) shared: Mutex<Shared<B>>,
    /// Its virtual CPUs, by index.
    pub(crate) seats: &'static [Seat],
    /// Where its boot processor begins.
    pub(crate) start: StartState,
    outcome: Mutex<Option<Outcome>>,
    vendor: Vendor,
    nested_root: Hpa,
    msr_passes: Vec<MsrPass>,
    port_passes: Vec<PortRange>,
    /// Virtual CPUs that have not left.
    present: AtomicUsize,
    /// TSC at its beginning.
    clock_base: AtomicU64,
    /// How often it was started anew.
    pub(crate) restarts: AtomicU32,
    /// What the user wants of it: nothing, [`STOP`] or [`RESTART`].
    wish: AtomicU32,
    /// It has ended and stays so.
    pub(crate) over: AtomicBool,
    /// Bytes of the machine's free memory that became its RAM.
    pub(crate) ram_bytes: u64,
}

const NO_WISH: u32 = 0;
const STOP: u32 = 1;
const RESTART: u32 = 2;

/// What the CPUs of a guest share, behind its lock.
pub(crate) struct Shared<B: Backend> {
    pub(crate) vm: Vm,
    pub(crate) machine: GuestMachine<B::Format>,
    pub(crate) ram: GuestRam,
    pub(crate) config: MachineConfigSpace,
}

impl<B: Backend> Partition<B> {
    /// Builds the partition of `guest`, whose nested table has `format`.
    pub(crate) fn build(
        format: B::Format,
        hardware: &Hardware,
        index: usize,
        guest: &GuestConfig,
        functions: &[Bdf],
        shares: Vec<Share>,
    ) -> Result<Self, Refusal> {
        let memory = hardware.memory;
        let seats = seats(hardware, guest)?;
        check_ports(guest)?;
        let files = Files::find(hardware, guest)?;
        let map = memory_map(hardware, guest);
        let before = memory.taken();
        let mut ram = allocate(hardware, guest, &map)?;
        let ram_bytes = memory.taken() - before;
        let mut nested = Table::new(format, &mut { memory })?;
        map_ram(&mut nested, memory, &ram)?;
        logln!("guest {}: nested table {}", guest.name, nested.mix(&memory));
        assign(hardware, guest, functions, &ram)?;
        let mut config = hardware.config;
        reset_functions(hardware, guest, functions, &mut config);
        quiet_uart(guest)?;
        let (mut bus, lines) = virtual_bus(guest, &map, functions, &shares, &mut config)?;
        map_bars(hardware, functions, &mut config)?;
        let routes = routes(hardware, guest, &mut bus, &lines)?;
        let port_passes = port_passes(guest, &bus);
        let nested_root = nested.root();
        let shadow = (0..2 * seats.len()).map(|_| memory.frame()).collect::<Result<_, _>>()?;
        let mut machine = GuestMachine::new(
            memory,
            nested,
            ram.clone(),
            shadow,
            hardware.apic,
            hardware.clock,
            routes,
            seats,
            index,
        );
        machine.allow_ringing(shares.iter().flat_map(|share| share.cpus.iter().copied()));
        let start = load(guest, &map, &bus, &mut ram, &files)?;
        let vm = power_on(guest, seats, bus, lines, &mut machine, &mut config);
        let vendor = Vendor::of(&machine);
        let mut msr_passes = guest::msr::passes().to_vec();
        msr_passes.extend_from_slice(eli::apic::passes(guest.interrupts));
        Ok(Self {
            index,
            guest: guest.clone(),
            functions: functions.to_vec(),
            shares,
            files,
            map,
            shared: Mutex::new(Shared { vm, machine, ram, config }),
            seats,
            start,
            outcome: Mutex::new(None),
            vendor,
            nested_root,
            msr_passes,
            port_passes,
            present: AtomicUsize::new(seats.len()),
            clock_base: AtomicU64::new(instructions::tsc()),
            restarts: AtomicU32::new(0),
            wish: AtomicU32::new(NO_WISH),
            over: AtomicBool::new(false),
            ram_bytes,
        })
    }

    /// Whether a guest that ended so begins anew.
    pub(crate) fn restarts_after(&self, outcome: Outcome) -> bool {
        let then = match outcome {
            Outcome::Reboot => self.guest.on_reboot,
            Outcome::TripleFault | Outcome::Crash => self.guest.on_crash,
            Outcome::PowerOff | Outcome::Halted | Outcome::Stopped => Afterwards::Stop,
        };
        match self.wish.load(Ordering::Acquire) {
            STOP => false,
            RESTART => true,
            _ => then == Afterwards::Restart,
        }
    }

    /// How its interrupts come.
    pub(crate) fn interrupts(&self) -> InterruptMode {
        self.guest.interrupts
    }

    /// Makes it as it was before its first instruction: devices reset, memory scrubbed and loaded.
    /// All its CPUs have left, its devices master no bus, and its routes are cut.
    pub(crate) fn restart(&self, hardware: &Hardware) -> Result<(), Refusal> {
        let mut shared = self.shared.lock();
        let Shared { vm, machine, ram, config } = &mut *shared;
        reset_functions(hardware, &self.guest, &self.functions, config);
        machine.clear_shadow_pages();
        quiet_uart(&self.guest)?;
        let (bus, lines) =
            virtual_bus(&self.guest, &self.map, &self.functions, &self.shares, config)?;
        load(&self.guest, &self.map, &bus, ram, &self.files)?;
        *vm = power_on(&self.guest, self.seats, bus, lines, machine, config);
        for seat in self.seats {
            seat.forget_requests();
        }
        self.clock_base.store(instructions::tsc(), Ordering::Relaxed);
        *self.outcome.lock() = None;
        self.present.store(self.seats.len(), Ordering::Release);
        // A wish to restart is fulfilled; one to stop that came meanwhile is not forgotten.
        let restart =
            self.wish.compare_exchange(RESTART, NO_WISH, Ordering::AcqRel, Ordering::Acquire);
        self.restarts.fetch_add(1, Ordering::AcqRel);
        if restart == Err(STOP) {
            self.end(Outcome::Stopped, LocalApic::current());
        }
        Ok(())
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&self) -> Option<Outcome> {
        *self.outcome.lock()
    }

    /// It ends so, unless it has ended already; its CPUs leave.
    pub(crate) fn end(&self, outcome: Outcome, own: LocalApic) {
        self.outcome.lock().get_or_insert(outcome);
        for seat in self.seats {
            seat.ask_to_stop(own);
        }
    }

    /// Makes a virtual CPU on the processor that calls.
    pub(crate) fn vcpu(
        &self,
        backend: &B,
        hardware: &Hardware,
        processor: &Processor,
    ) -> Result<B::Cpu, Refusal> {
        let parts = VcpuParts {
            mode: self.guest.interrupts,
            nested_root: self.nested_root,
            msr_passes: &self.msr_passes,
            port_passes: &self.port_passes,
            // One guest to a processor: nobody else uses the tag there.
            tag: 1,
            host_tss_base: processor.tss_base,
        };
        backend.vcpu(hardware.memory, &parts)
    }

    /// What policy keeps of virtual CPU `index`.
    pub(crate) fn cpu_state(&self, index: usize) -> CpuState {
        let offered = self.shared.lock().vm.cpuid.kvmclock();
        // The same on all its CPUs.
        let tsc = self.clock_base.load(Ordering::Relaxed);
        let clock = offered.then_some(ClockBase { tsc });
        CpuState::new(index, self.guest.interrupts, self.vendor, clock)
    }

    /// A virtual CPU has left; `true` if it was the last.
    pub(crate) fn one_has_left(&self) -> bool {
        self.present.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

impl<B: Backend> Watched for Partition<B> {
    fn name(&self) -> &str {
        &self.guest.name
    }

    fn seats(&self) -> &[Seat] {
        self.seats
    }

    fn outcome(&self) -> Option<Outcome> {
        self.ended()
    }

    fn stop(&self, own: LocalApic) {
        self.wish.store(STOP, Ordering::Release);
        self.end(Outcome::Stopped, own);
    }

    fn restart(&self, own: LocalApic) {
        self.wish.store(RESTART, Ordering::Release);
        self.end(Outcome::Stopped, own);
    }

    fn ram_bytes(&self) -> u64 {
        self.ram_bytes
    }

    fn functions(&self) -> &[Bdf] {
        &self.functions
    }

    fn irqs(&self) {
        self.log_irqs();
    }
}

/// APIC identifiers as the guest sees them.
fn virtual_ids(guest: &GuestConfig) -> Vec<ApicId> {
    (0..guest.cpus.len() as u32).map(ApicId).collect()
}

/// The processors of a guest. The configuration counts CPUs in the order of the MADT.
fn seats(hardware: &Hardware, guest: &GuestConfig) -> Result<&'static [Seat], Refusal> {
    const MOST_CPUS: usize = 64;
    if guest.cpus.len() > MOST_CPUS {
        return Err(refuse!(
            "nexit.toml: guest {}: cpus has {} CPUs, and {MOST_CPUS} is the most for a guest",
            guest.name,
            guest.cpus.len()
        ));
    }
    let mut seats = Vec::with_capacity(guest.cpus.len());
    for number in &guest.cpus {
        let id = hardware.cpus.get(*number as usize).filter(|id| hardware.started.contains(id));
        let id = id.ok_or_else(|| {
            refuse!(
                "nexit.toml: guest {}: cpus names CPU {number}, but the machine has {}, counted from \
                 0: choose among those",
                guest.name,
                hardware.started.len()
            )
        })?;
        seats.push(Seat::new(*id, *number));
    }
    Ok(seats.leak())
}

/// The physical CPUs of a guest.
fn processors(hardware: &Hardware, guest: &GuestConfig) -> Vec<ApicId> {
    guest.cpus.iter().filter_map(|cpu| hardware.cpus.get(*cpu as usize).copied()).collect()
}

/// The guest before its first instruction, with its functions decoding.
fn power_on<F: mem::table::Format>(
    guest: &GuestConfig,
    seats: &[Seat],
    bus: VirtualBus,
    lines: Vec<Line>,
    machine: &mut GuestMachine<F>,
    config: &mut MachineConfigSpace,
) -> Vm {
    let cpuid = CpuidPolicy::new(virtual_ids(guest), machine);
    let cpus = seats.iter().map(|seat| seat.processor).collect();
    let mut vm = Vm::new(guest.name.clone(), guest.interrupts, cpus, cpuid, bus, lines);
    let mut nobody = |_| None;
    vm.bus.attach(&mut Host { machine, config, target: &mut nobody });
    vm
}

/// Width of physical addresses (CPUID 0x80000008 EAX bits 7:0).
fn address_bits() -> u8 {
    (instructions::cpuid(0x8000_0008, 0).eax & 0xff) as u8
}
