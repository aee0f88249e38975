//! An NVMe controller of one namespace (NVM Express Base Specification 1.3), whose every access to memory
//! and every message goes through the unit, and the [`crate::engine`] behind its registers.
//!
//! * `config_space`: what it is on the bus; `vectors`: how it interrupts
//! * `queues`: commands and answers; `commands`: what they do
//!
//! Not modelled: errors of its own, event requests (they are kept and never answered), more than one
//! namespace.

mod commands;
mod config_space;
mod queues;
mod vectors;

use crate::bus::Bus;
use crate::disk::Disk;
use crate::engine::{self, Engine, Operation};
use crate::host::Timer;
use crate::unit::translation::Transfer;
pub use config_space::BAR_SIZE;
use config_space::ConfigSpace;
use queues::{Completion, MAX_QUEUES, Submission};
use vectors::{MAX_VECTORS, PENDING_BITS, TABLE, TABLE_SIZE, Vectors};

/// The doorbells, for a stride of 0.
const DOORBELLS: u32 = 0x1000;
/// CSTS.RDY.
const READY: u32 = 1 << 0;
/// CSTS.CFS.
const FATAL: u32 = 1 << 1;

/// A controller's properties.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NvmeOptions {
    /// Its device number on bus 0.
    pub device: u8,
    /// Entries of its MSI-X table, 1 to 8.
    pub vectors: u16,
    /// Whether it has MSI-X; else MSI only.
    pub msi_x: bool,
    /// It has neither, and an interrupt pin.
    pub pin: bool,
    /// Whether its BAR has 64 bits.
    pub bar_64: bool,
    /// Whether it has a Function Level Reset.
    pub reset: bool,
    /// Ticks of that, for which its configuration space reads as ones.
    pub reset_ticks: u64,
    /// Ticks from a doorbell to the work.
    pub latency: u64,
}

impl Default for NvmeOptions {
    fn default() -> Self {
        Self {
            device: 0,
            vectors: MAX_VECTORS as u16,
            msi_x: true,
            pin: false,
            bar_64: true,
            reset: true,
            reset_ticks: 50_000,
            latency: 500,
        }
    }
}

/// What happened in a controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Commands fetched.
    pub commands: u64,
    /// Reads of the namespace.
    pub reads: u64,
    pub writes: u64,
    /// Messages sent, and rises of the pin.
    pub messages: u64,
    /// DMA and messages that were refused, or not even tried for want of bus mastering.
    pub refused: u64,
    /// Operations of the engine.
    pub operations: u64,
    /// Function Level Resets.
    pub resets: u64,
}

#[derive(Debug)]
pub struct Controller {
    options: NvmeOptions,
    /// Its place among the machine's functions.
    place: usize,
    disk: Disk,
    space: ConfigSpace,
    vectors: Vectors,
    engine: Engine,
    /// Configuration space reads as ones until then.
    resets_until: u64,
    cc: u32,
    csts: u32,
    aqa: u32,
    asq: u64,
    acq: u64,
    /// INTMS and INTMC.
    masks: u32,
    submissions: [Option<Submission>; MAX_QUEUES],
    completions: [Option<Completion>; MAX_QUEUES],
    /// What happened.
    pub counters: Counters,
}

impl Controller {
    /// The controller at `place` among the machine's functions.
    #[must_use]
    pub fn new(options: NvmeOptions, place: usize, disk: Disk) -> Self {
        let space = ConfigSpace::new(&options, false);
        Self {
            options,
            place,
            disk,
            space,
            vectors: Vectors::new(),
            engine: Engine::default(),
            resets_until: 0,
            cc: 0,
            csts: 0,
            aqa: 0,
            asq: 0,
            acq: 0,
            masks: 0,
            submissions: Default::default(),
            completions: Default::default(),
            counters: Counters::default(),
        }
    }

    /// Its device number.
    #[must_use]
    pub const fn device(&self) -> u8 {
        self.options.device
    }

    const fn requester(&self) -> u16 {
        (self.options.device as u16) << 3
    }

    /// A reset of the machine: the firmware comes next.
    pub fn reset(&mut self, bus: &mut Bus<'_>) {
        self.reset_function(bus, false);
        self.resets_until = 0;
    }

    /// The firmware is done with it.
    pub fn reset_by_firmware(&mut self) {
        self.space.wide = true;
    }

    fn reset_function(&mut self, bus: &mut Bus<'_>, wide: bool) {
        self.reset_controller(bus);
        self.space = ConfigSpace::new(&self.options, wide);
        self.vectors.reset();
        self.engine = Engine::default();
        bus.host.cancel(Timer::Engine(self.place));
        (self.cc, self.aqa, self.asq, self.acq) = (0, 0, 0, 0);
    }

    /// Reads a byte of configuration space.
    #[must_use]
    pub fn config_read(&self, now: u64, at: usize) -> u8 {
        if now < self.resets_until { 0xff } else { self.space.byte(at) }
    }

    /// Writes bytes of it.
    pub fn config_write(&mut self, bus: &mut Bus<'_>, at: usize, bytes: &[u8]) {
        if bus.host.now() < self.resets_until {
            let device = self.options.device;
            bus.host.log(&format!("00:{device:02x}.0: a write during its reset is lost"));
            return;
        }
        let writes = bytes.iter().enumerate();
        let reset =
            writes.fold(false, |reset, (index, byte)| reset | self.space.write(at + index, *byte));
        if reset {
            self.counters.resets += 1;
            self.reset_function(bus, self.space.wide);
            self.resets_until = bus.host.now() + self.options.reset_ticks;
        } else {
            self.send_pending(bus);
        }
    }

