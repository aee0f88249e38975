//! A guest's PCI functions, interrupt lines and ports: checked against the machine, put into a DMA
//! domain of their own, and routed.

use alloc::string::String;
use alloc::vec::Vec;

use arch::address::HpaRange;
use arch::iommu::{DomainId, IommuError};
use arch::msr::PortRange;
use arch::{Bdf, Hpa, Iova};
use config::{GuestConfig, Uart};
use cpu::config_space::MachineConfigSpace;
use guest::lines::Line;
use guest::memory_map::Ecam;
use guest::pci::VirtualBus;
use pci::Owned;

use super::slots::processors;
use super::{Plan, address_bits};
use crate::console::logln;
use crate::hardware::Hardware;
use crate::memory;
use crate::ram::GuestRam;
use crate::refusal::{Refusal, refuse};
use crate::routes::{Interrupts, Routes, SharedIommu};

/// A guest's DMA domain, with its functions in it until this is dropped.
pub(super) struct Domain {
    iommu: SharedIommu,
    id: DomainId,
    requesters: Vec<Bdf>,
    guest: String,
}

impl Domain {
    /// A domain of the guest's memory for its functions, if they and an IOMMU are there.
    pub(super) fn new(
        hardware: &Hardware,
        guest: &GuestConfig,
        functions: &[Bdf],
        ram: &GuestRam,
    ) -> Result<Option<Self>, Refusal> {
        let Some(shared) = hardware.iommu.filter(|_| !functions.is_empty()) else {
            return Ok(None);
        };
        let requesters: Vec<Bdf> =
            functions.iter().flat_map(|function| hardware.groups.requesters(*function)).collect();
        let id = shared.lock().create_domain(&requesters)?;
        let domain = Self { iommu: shared, id, requesters, guest: guest.name.clone() };
        let mut iommu = shared.lock();
        for block in ram.blocks() {
            iommu.map(id, Iova::new(block.gpa.as_u64()), block.hpa, block.length)?;
        }
        for requester in &domain.requesters {
            iommu.attach(*requester, id)?;
        }
        drop(iommu);
        Ok(Some(domain))
    }

    /// Takes the functions out. Where a unit does not answer, the domain stays as it is: the functions master no bus.
    fn release(&self) -> Result<(), IommuError> {
        let mut iommu = self.iommu.lock();
        for requester in &self.requesters {
            iommu.detach(*requester)?;
        }
        iommu.destroy_domain(self.id);
        Ok(())
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            logln!("guest {}: its DMA domain is kept: {error}", self.guest);
        }
    }
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
    let mut windows = map.pci_windows();
    windows.push(map.high_pci_window(address_bits()));
    let ecam = map.ecam().map(Ecam::range);
    let sized: Vec<_> =
        records(hardware, functions).map(|record| (record.function, record.bars)).collect();
    let mut bus = VirtualBus::new(config, &sized, ecam, windows)?;
    for share in shares {
        bus.add_shared(share.memory, share.peer)?;
    }
    let isa = bus.legacy_ide().map(|channel| channel.gsi).chain(timer);
    let lines = guest::lines::of(guest, isa)?;
    for entry in &guest.intx {
        if let Some(line) = lines.iter().find(|line| line.gsi == entry.gsi) {
            bus.wire(config, entry.function, line.input as u8)?;
        }
    }
    Ok((bus, lines))
}

/// What the guest has of the machine, by name. With `pit` it has channel 0 of the PIT.
pub(super) fn owned(plan: &Plan, pit: bool, config: &MachineConfigSpace) -> Owned {
    let mut owned = Owned::default();
    for record in records(plan.hardware, &plan.functions) {
        owned.add_function(config, record.function, record.bars);
    }
    for share in &plan.shares {
        owned.add_shared(share.range);
    }
    if pit {
        owned.add_pit();
    }
    owned
}

/// Makes the guest's UART raise no interrupt until the guest has it do so.
pub(super) fn quiet_uart(guest: &GuestConfig) -> Result<(), Refusal> {
    let Some(uart) = guest.uart else { return Ok(()) };
    // SAFETY: ring 0; the ports are this guest's alone, and it does not run.
    if unsafe { cpu::serial::quiet(uart.ports().first) } {
        return Ok(());
    }
    Err(plan::interrupts::no_uart(guest, uart).into())
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

/// Takes an interrupt-remapping entry for each message and line that the guest may use.
pub(super) fn routes(
    hardware: &Hardware,
    guest: &GuestConfig,
    bus: &mut VirtualBus,
    lines: &[Line],
) -> Result<Routes, Refusal> {
    let interrupts = Interrupts { iommu: hardware.iommu, io_apics: hardware.io_apics };
    let mut routes = Routes::new(interrupts, &processors(hardware, guest));
    for (function, messages) in bus.messages() {
        if messages > 0 {
            let requester = hardware.groups.interrupt_requester(function);
            routes
                .grant_messages(function, requester, messages)
                .map_err(|error| refuse!("device {function}: {error}"))?;
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
