//! Invalidation: by the queue (VT-d specification "Queued Invalidation Interface"), which is looked at some
//! ticks after its tail has moved, and by registers.

use super::registers::{CCMD, FECTL, FSTS, ICS, IECTL, IOTLB, IQA, IQE, IQH, IQT, IVA, QIE};
use super::{Unit, translation::PAGE};
use crate::host::{Host, Timer};

const DESCRIPTOR_SIZE: u32 = 16;
/// Everything, in the two bits of each descriptor that say how much.
const GLOBAL: u64 = 1;
/// All of a domain.
const OF_DOMAIN: u64 = 2;
/// ICC of CCMD and IVT of IOTLB, in their upper words.
const GO: u32 = 1 << 31;

/// A descriptor that the unit cannot carry out.
struct Invalid;

impl Unit {
    pub(super) fn write_queue_address(&mut self, host: &mut dyn Host, offset: u32, value: u32) {
        const WIDE_DESCRIPTORS: u32 = 1 << 11;
        if self.status() & QIE != 0 {
            self.wrong(host, format_args!("IQA is written while the queue is on"));
        }
        if offset == IQA && value & WIDE_DESCRIPTORS != 0 {
            self.wrong(host, format_args!("descriptors of 256 bits, which this unit has not"));
        }
        self.registers.set(offset, value);
    }

    pub(super) fn write_tail(&mut self, host: &mut dyn Host, value: u32) {
        const FIELD: u32 = 0x7fff0;
        if value & !FIELD != 0 {
            self.wrong(host, format_args!("reserved bits in IQT {value:#x}"));
        }
        self.registers.set(IQT, value & FIELD);
        if self.status() & QIE != 0 {
            if self.options.write_buffer && !self.buffer_flushed {
                self.wrong(
                    host,
                    format_args!("the queue's tail moves before the write buffer is flushed"),
                );
            }
            self.buffer_flushed = false;
        }
        self.look_at_queue_later(host);
    }

    pub(super) fn look_at_queue_later(&mut self, host: &mut dyn Host) {
        if self.options.answers && !self.busy && self.status() & QIE != 0 {
            self.busy = true;
            host.wake(Timer::Unit, self.options.delay);
        }
    }

    /// Carries out what is queued, up to the tail or to what it stops at.
    pub fn work(&mut self, host: &mut dyn Host) {
        self.busy = false;
        if self.status() & QIE == 0 {
            return;
        }
        let size = 4096 << (self.registers.get(IQA) & 7);
        let base = self.registers.quad(IQA) & !0xfff;
        let tail = self.registers.get(IQT);
        if tail >= size {
            self.wrong(host, format_args!("IQT {tail:#x} is beyond the queue"));
            self.registers.raise(FSTS, IQE);
            return;
        }
        while self.registers.get(IQH) != tail && self.registers.get(FSTS) & IQE == 0 {
            let head = self.registers.get(IQH);
            let descriptor = host.read_entry(base + u64::from(head));
            let done = descriptor.map(|[low, high]| self.descriptor(host, low, high));
            if !matches!(done, Some(Ok(()))) {
                self.wrong(host, format_args!("descriptor {descriptor:x?} at {head:#x}"));
                self.registers.raise(FSTS, IQE);
                self.send_event(host, FECTL);
                return;
            }
            self.registers.set(IQH, (head + DESCRIPTOR_SIZE) % size);
        }
    }

    fn descriptor(&mut self, host: &mut dyn Host, low: u64, high: u64) -> Result<(), Invalid> {
        self.counters.descriptors += 1;
        if self.options.trace {
            host.log(&format!("unit: descriptor {low:#018x} {high:#018x}"));
        }
        // What each kind leaves reserved; bits 11:9 are the kind's upper ones.
        let reserved = match low & 0xf {
            1 => (low & 0xfffc_0000_0000_ffc0, high),
            2 => (low & 0xffff_ffff_0000_ff00, high & 0xf80),
            4 => (low & 0xffff_0000_07ff_ffe0, high),
            5 => (low & 0xffff_ff00, high & 3),
            _ => return Err(Invalid),
        };
        let amount = low >> 4 & 3;
        if reserved != (0, 0) || (low & 0xf <= 2 && amount == 0) {
            return Err(Invalid);
        }
        match low & 0xf {
            1 => {
                self.forget_contexts(amount, (low >> 16) as u16, (low >> 32) as u16, low >> 48 & 3)
            }
            2 => {
                self.counters.undrained += u64::from(low >> 6 & 3 != 3);
                self.forget_pages(amount, (low >> 16) as u16, high & !0xfff, high & 0x3f);
            }
            4 => self.forget_entries(amount & 1 == 0, (low >> 32) as u16, low >> 27 & 31),
            _ => return self.wait(host, low, high),
        }
        Ok(())
    }

