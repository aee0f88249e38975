//! DMA: from a requester and an address to RAM (VT-d specification "DMA Remapping").

use std::ops::Range;

use super::fault::Refusal;
use super::registers::TE;
use super::{MAX_LINES, Requester, Unit};
use crate::host::Host;

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// The address in an entry, up to 48 bits.
pub(super) const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
/// The interrupt address range, in MiB: never translated.
const INTERRUPT_RANGE: u64 = 0xfee;

/// A DMA request's data.
#[derive(Debug)]
pub enum Transfer<'a> {
    /// Memory is read into this.
    Read(&'a mut [u8]),
    /// Memory is written with this.
    Write(&'a [u8]),
}

impl Transfer<'_> {
    #[must_use]
    pub fn length(&self) -> usize {
        match self {
            Self::Read(data) => data.len(),
            Self::Write(data) => data.len(),
        }
    }

    /// Carries a part of it out at a physical address. False where no RAM is.
    pub fn carry_out(&mut self, host: &mut dyn Host, at: u64, part: Range<usize>) -> bool {
        match self {
            Self::Read(data) => data.get_mut(part).is_some_and(|data| host.read(at, data)),
            Self::Write(data) => data.get(part).is_some_and(|data| host.write(at, data)),
        }
    }

    /// A refused read gives ones; a refused write is lost.
    fn refuse(&mut self, part: Range<usize>) {
        if let Self::Read(data) = self {
            data.get_mut(part).into_iter().flatten().for_each(|byte| *byte = 0xff);
        }
    }
}

/// The parts of a request that lie in one page each.
pub fn pages_of(address: u64, length: usize) -> impl Iterator<Item = (u64, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = address.wrapping_add(done as u64);
        let part = (length - done).min((PAGE - at % PAGE) as usize);
        done += part;
        (part != 0).then(|| (at, done - part..done))
    })
}

/// A context entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Context {
    low: u64,
    high: u64,
}

impl Context {
    const PASS_THROUGH: u64 = 2;

    const fn present(self) -> bool {
        self.low & 1 != 0
    }
    /// FPD.
    const fn silent(self) -> bool {
        self.low & 2 != 0
    }
    /// TT.
    const fn kind(self) -> u64 {
        self.low >> 2 & 3
    }
    /// DID. Entries that are not present are kept under domain 0.
    pub(super) const fn domain(self) -> u16 {
        if self.present() { (self.high >> 8) as u16 } else { 0 }
    }
    /// AW.
    const fn width(self) -> u64 {
        self.high & 7
    }
    const fn levels(self) -> u64 {
        self.width() + 2
    }

    /// What is wrong with it.
    fn check(self, capability: u64) -> Result<(), Refusal> {
        let refuse = |reason| Err(Refusal { reason, silent: self.silent() });
        let known_width = self.width() <= 4 && capability >> (8 + self.width()) & 1 != 0;
        let known_kind = self.kind() == 0 || self.kind() == Self::PASS_THROUGH;
        if !self.present() {
            refuse(0x02)
        } else if self.low & !(ADDRESS | 0xf) != 0 || self.high & !0x00ff_ff7f != 0 {
            refuse(0x0b)
        } else if !known_width || !known_kind {
            refuse(0x03)
        } else {
            Ok(())
        }
    }
}

/// What a table says of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Page {
    frame: u64,
    readable: bool,
    writable: bool,
}

impl Page {
    const fn allows(self, write: bool) -> bool {
        if write { self.writable } else { self.readable }
    }
}

impl Unit {
    /// DMA of `source`. False where a part of it was refused.
    pub fn dma(
        &mut self,
        host: &mut dyn Host,
        source: u16,
        address: u64,
        mut transfer: Transfer<'_>,
    ) -> bool {
        let mut all = true;
        for (at, part) in pages_of(address, transfer.length()) {
            let length = part.len() as u64;
            let done = if at >> 20 == INTERRUPT_RANGE {
                self.dma_to_interrupts(host, source, at, &transfer)
            } else {
                self.dma_to_page(host, source, at, part.clone(), &mut transfer)
            };
            if done {
                self.counters.dma_bytes += length;
            } else {
                transfer.refuse(part);
            }
            all &= done;
        }
        all
    }

    /// A write of four bytes there is a message, anything else is refused.
    fn dma_to_interrupts(
        &mut self,
        host: &mut dyn Host,
        source: u16,
        at: u64,
        transfer: &Transfer<'_>,
    ) -> bool {
        match transfer {
            Transfer::Write(data) if let Ok(data) = <[u8; 4]>::try_from(*data) => {
                self.message(host, source, at, u32::from_le_bytes(data))
            }
            Transfer::Read(_) | Transfer::Write(_) => {
                let (source, length) = (Requester(source), transfer.length());
                host.log(&format!("DMA of {source}, {length} bytes at {at:#x}: for interrupts"));
                false
            }
        }
    }

    fn dma_to_page(
        &mut self,
        host: &mut dyn Host,
        source: u16,
        at: u64,
        part: Range<usize>,
        transfer: &mut Transfer<'_>,
    ) -> bool {
        let write = matches!(transfer, Transfer::Write(_));
        let physical = match self.translate(host, source, at, write) {
            Ok(physical) => physical,
            Err(refusal) => {
                self.fault(host, source, at & !(PAGE - 1), refusal, !write);
                return false;
            }
        };
        let done = transfer.carry_out(host, physical, part);
        if !done {
            let source = Requester(source);
            host.log(&format!("DMA of {source} to physical {physical:#x}, where no RAM is"));
        }
        done
    }

