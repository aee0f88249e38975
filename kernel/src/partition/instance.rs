//! What a guest has for one generation: made before its first instruction, given back when it is dropped.

use alloc::sync::Arc;
use alloc::vec::Vec;

use arch::VcpuSetup;
use arch::address::PAGE_SIZE;
use arch::vcpu::StartState;
use cpu::instructions::tsc;
use cpu::local_apic::LocalApic;
use guest::cpuid::CpuidPolicy;
use guest::pci::Host;
use guest::restart_backoff::RestartBackoff;
use guest::vm::{CpuState, Guest, Vm};
use mem::{PageCounts, Table};
use pci::owned::OwnedConfigSpace;
use spin::Mutex;

use super::Plan;
use super::devices::{
    Domain, check_bars, owned, port_passes, quiet_uart, reset_functions, routes, virtual_bus,
};
use super::files::load;
use super::memory::{map_ram, reserve};
use super::slots::virtual_ids;
use crate::backend::{Backend, Support};
use crate::machine::{GuestMachine, GuestParts, Tables};
use crate::memory::out_of_memory;
use crate::owned::{Owned, Pages};
use crate::processors::Processor;
use crate::ram::GuestRam;
use crate::refusal::Refusal;
use crate::stand_in::StandInFrames;

/// What a guest has for one generation.
pub(crate) struct Instance<B: Backend> {
    plan: &'static Plan,
    /// What its CPUs look at without the lock.
    pub(crate) policy: Guest,
    pub(crate) vm: Mutex<Vm>,
    /// Where its boot processor begins.
    pub(crate) start: StartState,
    /// TSC at its beginning.
    pub(super) began: u64,
    /// ICR writes pass in the bitmaps.
    pub(super) virtual_ipis: bool,
    // What follows is given back in this order, once its functions are quiet.
    _domain: Option<Domain>,
    machine: GuestParts<B::Format>,
    /// The bitmaps of all its virtual CPUs.
    bitmaps: Pages,
    /// Each virtual CPU's memory.
    cpus: Vec<Pages>,
}

impl<B: Backend> Instance<B> {
    /// Makes a guest as it is before its first instruction, in `ram`, which is scrubbed, after this row of short
    /// lives. On the heap: it is too large for a processor's stack.
    pub(super) fn new(
        plan: &'static Plan,
        ram: &GuestRam,
        row: RestartBackoff,
    ) -> Result<Arc<Self>, Refusal> {
        let Plan { hardware, index, guest, functions, shares, files, map, slots } = plan;
        let memory = hardware.memory;
        let config = hardware.config;
        check_bars(hardware, functions, &config)?;
        let mut ram = ram.clone();
        let Support { format, virtual_ipis, withheld } = B::support(guest.interrupts)?;
        let mut nested = Owned::new(Table::new(format, &mut { memory })?);
        map_ram(&mut nested, memory, &ram)?;
        let domain = Domain::new(hardware, guest, functions, &ram)?;
        quiet_uart(guest)?;
        // The machine has one.
        let timer = (*index == 0 && guest.pit).then_some(guest::devices::pit::GSI);
        let (mut bus, lines) = virtual_bus(plan, timer, &config)?;
        let routes = routes(hardware, guest, &mut bus, &lines)?;
        let mut msr_passes = [guest::msr::passes(), eli::apic::passes(guest.interrupts)].concat();
        msr_passes.extend(virtual_ipis.then_some(eli::apic::VIRTUAL_ICR));
        let bitmaps = B::bitmaps(memory, &msr_passes, &port_passes(hardware, guest, &bus))?;
        let frames = reserve(memory, guest, &bus, slots.len())?;
        let pages = |count: usize, bytes| -> Result<Vec<Pages>, Refusal> {
            (0..count).map(|_| memory.frames(bytes).map(Owned::new)).collect()
        };
        let shadow = pages(2 * slots.len(), PAGE_SIZE)?;
        let stand_ins = StandInFrames::new(&nested, slots.len(), memory)?;
        let cpus = pages(slots.len(), B::CPU_BYTES)?;
        let legacy = guest::lines::legacy(&lines);
        let (start, apics) = load(guest, map, &bus, legacy, &mut ram, files, hardware.pm_timer)?;
        let owned = Arc::new(owned(plan, timer.is_some(), &config));
        let mut config = OwnedConfigSpace::new(config, owned.clone());
        let parts = GuestParts {
            memory,
            ram,
            tables: Tables::new(nested, frames, shadow, stand_ins, routes),
            clock: hardware.clock,
            slots,
            owned,
            doorbell_targets: shares.iter().flat_map(|share| share.cpus.iter().copied()).collect(),
            guest: *index,
        };
        let mut machine = parts.on(LocalApic::current());
        let processors = slots.iter().map(|slot| slot.processor).collect();
        let cpuid = CpuidPolicy::new(virtual_ids(guest), &machine).without(withheld);
        let mut vm = Vm::new(slots.len(), bus, lines);
        vm.bus.attach(&mut Host { machine: &mut machine, config: &mut config });
        vm.crash_logged = row.crash_logged();
        if row.is_logged() {
            vm.be_quiet();
            machine.be_quiet();
        }
        Ok(Arc::new(Self {
            plan,
            policy: Guest::new(guest.name.clone(), guest.interrupts, processors, cpuid)
                .with_apics(apics),
            vm: Mutex::new(vm),
            start,
            began: tsc(),
            virtual_ipis,
            _domain: domain,
            machine: parts,
            bitmaps,
            cpus,
        }))
    }

