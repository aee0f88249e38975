//! What a guest has for one life: made before its first instruction, given back after its last.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use arch::Hpa;
use arch::address::PAGE_SIZE;
use arch::iommu::DomainId;
use arch::vcpu::StartState;
use cpu::config_space::MachineConfigSpace;
use guest::cpuid::CpuidPolicy;
use guest::lines::Line;
use guest::pci::{Host, VirtualBus};
use guest::vm::{Guest, Vm};
use mem::{Table, TableMemory};

use super::Plan;
use super::devices::{
    assign, check_bars, port_passes, quiet_uart, release, reset_functions, routes, virtual_bus,
};
use super::files::load;
use super::memory::{map_ram, reserve};
use super::seats::virtual_ids;
use crate::backend::Backend;
use crate::console::logln;
use crate::machine::{GuestMachine, Tables};
use crate::ram::GuestRam;
use crate::refusal::Refusal;
use crate::seat::Seat;
use crate::stand_in::{StandInFrames, StandIns};

/// What a guest has for one life, behind its lock. All of it is given back at the life's end.
pub(crate) struct Shared<B: Backend> {
    /// What its CPUs look at without the lock.
    pub(crate) policy: Arc<Guest>,
    pub(crate) vm: Vm,
    pub(crate) machine: GuestMachine<B::Format>,
    pub(crate) ram: GuestRam,
    pub(crate) config: MachineConfigSpace,
    /// Where its boot processor begins.
    pub(super) start: StartState,
    /// ICR writes pass in the bitmaps.
    pub(super) virtual_ipis: bool,
    /// The bitmaps of all its virtual CPUs.
    pub(super) bitmaps: Hpa,
    /// Each virtual CPU's memory.
    pub(super) cpus: Vec<Hpa>,
    domain: Option<DomainId>,
}

impl<B: Backend> Shared<B> {
    /// Makes a guest as it is before its first instruction, in `ram`, which is scrubbed.
    /// In a box: it is too large for a processor's stack.
    pub(super) fn new(plan: &Plan, ram: &GuestRam) -> Result<Box<Self>, Refusal> {
        let Plan { hardware, index, guest, functions, shares, files, map, seats } = plan;
        let memory = hardware.memory;
        let mut config = hardware.config;
        check_bars(hardware, functions, &config)?;
        let mut ram = ram.clone();
        let mut nested = Table::new(B::check(guest.interrupts)?, &mut { memory })?;
        map_ram(&mut nested, memory, &ram)?;
        let domain = assign(hardware, functions, &ram)?;
        quiet_uart(guest)?;
        // The machine has one.
        let timer = (*index == 0 && guest.pit).then_some(guest::devices::pit::GSI);
        let (mut bus, lines) = virtual_bus(plan, timer, &config)?;
        let routes = routes(hardware, guest, &mut bus, &lines)?;
        let bitmaps = memory.frames(B::BITMAP_BYTES)?;
        let mut msr_passes = [guest::msr::passes(), eli::apic::passes(guest.interrupts)].concat();
        let virtual_ipis = B::virtualizes_ipis(guest.interrupts);
        msr_passes.extend(virtual_ipis.then_some(eli::apic::VIRTUAL_ICR));
        B::set_bitmaps(bitmaps, &msr_passes, &port_passes(hardware, guest, &bus));
        let frames = reserve(memory, guest, &bus, seats.len())?;
        let shadow = (0..2 * seats.len()).map(|_| memory.frame()).collect::<Result<_, _>>()?;
        let stand_ins = StandInFrames::new(&nested, seats.len(), memory)?;
        let cpus = seats.iter().map(|_| memory.frames(B::CPU_BYTES)).collect::<Result<_, _>>()?;
        let mut machine = GuestMachine {
            memory,
            ram: ram.clone(),
            tables: Tables::new(nested, frames, shadow, stand_ins, routes),
            nested_changed: false,
            stand_ins: StandIns::default(),
            apic: hardware.boot_processor.apic,
            clock: hardware.clock,
            seats,
            ringable: shares.iter().flat_map(|share| share.cpus.iter().copied()).collect(),
            guest: *index,
        };
        let legacy = guest::lines::legacy(&lines);
        let start = load(guest, map, &bus, legacy, &mut ram, files, hardware.pm_timer)?;
        let processors = seats.iter().map(|seat| seat.processor).collect();
        let cpuid =
            CpuidPolicy::new(virtual_ids(guest), &machine).without(B::withheld(guest.interrupts));
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
    pub(super) fn give_back(&mut self, plan: &Plan) -> GuestRam {
        let Plan { hardware, guest, functions, .. } = plan;
        let Self { vm, machine, config, .. } = self;
        vm.bus.detach(&mut Host { machine, config });
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

/// The guest before its first instruction, with its functions decoding.
fn power_on<F: mem::table::Format>(
    seats: &[Seat],
    bus: VirtualBus,
    lines: Vec<Line>,
    machine: &mut GuestMachine<F>,
    config: &mut MachineConfigSpace,
) -> Vm {
    let mut vm = Vm::new(seats.len(), bus, lines);
    vm.bus.attach(&mut Host { machine, config });
    vm
}
