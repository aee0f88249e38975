//! A guest's PCI functions, interrupt lines and ports: checked against the machine, put into a DMA
//! domain of their own, and routed.

use alloc::string::ToString;
use alloc::vec::Vec;
use core::fmt::Display;

use arch::address::HpaRange;
use arch::iommu::{DomainId, IommuError};
use arch::msr::PortRange;
use arch::{Bdf, Hpa, Iova};
use config::{Config, Devices, GuestConfig, Uart};
use cpu::config_space::MachineConfigSpace;
use guest::lines::Line;
use guest::memory_map::Ecam;
use guest::pci::{BusError, VirtualBus};

use super::seats::processors;
use super::{Plan, address_bits};
use crate::bring_up::Hardware;
use crate::console::logln;
use crate::memory;
use crate::ram::GuestRam;
use crate::refusal::{Refusal, refuse};
use crate::routes::Routes;

/// The functions of each guest, in the order of the file: they exist, and no group is divided.
pub(crate) fn functions(hardware: &Hardware, config: &Config) -> Result<Vec<Vec<Bdf>>, Refusal> {
    for guest in &config.guests {
        let excepted = matches!(guest.devices, Devices::All { .. });
        for function in guest.devices.named() {
            let found = find(hardware, guest, *function)?;
            if found.is_infrastructure() && !excepted {
                return Err(refuse!(
                    "nexit.toml: guest {}: {}",
                    guest.name,
                    BusError::NotADevice(*function)
                ));
            }
        }
    }
    // "all" is the devices that a guest could want, and have.
    let stays = |it: &pci::Function| it.is_infrastructure() || it.is_of_the_platform();
    let given = hardware.functions.iter().filter(|function| !stays(function));
    let given = given.map(|function| function.bdf).filter(|function| {
        let any = || config.guests.iter().any(|it| matches!(it.devices, Devices::All { .. }));
        let bad = hardware.claims.check(*function).err().filter(|_| any());
        bad.inspect(|bad| logln!("devices = \"all\": {bad}")).is_none()
    });
    let given: Vec<Bdf> = given.collect();
    let owned = config.guests.iter().map(|guest| config.functions(guest, &given));
    let owned: Vec<Vec<Bdf>> = owned.collect();
    // Without an IOMMU nothing keeps anything apart, and the one guest is trusted with all.
    if hardware.iommu.is_some() {
        hardware.groups.check(&owned).map_err(|error| refuse!("nexit.toml: {error}"))?;
    }
    Ok(owned)
}

/// Refuses lines of two devices that are one interrupt of this machine, because its firmware has moved an
/// interrupt of the ISA bus.
pub(crate) fn check_lines(
    hardware: &Hardware,
    config: &Config,
    owned: &[Vec<Bdf>],
) -> Result<(), Refusal> {
    const CONSOLE: &str = "the hypervisor's console";
    let mut lines = Vec::new();
    let console = crate::console::uart().and_then(mux::uart::line).map(u32::from);
    let isa = |gsi| Line { input: gsi, gsi, active_low: false };
    lines.extend(console.map(|irq| (CONSOLE, isa(irq))));
    for (index, (guest, functions)) in config.guests.iter().zip(owned).enumerate() {
        let timer = (index == 0 && guest.pit).then_some(guest::devices::pit::GSI);
        let own = hardware.functions.iter().filter(|function| functions.contains(&function.bdf));
        let channels = own.flat_map(pci::Function::legacy_ide).map(|channel| channel.gsi);
        // Too many are refused where the guest is built.
        let found = guest::lines::of(guest, channels.chain(timer)).unwrap_or_default();
        lines.extend(found.into_iter().map(|line| (guest.name.as_str(), line)));
    }
    match guest::lines::clash(&lines, |irq| hardware.isa_line(irq)) {
        Some(clash) => Err(refuse!("nexit.toml: {clash}")),
        None => Ok(()),
    }
}

/// Puts the guest's functions into a DMA domain of their own, if they and an IOMMU are there.
pub(super) fn assign(
    hardware: &Hardware,
    functions: &[Bdf],
    ram: &GuestRam,
) -> Result<Option<DomainId>, Refusal> {
    let Some(iommu) = hardware.iommu.filter(|_| !functions.is_empty()) else { return Ok(None) };
    let mut iommu = iommu.lock();
    let requesters: Vec<Bdf> =
        functions.iter().flat_map(|function| hardware.groups.requesters(*function)).collect();
    let domain = iommu.create_domain(&requesters)?;
    for block in ram.blocks() {
        iommu.map(domain, Iova::new(block.gpa.as_u64()), block.hpa, block.length)?;
    }
    for requester in requesters {
        iommu.attach(requester, domain)?;
    }
    Ok(Some(domain))
}

