//! The segments of the new task (SDM "Task Switching", "Exception Conditions Checked During a Task Switch"). What is wrong
//! with one is an exception in that task, before its first instruction.

use arch::Gva;
use arch::segment::{AccessRights, DescriptorTableRegister, Segment, SegmentRegister};
use arch::vcpu::{Event, Vcpu, exception};

use super::super::access::Refused;
use super::super::segment_descriptor::{Descriptor, kind};
use super::super::system_segment::{RPL, SUPERVISOR, TABLE_INDICATOR, descriptor_at};
use super::tss::SELECTORS;
use crate::vm::{Context, Platform};

/// A selector for the one or the other.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Code,
    Stack,
    Data,
}

impl<P: Platform> Context<'_, P> {
    /// Loads the selectors without what is behind them: what a CPU enters with where one of them turns out to be wrong.
    pub(super) fn load_selectors(&mut self, selectors: [u16; 6]) {
        let [_, code, ..] = selectors;
        let dpl = u32::from(code & RPL) << 5;
        for (register, selector) in SELECTORS.into_iter().zip(selectors) {
            let (access, limit) = if register == SegmentRegister::Cs {
                (AccessRights(AccessRights::CODE32.0 | dpl), u32::MAX)
            } else {
                (AccessRights(AccessRights::UNUSABLE.0 | dpl), 0)
            };
            self.vcpu.set_segment(register, Segment { selector, base: 0, limit, access });
        }
    }

    /// Virtual-8086 mode: a selector is a paragraph, and there is nothing to be wrong.
    pub(super) fn load_paragraphs(&mut self, selectors: [u16; 6]) {
        const ACCESS: AccessRights = AccessRights(0xf3);
        for (register, selector) in SELECTORS.into_iter().zip(selectors) {
            let base = u64::from(selector) << 4;
            let segment = Segment { selector, base, limit: 0xffff, access: ACCESS };
            self.vcpu.set_segment(register, segment);
        }
    }

    pub(super) fn load_ldt(&mut self, selector: u16, external: u32) -> Result<(), Refused> {
        self.vcpu.set_segment(SegmentRegister::Ldtr, Segment { selector, ..Segment::NULL });
        if selector & !RPL == 0 {
            return Ok(());
        }
        let invalid = fault(exception::TS, selector, external);
        let local = selector & TABLE_INDICATOR != 0;
        let (_, descriptor) = self.entry(selector)?.filter(|_| !local).ok_or(invalid)?;
        if descriptor.kind() != kind::LDT || !descriptor.present() {
            return Err(invalid);
        }
        self.vcpu.set_segment(SegmentRegister::Ldtr, descriptor.segment(selector));
        Ok(())
    }

    /// Code first: its selector says at which privilege the others are judged.
    pub(super) fn load_segments(
        &mut self,
        selectors: [u16; 6],
        external: u32,
    ) -> Result<(), Refused> {
        let [es, code, stack, ds, fs, gs] = selectors;
        let cpl = (code & RPL) as u8;
        for (register, selector, what) in [
            (SegmentRegister::Cs, code, Use::Code),
            (SegmentRegister::Ss, stack, Use::Stack),
            (SegmentRegister::Es, es, Use::Data),
            (SegmentRegister::Ds, ds, Use::Data),
            (SegmentRegister::Fs, fs, Use::Data),
            (SegmentRegister::Gs, gs, Use::Data),
        ] {
            if let Some(segment) = self.segment_for(what, selector, cpl, external)? {
                self.vcpu.set_segment(register, segment);
            }
        }
        Ok(())
    }

    /// What is behind a selector, marked as accessed; `None` for data that is null.
    fn segment_for(
        &mut self,
        what: Use,
        selector: u16,
        cpl: u8,
        external: u32,
    ) -> Result<Option<Segment>, Refused> {
        if selector & !RPL == 0 && what == Use::Data {
            return Ok(None);
        }
        let invalid = fault(exception::TS, selector, external);
        let entry = self.entry(selector)?.filter(|_| selector & !RPL != 0);
        let (at, descriptor) = entry.ok_or(invalid)?;
        if !suits(what, descriptor, (selector & RPL) as u8, cpl) {
            return Err(invalid);
        }
        if !descriptor.present() {
            let absent = if what == Use::Stack { exception::SS } else { exception::NP };
            return Err(fault(absent, selector, external));
        }
        let accessed = descriptor.with_kind(kind::ACCESSED);
        if accessed != descriptor {
            let at = at.wrapping_add(Descriptor::ACCESS_BYTE);
            let byte = [accessed.access_byte()];
            insn::write_linear(self.vcpu, self.memory, at, SUPERVISOR, &byte)?;
        }
        Ok(Some(accessed.segment(selector)))
    }

    /// The descriptor that a selector names, and where it is; `None` beyond its table.
    fn entry(&self, selector: u16) -> Result<Option<(Gva, Descriptor)>, Refused> {
        let (base, limit) = if selector & TABLE_INDICATOR == 0 {
            let table = self.vcpu.descriptor_table(DescriptorTableRegister::Gdtr);
            (table.base, table.limit.into())
        } else {
            let table = self.vcpu.segment(SegmentRegister::Ldtr);
            if table.access.unusable() {
                return Ok(None);
            }
            (Gva::new(table.base), table.limit)
        };
        let offset = selector & !(RPL | TABLE_INDICATOR);
        if u32::from(offset) + 7 > limit {
            return Ok(None);
        }
        let at = base.wrapping_add(offset.into());
        Ok(Some((at, descriptor_at(self.vcpu, self.memory, at, 8)?)))
    }
}

/// Whether a segment is of the type and the privilege for its use.
const fn suits(what: Use, descriptor: Descriptor, rpl: u8, cpl: u8) -> bool {
    let (kind, dpl) = (descriptor.kind(), descriptor.dpl());
    if kind & kind::CODE_OR_DATA == 0 {
        return false;
    }
    let code = kind & kind::CODE != 0;
    let conforming = code && kind & kind::CONFORMING != 0;
    let may = kind & kind::READABLE_OR_WRITABLE != 0;
    match what {
        Use::Code if conforming => dpl <= rpl,
        Use::Code => code && dpl == rpl,
        Use::Stack => !code && may && dpl == cpl && rpl == cpl,
        Use::Data if conforming => may,
        Use::Data => (!code || may) && dpl >= cpl && dpl >= rpl,
    }
}

/// An exception about a selector.
pub(super) const fn fault(vector: u8, selector: u16, external: u32) -> Refused {
    let code = selector & !RPL;
    Refused::Fault(Event::exception(vector, Some(code as u32 | external)), None)
}
