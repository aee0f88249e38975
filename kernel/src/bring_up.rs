//! From the loader's word to a machine that is the hypervisor's: the order of the boot.
//!
//! Each step refuses with one sentence; nothing is undone, as the CPU then halts.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use arch::address::HpaRange;
use arch::clock::Counter;
use arch::iommu::Iommu;
use arch::msr::PortRange;
use arch::{ApicId, Bdf, Hpa, Width};
use boot::{BootInfo, Module};
use clock::Clock;
use config::Config;
use cpu::clock::{AcpiTimer, Pit};
use cpu::config_space::{EcamWindow, MachineConfigSpace};
use cpu::hpet::Hpet;
use cpu::instructions::{cpuid, tsc};
use cpu::io_apic::IoApic;
use cpu::local_apic::{ApicTimer, LocalApic};
use cpu::segments::CpuTables;
use cpu::start::StartPage;
use firmware::{InterruptOverride, IoApicEntry, Platform, PmTimer, Reset, SoftOff};
use guest::lines::Wired;
use guest::memory_map::GpaRange;
use iommu::dmar::{Dmar, UNIT_REGISTERS};
use iommu::vtd::VtD;
use pci::claims::Owners;
use pci::header::HeaderType;
use pci::usb;
use plan::Vendor;
use plan::interrupts::wired;
use plan::owners::Others;
use spin::Mutex;

use crate::acpi;
use crate::backend;
use crate::console::{self, logln};
use crate::machine::MachineClock;
use crate::memory::{self, Memory, image};
use crate::partition;
use crate::post::{self, Step};
use crate::processors::{self, Processor};
use crate::refusal::{Refusal, refuse};
use crate::routes::SharedIommu;

/// The machine, once it is the hypervisor's.
pub(crate) struct Hardware {
    pub(crate) memory: Memory,
    pub(crate) modules: &'static [Module<'static>],
    /// Bytes of files that were copied into free memory.
    moved_modules: u64,
    /// In the order in which the configuration counts them.
    pub(crate) cpus: Vec<ApicId>,
    /// Those that answered; the boot processor is the first.
    pub(crate) started: Vec<ApicId>,
    pub(crate) apic: LocalApic,
    pub(crate) tss_base: u64,
    pub(crate) clock: MachineClock,
    pub(crate) io_apics: &'static [IoApic],
    pub(crate) hpet: Option<Hpet>,
    pub(crate) ecam: &'static [EcamWindow],
    pub(crate) config: MachineConfigSpace,
    pub(crate) functions: Vec<pci::Function>,
    /// What their BARs said before any guest ran.
    pub(crate) claims: pci::Claims,
    pub(crate) groups: pci::Groups,
    pub(crate) iommu: Option<SharedIommu>,
    dmar: Option<Dmar<'static>>,
    /// Why there is no IOMMU, where there is none.
    pub(crate) no_iommu: String,
    /// The RAM of the one identity-mapped guest, where there is no IOMMU and the configuration
    /// accepts that.
    pub(crate) identity_ram: Option<Vec<GpaRange>>,
    pub(crate) soft_off: Option<SoftOff>,
    /// How to reset the machine.
    pub(crate) resets: Vec<Reset>,
    /// Who made the firmware's tables.
    pub(crate) origins: Vec<firmware::Origin>,
    /// The ACPI timer, which all guests read.
    pub(crate) pm_timer: Option<PortRange>,
    /// Global system interrupts that may be guests'.
    pub(crate) guests_lines: Vec<u32>,
    /// How each interrupt of the ISA bus is wired.
    isa_lines: [Wired; 16],
}