/// Takes the functions out of their domain, and gives it back. Where a unit does not answer, it stays
/// as it is: the functions master no bus.
pub(super) fn release(
    hardware: &Hardware,
    functions: &[Bdf],
    domain: DomainId,
) -> Result<(), IommuError> {
    let Some(iommu) = hardware.iommu else { return Ok(()) };
    let mut iommu = iommu.lock();
    for function in functions {
        for requester in hardware.groups.requesters(*function) {
            iommu.detach(requester)?;
        }
    }
    iommu.destroy_domain(domain);
    Ok(())
}

/// Resets the functions, so that nothing of who had them before is left in them. One that cannot be
/// reset stays as it is, with a line in the log: nobody but its guest gets it before the machine is
/// switched off.
pub(super) fn reset_functions(
    hardware: &Hardware,
    guest: &GuestConfig,
    functions: &[Bdf],
    config: &mut MachineConfigSpace,
) {
    let mut delay = |ms: u32| cpu::start::wait(hardware.clock.tsc_khz, u64::from(ms) * 1000);
    let mut report = |event| logln!("guest {}: {event}", guest.name);
    pci::reset::reset_all(config, &hardware.functions, functions, &mut delay, &mut report);
    records(hardware, functions).for_each(|record| record.restore(config));
}

/// What was recorded of the functions at bring-up.
fn records<'a>(hardware: &'a Hardware, functions: &[Bdf]) -> impl Iterator<Item = &'a pci::Record> {
    functions.iter().filter_map(|function| hardware.claims.of(*function))
}

/// Refuses functions whose BARs are not where they were recorded: whatever is there now, it is not what a
/// guest was given.
pub(super) fn check_bars(
    hardware: &Hardware,
    functions: &[Bdf],
    config: &MachineConfigSpace,
) -> Result<(), Refusal> {
    for record in records(hardware, functions) {
        record.check(config).map_err(|changed| refuse!("{changed}"))?;
    }
    Ok(())
}

/// The guest's PCI bus with its functions, untouched, and its shared memory on it; and its interrupt
/// lines.
pub(super) fn virtual_bus(
    plan: &Plan,
    timer: Option<u32>,
    config: &MachineConfigSpace,
) -> Result<(VirtualBus, Vec<Line>), Refusal> {
    let Plan { hardware, guest, map, functions, shares, .. } = plan;
    let sentence = |error: &dyn Display| refuse!("nexit.toml: guest {}: {error}", guest.name);
    let mut windows = map.pci_windows();
    windows.push(map.high_pci_window(address_bits()));
    let ecam = map.ecam().map(Ecam::range);
    let sized: Vec<_> =
        records(hardware, functions).map(|record| (record.function, record.bars)).collect();
    let mut bus = VirtualBus::new(config, &sized, ecam, windows).map_err(|e| sentence(&e))?;
    for share in shares {
        bus.add_shared(share.memory, share.peer)?;
    }
    let isa = bus.legacy_ide().map(|channel| channel.gsi).chain(timer);
    let lines = guest::lines::of(guest, isa).map_err(|error| sentence(&error))?;
    for entry in &guest.intx {
        if let Some(line) = lines.iter().find(|line| line.gsi == entry.gsi) {
            let wired = bus.wire(config, entry.function, line.input as u8);
            wired.map_err(|error| sentence(&error))?;
        }
    }
    Ok((bus, lines))
}

/// Makes the guest's UART raise no interrupt until the guest has it do so.
pub(super) fn quiet_uart(guest: &GuestConfig) -> Result<(), Refusal> {
    let Some(uart) = guest.uart else { return Ok(()) };
    // SAFETY: ring 0; the ports are this guest's alone, and it does not run.
    if unsafe { cpu::serial::quiet(uart.ports().first) } {
        return Ok(());
    }
    Err(refuse!(
        "nexit.toml: guest {}: the machine has no UART at {} (port {:#x}): remove uart, or enable it in \
         the firmware's setup",
        guest.name,
        uart.name(),
        uart.ports().first
    ))
}

/// Maps the functions' registers for the hypervisor: it programs their MSI-X tables.
pub(super) fn map_bars(hardware: &Hardware, functions: &[Bdf]) -> Result<(), Refusal> {
    let bars = records(hardware, functions).flat_map(|record| record.bars).flatten();
    for bar in bars.filter(|bar| bar.is_memory() && bar.base != 0) {
        let range = HpaRange { start: Hpa::new(bar.base), length: bar.size };
        memory::map_device(hardware.memory, range)?;
    }
    Ok(())
}

