//! A partition: one guest with the CPUs, memory and devices that the configuration gives it.
//!
//! Invariant: by the time that a function may master the bus, its DMA domain is the guest's memory
//! and nothing else, and by the first entry everything that passes without an exit is the guest's.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use arch::Bdf;
use config::GuestConfig;
use cpu::config_space::MachineConfigSpace;
use cpu::instructions::{self, tsc};
use cpu::local_apic::LocalApic;
use guest::lifecycle::Lifecycle;
use guest::memory_map::MemoryMap;
use guest::requests::Request;
use guest::restart_backoff::RestartBackoff;
use guest::vm::{Outcome, Platform};
use mem::PageCounts;
use pci::owned::OwnedConfigSpace;
use spin::Mutex;

use crate::backend::Backend;
use crate::console::logln;
use crate::hardware::Hardware;
use crate::machine::GuestMachine;
use crate::memory::out_of_memory;
use crate::processors;
use crate::ram::{GuestRam, OwnedRam, Scrubbing};
use crate::refusal::Refusal;
use crate::vcpu_slot::VcpuSlot;

use devices::{map_bars, reset_functions};
use files::Files;
pub(crate) use instance::Instance;
use memory::{allocate, memory_map};
pub(crate) use planned::planned;
pub(crate) use shared::{Share, shares};
use slots::slots;

mod devices;
mod files;
mod instance;
mod irqs;
mod looked_at;
mod memory;
mod planned;
mod shared;
mod slots;

/// The edge types of a back end, for policy.
pub(crate) struct Edge<B>(core::marker::PhantomData<B>);

impl<B: Backend> Platform for Edge<B> {
    type Vcpu = B::Cpu;
    type Machine = GuestMachine<B::Format>;
    type Memory = GuestRam;
    type Config = OwnedConfigSpace<MachineConfigSpace>;
}

/// What a guest is made from, the same in all its generations.
struct Plan {
    hardware: &'static Hardware,
    /// Its index in the configuration.
    index: usize,
    guest: GuestConfig,
    functions: Vec<Bdf>,
    shares: Vec<Share>,
    files: Files,
    map: MemoryMap,
    slots: &'static [VcpuSlot],
}

/// A guest: what it is, and what it has while it lives.
pub(crate) struct Partition<B: Backend> {
    plan: &'static Plan,
    /// None once it is stopped.
    ram: Mutex<Option<OwnedRam>>,
    /// None between two generations.
    instance: Mutex<Option<Arc<Instance<B>>>>,
    /// Where it is between its first generation and its last.
    pub(crate) lifecycle: Mutex<Lifecycle>,
    /// Its CPUs help with that between two generations.
    scrubbing: Mutex<Option<Arc<Scrubbing>>>,
    /// The pages that its nested table started with.
    pub(crate) page_counts: PageCounts,
}

impl Plan {
    /// Memory for the guest, scrubbed by all its CPUs, none of which has a job yet, and by the one that
    /// calls, which does `attend` now and then.
    fn allocate(&self, mut attend: impl FnMut()) -> Result<OwnedRam, Refusal> {
        let ram = allocate(self.hardware, &self.guest, &self.map)?;
        self.say_scrubbing(&ram.0);
        let work = Arc::new(Scrubbing::new(ram.0.clone()));
        let own = LocalApic::current().id();
        let others = || self.slots.iter().map(|slot| slot.processor).filter(move |id| *id != own);
        for id in others() {
            let work = work.clone();
            processors::assign(id, Box::new(move |_| work.help(|| {})));
        }
        work.help(&mut attend);
        for id in others() {
            // One that has not begun need not.
            processors::withdraw(id);
            while processors::is_busy(id) {
                core::hint::spin_loop();
            }
        }
        work.wait(attend);
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
    /// Builds the partition of `guest`, ready for its first generation.
    pub(crate) fn build(
        hardware: &'static Hardware,
        index: usize,
        guest: &GuestConfig,
        functions: &[Bdf],
        shares: Vec<Share>,
        attend: impl FnMut(),
    ) -> Result<Self, Refusal> {
        let plan = &*Box::leak(Box::new(Plan {
            hardware,
            index,
            guest: guest.clone(),
            functions: functions.to_vec(),
            shares,
            files: Files::find(hardware, guest)?,
            map: memory_map(hardware, guest),
            slots: slots(hardware, guest),
        }));
        let ram = plan.allocate(attend)?;
        let mut config = hardware.config;
        reset_functions(hardware, guest, functions, &mut config);
        map_bars(hardware, functions)?;
        let instance = Instance::<B>::new(plan, &ram.0, RestartBackoff::default())?;
        let page_counts = instance.page_counts();
        logln!("guest {}: nested table {page_counts}", guest.name);
        if instance.virtual_ipis {
            logln!("guest {}: IPI virtualization: used", guest.name);
        }
        Ok(Self {
            plan,
            ram: Mutex::new(Some(ram)),
            instance: Mutex::new(Some(instance)),
            lifecycle: Mutex::new(Lifecycle::new(
                plan.slots.len(),
                guest.on_reboot,
                guest.on_crash,
            )),
            scrubbing: Mutex::new(None),
            page_counts,
        })
    }

    /// Its virtual CPUs, by index.
    pub(crate) fn slots(&self) -> &'static [VcpuSlot] {
        self.plan.slots
    }

