//! A VT-d unit as the specification describes it, with caches that nothing but an invalidation empties.
//!
//! What it keeps is compared with the tables in memory at each use: a flush that the driver forgot is
//! counted and logged (`STALE …`). What a driver must not do to registers and queue is logged as `DRIVER
//! ERROR`, and the unit goes on as well as it can.
//!
//! * [`options`]: which unit it is; `registers`: its window
//! * `queue`: invalidation; `fault`: what it refuses, and its own messages
//! * `translation`: DMA; `remapping`: interrupts
//!
//! Not modelled: posted interrupts, scalable mode, device TLBs, protected regions, advanced fault logging,
//! caches of tables above the last level, destinations above 255.

mod fault;
pub mod options;
mod queue;
mod registers;
pub mod remapping;
pub mod translation;

use std::collections::HashMap;
use std::fmt;

use crate::host::Host;
pub use options::UnitOptions;
use registers::{
    CAP, CCMD, CFI, EAFL, ECAP, EIME, FAULT_RECORDS, FECTL, FRCD, FSTS, FSTS_CLEARED_BY_ONES, GCMD,
    GSTS, ICE, ICS, IECTL, IOTLB, IQA, IQE, IQH, IQT, IRE, IRTA, IVA, MASKED, PENDING, QIE,
    RECORD_SIZE, RTADDR, Registers, SFL, SIRTP, SRTP, TE, VER, WBF,
};
use remapping::Entry;
pub use translation::Transfer;
use translation::{Context, Page};

/// Complaints beyond this many of a kind are counted and not logged.
const MAX_LINES: u64 = 50;
/// The bits of GCMD that stay.
const LASTING: u32 = TE | EAFL | QIE | IRE | CFI;

/// What happened in a unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Bytes that went through.
    pub dma_bytes: u64,
    /// Walks of second-stage tables.
    pub walks: u64,
    /// Translations by the cache.
    pub hits: u64,
    /// Messages that were remapped.
    pub remapped: u64,
    /// Those by a cached entry.
    pub remap_hits: u64,
    /// Messages that passed in compatibility format.
    pub compatibility: u64,
    /// Requests refused, with a fault.
    pub faults: u64,
    /// Faults for which no record was free.
    pub lost_faults: u64,
    /// Descriptors carried out.
    pub descriptors: u64,
    /// IOTLB invalidations that did not ask to wait for DMA under way.
    pub undrained: u64,
    /// Uses of a context entry that is not what memory says.
    pub stale_contexts: u64,
    /// Uses of a translation that is not what memory says.
    pub stale_translations: u64,
    /// Uses of a remapping entry that is not what memory says, but those before the driver's next wait ends if it has
    /// the entry invalidated by then: between the two either is right.
    pub stale_remaps: u64,
    /// Misuses of registers and queue.
    pub driver_errors: u64,
}

/// The invalidations that a new table asks for before it is used (VT-d specification "Set Root Table
/// Pointer Operation" and "Set Interrupt Remapping Table Pointer Operation").
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Owed {
    contexts: bool,
    pages: bool,
    entries: bool,
}

#[derive(Debug)]
pub struct Unit {
    options: UnitOptions,
    registers: Registers,
    /// What SRTP took over.
    root: u64,
    /// What SIRTP took over.
    remap_table: u64,
    /// The queue will be looked at.
    busy: bool,
    /// WBF since the queue's tail moved.
    buffer_flushed: bool,
    owed: Owed,
    /// The record that the next fault goes to.
    next_record: usize,
    /// By requester.
    contexts: HashMap<u16, Context>,
    /// By domain and page number.
    pages: HashMap<(u16, u64), Page>,
    /// By index.
    entries: HashMap<u16, Entry>,
    /// Indices of stale entries that were used since the last wait.
    lately_stale: Vec<u16>,
    /// What happened.
    pub counters: Counters,
}

impl Unit {
    /// A unit after power-on.
    #[must_use]
    pub fn new(options: UnitOptions) -> Self {
        let mut unit = Self {
            options,
            registers: Registers::default(),
            root: 0,
            remap_table: 0,
            busy: false,
            buffer_flushed: false,
            owed: Owed::default(),
            next_record: 0,
            contexts: HashMap::new(),
            pages: HashMap::new(),
            entries: HashMap::new(),
            lately_stale: Vec::new(),
            counters: Counters::default(),
        };
        unit.reset();
        unit
    }

    /// What it is.
    #[must_use]
    pub const fn options(&self) -> &UnitOptions {
        &self.options
    }

    /// A reset of the machine. The counters go on.
    pub fn reset(&mut self) {
        self.registers = Registers::default();
        self.registers.set(VER, 0x10);
        self.registers.set_quad(CAP, self.options.capability());
        self.registers.set_quad(ECAP, self.options.extended_capability());
        self.registers.set(FECTL, MASKED);
        self.registers.set(IECTL, MASKED);
        (self.root, self.remap_table, self.next_record) = (0, 0, 0);
        (self.busy, self.buffer_flushed, self.owed) = (false, false, Owed::default());
        self.contexts.clear();
        self.pages.clear();
        self.entries.clear();
        self.lately_stale.clear();
    }

    /// The firmware hands the machine over, and leaves the unit as the options say.
    pub fn reset_by_firmware(&mut self) {
        const SOME_PLACE_IN_THE_QUEUE: u32 = 0x40;
        if self.options.left_on {
            self.registers.set(GSTS, TE | SRTP | QIE | IRE | SIRTP | CFI);
            self.registers.set(IQH, SOME_PLACE_IN_THE_QUEUE);
            self.registers.set(IQT, SOME_PLACE_IN_THE_QUEUE);
        }
        if self.options.left_error {
            // It stopped at a descriptor.
            self.registers.set(IQT, SOME_PLACE_IN_THE_QUEUE + 0x10);
            self.registers.set(IQH, SOME_PLACE_IN_THE_QUEUE);
            self.registers.set(FSTS, IQE | ICE);
        }
    }