/// The function of this address.
fn find<'a>(
    hardware: &'a Hardware,
    guest: &GuestConfig,
    function: Bdf,
) -> Result<&'a pci::Function, Refusal> {
    hardware.functions.iter().find(|found| found.bdf == function).ok_or_else(|| {
        let list: Vec<_> = hardware.functions.iter().map(|found| found.bdf.to_string()).collect();
        refuse!(
            "nexit.toml: guest {}: devices names {function}, but the machine has no such PCI \
             function; it has {}",
            guest.name,
            list.join(", ")
        )
    })
}

/// Whether the function can be given to a guest on this machine.
pub(super) fn check_function(
    hardware: &Hardware,
    guest: &GuestConfig,
    function: Bdf,
) -> Result<(), Refusal> {
    let name = &guest.name;
    let relaxed = find(hardware, guest, function)?.outlives_reserved_memory();
    let reserved = hardware.reserved_memory(function);
    if let Some(range) = reserved.filter(|_| relaxed) {
        logln!(
            "guest {name}: {function} is taken from the firmware, which used it for DMA to {} (an RMRR)",
            range.start
        );
    } else if let Some(range) = reserved {
        return Err(refuse!(
            "nexit.toml: guest {name}: {function} cannot be assigned: the firmware keeps using it \
             for DMA to {} (an RMRR of its DMAR table)",
            range.start
        ));
    }
    hardware.claims.check(function).map_err(|bad| refuse!("nexit.toml: guest {name}: {bad}"))?;
    check_iommu(hardware, guest, function)
}

fn check_iommu(hardware: &Hardware, guest: &GuestConfig, function: Bdf) -> Result<(), Refusal> {
    let name = &guest.name;
    if hardware.iommu.is_none() && hardware.identity_ram.is_none() {
        return Err(refuse!(
            "nexit.toml: guest {name}: {function} cannot be assigned: the machine has no usable IOMMU, \
             so the device could reach all memory ({}). Repair that, or write unsafe_no_iommu = true to \
             trust the guest with the whole machine",
            hardware.no_iommu
        ));
    }
    Ok(())
}

/// Takes an interrupt-remapping entry for each message and line that the guest may use.
pub(super) fn routes(
    hardware: &Hardware,
    guest: &GuestConfig,
    bus: &mut VirtualBus,
    lines: &[Line],
) -> Result<Routes, Refusal> {
    let mut routes = Routes::new(hardware.iommu, hardware.io_apics, &processors(hardware, guest));
    for (function, messages) in bus.messages() {
        if messages > 0 {
            let requester = hardware.groups.interrupt_requester(function);
            routes.grant_messages(function, requester, messages)?;
        }
    }
    for line in lines {
        match routes.grant_line(*line, line.wired(|irq| hardware.isa_line(irq))) {
            // Few guests ask for its ticks.
            Err(refusal) if line.gsi == guest::devices::pit::GSI => {
                logln!("guest {}: no ticks of the PIT: {refusal}", guest.name);
            }
            granted => granted?,
        }
    }
    Ok(routes)
}

/// The ports that the guest uses without an exit.
pub(super) fn port_passes(
    hardware: &Hardware,
    guest: &GuestConfig,
    bus: &VirtualBus,
) -> Vec<PortRange> {
    let mut ports = guest.io_ports.clone();
    ports.extend(hardware.pm_timer);
    ports.extend(guest.uart.map(Uart::ports));
    ports.extend(bus.port_ranges());
    for channel in bus.legacy_ide() {
        ports.extend([channel.command, channel.control]);
    }
    ports
}

/// Raw ports must be nobody else's: not a device's that the guest gets anyway, nor what the
/// hypervisor keeps for itself, such as PCI's configuration ports, nor those of a function that is not
/// among its own `functions`.
pub(super) fn check_ports(
    hardware: &Hardware,
    guest: &GuestConfig,
    functions: &[Bdf],
) -> Result<(), Refusal> {
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
    for range in guest.io_ports.iter().copied().chain(guest.uart.map(Uart::ports)) {
        if let Some((function, bar)) = hardware.claims.port_bar(range, functions) {
            return Err(refuse!(
                "nexit.toml: guest {}: the ports {:#x} to {:#x} are BAR {} of {function}, which is not the \
                 guest's: assign that, or remove them",
                guest.name,
                range.first,
                range.last,
                bar.index
            ));
        }
    }
    Ok(())
}
