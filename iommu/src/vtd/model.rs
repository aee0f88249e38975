//! A unit as the specification describes it, for the tests: with caches that only invalidation
//! empties, and that objects to commands in a wrong state.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use arch::address::HpaRange;
use arch::{Bdf, Hpa};
use mem::{Pages, TableMemory, Word};

use super::registers::{self, Registers, command};

type Watcher = Box<dyn Fn()>;

/// RAM that the unit and the driver share.
#[derive(Clone)]
pub(super) struct Ram {
    words: Rc<RefCell<Words>>,
    /// Is called after each of the driver's writes.
    watcher: Rc<RefCell<Option<Watcher>>>,
}

impl std::fmt::Debug for Ram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.words.fmt(f)
    }
}

#[derive(Debug)]
struct Words {
    memory: BTreeMap<u64, u64>,
    /// Writes of the driver that no unit sees yet; empty if none are held back.
    buffer: BTreeMap<u64, u64>,
    holds_back: bool,
    next: u64,
    returned: u64,
    /// Frames that the driver can have yet.
    left: u64,
}

impl Ram {
    pub(super) fn new() -> Self {
        let words = Words {
            memory: BTreeMap::new(),
            buffer: BTreeMap::new(),
            holds_back: false,
            next: 0x10_0000,
            returned: 0,
            left: u64::MAX,
        };
        Self { words: Rc::new(RefCell::new(words)), watcher: Rc::new(RefCell::new(None)) }
    }

    /// The driver gets this many more frames.
    pub(super) fn leave(&self, frames: u64) {
        self.words.borrow_mut().left = frames;
    }

    pub(super) fn left(&self) -> u64 {
        self.words.borrow().left
    }

    /// From here on, the driver's writes reach no unit before a flush of the write buffer (VT-d
    /// specification "Write Buffer Flushing").
    fn hold_back(&self) {
        self.words.borrow_mut().holds_back = true;
    }

    fn flush(&self) {
        let words = &mut *self.words.borrow_mut();
        words.memory.append(&mut words.buffer);
    }

    /// A read by a unit.
    fn seen(&self, at: u64) -> u64 {
        self.words.borrow().memory.get(&at).copied().unwrap_or(0)
    }

    /// A read by the driver.
    fn held(&self, at: u64) -> u64 {
        let held = self.words.borrow().buffer.get(&at).copied();
        held.unwrap_or_else(|| self.seen(at))
    }

    /// A write by a unit.
    fn answer(&self, at: u64, value: u64) {
        self.words.borrow_mut().memory.insert(at, value);
    }
}

impl TableMemory for Ram {
    type Pool = Self;

    fn read(&self, at: Word<'_, Self>) -> u64 {
        self.held(at.address().as_u64())
    }
    fn write(&mut self, at: Word<'_, Self>, value: u64) {
        let at = at.address();
        {
            let words = &mut *self.words.borrow_mut();
            let to = if words.holds_back { &mut words.buffer } else { &mut words.memory };
            to.insert(at.as_u64(), value);
        }
        let watcher = self.watcher.borrow();
        if let Some(watcher) = watcher.as_ref() {
            watcher();
        }
    }
    fn allocate_contiguous(&mut self, bytes: u64) -> Option<Pages<Self>> {
        let words = &mut *self.words.borrow_mut();
        words.left = words.left.checked_sub(bytes.div_ceil(4096))?;
        let at = words.next.next_multiple_of(bytes.next_power_of_two());
        words.next = at + bytes.next_multiple_of(4096);
        let range = HpaRange { start: Hpa::new(at), length: bytes.next_multiple_of(4096) };
        Some(Pages::of(self, range))
    }
    fn free(&mut self, pages: Pages<Self>) {
        for offset in (0..4096).step_by(8) {
            self.write(pages.word(offset), u64::MAX);
        }
        let words = &mut *self.words.borrow_mut();
        words.returned += 1;
        words.left = words.left.saturating_add(1);
    }
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) cap: u64,
    pub(super) ecap: u64,
    pub(super) status: u32,
    pub(super) fault_status: u32,
    pub(super) records: [(u64, u64); 2],
    pub(super) protected: u32,
    pub(super) fault_control: u32,
    /// Command bits, in the order in which they were set.
    pub(super) commands: Vec<u32>,
    /// The unit ignores its commands, or its queue.
    pub(super) deaf: bool,
    pub(super) queue_stopped: bool,
    /// Reads of FSTS before the unit looks at its queue.
    pub(super) slow: u32,
    /// The tail that it has not looked at yet, and the reads that are left.
    waiting: Option<(u64, u32)>,
    long: BTreeMap<u64, u64>,
    root: u64,
    remap_table: u64,
    pub(super) head: u64,
    contexts: BTreeMap<u16, (u64, u64)>,
    pages: BTreeMap<(u16, u64), u64>,
    entries: BTreeMap<u16, (u64, u64)>,
}