    /// Switches virtualization on on the processor that calls, and makes virtual CPU `index` there. The virtual CPU is
    /// to be dropped first.
    pub(crate) fn vcpu(&self, index: usize, processor: &Processor) -> Result<(B::Cpu, B), Refusal> {
        let memory = self.cpus.get(index).ok_or_else(out_of_memory)?.start();
        let slot = self.plan.slots.get(index).ok_or_else(out_of_memory)?;
        // SAFETY: this processor has no other virtual CPU, and virtualization is on for one only; the pages are its.
        let backend = unsafe { B::enable(memory) }?;
        let setup = VcpuSetup {
            mode: self.policy.mode,
            nested_root: self.machine.tables.lock().nested.root(),
            virtual_ipis: self.virtual_ipis,
            bitmaps: self.bitmaps.start(),
            memory,
            host_tss_base: processor.tss_base,
            cr4: self.policy.cpuid.cr4(&self.machine_on(processor)),
        };
        // SAFETY: all of it was made by `new`, for this guest alone, and is given back when no CPU has `self` any more.
        Ok((unsafe { backend.vcpu(&setup, &slot.inbox) }?, backend))
    }

    /// What policy keeps of virtual CPU `index`.
    pub(crate) fn cpu_state(&self, index: usize, machine: &GuestMachine<B::Format>) -> CpuState {
        // The same beginning on all its CPUs.
        CpuState::new(index, &self.policy, self.began, machine)
    }

    /// The machine as the guest may use it on the processor that calls.
    pub(crate) fn machine_on(&self, processor: &Processor) -> GuestMachine<B::Format> {
        self.machine.on(processor.apic)
    }

    /// What the guest's CPUs share of the machine.
    pub(super) fn tables(&self) -> &Mutex<Tables<B::Format>> {
        &self.machine.tables
    }

    /// The pages of its nested table.
    pub(super) fn page_counts(&self) -> PageCounts {
        self.tables().lock().nested.page_counts(&self.plan.hardware.memory)
    }
}

impl<B: Backend> Drop for Instance<B> {
    /// Has its functions quiet before anything of it is given back.
    fn drop(&mut self) {
        let Plan { hardware, guest, functions, .. } = self.plan;
        let mut config = OwnedConfigSpace::new(hardware.config, self.machine.owned.clone());
        let mut host =
            Host { machine: &mut self.machine.on(LocalApic::current()), config: &mut config };
        self.vm.get_mut().bus.detach(&mut host);
        reset_functions(hardware, guest, functions, &mut { hardware.config });
    }
}