    /// Tells that all before it is done.
    fn wait(&mut self, host: &mut dyn Host, low: u64, high: u64) -> Result<(), Invalid> {
        const INTERRUPT: u64 = 1 << 4;
        const STATUS_WRITE: u64 = 1 << 5;
        self.lately_stale.clear();
        if low & STATUS_WRITE != 0 && !host.write(high, &((low >> 32) as u32).to_le_bytes()) {
            return Err(Invalid);
        }
        if low & INTERRUPT != 0 && self.registers.get(ICS) & 1 == 0 {
            self.registers.raise(ICS, 1);
            self.send_event(host, IECTL);
        }
        Ok(())
    }

    /// CCMD's upper word.
    pub(super) fn context_command(&mut self, host: &mut dyn Host, value: u32) {
        self.registers.set(CCMD + 4, value & !GO);
        if value & GO == 0 {
            return;
        }
        if self.status() & QIE != 0 {
            self.wrong(host, format_args!("CCMD is used while the queue is on"));
        }
        let low = self.registers.get(CCMD);
        let amount = value >> 29 & 3;
        self.forget_contexts(amount.into(), low as u16, (low >> 16) as u16, (value & 3).into());
        // CAIG: what was done.
        self.registers.set(CCMD + 4, value & !(GO | 3 << 27) | amount << 27);
    }

    /// IOTLB's upper word.
    pub(super) fn iotlb_command(&mut self, host: &mut dyn Host, value: u32) {
        self.registers.set(IOTLB + 4, value & !GO);
        if value & GO == 0 {
            return;
        }
        if self.status() & QIE != 0 {
            self.wrong(host, format_args!("IOTLB is used while the queue is on"));
        }
        let address = self.registers.quad(IVA);
        let amount = value >> 28 & 3;
        self.forget_pages(amount.into(), value as u16, address & !0xfff, address & 0x3f);
        // IAIG: what was done.
        self.registers.set(IOTLB + 4, value & !(GO | 3 << 25) | amount << 25);
    }

    fn forget_contexts(&mut self, amount: u64, domain: u16, source: u16, mask: u64) {
        if amount == GLOBAL {
            self.owed.contexts = false;
        }
        let ignored = !FUNCTION_MASKS[mask as usize & 3];
        self.contexts.retain(|requester, context| {
            let same_source = requester & ignored == source & ignored;
            let of_it = amount == OF_DOMAIN || same_source;
            !(amount == GLOBAL || context.domain() == domain && of_it)
        });
    }

    fn forget_pages(&mut self, amount: u64, domain: u16, address: u64, order: u64) {
        if amount == GLOBAL {
            self.owed.pages = false;
        }
        let shift = order.min(52);
        self.pages.retain(|(its_domain, page), _| {
            let same_pages = page >> shift == (address / PAGE) >> shift;
            !(amount == GLOBAL || *its_domain == domain && (amount == OF_DOMAIN || same_pages))
        });
    }

    fn forget_entries(&mut self, all: bool, first: u16, order: u64) {
        if all {
            self.owed.entries = false;
        }
        let shift = order.min(16);
        let covered = |index: &u16| all || u32::from(*index) >> shift == u32::from(first) >> shift;
        self.entries.retain(|index, _| !covered(index));
        let before = self.lately_stale.len();
        self.lately_stale.retain(|index| !covered(index));
        self.counters.stale_remaps -= (before - self.lately_stale.len()) as u64;
    }
}

/// Bits of a requester that a function mask (or a source-id qualifier) leaves out.
pub(super) const FUNCTION_MASKS: [u16; 4] = [0, 4, 6, 7];