    /// Where its registers answer.
    #[must_use]
    pub fn bar(&self) -> Option<u64> {
        self.space.bar()
    }

    /// Reads the word at `offset` of its BAR.
    #[must_use]
    pub fn read(&self, offset: u32) -> u32 {
        if self.space.sleeps() {
            return u32::MAX;
        }
        match offset {
            // CAP: 5 s, contiguous queues, 256 entries; the NVM command set.
            0x00 => 10 << 24 | 1 << 16 | 255,
            0x04 => 1 << 5,
            // VS: 1.3.
            0x08 => 0x1_0300,
            0x0c | 0x10 => self.masks,
            0x14 => self.cc,
            0x1c => self.csts,
            0x24 => self.aqa,
            0x28 => self.asq as u32,
            0x2c => (self.asq >> 32) as u32,
            0x30 => self.acq as u32,
            0x34 => (self.acq >> 32) as u32,
            _ if (TABLE..TABLE + TABLE_SIZE).contains(&offset) => self.vectors.read(offset - TABLE),
            PENDING_BITS => self.vectors.pending_bits(),
            _ if in_engine(offset) => self.engine.read(offset - engine::OFFSET),
            _ => 0,
        }
    }

    pub fn write(&mut self, bus: &mut Bus<'_>, offset: u32, value: u32) {
        let doorbells = DOORBELLS..DOORBELLS + 8 * MAX_QUEUES as u32;
        match offset {
            _ if self.space.sleeps() => {}
            0x0c => {
                self.masks |= value;
                self.send_pending(bus);
            }
            0x10 => {
                self.masks &= !value;
                self.send_pending(bus);
            }
            0x14 => self.configure(bus, value),
            0x24 => self.aqa = value,
            0x28 => self.asq = self.asq >> 32 << 32 | u64::from(value & !0xfff),
            0x2c => self.asq = self.asq & 0xffff_ffff | u64::from(value) << 32,
            0x30 => self.acq = self.acq >> 32 << 32 | u64::from(value & !0xfff),
            0x34 => self.acq = self.acq & 0xffff_ffff | u64::from(value) << 32,
            _ if doorbells.contains(&offset) => self.ring(bus, offset - DOORBELLS, value),
            _ if (TABLE..TABLE + TABLE_SIZE).contains(&offset) => {
                self.vectors.write(offset - TABLE, value);
                self.send_pending(bus);
            }
            _ if in_engine(offset) => {
                if let Some(ticks) = self.engine.write(offset - engine::OFFSET, value) {
                    bus.host.wake(Timer::Engine(self.place), ticks);
                }
            }
            _ => {}
        }
    }

    /// CC is written.
    fn configure(&mut self, bus: &mut Bus<'_>, value: u32) {
        const ENABLE: u32 = 1;
        const SHUTDOWN: u32 = 3 << 14;
        const SHUTDOWN_COMPLETE: u32 = 2 << 2;
        let before = std::mem::replace(&mut self.cc, value);
        if (before ^ value) & ENABLE != 0 {
            self.reset_controller(bus);
            if value & ENABLE != 0 {
                let sizes = [self.aqa & 0xfff, self.aqa >> 16 & 0xfff];
                let [submissions, completions] = sizes.map(|size| size + 1);
                self.submissions[0] = Some(Submission::new(self.asq, submissions, 0));
                self.completions[0] = Some(Completion::new(self.acq, completions, 0, true));
                self.csts = READY;
            }
        }
        if value & SHUTDOWN != 0 {
            self.csts |= SHUTDOWN_COMPLETE;
        }
    }

    fn reset_controller(&mut self, bus: &mut Bus<'_>) {
        (self.submissions, self.completions) = Default::default();
        (self.csts, self.masks) = (0, 0);
        bus.host.cancel(Timer::Queues(self.place));
        self.send_pending(bus);
    }

    /// The engine's time has come.
    pub fn act(&mut self, bus: &mut Bus<'_>) {
        self.counters.operations += 1;
        let done = match self.engine.operation() {
            Some(Operation::Message(number)) => {
                self.raise(bus, number);
                true
            }
            Some(Operation::Copy { source, destination, length }) => {
                let mut bytes = vec![0; length as usize];
                self.dma(bus, source, Transfer::Read(&mut bytes))
                    && self.dma(bus, destination, Transfer::Write(&bytes))
            }
            Some(Operation::Write { destination, data }) => {
                self.dma(bus, destination, Transfer::Write(&data.to_le_bytes()))
            }
            Some(Operation::Fault { source, reason, info }) => {
                if let Some(unit) = &mut bus.unit {
                    unit.invent_fault(bus.host, source, reason, info);
                }
                true
            }
            None => false,
        };
        self.engine.finish(done, bus.host.now());
    }

    /// DMA. False where it was refused.
    fn dma(&mut self, bus: &mut Bus<'_>, address: u64, transfer: Transfer<'_>) -> bool {
        let done = self.space.masters() && bus.dma(self.requester(), address, transfer);
        self.counters.refused += u64::from(!done);
        done
    }
}

const fn in_engine(offset: u32) -> bool {
    offset >= engine::OFFSET && offset < engine::OFFSET + engine::SIZE
}

#[cfg(test)]
mod tests;