impl Hardware {
    /// Takes the machine over.
    pub(crate) fn bring_up(
        info: &'static BootInfo<'static>,
        config: &Config,
    ) -> Result<Self, Refusal> {
        // Whether there is a usable IOMMU shows later: until then that guest's memory stays aside.
        let identity_ram = plan::memory::identity(config, usable(info), image::whole()).transpose();
        let aside = config.guests.first().filter(|_| matches!(identity_ram, Ok(Some(_))));
        let spared = aside.map_or(0, |guest| guest.memory);
        let spared = HpaRange { start: Hpa::new(0), length: spared };
        post::step(Step::Memory);
        let memory = Memory::take_over(info, spared);
        memory::build_own_tables(memory, info)?;
        console::map_screen(memory);
        post::step(Step::Firmware);
        let firmware = acpi::read(memory, info, config)?;
        // SAFETY: ring 0 with interrupts off; nobody else is there.
        unsafe { cpu::pic::disable() };
        let Processor { apic, tss_base } = take_over_processor(memory)?;
        let mut io_apics = io_apics(info, &firmware.io_apics);
        // SAFETY: the address is the firmware's, mapped uncached; nobody else drives the HPET.
        let hpet = firmware.hpet.and_then(|base| unsafe { Hpet::new(base) });
        post::step(Step::Clocks);
        let clock = read_clocks(hpet, firmware.pm_timer, apic)?;
        post::step(Step::Processors);
        let started =
            processors::start(memory, start_page(info), &firmware.cpus, apic.id(), clock.tsc_khz)?;
        let ecam = acpi::ecam(memory, &firmware);
        post::step(Step::Devices);
        // SAFETY: the windows are the firmware's; from here on configuration space is ours.
        let mut space = unsafe { MachineConfigSpace::new(ecam) };
        let functions = take_over_devices(info, config, memory, &mut space, clock.tsc_khz);
        let claims = pci::Claims::record(&mut space, &functions, owners(info, &firmware, ecam));
        pci::acs::enable(&mut space, &functions);
        let groups = pci::Groups::new(&space, &functions);
        post::step(Step::Iommu);
        let (iommu, dmar, no_iommu) = match bring_up_iommu(info, &firmware, space, memory) {
            Ok((iommu, dmar)) => (Some(iommu), Some(dmar), String::new()),
            Err(why) => (None, None, why),
        };
        let identity_ram = match dmar {
            Some(dmar) => {
                name_io_apics(&mut io_apics, &dmar);
                memory.add(info, spared);
                None
            }
            None => without_iommu(config, identity_ram?, &no_iommu),
        };
        let before = memory.taken();
        let spared = identity_ram.as_ref().map_or(0, |_| spared.length);
        let modules = move_modules(memory, info, spared)?;
        let moved_modules = memory.taken() - before;
        Ok(Self {
            isa_lines: core::array::from_fn(|irq| wired(firmware.isa_line(irq as u8))),
            pm_timer: acpi::pm_timer(&firmware),
            resets: firmware.resets(),
            memory,
            modules,
            moved_modules,
            cpus: firmware.cpus,
            started,
            apic,
            tss_base,
            clock,
            io_apics: io_apics.leak(),
            hpet,
            ecam,
            config: space,
            functions,
            claims,
            groups,
            iommu,
            dmar,
            no_iommu,
            identity_ram,
            soft_off: firmware.soft_off,
            origins: firmware.origins,
            guests_lines: guests_lines(config, &firmware.overrides),
        })
    }

