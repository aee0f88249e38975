//! A partition: one guest with the CPU, memory and devices that the configuration gives it.
//!
//! Invariant: by the time that a function may master the bus, its DMA domain is the guest's memory
//! and nothing else, and by the first entry everything that passes without an exit is the guest's.

use alloc::string::ToString;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use arch::address::{HpaRange, PAGE_SIZE};
use arch::machine::GuestMemory;
use arch::msr::{MsrPass, PortRange};
use arch::vcpu::StartState;
use arch::{ApicId, Bdf, Gpa, Hpa, Iova};
use boot::Module;
use config::{Afterwards, Config, GuestConfig};
use cpu::config_space::MachineConfigSpace;
use cpu::local_apic::LocalApic;
use cpu::{instructions, physical};
use guest::acpi::Parameters;
use guest::cpuid::{CpuidPolicy, Vendor};
use guest::load::{LoadRequest, ModuleRequest, Source};
use guest::memory_map::{ACPI_TABLES, Ecam, GpaRange, MemoryMap};
use guest::msr::ClockBase;
use guest::pci::{Host, VirtualBus};
use guest::vm::{CpuState, Outcome, Platform, Vm};
use mem::{Access, MemoryType, Table};
use spin::Mutex;

use crate::backend::{Backend, VcpuParts};
use crate::bring_up::Hardware;
use crate::console::logln;
use crate::machine::GuestMachine;
use crate::memory::{self, Memory};
use crate::monitor::Watched;
use crate::processors::Processor;
use crate::ram::{GuestRam, MOST_BLOCKS, RamBlock};
use crate::refusal::{Refusal, refuse};
use crate::routes::Routes;
use crate::seat::Seat;

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
    /// The user wants it started anew.
    wanted_again: AtomicBool,
    /// It has ended and stays so.
    pub(crate) over: AtomicBool,
    /// Bytes of the machine's free memory that became its RAM.
    pub(crate) ram_bytes: u64,
}

/// The files that a guest begins from.
struct Files {
    kernel: &'static [u8],
    initrd: Option<&'static [u8]>,
    modules: Vec<&'static [u8]>,
}

impl Files {
    fn find(hardware: &Hardware, guest: &GuestConfig) -> Result<Self, Refusal> {
        let initrd = guest.initrd.as_ref().map(|name| file(hardware, guest, "initrd", name));
        let modules = guest.modules.iter();
        let modules = modules.map(|module| file(hardware, guest, "modules", &module.file));
        Ok(Self {
            kernel: file(hardware, guest, "kernel", &guest.kernel)?,
            initrd: initrd.transpose()?,
            modules: modules.collect::<Result<_, _>>()?,
        })
    }
}

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
        let mut bus = virtual_bus(&map, functions, &mut config)?;
        map_bars(hardware, functions, &mut config)?;
        let lines: Vec<u32> = bus.legacy_ide().map(|channel| channel.gsi).collect();
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
        let start = load(guest, &map, &mut ram, &files)?;
        let vm = power_on(guest, seats, bus, lines, &mut machine, &mut config);
        let vendor = Vendor::of(&machine);
        let mut msr_passes = guest::msr::passes().to_vec();
        msr_passes.extend_from_slice(eli::apic::passes(guest.interrupts));
        Ok(Self {
            index,
            guest: guest.clone(),
            functions: functions.to_vec(),
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
            wanted_again: AtomicBool::new(false),
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
        self.wanted_again.swap(false, Ordering::AcqRel) || then == Afterwards::Restart
    }

    /// Makes it as it was before its first instruction: devices reset, memory scrubbed and loaded.
    /// All its CPUs have left, its devices master no bus, and its routes are cut.
    pub(crate) fn restart(&self, hardware: &Hardware) -> Result<(), Refusal> {
        let mut shared = self.shared.lock();
        let Shared { vm, machine, ram, config } = &mut *shared;
        for function in &self.functions {
            let mut delay =
                |ms: u32| cpu::start::wait(hardware.clock.tsc_khz, u64::from(ms) * 1000);
            if let Err(error) = pci::reset::reset(config, *function, &mut delay) {
                logln!("guest {}: {error}", self.guest.name);
            }
        }
        machine.clear_shadow_pages();
        let bus = virtual_bus(&self.map, &self.functions, config)?;
        load(&self.guest, &self.map, ram, &self.files)?;
        let lines = core::mem::take(&mut vm.lines);
        *vm = power_on(&self.guest, self.seats, bus, lines, machine, config);
        for seat in self.seats {
            seat.forget_requests();
        }
        self.clock_base.store(instructions::tsc(), Ordering::Relaxed);
        *self.outcome.lock() = None;
        self.present.store(self.seats.len(), Ordering::Release);
        self.restarts.fetch_add(1, Ordering::AcqRel);
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
        self.end(Outcome::Stopped, own);
    }

    fn restart(&self, own: LocalApic) {
        self.wanted_again.store(true, Ordering::Release);
        self.end(Outcome::Stopped, own);
    }

    fn ram_bytes(&self) -> u64 {
        self.ram_bytes
    }

    fn functions(&self) -> &[Bdf] {
        &self.functions
    }
}