    /// Reads the word at `offset`.
    #[must_use]
    pub fn read(&self, offset: u32) -> u32 {
        self.registers.get(offset)
    }

    /// Writes the word at `offset`.
    pub fn write(&mut self, host: &mut dyn Host, offset: u32, value: u32) {
        let offset = offset & !3;
        if self.options.trace {
            host.log(&format!("unit: {offset:#x} = {value:#x}"));
        }
        let records = FRCD..FRCD + RECORD_SIZE * FAULT_RECORDS as u32;
        match offset {
            _ if records.contains(&offset) => self.write_record(offset, value),
            GCMD => self.command(host, value),
            FSTS => {
                self.registers.clear(FSTS, value & FSTS_CLEARED_BY_ONES);
                self.look_at_queue_later(host);
            }
            FECTL | IECTL => self.write_event_control(host, offset, value),
            ICS => self.registers.clear(ICS, value & 1),
            CCMD | IOTLB => self.registers.set(offset, value),
            _ if offset == CCMD + 4 => self.context_command(host, value),
            _ if offset == IOTLB + 4 => self.iotlb_command(host, value),
            _ if offset == IQA || offset == IQA + 4 => {
                self.write_queue_address(host, offset, value)
            }
            IQT => self.write_tail(host, value),
            _ if offset == IQT + 4 => {}
            _ if self.is_plain(offset) => self.registers.set(offset, value),
            _ => self.wrong(host, format_args!("{offset:#x} is written, which cannot be")),
        }
    }

    /// Registers that hold what is written to them.
    fn is_plain(&self, offset: u32) -> bool {
        let quads = [RTADDR, IRTA, IVA];
        let of_events = [FECTL + 4, FECTL + 8, FECTL + 12, IECTL + 4, IECTL + 8, IECTL + 12];
        quads.contains(&(offset & !4)) || of_events.contains(&offset)
    }

    fn status(&self) -> u32 {
        self.registers.get(GSTS)
    }

    /// One command at a time, and each in the state that it needs (VT-d specification "Global Command
    /// Register").
    fn command(&mut self, host: &mut dyn Host, value: u32) {
        let before = self.status();
        let changed = (value ^ before) & LASTING;
        let once = value & (SRTP | SFL | WBF | SIRTP);
        let on = changed & value;
        if (changed | once).count_ones() > 1 {
            self.wrong(host, format_args!("GCMD {value:#x} changes several bits of {before:#x}"));
        }
        if changed & EAFL != 0 || once & SFL != 0 {
            self.wrong(host, format_args!("advanced fault logging, which this unit has not"));
        }
        if once & SRTP != 0 {
            self.root = self.registers.quad(RTADDR);
            (self.owed.contexts, self.owed.pages) = (true, true);
        }
        if once & SIRTP != 0 {
            self.set_remap_table(host);
        }
        if once & WBF != 0 {
            self.buffer_flushed = true;
        }
        if changed & QIE != 0 {
            self.switch_queue(host, on & QIE != 0);
        }
        if on & TE != 0 && (before & SRTP == 0 || self.owed.contexts || self.owed.pages) {
            let owed = self.owed;
            self.wrong(host, format_args!("translation is switched on without a root table, or before it forgot the last one ({owed:?})"));
        }
        if on & IRE != 0 && (before & SIRTP == 0 || self.owed.entries) {
            self.wrong(
                host,
                format_args!(
                    "remapping is switched on without a table, or before it forgot the last one"
                ),
            );
        }
        // The write buffer is empty at once: WBF never shows.
        let status = before & !LASTING | value & (LASTING & !EAFL) | once & (SRTP | SIRTP);
        self.registers.set(GSTS, status);
        host.log(&format!("GCMD {value:#x}: GSTS {before:#x} -> {status:#x}"));
    }

    fn set_remap_table(&mut self, host: &mut dyn Host) {
        self.remap_table = self.registers.quad(IRTA);
        self.owed.entries = true;
        if !self.options.interrupt_remapping {
            self.wrong(host, format_args!("a remapping table for a unit without remapping"));
        } else if self.remap_table & EIME != 0 && !self.options.extended_interrupt_mode {
            self.wrong(host, format_args!("IRTA.EIME for a unit without EIM"));
        }
    }

    fn switch_queue(&mut self, host: &mut dyn Host, on: bool) {
        self.registers.set(IQH, 0);
        let tail = self.registers.get(IQT);
        if on && tail != 0 {
            self.wrong(host, format_args!("the queue is switched on with its tail at {tail:#x}"));
        }
    }

    /// Logs what a driver must not do.
    fn wrong(&mut self, host: &mut dyn Host, what: fmt::Arguments<'_>) {
        self.counters.driver_errors += 1;
        if self.counters.driver_errors <= MAX_LINES {
            host.log(&format!("DRIVER ERROR: {what}"));
        }
    }

    fn write_event_control(&mut self, host: &mut dyn Host, offset: u32, value: u32) {
        let waits = self.registers.get(offset) & PENDING;
        self.registers.set(offset, waits | value & MASKED);
        if waits != 0 && value & MASKED == 0 {
            self.send_event(host, offset);
        }
    }
}

/// `00:04.0`, for the log.
struct Requester(u16);

impl fmt::Display for Requester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.0 >> 8, self.0 >> 3 & 31, self.0 & 7)
    }
}

#[cfg(test)]
mod tests;
