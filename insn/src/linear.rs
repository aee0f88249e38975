//! The guest's own page tables, read as its CPU would read them, and accesses by linear address.
//!
//! Covers no paging, 32-bit, PAE, 4-level and 5-level paging (SDM "Paging"). The walk only reads; for an operand that the
//! CPU has not reached by itself, [`translate_used`] sets the accessed and dirty bits. A table outside the guest's memory reads as ones, like an unused address on a
//! bus.

use core::fmt;

use arch::machine::{GuestMemory, NotGuestMemory};
use arch::register::{Cr0, Cr4, Efer};
use arch::segment::SegmentRegister;
use arch::vcpu::{Event, Vcpu, exception};
use arch::{Gpa, Gva};

use crate::instruction::{MAX_LENGTH, Mode};

const CR4_PSE: u64 = 1 << 4;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;
const CR4_PKE: u64 = 1 << 22;
const RFLAGS_AC: u64 = 1 << 18;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const EXECUTE_DISABLE: u64 = 1 << 63;
/// Physical address in an 8-byte entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Bits of a page fault's error code (SDM "Page-Fault Exceptions").
mod error_code {
    pub(super) const PRESENT: u32 = 1 << 0;
    pub(super) const WRITE: u32 = 1 << 1;
    pub(super) const USER: u32 = 1 << 2;
    pub(super) const RESERVED: u32 = 1 << 3;
    pub(super) const FETCH: u32 = 1 << 4;
    pub(super) const PROTECTION_KEY: u32 = 1 << 5;
}

/// The kind of an access to a linear address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Access {
    pub write: bool,
    /// An instruction fetch.
    pub fetch: bool,
    /// Made with the rights of CPL 3.
    pub user: bool,
}

impl Access {
    /// A data read by the instruction that `vcpu` executes.
    #[must_use]
    pub fn read<V: Vcpu>(vcpu: &V) -> Self {
        Self { write: false, fetch: false, user: vcpu.cpl() == 3 }
    }

    /// A data write by the instruction that `vcpu` executes.
    #[must_use]
    pub fn write<V: Vcpu>(vcpu: &V) -> Self {
        Self { write: true, ..Self::read(vcpu) }
    }
}

/// Why an access by linear address is impossible.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemoryFault {
    /// The guest's tables do not allow it: #PF.
    Page {
        /// Faulting linear address, for CR2.
        address: Gva,
        error_code: u32,
    },
    /// The address is not canonical: #GP (#SS for the stack segment).
    NotCanonical(Gva),
    /// The data is not the guest's RAM.
    NotMemory(Gpa),
}

impl MemoryFault {
    /// The exception that the guest gets, and CR2 for it; `None` where no exception tells it.
    #[must_use]
    pub const fn event(self) -> Option<(Event, Option<Gva>)> {
        match self {
            Self::Page { address, error_code } => {
                Some((Event::exception(exception::PF, Some(error_code)), Some(address)))
            }
            Self::NotCanonical(_) => Some((Event::exception(exception::GP, Some(0)), None)),
            Self::NotMemory(_) => None,
        }
    }
}

impl From<NotGuestMemory> for MemoryFault {
    fn from(error: NotGuestMemory) -> Self {
        Self::NotMemory(error.0)
    }
}

impl fmt::Display for MemoryFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Page { address, error_code } => {
                write!(f, "page fault at linear address {address}, error code {error_code:#x}")
            }
            Self::NotCanonical(address) => write!(f, "linear address {address} is not canonical"),
            Self::NotMemory(gpa) => fmt::Display::fmt(&NotGuestMemory(*gpa), f),
        }
    }
}

impl core::error::Error for MemoryFault {}

/// Which tables there are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Paging {
    None,
    /// 4-byte entries, 2 levels.
    Bits32,
    /// 8-byte entries, 3 levels, the first of four entries without rights.
    Pae,
    /// 8-byte entries, 4 or 5 levels.
    Long {
        levels: u32,
    },
}