/// One unit; the clones are handles to it.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) state: Rc<RefCell<State>>,
    ram: Ram,
}

/// Two fault records at 0x220, domain identifiers to 255, 48 bits, 2 MiB pages, drains.
pub(super) const CAP: u64 =
    3 << 54 | 1 << 40 | 1 << 34 | 0x22 << 24 | 47 << 16 | 4 << 8 | 3 << 5 | 2;
/// QI, IR, EIM, coherent.
pub(super) const ECAP: u64 = 0x1b;

impl Model {
    /// Holds the driver's writes back if a unit needs it ([`State::needs_write_buffer_flushing`]).
    pub(super) fn start(&self) {
        if self.state.borrow().cap & 1 << 4 != 0 {
            self.ram.hold_back();
        }
    }

    pub(super) fn new(ram: &Ram) -> Self {
        let state = State {
            cap: CAP,
            ecap: ECAP,
            status: 0,
            fault_status: 0,
            records: [(0, 0); 2],
            protected: 0,
            fault_control: 0,
            commands: Vec::new(),
            deaf: false,
            queue_stopped: false,
            slow: 0,
            waiting: None,
            long: BTreeMap::new(),
            root: 0,
            remap_table: 0,
            head: 0,
            contexts: BTreeMap::new(),
            pages: BTreeMap::new(),
            entries: BTreeMap::new(),
        };
        Self { state: Rc::new(RefCell::new(state)), ram: ram.clone() }
    }

    /// Has `watcher` called after each write of the driver.
    pub(super) fn watch(&self, watcher: impl Fn() + 'static) {
        *self.ram.watcher.borrow_mut() = Some(Box::new(watcher));
    }

    /// Forgets contexts and translations, as hardware may at any time.
    pub(super) fn forget(&self) {
        let mut state = self.state.borrow_mut();
        state.contexts.clear();
        state.pages.clear();
    }

    /// Pages that the driver gave back.
    pub(super) fn returned(&self) -> u64 {
        self.ram.words.borrow().returned
    }

    fn caches_absent(&self) -> bool {
        self.state.borrow().cap & 1 << 7 != 0
    }

    fn pair(&self, at: u64) -> (u64, u64) {
        (self.ram.seen(at), self.ram.seen(at + 8))
    }

    /// A DMA request; if it is refused, the fault reason.
    pub(super) fn dma(&self, function: Bdf, iova: u64) -> Result<u64, u8> {
        let mut state = self.state.borrow_mut();
        assert_ne!(state.status & command::TE, 0, "translation is off");
        let id = function.requester_id();
        let context = if let Some(context) = state.contexts.get(&id) {
            *context
        } else {
            let root = self.pair(state.root + u64::from(id >> 8) * 16).0;
            let context = match root & 1 {
                0 => (0, 0),
                _ => self.pair((root & !0xfff) + u64::from(id & 0xff) * 16),
            };
            drop(state);
            let keep = context.0 & 1 != 0 || self.caches_absent();
            state = self.state.borrow_mut();
            if keep {
                state.contexts.insert(id, context);
            }
            context
        };
        if context.0 & 1 == 0 {
            return Err(2);
        }
        let (domain, levels) = ((context.1 >> 8) as u16, (context.1 & 7) + 2);
        let key = (domain, iova >> 12);
        let page = match state.pages.get(&key) {
            Some(page) => *page,
            None => self.walk(state.cap, context.0 & !0xfff, levels, iova),
        };
        if page != 0 || state.cap & 1 << 7 != 0 {
            state.pages.insert(key, page);
        }
        if page == 0 { Err(5) } else { Ok((page & !1) + (iova & 0xfff)) }
    }

