//! The guest's PCI bus: a virtual host bridge, the assigned functions, and those by which guests
//! share memory (`shared`).
//!
//! The guest reaches configuration space through ports 0xCF8/0xCFC and through the ECAM window (`access`). Functions
//! that are not assigned read as all ones. There is one bus; `slots` decides where functions appear on it. `device`
//! carries an access out.
//!
//! INTx exists where the configuration says which line it is ([`VirtualBus::wire`]); else Interrupt
//! Pin reads 0. IDE channels in compatibility mode have their ISA lines ([`VirtualBus::legacy_ide`]).

mod access;
mod device;
mod doorbells;
mod error;
mod shared;
mod slots;
#[cfg(test)]
mod tests;
mod windows;

use alloc::vec::Vec;
use core::ops::Range;

use arch::Bdf;
use arch::interrupt::InterruptTarget;
use arch::machine::{ConfigSpace, Machine};
use arch::msr::PortRange;
use pci::bar::Bar;
use pci::header::LegacyIde;
use pci::{Function, GuestInterrupt};

use crate::acpi::InterruptPin;
use crate::memory_map::GpaRange;
use device::{Device, MessageSlot};
use shared::SharedFunction;
use windows::Windows;

pub use doorbells::{DOORBELLS, MAX_PEERS, SharedMemory};
pub use error::BusError;

/// CONFIG_ADDRESS (PCI Local Bus Specification, "Configuration Mechanism #1").
pub const CONFIG_ADDRESS: u16 = 0xcf8;
/// First port of CONFIG_DATA.
pub const CONFIG_DATA: u16 = 0xcfc;
const HOST_BRIDGE: Bdf = Bdf::new(0, 0, 0);

/// What an access to the bus can act on.
pub struct Host<'a, M, C> {
    pub machine: &'a mut M,
    /// The machine's configuration space.
    pub config: &'a mut C,
}

/// A message that the guest has enabled in one of its functions, and which that function cannot send
/// yet ([`VirtualBus::next_wanted`]).
#[derive(Debug)]
#[must_use]
pub struct Wanted {
    sender: Sender,
    /// The interrupt that it asks for.
    pub interrupt: GuestInterrupt,
}

#[derive(Clone, Copy, Debug)]
enum Sender {
    Device(usize, MessageSlot),
    Shared(usize, u16),
}

/// Whether a guest's bus has room for these functions and this many regions of shared memory.
///
/// # Errors
/// The first for which it has none.
pub fn check_places(functions: &[Bdf], shared: usize) -> Result<(), BusError> {
    let mut places = slots::place(functions).map_err(BusError::NoSlot)?;
    for _ in 0..shared {
        places.push(slots::free(places.iter().copied()).ok_or(BusError::NoSlotForShared)?);
    }
    Ok(())
}

/// The bus of one guest.
#[derive(Debug)]
pub struct VirtualBus {
    devices: Vec<Device>,
    shared: Vec<SharedFunction>,
    /// The ECAM window, bus 0 first.
    ecam: Option<GpaRange>,
    windows: Windows,
    config_address: u32,
}

impl VirtualBus {
    /// A bus with `functions` of the machine on it, with the BARs that were recorded of them; they must be
    /// quiet. Memory BARs are reachable inside `windows` only, which hold no RAM.
    ///
    /// # Errors
    /// When a function is absent, is a bridge, or finds no place.
    pub fn new(
        config: &impl ConfigSpace,
        functions: &[(Bdf, [Option<Bar>; 6])],
        ecam: Option<GpaRange>,
        windows: Vec<GpaRange>,
    ) -> Result<Self, BusError> {
        let addresses: Vec<Bdf> = functions.iter().map(|(bdf, _)| *bdf).collect();
        let places = slots::place(&addresses).map_err(BusError::NoSlot)?;
        let windows = Windows::new(windows, functions.len() * 6);
        let mut devices = Vec::with_capacity(functions.len());
        for (&(bdf, bars), &place) in functions.iter().zip(&places) {
            let identity = Function::read(config, bdf).ok_or(BusError::Absent(bdf))?;
            if identity.is_infrastructure() {
                return Err(BusError::NotADevice(bdf));
            }
            let mut device = Device::new(config, identity, bars, place, &windows);
            let siblings = places.iter().filter(|other| other.device() == place.device()).count();
            device.view.set_multi_function(siblings > 1);
            devices.push(device);
        }
        Ok(Self { devices, shared: Vec::new(), ecam, windows, config_address: 0 })
    }

    /// Puts memory on the bus that this guest shares with others, as their `peer`: the next of its regions.
    ///
    /// # Errors
    /// When there is no place for it.
    pub fn add_shared(&mut self, memory: &'static SharedMemory, peer: u16) -> Result<(), BusError> {
        let places = self.devices.iter().map(|device| device.address);
        let places = places.chain(self.shared.iter().map(|function| function.address));
        let address = slots::free(places).ok_or(BusError::NoSlotForShared)?;
        let taken = self.devices.iter().flat_map(Device::reserved);
        let taken = taken.chain(self.shared.iter().flat_map(SharedFunction::reserved)).collect();
        self.windows.reserve(3);
        let region = self.shared.len();
        self.shared.push(SharedFunction::new(address, memory, region, peer, &self.windows, taken));
        Ok(())
    }

    /// Logs no more refusals: earlier generations have already logged them.
    pub(crate) fn be_quiet(&mut self) {
        self.devices.iter_mut().for_each(Device::be_quiet);
        self.shared.iter_mut().for_each(SharedFunction::be_quiet);
    }