    /// The physical address.
    fn translate(
        &mut self,
        host: &mut dyn Host,
        source: u16,
        at: u64,
        write: bool,
    ) -> Result<u64, Refusal> {
        if self.status() & TE == 0 {
            return Ok(at);
        }
        let context = self.context(host, source)?;
        if context.kind() == Context::PASS_THROUGH {
            return Ok(at);
        }
        let key = (context.domain(), at / PAGE);
        let page = match self.pages.get(&key).copied() {
            Some(page) => {
                self.counters.hits += 1;
                self.compare_page(host, source, context, at, write, page);
                page
            }
            None => {
                self.counters.walks += 1;
                let page = self.walk(host, context, at)?;
                if page.allows(write) || self.options.caching_mode {
                    self.pages.insert(key, page);
                }
                page
            }
        };
        if page.allows(write) {
            Ok(page.frame + at % PAGE)
        } else {
            let reason = if write { 0x05 } else { 0x06 };
            Err(Refusal { reason, silent: context.silent() })
        }
    }

    /// The context entry of `source`, from the cache or from memory.
    fn context(&mut self, host: &mut dyn Host, source: u16) -> Result<Context, Refusal> {
        let capability = self.options.capability();
        let in_memory = self.read_context(host, source);
        if let Some(kept) = self.contexts.get(&source).copied() {
            if in_memory != Ok(kept) {
                self.counters.stale_contexts += 1;
                if self.counters.stale_contexts <= MAX_LINES {
                    let source = Requester(source);
                    host.log(&format!("STALE context of {source}: {kept:x?}, not {in_memory:x?}"));
                }
            }
            return kept.check(capability).map(|()| kept);
        }
        let context = in_memory?;
        let verdict = context.check(capability);
        if verdict.is_ok() || self.options.caching_mode {
            self.contexts.insert(source, context);
        }
        verdict.map(|()| context)
    }

    fn read_context(&self, host: &mut dyn Host, source: u16) -> Result<Context, Refusal> {
        let slot = (self.root & ADDRESS) + u64::from(source >> 8) * 16;
        let [root, upper] = host.read_entry(slot).ok_or(Refusal::new(0x08))?;
        if root & 1 == 0 {
            return Err(Refusal::new(0x01));
        }
        if root & !(ADDRESS | 1) != 0 || upper != 0 {
            return Err(Refusal::new(0x0a));
        }
        let slot = (root & ADDRESS) + u64::from(source & 0xff) * 16;
        let [low, high] = host.read_entry(slot).ok_or(Refusal::new(0x09))?;
        Ok(Context { low, high })
    }

    /// Walks the second-stage table. A page without rights where it maps nothing.
    fn walk(&self, host: &mut dyn Host, context: Context, at: u64) -> Result<Page, Refusal> {
        const LARGE: u64 = 1 << 7;
        /// SNP, as ECAP.SC is 0, and what lies above the widest address.
        const RESERVED: u64 = 1 << 11 | 0x000f_0000_0000_0000;
        let refuse = |reason| Err(Refusal { reason, silent: context.silent() });
        let table_bits = 12 + 9 * context.levels();
        if at >> table_bits.min(self.options.address_width().into()) != 0 {
            return refuse(0x04);
        }
        let mut table = context.low & ADDRESS;
        let mut page = Page { frame: 0, readable: true, writable: true };
        for level in (1..=context.levels()).rev() {
            let shift = 12 + 9 * (level - 1);
            let Some(entry) = host.read_u64(table + (at >> shift & 511) * 8) else {
                return refuse(0x07);
            };
            page.readable &= entry & 1 != 0;
            page.writable &= entry & 2 != 0;
            if entry & 3 == 0 {
                return Ok(Page::default());
            }
            let large = level > 1 && entry & LARGE != 0;
            let within = (1 << shift) - 1;
            let allowed = self.options.superpages && level <= 3;
            if entry & RESERVED != 0 || large && (!allowed || entry & ADDRESS & within != 0) {
                return refuse(0x0c);
            }
            if level == 1 || large {
                page.frame = entry & ADDRESS & !within | at & within & !(PAGE - 1);
                return Ok(page);
            }
            table = entry & ADDRESS;
        }
        refuse(0x03)
    }

    /// Compares what was kept with what the table says.
    fn compare_page(
        &mut self,
        host: &mut dyn Host,
        source: u16,
        context: Context,
        at: u64,
        write: bool,
        kept: Page,
    ) {
        let now = self.walk(host, context, at);
        let same = match now {
            Ok(page) if kept.allows(write) => page == kept,
            Ok(page) => !page.allows(write),
            Err(_) => false,
        };
        if !same {
            self.counters.stale_translations += 1;
            if self.counters.stale_translations <= MAX_LINES {
                let (source, domain) = (Requester(source), context.domain());
                host.log(&format!(
                    "STALE translation of {source}: domain {domain}, {at:#x}: {kept:x?}, not {now:x?}"
                ));
            }
        }
    }
}