    /// The 4 KiB page that a table leads to, with bit 0 set; 0 for none.
    fn walk(&self, cap: u64, mut table: u64, levels: u64, iova: u64) -> u64 {
        for level in (0..levels).rev() {
            let shift = 12 + 9 * level;
            let entry = self.ram.seen(table + (iova >> shift & 511) * 8);
            if entry & 3 != 3 {
                return 0;
            }
            let large = 1 << 33 << level;
            assert!(level == 0 || entry & 0x80 == 0 || cap & large != 0, "SSLPS");
            if level == 0 || entry & 0x80 != 0 {
                return (entry & !0xfff) + (iova & ((1 << shift) - 1) & !0xfff) + 1;
            }
            table = entry & !0xfff;
        }
        0
    }

    /// An interrupt request; (vector, destination, level) or the fault reason.
    pub(super) fn interrupt(
        &self,
        source: Bdf,
        address: u64,
        data: u32,
    ) -> Result<(u8, u32, bool), u8> {
        let mut state = self.state.borrow_mut();
        assert_ne!(state.status & command::IRE, 0, "interrupt remapping is off");
        assert_ne!(state.remap_table & 1 << 11, 0, "x2APIC mode");
        if address & 1 << 4 == 0 {
            return Err(0x25);
        }
        let handle = (address >> 5 & 0x7fff | (address >> 2 & 1) << 15) as u32;
        let index = handle + if address & 8 != 0 { data & 0xffff } else { 0 };
        if index >> ((state.remap_table & 15) + 1) != 0 {
            return Err(0x21);
        }
        let index = index as u16;
        let found = state.entries.get(&index).copied();
        let at = (state.remap_table & !0xfff) + u64::from(index) * 16;
        let entry = found.unwrap_or_else(|| self.pair(at));
        if entry.0 & 1 != 0 || state.cap & 1 << 7 != 0 {
            state.entries.insert(index, entry);
        }
        if entry.0 & 1 == 0 {
            return Err(0x22);
        }
        if entry.1 >> 18 & 3 == 1 && entry.1 as u16 != source.requester_id() {
            return Err(0x26);
        }
        Ok(((entry.0 >> 16) as u8, (entry.0 >> 32) as u32, entry.0 & 16 != 0))
    }

    fn run_queue(&self, tail: u64) {
        let mut state = self.state.borrow_mut();
        assert_ne!(state.status & command::QIE, 0, "the queue is off");
        assert_eq!(state.long[&registers::IQA] & 0xfff, 0, "one page of 128-bit descriptors");
        while state.head != tail {
            // Only remapping structures are held back.
            let at = state.long[&registers::IQA] + state.head;
            let (low, high) = (self.ram.held(at), self.ram.held(at + 8));
            match low & 0xf {
                1 if low >> 4 & 3 == 1 => state.contexts.clear(),
                2 if low >> 4 & 3 == 1 => {
                    // DW and DR, as far as the unit can (DWD and DRD of CAP).
                    assert_eq!(low >> 6 & 3, state.cap >> 54 & 3, "DMA under way is not drained");
                    state.pages.clear();
                }
                4 if low & 0x10 == 0 => state.entries.clear(),
                4 => drop(state.entries.remove(&((low >> 32) as u16))),
                5 => self.ram.answer(high, low >> 32),
                _ => panic!("descriptor {low:#x} is unknown"),
            }
            state.head = (state.head + 16) % 4096;
        }
    }