    /// Takes the functions over, once they are in the guest's DMA domain: quiet, decoding, and
    /// their BARs mapped.
    pub fn attach<M: Machine, C: ConfigSpace>(&mut self, host: &mut Host<'_, M, C>) {
        for device in &mut self.devices {
            device.attach(host);
        }
        for function in &mut self.shared {
            function.attach(true);
        }
        self.sync_mappings(host);
    }

    /// Lets the functions go when the guest has ended: they master no bus, and their BARs are gone
    /// from its address space.
    pub fn detach<M: Machine, C: ConfigSpace>(&mut self, host: &mut Host<'_, M, C>) {
        for device in &mut self.devices {
            device.detach(host.config);
        }
        for function in &mut self.shared {
            function.attach(false);
        }
        self.sync_mappings(host);
    }

    /// The interrupt pin of `function` drives this input of the guest's I/O APIC.
    ///
    /// # Errors
    /// When the function is not on the bus or has no pin.
    pub fn wire(
        &mut self,
        config: &impl ConfigSpace,
        function: Bdf,
        input: u8,
    ) -> Result<(), BusError> {
        let device = self.devices.iter_mut().find(|device| device.view.function() == function);
        let wired = device.is_some_and(|device| device.view.wire(config, input));
        if wired { Ok(()) } else { Err(BusError::NoPin(function)) }
    }

    /// Physical address and address in the guest of each function.
    pub fn functions(&self) -> impl Iterator<Item = (Bdf, Bdf)> {
        self.devices.iter().map(|device| (device.view.function(), device.address))
    }

    /// How many messages each function can raise.
    pub fn messages(&mut self) -> impl Iterator<Item = (Bdf, u16)> {
        self.devices.iter_mut().map(|device| (device.view.function(), device.messages()))
    }

    /// How long each part of the machine is that a guest may have mapped where it wants: the functions'
    /// memory BARs, and whether a part of one is left out.
    pub fn mapped_bars(&self) -> impl Iterator<Item = (u64, bool)> {
        self.devices.iter().flat_map(Device::mapped_bars)
    }

    /// The same of memory that guests share, which begins at any page.
    pub fn mapped_memory(&self) -> impl Iterator<Item = u64> {
        self.shared.iter().map(SharedFunction::mapped_memory)
    }

    /// The interrupt pins that are wired, each of a device's once.
    pub fn pins(&self) -> Vec<InterruptPin> {
        let mut pins: Vec<InterruptPin> = Vec::new();
        for Device { address, view, .. } in &self.devices {
            let (device, pin, input) = (address.device(), view.interrupt_pin(), view.line());
            if pin != 0 && !pins.iter().any(|other| (other.device, other.pin) == (device, pin)) {
                pins.push(InterruptPin { device, pin, input });
            }
        }
        pins
    }

    /// The ports of the functions' I/O BARs, to be passed through.
    pub fn port_ranges(&self) -> impl Iterator<Item = PortRange> {
        self.devices.iter().flat_map(Device::port_ranges)
    }

    /// The IDE channels in compatibility mode: ports to be passed through, and edge-triggered
    /// lines.
    pub fn legacy_ide(&self) -> impl Iterator<Item = LegacyIde> {
        self.devices.iter().flat_map(Device::legacy_ide)
    }

    /// The next message that the guest has enabled by its last access and that is not programmed yet.
    /// After each access the caller asks until there is none: it finds the CPU, grants the vector, and
    /// has the message programmed. So no device can raise a vector before it is the guest's.
    pub fn next_wanted<M: Machine, C: ConfigSpace>(
        &mut self,
        host: &mut Host<'_, M, C>,
    ) -> Option<Wanted> {
        for (index, device) in self.devices.iter_mut().enumerate() {
            if let Some((slot, interrupt)) = device.next_wanted(host) {
                return Some(Wanted { sender: Sender::Device(index, slot), interrupt });
            }
        }
        self.shared.iter_mut().enumerate().find_map(|(index, function)| {
            let (bell, interrupt) = function.next_wanted(host.machine)?;
            Some(Wanted { sender: Sender::Shared(index, bell), interrupt })
        })
    }

    /// Lets a function send the message, as an interrupt to `target`, whose vector is granted. `None`:
    /// it is for no CPU of this guest, and stays masked.
    pub fn program<M: Machine, C: ConfigSpace>(
        &mut self,
        host: &mut Host<'_, M, C>,
        wanted: &Wanted,
        target: Option<InterruptTarget>,
    ) {
        match wanted.sender {
            Sender::Device(index, slot) => {
                if let Some(device) = self.devices.get_mut(index) {
                    device.program(host, slot, target);
                }
            }
            Sender::Shared(index, bell) => {
                if let Some(function) = self.shared.get_mut(index) {
                    function.program(host.machine, bell, target);
                }
            }
        }
    }

    /// Maps every BAR where its guest wants it. All that moved or went are unmapped first: while a
    /// guest rearranges its BARs, one may be put where another still is.
    fn sync_mappings<M: Machine, C: ConfigSpace>(&mut self, host: &mut Host<'_, M, C>) {
        let windows = &mut self.windows;
        for mapped in [false, true] {
            let mut sync = |owner, wanted| windows.sync_mapping(owner, wanted, mapped);
            for device in &self.devices {
                for (owner, bar, wanted) in device.memory_bars() {
                    if let Some(place) = sync(owner, wanted) {
                        device.set_mapped(host.machine, &bar, place, mapped);
                    }
                }
            }
            for function in &self.shared {
                for (owner, wanted) in function.bars() {
                    if let Some(place) = sync(owner, wanted) {
                        function.set_mapped(host.machine, owner, place, mapped);
                    }
                }
            }
        }
    }
}

/// Has what is due include `further` messages.
fn widen(due: &mut Range<u16>, further: Range<u16>) {
    let nothing = due.start >= due.end;
    *due = if nothing { further } else { due.start.min(further.start)..due.end.max(further.end) };
}