/// The registers that govern a walk.
struct Walk {
    paging: Paging,
    root: u64,
    large_pages_32: bool,
    write_protect: bool,
    execute_disable: bool,
    /// Supervisor-mode execution prevention.
    smep: bool,
    /// Supervisor-mode access prevention, not lifted by RFLAGS.AC.
    smap: bool,
    /// PKRU, where protection keys are on: two bits for each key.
    protection_keys: u32,
}

/// The registers that say where a guest's tables are, and of which kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PagingRegisters {
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
}

impl PagingRegisters {
    /// The guest-physical address of a linear one, regardless of access rights.
    ///
    /// # Errors
    /// When the guest's tables have no such page.
    pub fn translate(self, memory: &impl GuestMemory, gva: Gva) -> Result<Gpa, MemoryFault> {
        self.walk(memory, gva, |_| {})
    }

    /// The same, and `seen` gets each entry on the way.
    ///
    /// # Errors
    /// As [`Self::translate`].
    pub fn walk(
        self,
        memory: &impl GuestMemory,
        gva: Gva,
        seen: impl FnMut(Visited),
    ) -> Result<Gpa, MemoryFault> {
        Walk::new(self).follow(memory, gva, Access::default(), seen)
    }
}

/// An entry of a guest's table that a walk came by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Visited {
    /// Counted from the pages: 1 is a page table's.
    pub level: u32,
    /// Where it is.
    pub at: Gpa,
    /// What it says.
    pub entry: u64,
}

impl Walk {
    fn of<V: Vcpu>(vcpu: &V) -> Self {
        let (cr0, cr3, cr4, efer) = (vcpu.cr0(), vcpu.cr3(), vcpu.cr4(), vcpu.efer());
        let walk = Self::new(PagingRegisters { cr0, cr3, cr4, efer });
        Self {
            smap: cr4 & CR4_SMAP != 0 && vcpu.rflags() & RFLAGS_AC == 0,
            protection_keys: if cr4 & CR4_PKE != 0 && matches!(walk.paging, Paging::Long { .. }) {
                vcpu.protection_keys()
            } else {
                0
            },
            ..walk
        }
    }

    /// Without what keeps a supervisor from a user's pages.
    fn new(PagingRegisters { cr0, cr3, cr4, efer }: PagingRegisters) -> Self {
        let paging = if cr0 & Cr0::PG.bits() == 0 {
            Paging::None
        } else if efer & Efer::LMA.bits() != 0 {
            Paging::Long { levels: if cr4 & Cr4::LA57.bits() != 0 { 5 } else { 4 } }
        } else if cr4 & Cr4::PAE.bits() != 0 {
            Paging::Pae
        } else {
            Paging::Bits32
        };
        let root_mask = match paging {
            Paging::None => 0,
            Paging::Bits32 => 0xffff_f000,
            Paging::Pae => 0xffff_ffe0,
            Paging::Long { .. } => ADDRESS,
        };
        Self {
            paging,
            root: cr3 & root_mask,
            large_pages_32: cr4 & CR4_PSE != 0,
            write_protect: cr0 & Cr0::WP.bits() != 0,
            // 32-bit paging has no execute-disable bit.
            execute_disable: efer & Efer::NXE.bits() != 0 && paging != Paging::Bits32,
            smep: cr4 & CR4_SMEP != 0,
            smap: false,
            protection_keys: 0,
        }
    }

    fn fault(&self, address: Gva, access: Access, why: u32) -> MemoryFault {
        let mut error_code = why;
        if access.write {
            error_code |= error_code::WRITE;
        }
        if access.user {
            error_code |= error_code::USER;
        }
        if access.fetch && (self.execute_disable || self.smep) {
            error_code |= error_code::FETCH;
        }
        MemoryFault::Page { address, error_code }
    }

    fn translate<M: GuestMemory>(
        &self,
        memory: &M,
        gva: Gva,
        access: Access,
    ) -> Result<Gpa, MemoryFault> {
        self.follow(memory, gva, access, |_| {})
    }