    /// Its index in the configuration.
    pub(crate) fn index(&self) -> usize {
        self.plan.index
    }

    pub(crate) fn name(&self) -> &'static str {
        &self.plan.guest.name
    }

    /// The file with the names of its functions.
    pub(crate) fn symbols(&self) -> Option<&'static [u8]> {
        self.plan.files.symbols
    }

    /// Whether a CPU that crashes waits for a gdb.
    pub(crate) fn waits_for_gdb(&self) -> bool {
        self.plan.guest.on_crash == config::Afterwards::Debug
    }

    /// The machine that it is on.
    pub(crate) fn hardware(&self) -> &'static Hardware {
        self.plan.hardware
    }

    /// Bytes of its RAM; none once it is stopped.
    pub(crate) fn ram_bytes(&self) -> u64 {
        self.ram.lock().as_ref().map_or(0, |ram| ram.0.size())
    }

    fn blocks(&self) -> Option<GuestRam> {
        self.ram.lock().as_ref().map(|ram| ram.0.clone())
    }

    /// What it has for this generation; only its CPUs hold it.
    pub(crate) fn instance(&self) -> Option<Arc<Instance<B>>> {
        self.instance.lock().clone()
    }

    /// How long ago it has begun.
    pub(crate) fn run_ms(&self) -> u64 {
        let began = self.instance.lock().as_ref().map(|instance| instance.began);
        let ticks = began.map_or(0, |began| tsc().wrapping_sub(began));
        ticks / self.plan.hardware.clock.tsc_khz.max(1)
    }

    /// How it ended, if it has.
    pub(crate) fn outcome(&self) -> Option<Outcome> {
        self.lifecycle.lock().outcome()
    }

    /// Ends the guest with this outcome, unless it has already ended; its CPUs leave.
    pub(crate) fn end(&self, outcome: Outcome, own: LocalApic) {
        let mut lifecycle = self.lifecycle.lock();
        lifecycle.end(outcome);
        self.ask_to_stop(own);
    }

    /// Has its CPUs leave. With the lock on `lifecycle` held, so that it is this generation that they leave.
    pub(crate) fn ask_to_stop(&self, own: LocalApic) {
        for slot in self.plan.slots {
            slot.ask(own, Request::Stop);
        }
    }

    /// Takes everything back but the RAM, which is scrubbed. All its CPUs have left. The one that calls does `attend`
    /// now and then.
    pub(crate) fn take_back(&self, mut attend: impl FnMut()) {
        // The lock is not held while it is given back.
        let instance = self.instance.lock().take();
        drop(instance);
        let Some(ram) = self.blocks() else { return };
        self.plan.say_scrubbing(&ram);
        let work = Arc::new(Scrubbing::new(ram));
        *self.scrubbing.lock() = Some(work.clone());
        work.help(&mut attend);
        work.wait(attend);
        *self.scrubbing.lock() = None;
    }

    /// A CPU that waits for the next generation helps to scrub.
    pub(crate) fn help(&self, attend: impl FnMut()) {
        let work = self.scrubbing.lock().clone();
        if let Some(work) = work {
            work.help(attend);
        }
    }

    /// Gives its RAM back: it is stopped.
    pub(crate) fn free_ram(&self) {
        *self.ram.lock() = None;
    }

    /// Begins again as it was before its first instruction, in the RAM of its last generation or in new RAM. The one that
    /// calls, the processor with `own`, does `attend` now and then.
    pub(crate) fn begin(&self, own: LocalApic, attend: impl FnMut()) -> Result<(), Refusal> {
        if self.ram.lock().is_none() {
            // The lock is not held meanwhile: the monitor may ask for its size.
            let ram = self.plan.allocate(attend)?;
            *self.ram.lock() = Some(ram);
        }
        let ram = self.blocks().ok_or_else(out_of_memory)?;
        let row = self.lifecycle.lock().row();
        let instance = Instance::new(self.plan, &ram, row).inspect_err(|_| self.free_ram())?;
        *self.instance.lock() = Some(instance);
        let mut lifecycle = self.lifecycle.lock();
        for slot in self.plan.slots {
            slot.forget_requests();
        }
        if !lifecycle.begun() {
            self.ask_to_stop(own);
        }
        Ok(())
    }
}

/// Width of physical addresses (CPUID 0x80000008 EAX bits 7:0).
pub(crate) fn address_bits() -> u8 {
    (instructions::cpuid(0x8000_0008, 0).eax & 0xff) as u8
}
