//! A guest's registers and shared memory, by name, and their addresses.
//!
//! Invariant: every returned address lies in a memory BAR that was recorded at bring-up for a function
//! of the guest, or in a region that it shares. A page that contains a part of an MSI-X table is never mapped, and the
//! table is accessed by whole entries only.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

use arch::address::{HpaRange, PAGE_SIZE};
use arch::machine::{ConfigSpace, Part, PitRegister};
use arch::{Bdf, Hpa, Width};

use crate::bar::Bar;
use crate::capability::{self, capabilities};
use crate::msix::{ENTRY_SIZE, MsixCapability};

/// Why a request of policy is refused: a bug in policy, which no guest should be able to cause.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotOwned(pub &'static str);

/// An address, or why not.
type Found = Result<Hpa, NotOwned>;
/// Which bytes of a BAR are a table's.
type Hidden = fn(&MsixCapability) -> Range<u64>;

const NOT_ITS_OWN: NotOwned = NotOwned("the guest has no such function, BAR or region");
const BEYOND: NotOwned = NotOwned("it ends before that");
const UNALIGNED: NotOwned = NotOwned("it is not aligned");
const TABLE: NotOwned = NotOwned("the table of MSI-X is there");
const ENTRY: NotOwned = NotOwned("the guest has no such entry of MSI-X");
const PIT: NotOwned = NotOwned("the guest does not have that channel of the PIT");

/// What one guest has.
#[derive(Clone, Debug, Default)]
pub struct Owned {
    functions: Vec<Bdf>,
    parts: Vec<(Part, HpaRange)>,
    /// The tables of MSI-X, each with the BAR in which it is.
    tables: Vec<(Part, MsixCapability)>,
    regions: usize,
    pit: bool,
}

impl Owned {
    /// Adds a function of the guest with its recorded BARs. Port BARs, and BARs without an address from the firmware, are
    /// left out.
    pub fn add_function(
        &mut self,
        space: &impl ConfigSpace,
        function: Bdf,
        bars: [Option<Bar>; 6],
    ) {
        self.functions.push(function);
        for bar in bars.iter().flatten().filter(|bar| bar.is_memory() && bar.base != 0) {
            let range = HpaRange { start: Hpa::new(bar.base), length: bar.size };
            self.parts.push((Part::Bar { function, index: bar.index }, range));
        }
        let msix = capabilities(space, function).find(|it| it.id == capability::MSI_X);
        let msix =
            msix.and_then(|it| MsixCapability::read_within(space, function, it.offset, &bars));
        if let Some(msix) = msix {
            self.tables.push((Part::Bar { function, index: msix.table.bar }, msix));
        }
    }

    /// Adds a region that the guest shares, whole pages: the next in its list.
    pub fn add_shared(&mut self, region: HpaRange) {
        self.parts.push((Part::Shared(self.regions), region));
        self.regions += 1;
    }

    /// The guest has channel 0 of the machine's PIT.
    pub const fn add_pit(&mut self) {
        self.pit = true;
    }

    /// The address of `length` bytes of `part` from `offset` on, to be mapped for the guest.
    ///
    /// # Errors
    /// If the part is not the guest's, is not whole pages, or contains an MSI-X entry.
    pub fn pages(&self, part: Part, offset: u64, length: u64) -> Found {
        if length == 0 || !(offset | length).is_multiple_of(PAGE_SIZE) {
            return Err(UNALIGNED);
        }
        self.clear_of(MsixCapability::table_pages, part, offset, length)
    }

    /// The address of the register of this width at `offset` of `part`.
    ///
    /// # Errors
    /// If it is not the guest's, not aligned, or in an MSI-X entry.
    pub fn register(&self, part: Part, offset: u64, width: Width) -> Found {
        let length = u64::from(width.bytes());
        if !offset.is_multiple_of(length) {
            return Err(UNALIGNED);
        }
        self.clear_of(MsixCapability::table_range, part, offset, length)
    }

    /// Where an entry of a function's MSI-X table is.
    ///
    /// # Errors
    /// When the function is not the guest's or has no such entry.
    pub fn msix_entry(&self, function: Bdf, index: u16) -> Found {
        let of = |(part, msix): &&(Part, MsixCapability)| {
            *part == (Part::Bar { function, index: msix.table.bar }) && index < msix.entries
        };
        let (part, msix) = self.tables.iter().find(of).ok_or(ENTRY)?;
        self.within(*part, msix.table.offset + u64::from(index) * ENTRY_SIZE, ENTRY_SIZE)
    }

    /// The port by which the guest writes `value` to the machine's PIT.
    ///
    /// # Errors
    /// When its channel 0 is not the guest's, or the value concerns another one.
    pub const fn pit_port(&self, register: PitRegister, value: u8) -> Result<u16, NotOwned> {
        match register {
            _ if !self.pit => Err(PIT),
            PitRegister::Channel0 => Ok(0x40),
            // Bits 7:6 select the channel (Intel 8254 data sheet, "Control Word Format").
            PitRegister::Control if value >> 6 == 0 => Ok(0x43),
            PitRegister::Control => Err(PIT),
        }
    }

    /// Where these bytes are, none of which may be among those that `hidden` names of a table in the same BAR.
    fn clear_of(&self, hidden: Hidden, part: Part, offset: u64, length: u64) -> Found {
        let start = self.within(part, offset, length)?;
        let table = self.tables.iter().find(|(of, _)| *of == part);
        let hidden = table.map_or(0..0, |(_, msix)| hidden(msix));
        let touches = offset < hidden.end && hidden.start < offset + length;
        if touches { Err(TABLE) } else { Ok(start) }
    }

    fn within(&self, part: Part, offset: u64, length: u64) -> Found {
        let (_, whole) = self.parts.iter().find(|(own, _)| *own == part).ok_or(NOT_ITS_OWN)?;
        let end = offset.checked_add(length).filter(|end| *end <= whole.length);
        end.map(|_| whole.start.wrapping_add(offset)).ok_or(BEYOND)
    }
}

/// Configuration space as a guest's policy may use it: of the guest's own functions. Others read as all ones and take
/// no write, as if they were not there.
#[derive(Clone, Debug)]
pub struct OwnedConfigSpace<C> {
    space: C,
    owned: Arc<Owned>,
}

impl<C> OwnedConfigSpace<C> {
    /// For a guest that owns `owned`.
    pub const fn new(space: C, owned: Arc<Owned>) -> Self {
        Self { space, owned }
    }
}

impl<C: ConfigSpace> ConfigSpace for OwnedConfigSpace<C> {
    #[inline(never)]
    fn read(&self, function: Bdf, offset: u16, width: Width) -> u32 {
        let own = self.owned.functions.contains(&function);
        if own { self.space.read(function, offset, width) } else { width.mask() as u32 }
    }

    #[inline(never)]
    fn write(&mut self, function: Bdf, offset: u16, width: Width, value: u32) {
        if self.owned.functions.contains(&function) {
            self.space.write(function, offset, width, value);
        }
    }
}

#[cfg(test)]
mod tests;