    /// Follows the tables from the root to the page; `seen` gets each entry.
    fn follow<M: GuestMemory>(
        &self,
        memory: &M,
        gva: Gva,
        access: Access,
        mut seen: impl FnMut(Visited),
    ) -> Result<Gpa, MemoryFault> {
        let (levels, index_bits) = match self.paging {
            Paging::None => return Ok(Gpa::new(gva.as_u64() & 0xffff_ffff)),
            Paging::Bits32 => (2, 10),
            Paging::Pae => (3, 9),
            Paging::Long { levels } => (levels, 9),
        };
        let linear = self.linear(gva)?;
        let mut table = self.root;
        let mut rights = WRITABLE | USER;
        let mut execute_disable = false;
        for level in (1..=levels).rev() {
            let shift = 12 + (level - 1) * index_bits;
            let index = linear >> shift & ((1 << index_bits) - 1);
            let at = Gpa::new(table + index * self.entry_size());
            let entry = self.entry(memory, at);
            seen(Visited { level, at, entry });
            if entry & PRESENT == 0 {
                return Err(self.fault(gva, access, 0));
            }
            if self.reserved(level, entry) {
                let why = error_code::PRESENT | error_code::RESERVED;
                return Err(self.fault(gva, access, why));
            }
            // The four PAE directory pointers carry no rights.
            if !(self.paging == Paging::Pae && level == 3) {
                rights &= entry;
                execute_disable |= self.execute_disable && entry & EXECUTE_DISABLE != 0;
            }
            if level == 1 || self.maps_large_page(level, entry) {
                if !self.allowed(rights, execute_disable, access) {
                    return Err(self.fault(gva, access, error_code::PRESENT));
                }
                if rights & USER != 0 && self.key_refuses(entry, access) {
                    let why = error_code::PRESENT | error_code::PROTECTION_KEY;
                    return Err(self.fault(gva, access, why));
                }
                let offset = linear & ((1 << shift) - 1);
                return Ok(Gpa::new(self.page(level, entry) & !((1 << shift) - 1) | offset));
            }
            table = entry & ADDRESS;
        }
        Err(self.fault(gva, access, 0))
    }

    /// The address as the tables see it.
    fn linear(&self, gva: Gva) -> Result<u64, MemoryFault> {
        let Paging::Long { levels } = self.paging else {
            return Ok(gva.as_u64() & 0xffff_ffff);
        };
        let canonical = canonical(gva.as_u64(), levels == 5);
        canonical.then_some(gva.as_u64()).ok_or(MemoryFault::NotCanonical(gva))
    }

    /// Sets bits of an entry, unless it has them; whether it still was the one that was read. The bits are in the lower
    /// half. The four PAE directory pointers have none.
    fn mark(&self, memory: &mut impl GuestMemory, visited: Visited, bits: u64) -> bool {
        let Visited { level, at, entry } = visited;
        let none = self.paging == Paging::Pae && level == 3;
        none || entry & bits == bits || memory.mark(at, entry as u32, bits as u32)
    }

    fn entry_size(&self) -> u64 {
        if self.paging == Paging::Bits32 { 4 } else { 8 }
    }

    fn entry<M: GuestMemory>(&self, memory: &M, at: Gpa) -> u64 {
        if self.paging == Paging::Bits32 {
            memory.read_u32(at).map_or(u32::MAX.into(), u64::from)
        } else {
            memory.read_u64(at).unwrap_or(u64::MAX)
        }
    }

    /// SDM "Protection Keys".
    fn key_refuses(&self, entry: u64, access: Access) -> bool {
        const ACCESS_DISABLE: u32 = 1;
        const WRITE_DISABLE: u32 = 2;
        let key = (entry >> 59) as u32 & 0xf;
        let rights = self.protection_keys >> (2 * key);
        let write = access.write && (access.user || self.write_protect);
        !access.fetch && (rights & ACCESS_DISABLE != 0 || write && rights & WRITE_DISABLE != 0)
    }

