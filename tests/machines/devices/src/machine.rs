//! All devices of one machine, by their options, and the report of what they saw.

use std::path::Path;

use crate::acpi;
use crate::bus::Bus;
use crate::disk::Disk;
use crate::host::{Host, Timer};
use crate::io_apic::IoApic;
use crate::nvme::{Controller, NvmeOptions};
use crate::options::Options;
use crate::unit::Unit;

/// A machine's devices.
#[derive(Debug)]
pub struct Machine {
    unit: Option<Unit>,
    io_apic: IoApic,
    controllers: Vec<Controller>,
    /// The window with the ACPI tables, once the firmware has made its own.
    window: Vec<u8>,
}

impl Machine {
    /// The devices of a machine of so many processors.
    ///
    /// # Errors
    /// A sentence, where a disk cannot be opened.
    pub fn new(options: &Options, processors: u8) -> Result<Self, String> {
        let controllers = options.controllers.iter().enumerate().map(|(place, (device, path))| {
            let nvme = NvmeOptions { device: *device, ..options.nvme.clone() };
            disk(path).map(|disk| Controller::new(nvme, place, disk))
        });
        Ok(Self {
            unit: options.unit.clone().map(Unit::new),
            // As Bochs' firmware says in its MADT.
            io_apic: IoApic::new(processors),
            controllers: controllers.collect::<Result<_, _>>()?,
            window: Vec::new(),
        })
    }

    /// Where the unit's registers are.
    #[must_use]
    pub fn unit_base(&self) -> Option<u64> {
        self.unit.as_ref().map(|unit| unit.options().base)
    }

    /// The controllers, by their places.
    #[must_use]
    pub fn controllers(&self) -> &[Controller] {
        &self.controllers
    }

    /// Power-on, or a reset.
    pub fn reset(&mut self, host: &mut dyn Host) {
        self.window.clear();
        if let Some(unit) = &mut self.unit {
            unit.reset();
            host.cancel(Timer::Unit);
        }
        self.io_apic.reset();
        let mut bus = Bus { host, unit: self.unit.as_mut() };
        self.controllers.iter_mut().for_each(|controller| controller.reset(&mut bus));
    }

    /// Looks at what may be the firmware's RSDP. Once it is, the firmware is done: the DMAR table is put in,
    /// and the devices are handed over.
    pub fn look_at_rsdp(&mut self, host: &mut dyn Host, rsdp: &mut [u8; acpi::RSDP_SIZE]) -> bool {
        let Some(unit) = &mut self.unit else { return false };
        let Some(window) = acpi::add_dmar(host, rsdp, unit.options()) else { return false };
        self.window = window;
        unit.reset_by_firmware();
        self.controllers.iter_mut().for_each(Controller::reset_by_firmware);
        host.log("the firmware's RSDP names a DMAR table now");
        true
    }

    /// A byte of the window with the ACPI tables.
    #[must_use]
    pub fn table_byte(&self, offset: usize) -> u8 {
        self.window.get(offset).copied().unwrap_or(0xff)
    }

    /// A timer's time has come.
    pub fn timer(&mut self, host: &mut dyn Host, timer: Timer) {
        match timer {
            Timer::Unit => {
                if let Some(unit) = &mut self.unit {
                    unit.work(host);
                }
            }
            Timer::Queues(place) => self.with(host, place, |one, bus| one.work(bus)),
            Timer::Engine(place) => self.with(host, place, |one, bus| one.act(bus)),
        }
    }

    fn with(
        &mut self,
        host: &mut dyn Host,
        place: usize,
        work: impl FnOnce(&mut Controller, &mut Bus<'_>),
    ) {
        let mut bus = Bus { host, unit: self.unit.as_mut() };
        if let Some(controller) = self.controllers.get_mut(place) {
            work(controller, &mut bus);
        }
    }

    /// Reads a register of the unit.
    #[must_use]
    pub fn unit_read(&self, offset: u32) -> u32 {
        self.unit.as_ref().map_or(u32::MAX, |unit| unit.read(offset))
    }

    /// Writes one.
    pub fn unit_write(&mut self, host: &mut dyn Host, offset: u32, value: u32) {
        if let Some(unit) = &mut self.unit {
            unit.write(host, offset, value);
        }
    }

    /// Reads a register of the I/O APIC.
    #[must_use]
    pub fn io_apic_read(&self, offset: u32) -> u32 {
        self.io_apic.read(offset)
    }

    /// Writes one.
    pub fn io_apic_write(&mut self, host: &mut dyn Host, offset: u32, value: u32) {
        self.io_apic.write(&mut Bus { host, unit: self.unit.as_mut() }, offset, value);
    }

    /// A line of the I/O APIC has a new level.
    pub fn set_line(&mut self, host: &mut dyn Host, line: u8, up: bool) {
        self.io_apic.set_line(&mut Bus { host, unit: self.unit.as_mut() }, line, up);
    }

    /// A CPU ended a level-triggered interrupt.
    pub fn end_of_interrupt(&mut self, host: &mut dyn Host, vector: u8) {
        self.io_apic.end_of_interrupt(&mut Bus { host, unit: self.unit.as_mut() }, vector);
    }

    /// Writes configuration space of the function at `place`.
    pub fn config_write(&mut self, host: &mut dyn Host, place: usize, at: usize, bytes: &[u8]) {
        self.with(host, place, |one, bus| one.config_write(bus, at, bytes));
    }

    /// Writes a register of the function at `place`.
    pub fn write(&mut self, host: &mut dyn Host, place: usize, offset: u32, value: u32) {
        self.with(host, place, |one, bus| one.write(bus, offset, value));
    }

    /// The counters, a line each.
    #[must_use]
    pub fn report(&self, now: u64) -> String {
        let mut text = format!("ticks {now}\n");
        let mut add = |name: &str, value: u64| text.push_str(&format!("{name} {value}\n"));
        if let Some(unit) = &self.unit {
            let counters = &unit.counters;
            add("dma_bytes", counters.dma_bytes);
            add("walks", counters.walks);
            add("hits", counters.hits);
            add("remapped", counters.remapped);
            add("remap_hits", counters.remap_hits);
            add("compatibility", counters.compatibility);
            add("faults", counters.faults);
            add("lost_faults", counters.lost_faults);
            add("descriptors", counters.descriptors);
            add("undrained", counters.undrained);
            add("stale_contexts", counters.stale_contexts);
            add("stale_translations", counters.stale_translations);
            add("stale_remaps", counters.stale_remaps);
            add("driver_errors", counters.driver_errors);
        }
        for controller in &self.controllers {
            let (device, counters) = (controller.device(), &controller.counters);
            let mut add = |name: &str, value| add(&format!("device_{device}_{name}"), value);
            add("commands", counters.commands);
            add("reads", counters.reads);
            add("writes", counters.writes);
            add("messages", counters.messages);
            add("refused", counters.refused);
            add("operations", counters.operations);
            add("resets", counters.resets);
        }
        text
    }
}

fn disk(path: &Path) -> Result<Disk, String> {
    if path.as_os_str().is_empty() {
        return Ok(Disk::empty());
    }
    Disk::of_file(path).map_err(|error| format!("vtd: cannot open {}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
