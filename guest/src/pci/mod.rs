//! The guest's PCI bus: a virtual host bridge, the assigned functions, and those by which guests
//! share memory (`shared`).
//!
//! The guest reaches configuration space through ports 0xCF8/0xCFC and through the ECAM window;
//! both end in the same two functions. What is not assigned reads as all ones. There is one bus;
//! `slots` says where functions appear on it. `device` carries out what an access means.
//!
//! INTx exists where the configuration says which line it is ([`VirtualBus::wire`]); else Interrupt
//! Pin reads 0. IDE channels in compatibility mode have their ISA lines ([`VirtualBus::legacy_ide`]).

mod device;
mod doorbells;
mod shared;
mod slots;
#[cfg(test)]
mod tests;
mod windows;

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use arch::interrupt::InterruptTarget;
use arch::machine::{ConfigSpace, Machine};
use arch::msr::PortRange;
use arch::{Bdf, Gpa, Width};
use pci::bar::Bar;
use pci::header::LegacyIde;
use pci::{Function, GuestInterrupt};

use crate::acpi::InterruptPin;
use crate::memory_map::GpaRange;
use device::{Device, MessageSlot};
use shared::SharedFunction;
use windows::Windows;

pub use doorbells::{DOORBELLS, MAX_PEERS, SharedMemory};

/// CONFIG_ADDRESS (PCI Local Bus Specification, "Configuration Mechanism #1").
pub const CONFIG_ADDRESS: u16 = 0xcf8;
/// First port of CONFIG_DATA.
pub const CONFIG_DATA: u16 = 0xcfc;
/// Last port of CONFIG_DATA.
const CONFIG_DATA_LAST: u16 = 0xcff;
const CONFIG_ENABLE: u32 = 1 << 31;
const HOST_BRIDGE: Bdf = Bdf::new(0, 0, 0);

/// What an access to the bus can act on.
pub struct Host<'a, M, C> {
    /// The machine.
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

/// Why the bus could not be built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BusError {
    /// There is no such function.
    Absent(Bdf),
    /// The function is a bridge or an IOMMU.
    NotADevice(Bdf),
    /// All 31 device numbers are taken.
    NoSlot(Bdf),
    /// The same for memory that guests share.
    NoSlotForShared,
    /// The function is not on this bus, or has no interrupt pin.
    NoPin(Bdf),
}

impl fmt::Display for BusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent(bdf) => write!(f, "the machine has no PCI function {bdf}: see lspci"),
            Self::NotADevice(bdf) => {
                write!(f, "{bdf} is a bridge or an IOMMU: assign the functions behind it instead")
            }
            Self::NoSlot(bdf) => {
                write!(f, "no device number is left for {bdf}: a guest's bus has 31")
            }
            Self::NoSlotForShared => {
                f.write_str("no device number is left for shared memory: a guest's bus has 31")
            }
            Self::NoPin(bdf) => write!(
                f,
                "intx names {bdf}, which has no interrupt pin or is not among the guest's devices: \
                 remove it there"
            ),
        }
    }
}

impl core::error::Error for BusError {}

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

/// What lies at a guest-physical address.
enum Target {
    Config(Bdf, u16),
    Bar { device: usize, bar: u8, offset: u64 },
    Shared { function: usize, bar: u8, offset: u64 },
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

    /// The guest reads a port; `None` where the port is not the bus's (0xCF9 is the reset
    /// register).
    pub fn port_read(&self, config: &impl ConfigSpace, port: u16, width: Width) -> Option<u32> {
        if (port, width) == (CONFIG_ADDRESS, Width::Dword) {
            return Some(self.config_address);
        }
        is_data(port).then(|| {
            pieces(port.into(), width, Width::Dword).fold(0, |value, (i, width)| {
                let read = match self.selected(port.wrapping_add(i as u16)) {
                    Some((bdf, offset)) => self.config_read(config, bdf, offset, width),
                    None => width.mask() as u32,
                };
                value | read << (8 * i)
            })
        })
    }

    /// The guest writes a port; `false` where the port is not the bus's.
    pub fn port_write<M: Machine, C: ConfigSpace>(
        &mut self,
        host: &mut Host<'_, M, C>,
        port: u16,
        width: Width,
        value: u32,
    ) -> bool {
        if (port, width) == (CONFIG_ADDRESS, Width::Dword) {
            // Bits 30:24 and 1:0 are reserved.
            self.config_address = value & 0x80ff_fffc;
            return true;
        }
        let is_data = is_data(port);
        if is_data {
            for (i, width) in pieces(port.into(), width, Width::Dword) {
                if let Some((bdf, offset)) = self.selected(port.wrapping_add(i as u16)) {
                    self.config_write(host, bdf, offset, width, value >> (8 * i));
                }
            }
        }
        is_data
    }

    /// The function and offset that CONFIG_ADDRESS selects for a port of CONFIG_DATA.
    fn selected(&self, port: u16) -> Option<(Bdf, u16)> {
        let enabled = self.config_address & CONFIG_ENABLE != 0 && is_data(port);
        enabled.then(|| {
            let offset = self.config_address as u16 & 0xfc | port & 3;
            (Bdf::from_requester_id((self.config_address >> 8) as u16), offset)
        })
    }