    /// The processors that run guests.
    pub(crate) fn busy(&self) -> impl Iterator<Item = ApicId> + '_ {
        self.started.iter().copied().filter(|id| processors::is_busy(*id))
    }

    /// Bytes of memory that the hypervisor itself takes, image included, where the guests have
    /// `guests` bytes; files and what guests share are not counted.
    pub(crate) fn own_memory(&self, guests: u64) -> u64 {
        let others = guests + partition::shared_bytes() + self.moved_modules;
        image::whole().length + self.memory.taken() - others
    }

    /// The boot module of this name.
    pub(crate) fn module(&self, name: &str) -> Option<&Module<'static>> {
        self.modules.iter().find(|module| module.name == name)
    }

    /// How an interrupt of the ISA bus is wired.
    pub(crate) fn isa_line(&self, irq: u8) -> Wired {
        let straight = Wired { gsi: irq.into(), active_low: false, level: false };
        self.isa_lines.get(usize::from(irq)).copied().unwrap_or(straight)
    }

    /// Address, Capability and Extended Capability Register of each unit of the IOMMU.
    pub(crate) fn iommu_units(&self) -> impl Iterator<Item = (Hpa, u64, u64)> {
        let units = self.dmar.as_ref().map(Dmar::units);
        units.into_iter().flatten().map(|unit| {
            let read = |offset| {
                // SAFETY: `bring_up_iommu` has mapped the registers, and reading these changes nothing.
                unsafe {
                    cpu::physical::mmio_read(unit.registers.wrapping_add(offset), Width::Qword)
                }
            };
            (unit.registers, read(8), read(0x10))
        })
    }

    /// Whether a unit of the IOMMU covers this function.
    pub(crate) fn is_covered(&self, function: Bdf) -> bool {
        let space = self.config;
        self.dmar.is_some_and(|dmar| {
            dmar.drhd_for(function, &move |bridge| buses_behind(&space, bridge)).is_some()
        })
    }

    /// Memory to which the firmware keeps using this function for DMA.
    pub(crate) fn reserved_memory(&self, function: Bdf) -> Option<HpaRange> {
        let space = self.config;
        self.dmar
            .and_then(|dmar| dmar.rmrr_for(function, &move |bridge| buses_behind(&space, bridge)))
    }
}

/// Whose the addresses are that no BAR may claim.
fn owners(info: &BootInfo<'_>, firmware: &Platform, ecam: &[EcamWindow]) -> Owners {
    let dmar = firmware.dmar.as_ref().ok().and_then(|table| Dmar::parse(table).ok());
    let units = dmar.iter().flat_map(Dmar::units);
    let others = Others {
        image: image::whole(),
        ram: memory::ram(info),
        ecam: ecam.iter().map(EcamWindow::range),
        units: units.map(|unit| HpaRange { start: unit.registers, length: UNIT_REGISTERS }),
        // A card's registers are its own BAR's, which goes with it.
        console: match console::card() {
            Some(_) => None,
            None => console::uart(),
        },
    };
    plan::owners::of(Some(firmware), others)
}

/// Global system interrupts that may be guests': what the configuration names, and all of the ISA bus that
/// are not where the configuration takes them to be.
fn guests_lines(config: &Config, moved: &[InterruptOverride]) -> Vec<u32> {
    let named = config.guests.iter().flat_map(config::GuestConfig::lines);
    named.chain(moved.iter().map(|moved| moved.gsi)).collect()
}

/// Says what it means that there is no usable IOMMU.
fn without_iommu(
    config: &Config,
    identity_ram: Option<Vec<GpaRange>>,
    why: &str,
) -> Option<Vec<GpaRange>> {
    logln!("no usable IOMMU: {why}");
    for guest in config.guests.iter().filter(|_| identity_ram.is_some()) {
        logln!(
            "WARNING: no IOMMU and unsafe_no_iommu = true: guest {} and its devices can reach all memory, \
             the hypervisor's too",
            guest.name
        );
    }
    identity_ram
}

/// The memory that the loader says is usable.
fn usable(info: &BootInfo<'_>) -> impl Iterator<Item = HpaRange> {
    let usable = info.memory.iter().filter(|region| region.kind == boot::MemoryKind::Usable);
    usable.map(|region| region.range)
}

fn load_cpu_tables(memory: Memory) -> Result<u64, Refusal> {
    const DOUBLE_FAULT_STACK: u64 = 8 << 10;
    let stack = memory.frames(DOUBLE_FAULT_STACK)?;
    let tables = Box::leak(Box::new(CpuTables::new(stack.as_u64() + DOUBLE_FAULT_STACK)));
    let tss_base = tables.tss_base();
    tables.load();
    Ok(tss_base)
}

