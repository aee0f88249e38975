//! What the unit refuses, and how it tells (VT-d specification "Fault Recording Registers", "Fault
//! Events").

use super::registers::{FAULT_RECORDS, FECTL, FRCD, FSTS, MASKED, PENDING, PFO, PPF, RECORD_SIZE};
use super::{MAX_LINES, Requester, Unit};
use crate::host::{Host, Interrupt};

/// F of a record: it holds a fault. In its uppermost word; writing 1 frees the record.
const FAULT: u32 = 1 << 31;

/// A refused request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Refusal {
    /// The specification's reason.
    pub(super) reason: u8,
    /// FPD of the entry that refused: no record.
    pub(super) silent: bool,
}

impl Refusal {
    /// One that is recorded.
    pub(super) const fn new(reason: u8) -> Self {
        Self { reason, silent: false }
    }
}

impl Unit {
    /// Records a fault. `info` is the page, or the index in bits 63:48.
    pub(super) fn fault(
        &mut self,
        host: &mut dyn Host,
        source: u16,
        info: u64,
        refusal: Refusal,
        read: bool,
    ) {
        if refusal.silent {
            return;
        }
        self.counters.faults += 1;
        let reason = refusal.reason;
        if self.counters.faults <= MAX_LINES {
            let kind = match (reason >= 0x20, read) {
                (true, _) => "interrupt",
                (false, true) => "read",
                (false, false) => "write",
            };
            let source = Requester(source);
            host.log(&format!("fault {reason:#04x} of {source} at {info:#x} ({kind})"));
        }
        let record = FRCD + RECORD_SIZE * self.next_record as u32;
        if self.registers.get(record + 12) & FAULT != 0 {
            self.counters.lost_faults += 1;
            self.registers.raise(FSTS, PFO);
            return;
        }
        let high = u64::from(FAULT | u32::from(read) << 30 | u32::from(reason)) << 32;
        self.registers.set_quad(record, info);
        self.registers.set_quad(record + 8, high | u64::from(source));
        if self.registers.get(FSTS) & PPF == 0 {
            // FRI: which record was the first.
            self.registers.clear(FSTS, 0xff << 8);
            self.registers.raise(FSTS, PPF | (self.next_record as u32) << 8);
            self.send_event(host, FECTL);
        }
        self.next_record = (self.next_record + 1) % FAULT_RECORDS;
    }

    /// A fault that no request caused: what a driver does about faults can be seen at will.
    pub fn invent_fault(&mut self, host: &mut dyn Host, source: u16, reason: u8, info: u64) {
        self.fault(host, source, info, Refusal::new(reason), false);
    }

    pub(super) fn write_record(&mut self, offset: u32, value: u32) {
        if offset % RECORD_SIZE != 12 || value & FAULT == 0 {
            return;
        }
        self.registers.clear(offset, FAULT);
        let records = (0..FAULT_RECORDS as u32).map(|record| FRCD + RECORD_SIZE * record + 12);
        if records.clone().all(|record| self.registers.get(record) & FAULT == 0) {
            self.registers.clear(FSTS, PPF);
        }
    }

    /// The unit's own message, which nobody remaps. `control` is FECTL or IECTL.
    pub(super) fn send_event(&mut self, host: &mut dyn Host, control: u32) {
        if self.registers.get(control) & MASKED != 0 {
            self.registers.raise(control, PENDING);
            return;
        }
        self.registers.clear(control, PENDING);
        let data = self.registers.get(control + 4);
        let address = self.registers.get(control + 8);
        let upper = self.registers.get(control + 12);
        host.deliver(Interrupt {
            vector: data as u8,
            destination: address >> 12 & 0xff | upper & !0xff,
            mode: (data >> 8 & 7) as u8,
            logical: address & 1 << 2 != 0,
            level: false,
        });
    }
}
