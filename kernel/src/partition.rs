//! A partition: one guest with the CPUs, memory and devices that the configuration gives it, from
//! its building over each new beginning to its end.
//!
//! Invariant: by the time that a function may master the bus, its DMA domain is the guest's memory
//! and nothing else, and by the first entry everything that passes without an exit is the guest's.

mod build;
mod devices;
mod files;
mod irqs;
mod lives;
mod memory;
mod planned;
mod seats;
mod shared;

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use arch::Bdf;
use arch::vcpu::{InterruptMode, StartState};
use config::GuestConfig;
use cpu::config_space::MachineConfigSpace;
use cpu::instructions;
use cpu::local_apic::LocalApic;
use guest::memory_map::MemoryMap;
use guest::short_lives::ShortLives;
use guest::vm::{CpuState, Guest, Outcome, Platform};
use mem::Mix;
use spin::Mutex;

use crate::backend::{Backend, VcpuParts};
use crate::console::logln;
use crate::hardware::Hardware;
use crate::housekeeping;
use crate::machine::GuestMachine;
use crate::memory::out_of_memory;
use crate::processors::{self, Processor};
use crate::ram::{GuestRam, Scrubbing};
use crate::refusal::Refusal;
use crate::seat::Seat;

use build::Shared;
use devices::{map_bars, reset_functions};
use files::Files;
use lives::NO_WISH;
use memory::{allocate, memory_map};
pub(crate) use planned::planned;
use seats::seats;
pub(crate) use shared::{Share, shares};

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
    /// What the user wants of it: the values are in [`lives`].
    wish: AtomicU32,
    /// It has ended and stays so until it is started.
    pub(crate) over: AtomicBool,
    short_lives: Mutex<ShortLives>,
    /// Its CPUs help with that between two lives.
    scrubbing: Mutex<Option<Arc<Scrubbing>>>,
    /// Bytes of its RAM.
    ram_bytes: AtomicU64,
    /// The pages that its nested table began with.
    pub(crate) mix: Mix,
}

impl Plan {
    /// What the CPU that works on a guest's memory for a while does now and then.
    fn look_after(&self) {
        housekeeping::attend(self.hardware, LocalApic::current());
    }

    /// Memory for the guest, scrubbed by all its CPUs, none of which has a job yet, and by the one that
    /// calls.
    fn allocate(&self) -> Result<GuestRam, Refusal> {
        let ram = allocate(self.hardware, &self.guest, &self.map)?;
        self.say_scrubbing(&ram);
        let work = Arc::new(Scrubbing::new(ram.clone()));
        let own = LocalApic::current().id();
        let others = || self.seats.iter().map(|seat| seat.processor).filter(move |id| *id != own);
        for id in others() {
            let work = work.clone();
            processors::assign(
                id,
                Box::new(move |_| {
                    work.help(|| {});
                    processors::set_busy(id, false);
                }),
            );
        }
        work.help(|| self.look_after());
        for id in others() {
            // One that has not begun need not.
            if processors::take_job(id).is_some() {
                processors::set_busy(id, false);
            }
            while processors::is_busy(id) {
                core::hint::spin_loop();
            }
        }
        work.wait(|| self.look_after());
        Ok(ram)
    }

    /// Says that the guest's memory is cleared now, where that may take longer than a second.
    fn say_scrubbing(&self, ram: &GuestRam) {
        /// What any machine writes in a second.
        const QUICK: u64 = 1 << 30;
        let bytes = ram.size();
        if bytes > QUICK {
            logln!("guest {}: its {} MiB of memory are cleared", self.guest.name, bytes >> 20);
        }
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
        let seats = seats(hardware, guest);
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
        let mut config = hardware.config;
        reset_functions(hardware, guest, functions, &mut config);
        map_bars(hardware, functions)?;
        let shared = Shared::<B>::new(&plan, &ram)?;
        let mix = shared.machine.tables.lock().nested.mix(&hardware.memory);
        logln!("guest {}: nested table {mix}", guest.name);
        if shared.virtual_ipis {
            logln!("guest {}: IPI virtualization: used", guest.name);
        }
        Ok(Self {
            plan,
            shared: Mutex::new(shared),
            outcome: Mutex::new(None),
            present: AtomicUsize::new(seats.len()),
            clock_base: AtomicU64::new(instructions::tsc()),
            lives: AtomicU32::new(1),
            wish: AtomicU32::new(NO_WISH),
            over: AtomicBool::new(false),
            short_lives: Mutex::new(ShortLives::default()),
            scrubbing: Mutex::new(None),
            ram_bytes: AtomicU64::new(ram.size()),
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

    /// How its interrupts come.
    pub(crate) fn interrupts(&self) -> InterruptMode {
        self.plan.guest.interrupts
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
            host_tss_base: processor.tss_base,
            posted: self.plan.seats.get(index).and_then(|seat| seat.posted),
            cr4: shared.policy.cpuid.cr4(&shared.machine),
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
}

/// Width of physical addresses (CPUID 0x80000008 EAX bits 7:0).
pub(crate) fn address_bits() -> u8 {
    (instructions::cpuid(0x8000_0008, 0).eax & 0xff) as u8
}