/// Modules that lie in memory which a guest will get are copied out of it.
fn move_modules(
    memory: Memory,
    info: &'static BootInfo<'static>,
    spared: u64,
) -> Result<&'static [Module<'static>], Refusal> {
    let mut modules: Vec<Module<'static>> = info.modules.iter().copied().collect();
    for module in &mut modules {
        let range = module.range;
        if range.start.as_u64() >= spared || range.length == 0 {
            continue;
        }
        logln!(
            "{}: its {} KiB are moved out of the guest's memory",
            module.name,
            range.length >> 10
        );
        let to = memory.allocate(range.length, 4096).ok_or_else(memory::out_of_memory)?;
        // SAFETY: the loader's module, which nobody writes.
        let from = unsafe { cpu::physical::bytes(range.start, range.length as usize) };
        // SAFETY: fresh memory of the pool.
        unsafe { cpu::physical::bytes_mut(to, range.length as usize) }.copy_from_slice(from);
        module.range.start = to;
        module.name = Box::leak(Box::from(module.name));
    }
    Ok(modules.leak())
}

/// Two pages below 640 KiB that nothing lies in, for the code at which other processors start.
fn start_page(info: &BootInfo<'_>) -> Option<Hpa> {
    const CONVENTIONAL_END: u64 = 0xa_0000;
    let free = |range: HpaRange| {
        let inside = |region: &boot::MemoryRegion| {
            region.kind == boot::MemoryKind::Usable
                && region.range.start <= range.start
                && range.end() <= region.range.end()
        };
        info.memory.iter().any(inside) && !info.occupied().any(|taken| taken.overlaps(range))
    };
    (1..CONVENTIONAL_END >> 12)
        .rev()
        .map(|page| HpaRange { start: Hpa::new(page << 12), length: StartPage::BYTES })
        .find(|range| free(*range))
        .map(|range| range.start)
}

/// What a processor that has just been started needs before it can do anything else.
pub(crate) fn this_cpu() -> Result<Processor, Refusal> {
    cpu::exceptions::load();
    memory::use_own_table()?;
    // SAFETY: ring 0; this CPU has taken no time yet.
    unsafe { cpu::clock::take_tsc_adjustment_off() };
    take_over_processor(Memory::handle())
}

/// Descriptor tables, local APIC in x2APIC mode, extended state usable.
fn take_over_processor(memory: Memory) -> Result<Processor, Refusal> {
    let tss_base = load_cpu_tables(memory)?;
    // SAFETY: ring 0.
    unsafe { cpu::host_state::enable_extended_state() };
    // SAFETY: ring 0 with interrupts off; nobody else drives this local APIC.
    let apic = unsafe { LocalApic::enable() }.ok_or_else(plan::platform::no_x2apic)?;
    Ok(Processor { apic, tss_base })
}

/// The I/O APICs that the firmware names, all inputs masked.
fn io_apics(info: &BootInfo<'_>, entries: &[IoApicEntry]) -> Vec<IoApic> {
    const REGISTERS: u64 = 0x20;
    let mut found = Vec::new();
    for entry in entries {
        let registers = HpaRange { start: entry.address, length: REGISTERS };
        // SAFETY: the firmware names this as an I/O APIC, and it is no RAM; below 4 GiB everything else is
        // mapped uncached.
        let new = || unsafe { IoApic::new(entry.address, entry.id, entry.first_gsi) };
        match if memory::is_ram(info, registers) { None } else { new() } {
            Some(io_apic) => found.push(io_apic),
            None => {
                logln!("there is no I/O APIC {} at {}: it is left out", entry.id, entry.address)
            }
        }
    }
    found
}

/// Calls the I/O APICs what the DMAR table calls them.
fn name_io_apics(io_apics: &mut [IoApic], dmar: &Dmar<'_>) {
    let identifiers: Vec<u8> = io_apics.iter().map(|io_apic| io_apic.id).collect();
    for (io_apic, name) in io_apics.iter_mut().zip(dmar.ioapic_names(&identifiers)) {
        match name {
            None => logln!(
                "the DMAR table does not name I/O APIC {}: its lines do not work",
                io_apic.id
            ),
            Some(name) if name != io_apic.id => {
                logln!("I/O APIC {} of the MADT is I/O APIC {name} of the DMAR table", io_apic.id);
                io_apic.id = name;
            }
            Some(_) => {}
        }
    }
}