    /// The guest reads memory; `None` where nothing of the bus is there.
    pub fn mmio_read<M: Machine, C: ConfigSpace>(
        &self,
        host: &mut Host<'_, M, C>,
        gpa: Gpa,
        width: Width,
    ) -> Option<u64> {
        let widest = self.locate(gpa)?.widest();
        Some(pieces(gpa.as_u64(), width, widest).fold(0, |value, (i, width)| {
            let read = match self.locate(gpa.wrapping_add(i)) {
                Some(Target::Config(bdf, offset)) => {
                    self.config_read(host.config, bdf, offset, width).into()
                }
                Some(Target::Bar { device, bar, offset }) => match self.devices.get(device) {
                    Some(device) => device.bar_read(host.machine, bar, offset, width),
                    None => width.mask(),
                },
                Some(Target::Shared { function, bar, offset }) => match self.shared.get(function) {
                    Some(function) => function.bar_read(host.machine, bar, offset, width),
                    None => width.mask(),
                },
                None => width.mask(),
            };
            value | read << (8 * i)
        }))
    }

    /// The guest writes memory; `false` where nothing of the bus is there.
    pub fn mmio_write<M: Machine, C: ConfigSpace>(
        &mut self,
        host: &mut Host<'_, M, C>,
        gpa: Gpa,
        width: Width,
        value: u64,
    ) -> bool {
        let Some(widest) = self.locate(gpa).map(|place| place.widest()) else { return false };
        for (i, width) in pieces(gpa.as_u64(), width, widest) {
            let value = value >> (8 * i) & width.mask();
            match self.locate(gpa.wrapping_add(i)) {
                Some(Target::Config(bdf, offset)) => {
                    self.config_write(host, bdf, offset, width, value as u32);
                }
                Some(Target::Bar { device, bar, offset }) => {
                    if let Some(device) = self.devices.get_mut(device) {
                        device.bar_write(host, bar, offset, width, value);
                    }
                }
                Some(Target::Shared { function, bar, offset }) => {
                    if let Some(function) = self.shared.get_mut(function) {
                        function.bar_write(host.machine, bar, offset, width, value);
                    }
                }
                None => {}
            }
        }
        true
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

    fn locate(&self, gpa: Gpa) -> Option<Target> {
        let start = |range: GpaRange| range.start.as_u64();
        if let Some(ecam) = self.ecam
            && (start(ecam)..ecam.end()).contains(&gpa.as_u64())
        {
            let offset = gpa.as_u64() - start(ecam);
            let bdf = Bdf::from_requester_id((offset >> 12) as u16);
            return Some(Target::Config(bdf, offset as u16 & 0xfff));
        }
        let ((function, bar), offset) = self.windows.find(gpa)?;
        if let Some(function) = self.shared.iter().position(|shared| shared.address == function) {
            return Some(Target::Shared { function, bar, offset });
        }
        let device = self.devices.iter().position(|d| d.view.function() == function)?;
        Some(Target::Bar { device, bar, offset })
    }

    /// Configuration space as the guest sees it; `offset` is naturally aligned.
    fn config_read(&self, config: &impl ConfigSpace, bdf: Bdf, offset: u16, width: Width) -> u32 {
        if bdf == HOST_BRIDGE {
            return host_bridge(offset & !3) >> (8 * (offset & 3)) & width.mask() as u32;
        }
        match self.devices.iter().find(|device| device.address == bdf) {
            Some(device) => device.view.read(config, offset, width),
            None => match self.shared.iter().find(|function| function.address == bdf) {
                Some(function) => function.config_read(offset, width),
                None => width.mask() as u32,
            },
        }
    }

    fn config_write<M: Machine, C: ConfigSpace>(
        &mut self,
        host: &mut Host<'_, M, C>,
        bdf: Bdf,
        offset: u16,
        width: Width,
        value: u32,
    ) {
        let moved = if let Some(device) = self.devices.iter_mut().find(|d| d.address == bdf) {
            device.config_write(host, offset, width, value)
        } else if let Some(function) = self.shared.iter_mut().find(|f| f.address == bdf) {
            function.config_write(offset, width, value)
        } else {
            false
        };
        if moved {
            self.sync_mappings(host);
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

impl Target {
    /// The widest access that is made in one piece.
    const fn widest(&self) -> Width {
        match self {
            Self::Config(..) => Width::Dword,
            Self::Bar { .. } | Self::Shared { .. } => Width::Qword,
        }
    }
}

/// Has what is due include `further` messages.
fn widen(due: &mut Range<u16>, further: Range<u16>) {
    let nothing = due.start >= due.end;
    *due = if nothing { further } else { due.start.min(further.start)..due.end.max(further.end) };
}

fn is_data(port: u16) -> bool {
    (CONFIG_DATA..=CONFIG_DATA_LAST).contains(&port)
}

/// The virtual host bridge's configuration space: that of QEMU's generic PCI Express host.
const fn host_bridge(dword: u16) -> u32 {
    match dword {
        0x00 => 0x0008_1b36,
        // Memory Space and Bus Master, as every host bridge has them.
        0x04 => 0x0000_0006,
        0x08 => 0x0600_0000,
        // It has no extended space: one read says so.
        0x100.. => u32::MAX,
        _ => 0,
    }
}

/// The naturally aligned accesses, none wider than `widest`, that make up one of `width` at `at`:
/// distance from `at` in bytes, and width.
fn pieces(at: u64, width: Width, widest: Width) -> impl Iterator<Item = (u64, Width)> {
    let aligned = at.is_multiple_of(width.bytes().into());
    let unit = if aligned { width.min(widest) } else { Width::Byte };
    (0..u64::from(width.bytes())).step_by(unit.bytes().into()).map(move |i| (i, unit))
}
