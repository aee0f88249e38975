//! The files that a guest begins from, and how they get into its memory.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use arch::machine::GuestMemory;
use arch::msr::PortRange;
use arch::vcpu::StartState;
use boot::Module;
use config::GuestConfig;
use cpu::physical;
use guest::acpi::Parameters;
use guest::load::{ApicStart, LoadRequest, ModuleRequest, Source};
use guest::memory_map::{ACPI_TABLES, MemoryMap};
use guest::pci::VirtualBus;

use super::address_bits;
use super::slots::virtual_ids;
use crate::hardware::Hardware;
use crate::ram::GuestRam;
use crate::refusal::Refusal;

/// The files that a guest begins from.
pub(super) struct Files {
    kernel: &'static [u8],
    initrd: Option<&'static [u8]>,
    modules: Vec<&'static [u8]>,
    /// For names in the monitor.
    pub(super) symbols: Option<&'static [u8]>,
}

impl Files {
    pub(super) fn find(hardware: &Hardware, guest: &GuestConfig) -> Result<Self, Refusal> {
        let file = |path: &str| Ok(module_bytes(module(hardware, path).map_err(Refusal::new)?));
        let modules = guest.modules.iter().map(|module| file(&module.file));
        Ok(Self {
            kernel: file(&guest.kernel)?,
            initrd: guest.initrd.as_deref().map(file).transpose()?,
            modules: modules.collect::<Result<_, Refusal>>()?,
            symbols: guest.symbols.as_deref().map(file).transpose()?,
        })
    }
}

/// The boot module that a path in the configuration names; or why there is none.
pub(super) fn module<'a>(
    hardware: &'a Hardware,
    path: &str,
) -> Result<&'a Module<'static>, String> {
    let name = path.rsplit('/').next().unwrap_or(path);
    hardware.module(name).ok_or_else(|| {
        let passed: Vec<&str> = hardware.modules.iter().map(|module| module.name).collect();
        format!("the loader passed no file {name}; it passed {}", passed.join(", "))
    })
}

pub(super) fn module_bytes(module: &Module<'static>) -> &'static [u8] {
    // SAFETY: modules are kept out of the free memory, and out of a guest's, as long as the
    // hypervisor runs.
    unsafe { physical::bytes(module.range.start, module.range.length as usize) }
}

/// Puts kernel, initrd and the tables that it starts from into the guest's memory, which is scrubbed. How its first CPU
/// begins, and its local APICs.
pub(super) fn load(
    guest: &GuestConfig,
    map: &MemoryMap,
    bus: &VirtualBus,
    legacy: bool,
    ram: &mut GuestRam,
    files: &Files,
    pm_timer: Option<PortRange>,
) -> Result<(StartState, ApicStart), Refusal> {
    let Files { kernel, initrd, modules, .. } = files;
    let (kernel, initrd) = (*kernel, *initrd);
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
    let plan = guest::load::plan(request)?;
    for copy in &plan.copies {
        let source = match copy.source {
            Source::Kernel => kernel,
            Source::Initrd => initrd.unwrap_or_default(),
            Source::Module(index) => modules.get(index).copied().unwrap_or_default(),
        };
        let bytes = source.get(copy.bytes.clone()).unwrap_or_default();
        ram.write(copy.to, bytes)?;
    }
    let apic_ids = virtual_ids(guest);
    let parameters = Parameters {
        apic_ids: &apic_ids,
        memory: map,
        physical_address_bits: address_bits(),
        pins: &bus.pins(),
        uart: guest.uart,
        legacy,
        pm_timer,
    };
    for blob in plan.blobs.iter().chain([&guest::acpi::tables(parameters)]) {
        ram.write(blob.at, &blob.bytes)?;
    }
    Ok((plan.start, plan.apics))
}