    fn command(&self, value: u32) {
        let mut state = self.state.borrow_mut();
        if state.deaf {
            return;
        }
        let lasting = command::LASTING;
        let changed = (value ^ state.status) & lasting | value & !lasting;
        assert_eq!(changed.count_ones(), 1, "one command at a time: {changed:#x}");
        if changed & value != 0 {
            state.commands.push(changed);
        }
        match changed {
            command::SRTP => {
                assert_eq!(state.status & command::TE, 0, "translation is still on");
                state.root = state.long[&registers::RTADDR];
            }
            command::SIRTP => {
                assert_eq!(state.status & command::IRE, 0, "remapping is still on");
                state.remap_table = state.long[&registers::IRTA];
            }
            command::QIE if value & command::QIE != 0 => state.head = 0,
            command::QIE => {
                let tail = state.long.get(&registers::IQT).copied().unwrap_or(0);
                let stopped = state.fault_status & 0x30 != 0;
                assert!(stopped || state.head == tail, "descriptors are still under way");
            }
            command::WBF => self.ram.flush(),
            _ => {}
        }
        // The write buffer is flushed at once.
        state.status = value & lasting | state.status & !lasting | changed & value;
        state.status &= !command::WBF;
    }
}

impl State {
    /// Cached entries from before the driver: all mappings of `function`, and index 0 of the
    /// interrupt-remapping table.
    pub(super) fn remembers(&mut self, function: Bdf) {
        self.contexts.insert(function.requester_id(), (1, 1 << 8 | 2));
        self.pages.insert((1, 1), 0x6660_0001);
        self.entries.insert(0, (0x66_0001, 0));
    }

    /// It sees the driver's writes only after its write buffer is flushed.
    pub(super) fn needs_write_buffer_flushing(&mut self) {
        self.cap |= 1 << 4;
    }

    /// The firmware's queue, with descriptors that are still under way.
    pub(super) fn is_at_work(&mut self) {
        self.status |= command::QIE;
        self.long.insert(registers::IQT, 64);
    }
}

impl Registers for Model {
    fn read_u32(&self, offset: u64) -> u32 {
        let waiting = self.state.borrow().waiting;
        match waiting {
            Some((tail, 0)) if offset == registers::FSTS => {
                self.state.borrow_mut().waiting = None;
                self.run_queue(tail);
            }
            Some((tail, reads)) if offset == registers::FSTS => {
                self.state.borrow_mut().waiting = Some((tail, reads - 1));
            }
            _ => {}
        }
        let state = self.state.borrow();
        match offset {
            registers::GSTS => state.status,
            registers::FSTS => state.fault_status,
            registers::PMEN => state.protected,
            _ => panic!("register {offset:#x} is not modelled"),
        }
    }

    fn read_u64(&self, offset: u64) -> u64 {
        let state = self.state.borrow();
        match offset {
            registers::CAP => state.cap,
            registers::ECAP => state.ecap,
            registers::IQH => {
                // The firmware's descriptors: one is done between two looks.
                let tail = state.long.get(&registers::IQT).copied().unwrap_or(0);
                let head = state.head;
                if head < tail && state.waiting.is_none() {
                    drop(state);
                    self.state.borrow_mut().head = head + 16;
                }
                head
            }
            0x220 => state.records[0].0,
            0x228 => state.records[0].1,
            0x230 => state.records[1].0,
            0x238 => state.records[1].1,
            _ => state.long.get(&offset).copied().unwrap_or(0),
        }
    }

    fn write_u32(&mut self, offset: u64, value: u32) {
        match offset {
            registers::GCMD => self.command(value),
            registers::FSTS => self.state.borrow_mut().fault_status &= !(value & 0x71),
            registers::FECTL => self.state.borrow_mut().fault_control = value,
            registers::PMEN => self.state.borrow_mut().protected = value,
            0x22c => self.state.borrow_mut().records[0].1 &= !(u64::from(value) << 32),
            0x23c => self.state.borrow_mut().records[1].1 &= !(u64::from(value) << 32),
            _ => panic!("register {offset:#x} is not modelled"),
        }
    }

    fn write_u64(&mut self, offset: u64, value: u64) {
        self.state.borrow_mut().long.insert(offset, value);
        if offset == registers::IQA {
            assert_eq!(self.state.borrow().status & command::QIE, 0, "the queue is in use");
        }
        let runs = {
            let state = self.state.borrow();
            // IQE and ICE stop it.
            let stopped = state.queue_stopped || state.fault_status & 0x30 != 0;
            state.status & command::QIE != 0 && !stopped
        };
        if offset == registers::IQT && runs {
            let slow = self.state.borrow().slow;
            match slow {
                0 => self.run_queue(value),
                reads => self.state.borrow_mut().waiting = Some((value, reads)),
            }
        }
    }
}
