//! Interrupts: from a message to a local APIC (VT-d specification "Interrupt Remapping").

use super::fault::Refusal;
use super::queue::FUNCTION_MASKS;
use super::registers::{CFI, EIME, IRE};
use super::translation::ADDRESS;
use super::{MAX_LINES, Requester, Unit};
use crate::host::{Host, Interrupt};

/// Bit 4 of the address: the remappable format.
const REMAPPABLE: u64 = 1 << 4;
/// Bit 3 of the address: the data holds a number to be added to the handle.
const SUBHANDLE: u64 = 1 << 3;

/// The index that a remappable message asks for, as an address.
#[must_use]
pub const fn remappable_address(index: u16) -> u64 {
    let index = index as u64;
    0xfee0_0000 | REMAPPABLE | (index & 0x7fff) << 5 | index >> 15 << 2
}

/// An interrupt-remapping entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    low: u64,
    high: u64,
}

impl Entry {
    const fn present(self) -> bool {
        self.low & 1 != 0
    }

    /// What is wrong with it for a message of `source`.
    fn check(self, source: u16, extended: bool) -> Result<(), Refusal> {
        // Bit 15 is IM: no posting.
        const RESERVED: u64 = 0xff00_f000;
        let refuse = |reason| Err(Refusal { reason, silent: self.low & 2 != 0 });
        let destination = self.low >> 32;
        let sid = self.high as u16;
        let ignored = !FUNCTION_MASKS[(self.high >> 16 & 3) as usize];
        let bus = source >> 8;
        if !self.present() {
            return refuse(0x22);
        }
        if self.low & RESERVED != 0 || self.high >> 20 != 0 {
            return refuse(0x24);
        }
        if !extended && destination & !0xff00 != 0 {
            return refuse(0x24);
        }
        match self.high >> 18 & 3 {
            0 => Ok(()),
            1 if source & ignored == sid & ignored => Ok(()),
            2 if (sid >> 8..=sid & 0xff).contains(&bus) => Ok(()),
            1 | 2 => refuse(0x26),
            _ => refuse(0x24),
        }
    }

    fn interrupt(self, extended: bool) -> Interrupt {
        let destination = (self.low >> 32) as u32;
        Interrupt {
            vector: (self.low >> 16) as u8,
            destination: if extended { destination } else { destination >> 8 & 0xff },
            mode: (self.low >> 5 & 7) as u8,
            logical: self.low & 1 << 2 != 0,
            level: self.low & 1 << 4 != 0,
        }
    }
}

impl Unit {
    /// Whether it remaps interrupts at the moment.
    #[must_use]
    pub fn remaps_interrupts(&self) -> bool {
        self.status() & IRE != 0
    }

    /// Whether messages in compatibility format come through.
    #[must_use]
    pub fn passes_compatibility(&self) -> bool {
        let extended = self.remap_table & EIME != 0;
        !self.remaps_interrupts() || self.status() & CFI != 0 && !extended
    }

    /// A write of four bytes to the interrupt address range. False where it was refused.
    pub fn message(&mut self, host: &mut dyn Host, source: u16, address: u64, data: u32) -> bool {
        let result = if self.remaps_interrupts() && address & REMAPPABLE != 0 {
            self.remap(host, source, address, data)
        } else if self.passes_compatibility() {
            self.counters.compatibility += 1;
            Ok(compatibility(address, data))
        } else {
            Err((Refusal::new(0x25), 0))
        };
        match result {
            Ok(interrupt) => {
                if self.options.trace {
                    host.log(&format!("unit: {} sends {interrupt:x?}", Requester(source)));
                }
                host.deliver(interrupt);
                true
            }
            Err((refusal, index)) => {
                self.fault(host, source, u64::from(index) << 48, refusal, false);
                false
            }
        }
    }

    /// The interrupt, or why not and for which index.
    fn remap(
        &mut self,
        host: &mut dyn Host,
        source: u16,
        address: u64,
        data: u32,
    ) -> Result<Interrupt, (Refusal, u16)> {
        let handle = (address >> 5 & 0x7fff | (address >> 2 & 1) << 15) as u32;
        let subhandle = if address & SUBHANDLE != 0 { data } else { 0 };
        if subhandle >> 16 != 0 {
            return Err((Refusal::new(0x20), handle as u16));
        }
        let index = handle + subhandle;
        if index >> ((self.remap_table & 15) + 1) != 0 {
            return Err((Refusal::new(0x21), index as u16));
        }
        let index = index as u16;
        let at = (self.remap_table & ADDRESS) + u64::from(index) * 16;
        let now = host.read_entry(at).map(|[low, high]| Entry { low, high });
        let now = now.ok_or((Refusal::new(0x23), index))?;
        let entry = match self.entries.get(&index).copied() {
            Some(kept) => {
                self.counters.remap_hits += 1;
                self.compare_entry(host, index, kept, now);
                kept
            }
            None => now,
        };
        if entry.present() || self.options.caching_mode {
            self.entries.insert(index, entry);
        }
        let extended = self.remap_table & EIME != 0;
        entry.check(source, extended).map_err(|refusal| (refusal, index))?;
        self.counters.remapped += 1;
        Ok(entry.interrupt(extended))
    }

    fn compare_entry(&mut self, host: &mut dyn Host, index: u16, kept: Entry, now: Entry) {
        if kept != now {
            self.counters.stale_remaps += 1;
            self.lately_stale.push(index);
            if self.counters.stale_remaps <= MAX_LINES {
                host.log(&format!("STALE remapping entry {index:#x}: {kept:x?}, not {now:x?}"));
            }
        }
    }
}

/// A message as the local APICs read it (SDM "Message Address Register Format").
#[must_use]
pub fn compatibility(address: u64, data: u32) -> Interrupt {
    Interrupt {
        vector: data as u8,
        destination: (address >> 12 & 0xff) as u32,
        mode: (data >> 8 & 7) as u8,
        logical: address & 1 << 2 != 0,
        level: data & 1 << 15 != 0,
    }
}