/// APIC identifiers as the guest sees them.
fn virtual_ids(guest: &GuestConfig) -> Vec<ApicId> {
    (0..guest.cpus.len() as u32).map(ApicId).collect()
}

/// The processors of a guest. The configuration counts CPUs in the order of the MADT.
fn seats(hardware: &Hardware, guest: &GuestConfig) -> Result<&'static [Seat], Refusal> {
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

/// Raw ports must be nobody else's: not a device's that the guest gets anyway, nor what the
/// hypervisor keeps for itself, such as PCI's configuration ports.
fn check_ports(guest: &GuestConfig) -> Result<(), Refusal> {
    const PCI_CONFIGURATION: PortRange = PortRange { first: 0xcf8, last: 0xcff };
    for range in &guest.io_ports {
        let claimed = (range.first..=range.last).find(|port| {
            guest::devices::Devices::claims(*port) || PCI_CONFIGURATION.contains(*port)
        });
        if let Some(port) = claimed {
            return Err(refuse!(
                "nexit.toml: guest {}: io_ports names {port:#x}, which is a virtual device's or the \
                 hypervisor's own: remove it",
                guest.name
            ));
        }
    }
    Ok(())
}

/// The boot module that a key of the configuration names.
fn file(
    hardware: &Hardware,
    guest: &GuestConfig,
    key: &str,
    path: &str,
) -> Result<&'static [u8], Refusal> {
    let name = path.rsplit('/').next().unwrap_or(path);
    let module = hardware.module(name).ok_or_else(|| {
        let passed: Vec<&str> = hardware.modules.iter().map(|module| module.name).collect();
        refuse!(
            "nexit.toml: guest {}: {key} = \"{path}\": the loader passed no file {name}; it passed \
             {}",
            guest.name,
            passed.join(", ")
        )
    })?;
    Ok(module_bytes(module))
}