    fn maps_large_page(&self, level: u32, entry: u64) -> bool {
        let possible = match self.paging {
            Paging::None => false,
            Paging::Bits32 => level == 2 && self.large_pages_32,
            Paging::Pae => level == 2,
            Paging::Long { .. } => level == 2 || level == 3,
        };
        possible && entry & LARGE != 0
    }

    /// Whether a reserved bit is set. Bits above the CPU's physical-address width are not looked
    /// at, as such an address is not guest memory; but in an entry of ones some are always reserved.
    fn reserved(&self, level: u32, entry: u64) -> bool {
        if entry == u64::MAX {
            return true;
        }
        let large = self.maps_large_page(level, entry);
        let mask = match (self.paging, level) {
            (Paging::Bits32, 2) if large => 1 << 21,
            (Paging::Bits32 | Paging::None, _) => 0,
            // Execute-disable is reserved in a PAE directory pointer, as are bits 1, 2 and 5 to 8. Bit 5 is not looked at:
            // QEMU sets it as an accessed bit, and what its CPU has fetched must be found here.
            (Paging::Pae, 3) => EXECUTE_DISABLE | 0x1c6,
            (Paging::Long { .. }, 4 | 5) => LARGE | self.no_execute_disable(),
            (_, 3) if large => 0x3fff_e000 | self.no_execute_disable(),
            (_, 2) if large => 0x001f_e000 | self.no_execute_disable(),
            _ => self.no_execute_disable(),
        };
        entry & mask != 0
    }

    /// The execute-disable bit, if it is reserved.
    const fn no_execute_disable(&self) -> u64 {
        if self.execute_disable { 0 } else { EXECUTE_DISABLE }
    }

    /// Physical address of the page behind a leaf entry; low bits may be anything.
    fn page(&self, level: u32, entry: u64) -> u64 {
        if self.paging == Paging::Bits32 && level == 2 {
            // PSE-36: bits 20:13 are bits 39:32 of the address.
            entry & 0xffc0_0000 | (entry >> 13 & 0xff) << 32
        } else {
            entry & ADDRESS
        }
    }

    /// SDM "Determination of Access Rights".
    fn allowed(&self, rights: u64, execute_disable: bool, access: Access) -> bool {
        let user_page = rights & USER != 0;
        if access.fetch && execute_disable {
            return false;
        }
        if access.user {
            return user_page && (!access.write || rights & WRITABLE != 0);
        }
        let prevented = user_page && if access.fetch { self.smep } else { self.smap };
        !prevented && (!access.write || rights & WRITABLE != 0 || !self.write_protect)
    }
}

/// Whether an address is canonical under five levels of paging, or four; a 32-bit one always is.
#[must_use]
pub const fn canonical(address: u64, five_levels: bool) -> bool {
    let unused = if five_levels { 64 - 57 } else { 64 - 48 };
    (address.cast_signed() << unused >> unused).cast_unsigned() == address
}

/// The guest-physical address behind a linear one, for one access that stays in its page.
///
/// # Errors
/// When the guest's tables do not allow the access, or lie outside its memory.
pub fn translate<V: Vcpu, M: GuestMemory>(
    vcpu: &V,
    memory: &M,
    gva: Gva,
    access: Access,
) -> Result<Gpa, MemoryFault> {
    Walk::of(vcpu).translate(memory, gva, access)
}

/// How often a walk is begun again because another CPU has changed an entry meanwhile.
const MAX_WALKS: u32 = 4;

/// [`translate`], and the tables say that the page has been used, as after an access of the CPU (SDM "Accessed and Dirty
/// Flags").
///
/// # Errors
/// As [`translate`].
pub fn translate_used<V: Vcpu, M: GuestMemory>(
    vcpu: &V,
    memory: &mut M,
    gva: Gva,
    access: Access,
) -> Result<Gpa, MemoryFault> {
    let walk = Walk::of(vcpu);
    for _ in 1..MAX_WALKS {
        let mut entries = [None; 5];
        let gpa = walk.follow(memory, gva, access, |entry| {
            if let Some(place) = entries.get_mut(entry.level as usize - 1) {
                *place = Some(entry);
            }
        })?;
        // The last of them has the lowest level.
        let mut dirty = if access.write { DIRTY } else { 0 };
        let marked = entries.into_iter().flatten().all(|entry| {
            let bits = ACCESSED | core::mem::take(&mut dirty);
            walk.mark(memory, entry, bits)
        });
        if marked {
            return Ok(gpa);
        }
    }
    walk.translate(memory, gva, access)
}