/// Says how fast the time-stamp counter runs, and who says so.
fn read_clocks(
    mut hpet: Option<Hpet>,
    pm_timer: Option<PmTimer>,
    apic: LocalApic,
) -> Result<MachineClock, Refusal> {
    // SAFETY: ring 0; the firmware names the port.
    let mut acpi_timer = pm_timer.map(|timer| unsafe { AcpiTimer::new(timer.port) });
    // SAFETY: ring 0; nobody else uses the PIT.
    let mut pit = unsafe { Pit::new() };
    let mut clocks = [
        Clock {
            name: "HPET",
            hz: hpet.map_or(0, |hpet| hpet.hz()),
            counter: hpet.as_mut().map(|hpet| hpet as &mut dyn Counter),
        },
        Clock {
            name: "ACPI timer",
            hz: AcpiTimer::HZ,
            counter: acpi_timer.as_mut().map(|timer| timer as &mut dyn Counter),
        },
        Clock { name: "PIT", hz: Pit::HZ, counter: Some(&mut pit) },
    ];
    // Half a second for each clock at most.
    logln!("the clocks are measured");
    let found = clock::tsc_frequency(&|leaf| cpuid(leaf, 0), &mut clocks)
        .map_err(|refused| refuse!("{refused}"))?;
    found.remarks.iter().for_each(|remark| logln!("{remark}"));
    let tsc_khz = found.khz;
    logln!("TSC at {tsc_khz} kHz ({})", found.source);
    // Only guests on Intel's CPUs are told it, in leaf 0x15.
    let apic_timer_hz = match backend::vendor()? {
        // SAFETY: no guest runs yet.
        Vendor::VtX => clock::apic_timer_hz(&mut unsafe { ApicTimer::new(apic) }, tsc_khz),
        Vendor::AmdV => None,
    };
    // SAFETY: ring 0; nobody else uses the real-time clock's ports.
    let unix_time = unsafe { cpu::clock::unix_time() };
    Ok(MachineClock { tsc_khz, apic_timer_hz, unix_time, read_at_tsc: tsc() })
}

/// Finds every PCI function and takes bus mastering from all of them: firmware hands disks over with
/// it on, and nothing may master the bus before translation is on. USB controllers come from the firmware
/// before that.
fn take_over_devices(
    info: &BootInfo<'_>,
    config: &Config,
    memory: Memory,
    space: &mut MachineConfigSpace,
    tsc_khz: u64,
) -> Vec<pci::Function> {
    let mut delay = |ms: u32| cpu::start::wait(tsc_khz, u64::from(ms) * 1000);
    let functions = find_functions(space, &mut delay);
    let controllers = functions.iter().filter(|it| it.class >> 8 == usb::CLASS).count();
    if controllers > 0 {
        logln!("USB controllers are taken from the firmware: {controllers}, a second each at most");
    }
    for function in &functions {
        let map = |start: Hpa| {
            let range = HpaRange { start, length: usb::REGISTERS };
            let reachable =
                !memory::is_ram(info, range) && memory::map_device(memory, range).is_ok();
            reachable.then_some(UsbRegisters(start))
        };
        let how = match usb::take(space, function, map, &mut delay) {
            usb::HandOff::Nothing => continue,
            usb::HandOff::Given => "given up by the firmware",
            usb::HandOff::Taken => "not given up by the firmware within a second: taken",
        };
        logln!("{}: USB controller {how}", function.bdf);
    }
    pci::reset::quiesce(space, &functions);
    console::find_card(config, space, &functions, |range| memory::is_ram(info, range), memory);
    functions
}

