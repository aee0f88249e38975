//! Machine bring-up, in order: from the loader's information to a machine that the hypervisor owns: the order of the boot.
//!
//! Each step refuses with one sentence; nothing is undone, as the CPU then halts.

use alloc::string::String;
use alloc::vec::Vec;

use arch::Hpa;
use arch::address::HpaRange;
use boot::BootInfo;
use config::Config;
use cpu::config_space::MachineConfigSpace;
use cpu::hpet::Hpet;
use cpu::start::StartPage;
use firmware::InterruptOverride;
use guest::memory_map::GpaRange;
use plan::interrupts::wired;

use crate::acpi;
use crate::console::{self, logln};
use crate::hardware::Hardware;
use crate::memory::{self, Memory, image};
use crate::post::{self, Step};
use crate::processors::{self, Processor};
use crate::refusal::Refusal;

mod clocks;
mod devices;
mod interrupts;
mod iommu;
mod modules;

/// Takes the machine over. What is found, and the processor that calls.
#[unsafe(link_section = ".text.init")]
pub(crate) fn take_over(
    info: &'static BootInfo<'static>,
    config: &Config,
) -> Result<(Hardware, Processor), Refusal> {
    // Whether there is a usable IOMMU shows later: until then that guest's memory stays aside.
    let identity_ram = plan::memory::identity(config, usable(info), image::whole()).transpose();
    let aside = config.guests.first().filter(|_| matches!(identity_ram, Ok(Some(_))));
    let spared = aside.map_or(0, |guest| guest.memory);
    let spared = HpaRange { start: Hpa::new(0), length: spared };
    post::step(Step::Memory);
    let memory = Memory::take_over(info, spared);
    memory::build_own_tables(memory, info)?;
    console::map_screen(|range| memory::show(memory, range));
    post::step(Step::Firmware);
    let firmware = acpi::read(memory, info, config)?;
    // SAFETY: ring 0 with interrupts off; nobody else is there.
    unsafe { cpu::pic::disable() };
    let boot_processor = Processor::take_over(memory)?;
    let apic = boot_processor.apic;
    let mut io_apics = interrupts::io_apics(info, &firmware.io_apics);
    // SAFETY: the address is the firmware's, mapped uncached; nobody else drives the HPET.
    let hpet = firmware.hpet.and_then(|base| unsafe { Hpet::new(base) });
    post::step(Step::Clocks);
    let clock = clocks::read(hpet, firmware.pm_timer, apic)?;
    post::step(Step::Processors);
    let start_page = info.conventional(StartPage::BYTES);
    let started = processors::start(memory, start_page, &firmware.cpus, apic.id(), clock.tsc_khz)?;
    let ecam = acpi::ecam(memory, &firmware);
    post::step(Step::Devices);
    // SAFETY: the windows are the firmware's; from here on configuration space is ours.
    let mut space = unsafe { MachineConfigSpace::new(ecam) };
    let functions = devices::take_over(info, config, memory, &mut space, clock.tsc_khz);
    let claims =
        pci::Claims::record(&mut space, &functions, devices::owners(info, &firmware, ecam));
    pci::acs::enable(&mut space, &functions);
    let groups = pci::Groups::new(&space, &functions);
    post::step(Step::Iommu);
    let (iommu, dmar, no_iommu) = match iommu::switch_on(info, &firmware, space, memory) {
        Ok((iommu, dmar)) => (Some(iommu), Some(dmar), String::new()),
        Err(why) => (None, None, why),
    };
    let identity_ram = match dmar {
        Some(dmar) => {
            interrupts::name_io_apics(&mut io_apics, &dmar);
            memory.add(info, spared);
            None
        }
        None => without_iommu(config, identity_ram?, &no_iommu),
    };
    let spared = identity_ram.as_ref().map_or(0, |_| spared.length);
    let modules = modules::move_out(memory, info, spared)?;
    let hardware = Hardware {
        isa_lines: core::array::from_fn(|irq| wired(firmware.isa_line(irq as u8))),
        pm_timer: acpi::pm_timer(&firmware),
        resets: firmware.resets(),
        memory,
        modules,
        cpus: firmware.cpus,
        started,
        boot_processor: apic.id(),
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
        owned: Vec::new(),
        guests_lines: guests_lines(config, &firmware.overrides),
    };
    Ok((hardware, boot_processor))
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