/// The linear address `bytes` behind `gva` in what an instruction accesses, or in the instruction: outside of 64-bit mode each
/// byte's has 32 bits (SDM "Segment Limit Checking"; tables of descriptors, whose bases have 64 bits, go on).
#[must_use]
pub fn behind<V: Vcpu>(vcpu: &V, gva: Gva, bytes: u64) -> Gva {
    let next = gva.wrapping_add(bytes);
    if Mode::of(vcpu) == Mode::Bits64 { next } else { Gva::new(next.as_u64() & 0xffff_ffff) }
}

/// Length of the first part of `length` bytes at `gva`: as far as its page reaches.
fn in_page(gva: Gva, length: usize) -> usize {
    length.min((arch::address::PAGE_SIZE - gva.page_offset()) as usize)
}

/// Copies `bytes.len()` bytes at a linear address out, across pages.
///
/// # Errors
/// As [`translate`], with the address of the first byte that cannot be read.
pub fn read_linear<V: Vcpu, M: GuestMemory>(
    vcpu: &V,
    memory: &M,
    gva: Gva,
    access: Access,
    bytes: &mut [u8],
) -> Result<(), MemoryFault> {
    let walk = Walk::of(vcpu);
    let (mut at, mut rest) = (gva, bytes);
    while !rest.is_empty() {
        let (part, behind) = rest.split_at_mut(in_page(at, rest.len()));
        memory.read(walk.translate(memory, at, access)?, part)?;
        at = at.wrapping_add(part.len() as u64);
        rest = behind;
    }
    Ok(())
}

/// Copies `bytes`, at most a page of them, to a linear address, across a page boundary.
///
/// # Errors
/// As [`translate`]; if the guest's tables refuse, nothing has been written.
pub fn write_linear<V: Vcpu, M: GuestMemory>(
    vcpu: &V,
    memory: &mut M,
    gva: Gva,
    access: Access,
    bytes: &[u8],
) -> Result<(), MemoryFault> {
    let walk = Walk::of(vcpu);
    let access = Access { write: true, ..access };
    let (first, second) = bytes.split_at(in_page(gva, bytes.len()));
    let at = gva.wrapping_add(first.len() as u64);
    let first_gpa = walk.translate(memory, gva, access)?;
    let second_gpa =
        if second.is_empty() { first_gpa } else { walk.translate(memory, at, access)? };
    memory.write(first_gpa, first)?;
    memory.write(second_gpa, second)?;
    Ok(())
}

/// The bytes of the instruction at RIP: all 15, or those in the first page if the next
/// one cannot be read.
///
/// # Errors
/// When not even the first byte can be read.
pub fn fetch_instruction<V: Vcpu, M: GuestMemory>(
    vcpu: &V,
    memory: &M,
) -> Result<([u8; MAX_LENGTH], usize), MemoryFault> {
    let access = Access { write: false, fetch: true, user: vcpu.cpl() == 3 };
    let start = if Mode::of(vcpu) == Mode::Bits64 {
        vcpu.rip()
    } else {
        vcpu.segment(SegmentRegister::Cs).base.wrapping_add(vcpu.rip()) & 0xffff_ffff
    };
    let start = Gva::new(start);
    let mut bytes = [0; MAX_LENGTH];
    let (first, second) = bytes.split_at_mut(in_page(start, MAX_LENGTH));
    read_linear(vcpu, memory, start, access, first)?;
    let mut length = first.len();
    let next = behind(vcpu, start, length as u64);
    if read_linear(vcpu, memory, next, access, second).is_ok() {
        length = MAX_LENGTH;
    }
    Ok((bytes, length))
}

#[cfg(test)]
mod tests;