/// Finds every function, awake: one that sleeps would lose its BARs on the way to its guest, and what is
/// behind a bridge that sleeps is found once that is awake.
fn find_functions(
    space: &mut MachineConfigSpace,
    delay: &mut dyn FnMut(u32),
) -> Vec<pci::Function> {
    /// Bridges behind each other that sleep.
    const MAX_DEPTH: u32 = 8;
    let mut functions = Vec::new();
    for _ in 0..MAX_DEPTH {
        functions.clear();
        for segment in space.segments() {
            let buses = (0..=u8::MAX).filter(|bus| space.reaches(segment, *bus));
            functions.extend(pci::scan(space, segment, buses));
        }
        pci::header::leave_out_twins(space, &mut functions);
        let mut woken = false;
        for function in &functions {
            let (bdf, report) = (function.bdf, &mut |event| logln!("{event}"));
            match pci::power::wake(space, function, delay, report) {
                Ok(false) => {}
                Ok(true) => {
                    logln!("{bdf}: the firmware left it asleep: woken");
                    woken |= matches!(function.header, HeaderType::Bridge { .. });
                }
                Err(error) => logln!("{error}"),
            }
        }
        if !woken {
            break;
        }
    }
    functions
}

/// A USB controller's registers, mapped.
struct UsbRegisters(Hpa);

impl usb::Registers for UsbRegisters {
    fn read(&self, offset: u64) -> u32 {
        // SAFETY: `take_over_devices` has mapped the registers, and no driver runs.
        unsafe { cpu::physical::mmio_read(self.0.wrapping_add(offset), Width::Dword) as u32 }
    }

    fn write(&mut self, offset: u64, value: u32) {
        // SAFETY: as above; `usb` writes what the specifications ask of a new owner.
        unsafe {
            cpu::physical::mmio_write(self.0.wrapping_add(offset), Width::Dword, value.into())
        }
    }
}

/// Switches all VT-d units on; or says why there is no usable IOMMU.
fn bring_up_iommu(
    info: &BootInfo<'_>,
    firmware: &Platform,
    space: MachineConfigSpace,
    memory: Memory,
) -> Result<(SharedIommu, Dmar<'static>), String> {
    let table = firmware.dmar.clone()?;
    let dmar = Dmar::parse(table.leak()).map_err(|error| error.to_string())?;
    if dmar.left_out() > 0 {
        logln!("the DMAR table has {} parts that are not whole: left out", dmar.left_out());
    }
    if dmar.x2apic_opt_out() {
        logln!(
            "the DMAR table asks for no x2APIC mode (X2APIC_OPT_OUT): Nexit needs it and uses it"
        );
    }
    if let Some(why) = dmar.unit_in_ram(|range| memory::is_ram(info, range)) {
        return Err(why);
    }
    for unit in dmar.units() {
        let registers = HpaRange { start: unit.registers, length: UNIT_REGISTERS };
        memory::map_device(memory, registers).map_err(|why| {
            format!("the firmware's DMAR table names a unit that cannot be reached: {why}")
        })?;
    }
    // Each waits for what it was told, for a good part of a second at most.
    logln!("IOMMU units are switched on: {}", dmar.units().count());
    let bridges = Box::leak(Box::new(move |bridge| buses_behind(&space, bridge)));
    // SAFETY: the table is this machine's; its units are mapped uncached; no function masters the bus.
    let vtd = unsafe { VtD::new(dmar, bridges, memory) }.map_err(|error| error.to_string())?;
    logln!("IOMMU {}: translation and interrupt remapping are on", vtd.name());
    for (base, capability, extended) in vtd.capability_words() {
        logln!("IOMMU unit at {base}: CAP {capability:#x} ECAP {extended:#x}");
    }
    Ok((Box::leak(Box::new(Mutex::new(vtd))), dmar))
}

/// The buses behind a PCI-to-PCI bridge.
fn buses_behind(space: &MachineConfigSpace, bridge: Bdf) -> Option<core::ops::RangeInclusive<u8>> {
    match pci::Function::read(space, bridge)?.header {
        HeaderType::Bridge { secondary, subordinate } => Some(secondary..=subordinate),
        HeaderType::Device | HeaderType::Unknown(_) => None,
    }
}