fn module_bytes(module: &Module<'static>) -> &'static [u8] {
    // SAFETY: modules are kept out of the free memory, and out of a guest's, as long as the
    // hypervisor runs.
    unsafe { physical::bytes(module.range.start, module.range.length as usize) }
}

/// Where the guest's memory lies in its own address space.
fn memory_map(hardware: &Hardware, guest: &GuestConfig) -> MemoryMap {
    let ecam = hardware.ecam.map(|ecam| Ecam {
        base: Gpa::new(ecam.base.as_u64()),
        buses: u16::from(ecam.last_bus) + 1,
    });
    match &hardware.identity_ram {
        Some(runs) => MemoryMap::identity(runs.clone(), ecam),
        None => MemoryMap::new(guest.memory, ecam),
    }
}

/// Finds host memory for every run of the map.
fn allocate(
    hardware: &Hardware,
    guest: &GuestConfig,
    map: &MemoryMap,
) -> Result<GuestRam, Refusal> {
    const LEGACY: GpaRange = GpaRange { start: Gpa::new(0xa_0000), length: 0x6_0000 };
    let memory = hardware.memory;
    let mut blocks = Vec::new();
    for run in map.ram() {
        if hardware.identity_ram.is_none() {
            allocate_run(memory, *run, &mut blocks).ok_or_else(|| not_there(memory, guest))?;
            continue;
        }
        // Identity-mapped, but the legacy area comes from elsewhere: the machine's own holds its
        // firmware.
        let (start, end) = (run.start.as_u64(), run.end());
        let legacy_end = LEGACY.end();
        let identity = |start: u64, end: u64| RamBlock {
            gpa: Gpa::new(start),
            hpa: Hpa::new(start),
            length: end - start,
        };
        if run.contains(LEGACY) {
            blocks.push(identity(start, LEGACY.start.as_u64()));
            allocate_run(memory, LEGACY, &mut blocks).ok_or_else(|| not_there(memory, guest))?;
            blocks.push(identity(legacy_end, end));
        } else {
            blocks.push(identity(start, end));
        }
    }
    blocks.retain(|block| block.length > 0);
    // SAFETY: fresh memory of the pool, or memory that was kept out of it for this guest.
    unsafe { GuestRam::new(&blocks) }.ok_or_else(|| {
        refuse!(
            "nexit.toml: guest {}: memory = {} MiB is there in {} pieces only, and {MOST_BLOCKS} is \
             the most: give it less",
            guest.name,
            guest.memory >> 20,
            blocks.len()
        )
    })
}

fn not_there(memory: Memory, guest: &GuestConfig) -> Refusal {
    refuse!(
        "nexit.toml: guest {}: memory = {} MiB is not there: the machine has {} MiB free",
        guest.name,
        guest.memory >> 20,
        memory.available() >> 20
    )
}

/// Takes memory for a run in few blocks: the whole, or else halves down to 2 MiB.
fn allocate_run(memory: Memory, run: GpaRange, blocks: &mut Vec<RamBlock>) -> Option<()> {
    const GIB: u64 = 1 << 30;
    const MIB_2: u64 = 2 << 20;
    let (mut gpa, mut left) = (run.start, run.length);
    while left > 0 {
        let mut length = left;
        let hpa = loop {
            let alignments = [GIB, MIB_2, PAGE_SIZE];
            let fitting = alignments.iter().filter(|alignment| **alignment <= length);
            let found =
                fitting.clone().find_map(|alignment| memory.allocate(length, *alignment, None));
            match found {
                Some(hpa) => break hpa,
                None if length > MIB_2 => length = (length / 2).next_multiple_of(MIB_2),
                None => return None,
            }
        };
        blocks.push(RamBlock { gpa, hpa, length });
        gpa = gpa.wrapping_add(length);
        left -= length;
    }
    Some(())
}

fn map_ram<F: mem::table::Format>(
    nested: &mut Table<F>,
    mut memory: Memory,
    ram: &GuestRam,
) -> Result<(), Refusal> {
    for block in ram.blocks() {
        let (gpa, kind) = (block.gpa.as_u64(), MemoryType::WriteBack);
        nested.map(&mut memory, gpa, block.hpa, block.length, Access::ALL, kind)?.nothing_cached();
    }
    Ok(())
}

/// The functions of each guest, in the order of the file: they exist, and no group is divided.
pub(crate) fn functions(hardware: &Hardware, config: &Config) -> Result<Vec<Vec<Bdf>>, Refusal> {
    for guest in &config.guests {
        for function in guest.devices.named() {
            check_present(hardware, guest, *function)?;
        }
    }
    let given = hardware.functions.iter().filter(|function| !function.is_bridge());
    let given: Vec<Bdf> = given.map(|function| function.bdf).collect();
    let owned = config.guests.iter().map(|guest| config.functions(guest, &given));
    let owned: Vec<Vec<Bdf>> = owned.collect();
    // Without an IOMMU nothing keeps anything apart, and the one guest is trusted with all.
    if hardware.iommu.is_some() {
        hardware.groups.check(&owned).map_err(|error| refuse!("nexit.toml: {error}"))?;
    }
    Ok(owned)
}

/// Puts the guest's functions into a DMA domain of their own.
fn assign(
    hardware: &Hardware,
    guest: &GuestConfig,
    functions: &[Bdf],
    ram: &GuestRam,
) -> Result<(), Refusal> {
    for function in functions {
        check_function(hardware, guest, *function)?;
    }
    if let (Some(iommu), false) = (hardware.iommu, functions.is_empty()) {
        let mut iommu = iommu.lock();
        let domain = iommu.create_domain()?;
        for block in ram.blocks() {
            iommu.map(domain, Iova::new(block.gpa.as_u64()), block.hpa, block.length)?;
        }
        for function in functions {
            for requester in hardware.groups.requesters(*function) {
                iommu.attach(requester, domain)?;
            }
        }
    }
    Ok(())
}

/// The guest's PCI bus with its functions on it, untouched.
fn virtual_bus(
    map: &MemoryMap,
    functions: &[Bdf],
    config: &mut MachineConfigSpace,
) -> Result<VirtualBus, Refusal> {
    let mut windows = map.pci_windows();
    windows.push(map.high_pci_window(address_bits()));
    let ecam = map.ecam().map(Ecam::range);
    Ok(VirtualBus::new(config, functions, ecam, windows)?)
}

/// Maps the functions' registers for the hypervisor: it programs their MSI-X tables.
fn map_bars(
    hardware: &Hardware,
    functions: &[Bdf],
    config: &mut MachineConfigSpace,
) -> Result<(), Refusal> {
    for function in functions {
        for bar in pci::bar::size_bars(config, *function, 6).into_iter().flatten() {
            if bar.is_memory() && bar.base != 0 {
                let range = HpaRange { start: Hpa::new(bar.base), length: bar.size };
                memory::map_device(hardware.memory, range)?;
            }
        }
    }
    Ok(())
}

/// The guest before its first instruction, with its functions decoding.
fn power_on<F: mem::table::Format>(
    guest: &GuestConfig,
    seats: &[Seat],
    bus: VirtualBus,
    lines: Vec<u32>,
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

fn check_present(hardware: &Hardware, guest: &GuestConfig, function: Bdf) -> Result<(), Refusal> {
    let name = &guest.name;
    if !hardware.functions.iter().any(|found| found.bdf == function) {
        let list: Vec<_> = hardware.functions.iter().map(|found| found.bdf.to_string()).collect();
        return Err(refuse!(
            "nexit.toml: guest {name}: devices names {function}, but the machine has no such PCI \
             function; it has {}",
            list.join(", ")
        ));
    }
    Ok(())
}

fn check_function(hardware: &Hardware, guest: &GuestConfig, function: Bdf) -> Result<(), Refusal> {
    let name = &guest.name;
    if let Some(range) = hardware.reserved_memory(function) {
        return Err(refuse!(
            "nexit.toml: guest {name}: {function} cannot be assigned: the firmware keeps using it \
             for DMA to {} (an RMRR of its DMAR table)",
            range.start
        ));
    }
    if hardware.iommu.is_none() && hardware.identity_ram.is_none() {
        return Err(refuse!(
            "nexit.toml: guest {name}: {function} cannot be assigned: the machine has no IOMMU, so \
             the device could reach all memory. Enable VT-d in the firmware's setup, or write \
             unsafe_no_iommu = true to trust the guest with the whole machine"
        ));
    }
    Ok(())
}

/// Takes an interrupt-remapping entry for each message and line that the guest may use.
fn routes(
    hardware: &Hardware,
    guest: &GuestConfig,
    bus: &mut VirtualBus,
    lines: &[u32],
) -> Result<Routes, Refusal> {
    let mut routes = Routes::new(hardware.iommu, hardware.io_apics, &processors(hardware, guest));
    for (function, messages) in bus.messages() {
        if messages > 0 {
            routes.grant_messages(function, messages)?;
        }
    }
    for gsi in lines {
        routes.grant_line(*gsi)?;
    }
    Ok(routes)
}

/// The ports that the guest uses without an exit.
fn port_passes(guest: &GuestConfig, bus: &VirtualBus) -> Vec<PortRange> {
    let mut ports = guest.io_ports.clone();
    ports.extend(bus.port_ranges());
    for channel in bus.legacy_ide() {
        ports.extend([channel.command, channel.control]);
    }
    ports
}

/// Puts kernel, initrd and the tables that it starts from into the guest's memory; the rest of it is
/// zero.
fn load(
    guest: &GuestConfig,
    map: &MemoryMap,
    ram: &mut GuestRam,
    files: &Files,
) -> Result<StartState, Refusal> {
    let Files { kernel, initrd, modules } = files;
    let (kernel, initrd) = (*kernel, *initrd);
    let sentence = |error: &dyn core::fmt::Display| {
        refuse!("nexit.toml: guest {}: kernel = \"{}\": {error}", guest.name, guest.kernel)
    };
    let requests = modules.iter().zip(&guest.modules);
    let requests: Vec<ModuleRequest<'_>> = requests
        .map(|(bytes, module)| ModuleRequest { size: bytes.len(), words: &module.args })
        .collect();
    let request = LoadRequest {
        kernel,
        initrd_size: initrd.map(<[u8]>::len),
        modules: &requests,
        command_line: &guest.cmdline,
        memory: map,
        rsdp: ACPI_TABLES,
    };
    let plan = guest::load::plan(request).map_err(|error| sentence(&error))?;
    ram.scrub();
    for copy in &plan.copies {
        let source = match copy.source {
            Source::Kernel => kernel,
            Source::Initrd => initrd.unwrap_or_default(),
            Source::Module(index) => modules.get(index).copied().unwrap_or_default(),
        };
        let bytes = source.get(copy.bytes.clone()).unwrap_or_default();
        ram.write(copy.to, bytes).map_err(|error| sentence(&error))?;
    }
    let apic_ids = virtual_ids(guest);
    let parameters =
        Parameters { apic_ids: &apic_ids, memory: map, physical_address_bits: address_bits() };
    for blob in plan.blobs.iter().chain([&guest::acpi::tables(parameters)]) {
        ram.write(blob.at, &blob.bytes).map_err(|error| sentence(&error))?;
    }
    Ok(plan.start)
}

/// Width of physical addresses (CPUID 0x80000008 EAX bits 7:0).
fn address_bits() -> u8 {
    (instructions::cpuid(0x8000_0008, 0).eax & 0xff) as u8
}
