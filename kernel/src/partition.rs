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

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use arch::address::PAGE_SIZE;
use arch::iommu::DomainId;
use arch::vcpu::{InterruptMode, StartState};
use arch::{ApicId, Bdf, Hpa};
use config::{Afterwards, GuestConfig};
use cpu::config_space::MachineConfigSpace;
use cpu::instructions;
use cpu::local_apic::LocalApic;
use guest::cpuid::CpuidPolicy;
use guest::crashes::Crashes;
use guest::lines::Line;
use guest::memory_map::MemoryMap;
use guest::pci::{Host, VirtualBus};
use guest::vm::{CpuState, Guest, Outcome, Platform, Vm};
use mem::{Mix, Table, TableMemory};
use spin::Mutex;
use vmx::{PidPointers, PostedInterrupts, Posting};

use crate::backend::{Backend, VcpuParts};
use crate::bring_up::Hardware;
use crate::console::logln;
use crate::machine::{GuestMachine, Tables};
use crate::memory::out_of_memory;
use crate::monitor::Watched;
use crate::processors::Processor;
use crate::ram::GuestRam;
use crate::refusal::{Refusal, refuse};
use crate::seat::Seat;
use crate::{run, watchdog};

pub(crate) use devices::functions;
use devices::{
    assign, check_function, check_ports, map_bars, port_passes, quiet_uart, release,
    reset_functions, routes, virtual_bus,
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

/// What a guest is made from, the same in all its lives.
struct Plan {
    hardware: &'static Hardware,
    /// Its index in the configuration.
    index: usize,
    guest: GuestConfig,
    functions: Vec<Bdf>,
    shares: Vec<Share>,
    files: Files,
    map: MemoryMap,
    seats: &'static [Seat],
}

/// A guest, from its first life to its last.
pub(crate) struct Partition<B: Backend> {
    plan: Plan,
    pub(crate) shared: Mutex<Box<Shared<B>>>,
    outcome: Mutex<Option<Outcome>>,
    /// Virtual CPUs that have not left.
    present: AtomicUsize,
    /// TSC at its beginning.
    clock_base: AtomicU64,
    /// How often it has begun.
    pub(crate) lives: AtomicU32,
    /// What the user wants of it: nothing, [`STOP`], [`RESTART`] or [`START`].
    wish: AtomicU32,
    /// It has ended and stays so until it is started.
    pub(crate) over: AtomicBool,
    crashes: Mutex<Crashes>,
    /// Bytes of its RAM, and how many of them are from the free memory.
    ram_bytes: AtomicU64,
    pooled_bytes: AtomicU64,
    /// The pages that its nested table began with.
    pub(crate) mix: Mix,
}

const NO_WISH: u32 = 0;
const STOP: u32 = 1;
const RESTART: u32 = 2;
const START: u32 = 3;

/// What a guest has for one life, behind its lock. All of it is given back at the life's end.
pub(crate) struct Shared<B: Backend> {
    /// What its CPUs look at without the lock.
    pub(crate) policy: Arc<Guest>,
    pub(crate) vm: Vm,
    pub(crate) machine: GuestMachine<B::Format>,
    pub(crate) ram: GuestRam,
    pub(crate) config: MachineConfigSpace,
    /// Where its boot processor begins.
    start: StartState,
    /// ICR writes pass in the bitmaps.
    virtual_ipis: bool,
    /// The bitmaps of all its virtual CPUs.
    bitmaps: Hpa,
    /// Each virtual CPU's memory.
    cpus: Vec<Hpa>,
    domain: Option<DomainId>,
}

impl<B: Backend> Shared<B> {
    /// Makes a guest as it is before its first instruction, in `ram`, which is scrubbed.
    /// In a box: it is too large for a processor's stack.
    fn new(plan: &Plan, ram: &GuestRam) -> Result<Box<Self>, Refusal> {
        let Plan { hardware, index, guest, functions, shares, files, map, seats } = plan;
        let memory = hardware.memory;
        let mut ram = ram.clone();
        let mut nested = Table::new(B::check(guest.interrupts)?, &mut { memory })?;
        map_ram(&mut nested, memory, &ram)?;
        let domain = assign(hardware, functions, &ram)?;
        let mut config = hardware.config;
        quiet_uart(guest)?;
        // The machine has one.
        let timer = (*index == 0 && guest.pit).then_some(guest::devices::pit::GSI);
        let (mut bus, lines) = virtual_bus(guest, map, functions, shares, timer, &mut config)?;
        let routes = routes(hardware, guest, &mut bus, &lines)?;
        let bitmaps = memory.frames(B::BITMAP_BYTES)?;
        let mut msr_passes = [guest::msr::passes(), eli::apic::passes(guest.interrupts)].concat();
        let virtual_ipis = B::virtualizes_ipis(guest.interrupts);
        msr_passes.extend(virtual_ipis.then_some(eli::apic::VIRTUAL_ICR));
        B::set_bitmaps(bitmaps, &msr_passes, &port_passes(hardware, guest, &bus));
        let shadow = (0..2 * seats.len()).map(|_| memory.frame()).collect::<Result<_, _>>()?;
        let cpus = seats.iter().map(|_| memory.frames(B::CPU_BYTES)).collect::<Result<_, _>>()?;
        let mut machine = GuestMachine {
            memory,
            ram: ram.clone(),
            tables: Tables::new(nested, shadow, routes),
            nested_changed: false,
            apic: hardware.apic,
            clock: hardware.clock,
            seats,
            ringable: shares.iter().flat_map(|share| share.cpus.iter().copied()).collect(),
            guest: *index,
        };
        let legacy = guest::lines::legacy(&lines);
        let start = load(guest, map, &bus, legacy, &mut ram, files, hardware.pm_timer)?;
        let processors = seats.iter().map(|seat| seat.processor).collect();
        let cpuid = CpuidPolicy::new(virtual_ids(guest), &machine);
        let policy = Guest::new(guest.name.clone(), guest.interrupts, processors, cpuid);
        let policy = Arc::new(policy);
        let vm = power_on(seats, bus, lines, &mut machine, &mut config);
        Ok(Box::new(Self {
            policy,
            vm,
            machine,
            ram,
            config,
            start,
            virtual_ipis,
            bitmaps,
            cpus,
            domain,
        }))
    }

    /// Takes everything back but the RAM, which is returned as the guest left it. All its CPUs have
    /// left.
    fn give_back(&mut self, plan: &Plan) -> GuestRam {
        let Plan { hardware, guest, functions, .. } = plan;
        let mut nobody = |_| None;
        let Self { vm, machine, config, .. } = self;
        vm.bus.detach(&mut Host { machine, config, target: &mut nobody });
        reset_functions(hardware, guest, functions, config);
        let released = self.domain.take().map(|domain| release(hardware, functions, domain));
        if let Some(Err(error)) = released {
            logln!("guest {}: its DMA domain is kept: {error}", guest.name);
        }
        self.machine.give_back();
        let mut memory = hardware.memory;
        let cpus = self.cpus.drain(..).map(|at| (at, B::CPU_BYTES));
        for (at, bytes) in cpus.chain([(self.bitmaps, B::BITMAP_BYTES)]) {
            for page in 0..bytes / PAGE_SIZE {
                memory.give_back(at.wrapping_add(page * PAGE_SIZE));
            }
        }
        core::mem::take(&mut self.ram)
    }
}

impl Plan {
    /// What the CPU that works on a guest's memory for a while does now and then.
    fn look_after(&self) {
        watchdog::look_after(self.hardware, LocalApic::current());
    }

    /// Memory for the guest, scrubbed.
    fn allocate(&self) -> Result<GuestRam, Refusal> {
        let mut ram = allocate(self.hardware, &self.guest, &self.map)?;
        ram.scrub(|| self.look_after());
        Ok(ram)
    }
}

impl<B: Backend> Partition<B> {
    /// Builds the partition of `guest`, ready for its first life.
    pub(crate) fn build(
        hardware: &'static Hardware,
        index: usize,
        guest: &GuestConfig,
        functions: &[Bdf],
        shares: Vec<Share>,
    ) -> Result<Self, Refusal> {
        let seats = seats(hardware, guest)?;
        check_ports(guest)?;
        let plan = Plan {
            hardware,
            index,
            guest: guest.clone(),
            functions: functions.to_vec(),
            shares,
            files: Files::find(hardware, guest)?,
            map: memory_map(hardware, guest),
            seats,
        };
        let ram = plan.allocate()?;
        for function in functions {
            check_function(hardware, guest, *function)?;
        }
        let mut config = hardware.config;
        reset_functions(hardware, guest, functions, &mut config);
        map_bars(hardware, functions, &mut config)?;
        let shared = Shared::<B>::new(&plan, &ram)?;
        let mix = shared.machine.tables.lock().nested.mix(&hardware.memory);
        logln!("guest {}: nested table {mix}", guest.name);
        if shared.virtual_ipis {
            logln!("guest {}: IPI virtualization: used", guest.name);
        }
        let (ram_bytes, pooled_bytes) = ram.size();
        Ok(Self {
            plan,
            shared: Mutex::new(shared),
            outcome: Mutex::new(None),
            present: AtomicUsize::new(seats.len()),
            clock_base: AtomicU64::new(instructions::tsc()),
            lives: AtomicU32::new(1),
            wish: AtomicU32::new(NO_WISH),
            over: AtomicBool::new(false),
            crashes: Mutex::new(Crashes::default()),
            ram_bytes: AtomicU64::new(ram_bytes),
            pooled_bytes: AtomicU64::new(pooled_bytes),
            mix,
        })
    }

    /// Its virtual CPUs, by index.
    pub(crate) fn seats(&self) -> &'static [Seat] {
        self.plan.seats
    }

    /// Its index in the configuration.
    pub(crate) fn index(&self) -> usize {
        self.plan.index
    }

    /// Whether a guest that ended so would begin anew, whatever the user wishes.
    pub(crate) fn may_restart_after(&self, outcome: Outcome) -> bool {
        let then = match outcome {
            Outcome::Reboot => self.plan.guest.on_reboot,
            Outcome::TripleFault | Outcome::Crash => self.plan.guest.on_crash,
            Outcome::PowerOff | Outcome::Halted | Outcome::Stopped => Afterwards::Stop,
        };
        then == Afterwards::Restart
    }

    /// Whether it begins anew.
    pub(crate) fn restarts_after(&self, outcome: Outcome) -> bool {
        match self.wish.load(Ordering::Acquire) {
            STOP => false,
            RESTART => true,
            _ => self.may_restart_after(outcome),
        }
    }

    /// How its interrupts come.
    pub(crate) fn interrupts(&self) -> InterruptMode {
        self.plan.guest.interrupts
    }

    /// Milliseconds to wait before it begins anew, after a life that ended so.
    pub(crate) fn pause(&self, outcome: Outcome) -> u64 {
        let crashed = matches!(outcome, Outcome::TripleFault | Outcome::Crash)
            && self.wish.load(Ordering::Acquire) != RESTART;
        let life = instructions::tsc().wrapping_sub(self.clock_base.load(Ordering::Relaxed));
        let life_ms = life / self.plan.hardware.clock.tsc_khz.max(1);
        self.crashes.lock().life_ended(crashed, life_ms)
    }

    /// The end of a life, once all its CPUs have left: everything is given back but the RAM, which
    /// is scrubbed.
    pub(crate) fn end_life(&self) -> GuestRam {
        let mut ram = self.shared.lock().give_back(&self.plan);
        ram.scrub(|| self.plan.look_after());
        ram
    }

    /// Gives the RAM of an ended life back: the guest is over.
    pub(crate) fn give_back(&self, ram: GuestRam) {
        ram.give_back(self.plan.hardware.memory);
        self.ram_bytes.store(0, Ordering::Relaxed);
        self.pooled_bytes.store(0, Ordering::Relaxed);
    }

    /// Begins a new life, in the RAM of the last one or in new RAM.
    pub(crate) fn begin_life(&self, ram: Option<GuestRam>) -> Result<(), Refusal> {
        let ram = ram.map_or_else(|| self.plan.allocate(), Ok)?;
        let mut shared = match Shared::new(&self.plan, &ram) {
            Ok(shared) => shared,
            Err(refusal) => {
                self.give_back(ram);
                return Err(refusal);
            }
        };
        shared.vm.terse = self.crashes.lock().in_a_row();
        *self.shared.lock() = shared;
        let (ram_bytes, pooled_bytes) = ram.size();
        self.ram_bytes.store(ram_bytes, Ordering::Relaxed);
        self.pooled_bytes.store(pooled_bytes, Ordering::Relaxed);
        for seat in self.seats() {
            seat.forget_requests();
        }
        self.clock_base.store(instructions::tsc(), Ordering::Relaxed);
        *self.outcome.lock() = None;
        self.present.store(self.seats().len(), Ordering::Release);
        self.over.store(false, Ordering::Release);
        self.lives.fetch_add(1, Ordering::AcqRel);
        // A wish to begin is fulfilled; one to stop that came meanwhile is not forgotten.
        let granted = |wish| (wish != STOP).then_some(NO_WISH);
        if self.wish.fetch_update(Ordering::AcqRel, Ordering::Acquire, granted).is_err() {
            self.end(Outcome::Stopped, LocalApic::current());
        }
        Ok(())
    }

    /// It shall be started: `false` where that was asked for already.
    pub(crate) fn shall_start(&self) -> bool {
        *self.crashes.lock() = Crashes::default();
        self.wish.swap(START, Ordering::AcqRel) != START
    }

    /// It could not be started: it stays over.
    pub(crate) fn not_started(&self) {
        self.wish.store(NO_WISH, Ordering::Release);
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&self) -> Option<Outcome> {
        *self.outcome.lock()
    }

    /// It was stopped while it waited to begin anew.
    pub(crate) fn stopped_instead(&self) -> Outcome {
        *self.outcome.lock().insert(Outcome::Stopped)
    }

    /// It ends so, unless it has ended already; its CPUs leave.
    pub(crate) fn end(&self, outcome: Outcome, own: LocalApic) {
        self.outcome.lock().get_or_insert(outcome);
        for seat in self.seats() {
            seat.ask_to_stop(own);
        }
    }

    /// Switches virtualization on on the processor that calls, and makes virtual CPU `index` there.
    pub(crate) fn vcpu(&self, index: usize, processor: &Processor) -> Result<(B, B::Cpu), Refusal> {
        let shared = self.shared.lock();
        let memory = *shared.cpus.get(index).ok_or_else(out_of_memory)?;
        let backend = B::enable(memory)?;
        let parts = VcpuParts {
            mode: self.plan.guest.interrupts,
            nested_root: shared.machine.tables.lock().nested.root(),
            virtual_ipis: shared.virtual_ipis,
            bitmaps: shared.bitmaps,
            memory,
            // One guest to a processor: nobody else uses the tag there.
            tag: 1,
            host_tss_base: processor.tss_base,
            posted: self.plan.seats.get(index).and_then(|seat| seat.posted),
        };
        let vcpu = backend.vcpu(&parts)?;
        Ok((backend, vcpu))
    }

    /// Where its first CPU begins.
    pub(crate) fn start_state(&self) -> StartState {
        self.shared.lock().start
    }

    /// What the CPU with local APIC `apic` handles its exits with, the lock aside.
    pub(crate) fn own(
        &self,
        apic: LocalApic,
    ) -> (Arc<Guest>, GuestMachine<B::Format>, MachineConfigSpace) {
        let shared = self.shared.lock();
        (shared.policy.clone(), shared.machine.on(apic), shared.config)
    }

    /// What policy keeps of virtual CPU `index`.
    pub(crate) fn cpu_state(&self, index: usize) -> CpuState {
        let shared = self.shared.lock();
        // The same on all its CPUs.
        let now = self.clock_base.load(Ordering::Relaxed);
        CpuState::new(index, &shared.policy, now, &shared.machine)
    }

    /// A virtual CPU has left; `true` if it was the last.
    pub(crate) fn one_has_left(&self) -> bool {
        self.present.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

impl<B: Backend> Watched for Partition<B> {
    fn name(&self) -> &str {
        &self.plan.guest.name
    }

    fn seats(&self) -> &[Seat] {
        self.plan.seats
    }

    fn outcome(&self) -> Option<Outcome> {
        self.ended()
    }

    fn start(&'static self) {
        run::start(self.plan.hardware, self);
    }

    fn stop(&self, own: LocalApic) {
        self.wish.store(STOP, Ordering::Release);
        self.end(Outcome::Stopped, own);
    }

    fn restart(&'static self, own: LocalApic) {
        if self.over.load(Ordering::Acquire) {
            return self.start();
        }
        self.wish.store(RESTART, Ordering::Release);
        self.end(Outcome::Stopped, own);
    }

    fn ram_bytes(&self) -> u64 {
        self.ram_bytes.load(Ordering::Relaxed)
    }

    fn pooled_bytes(&self) -> u64 {
        self.pooled_bytes.load(Ordering::Relaxed)
    }

    fn functions(&self) -> &[Bdf] {
        &self.plan.functions
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
    let posted = guest.interrupts == InterruptMode::Posted;
    let table = posted.then(|| &*Box::<PidPointers>::leak(Box::default()));
    for (index, number) in guest.cpus.iter().enumerate() {
        let id = hardware.cpus.get(*number as usize).filter(|id| hardware.started.contains(id));
        let id = id.ok_or_else(|| {
            refuse!(
                "nexit.toml: guest {}: cpus names CPU {number}, but the machine has {}, counted from \
                 0: choose among those",
                guest.name,
                hardware.started.len()
            )
        })?;
        let posting = table.map(|table| {
            let descriptor = Box::leak(Box::new(PostedInterrupts::new(*id)));
            Posting { descriptor, table, index }
        });
        seats.push(Seat::new(*id, *number, posting));
    }
    Ok(seats.leak())
}

/// The physical CPUs of a guest.
fn processors(hardware: &Hardware, guest: &GuestConfig) -> Vec<ApicId> {
    guest.cpus.iter().filter_map(|cpu| hardware.cpus.get(*cpu as usize).copied()).collect()
}

/// The guest before its first instruction, with its functions decoding.
fn power_on<F: mem::table::Format>(
    seats: &[Seat],
    bus: VirtualBus,
    lines: Vec<Line>,
    machine: &mut GuestMachine<F>,
    config: &mut MachineConfigSpace,
) -> Vm {
    let mut vm = Vm::new(seats.len(), bus, lines);
    let mut nobody = |_| None;
    vm.bus.attach(&mut Host { machine, config, target: &mut nobody });
    vm
}

/// Width of physical addresses (CPUID 0x80000008 EAX bits 7:0).
fn address_bits() -> u8 {
    (instructions::cpuid(0x8000_0008, 0).eax & 0xff) as u8
}
