//! The guest's own page tables, read as its CPU would read them, and accesses by linear address.
//!
//! Covers no paging, 32-bit, PAE, 4-level and 5-level paging (SDM "Paging"). The walk only reads:
//! it sets no accessed or dirty bit, and it does not apply protection keys, which no kernel page
//! uses that the hypervisor looks at.

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
const RFLAGS_AC: u64 = 1 << 18;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
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
}

/// What is done at a linear address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Access {
    /// A write.
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
        /// Error code.
        error_code: u32,
    },
    /// The address is not canonical: #GP (#SS for the stack segment).
    NotCanonical(Gva),
    /// The data, or a page table on the way, is not the guest's RAM.
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
}

impl Walk {
    fn of<V: Vcpu>(vcpu: &V) -> Self {
        let (cr0, cr4, efer) = (vcpu.cr0(), vcpu.cr4(), vcpu.efer());
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
            root: vcpu.cr3() & root_mask,
            large_pages_32: cr4 & CR4_PSE != 0,
            write_protect: cr0 & Cr0::WP.bits() != 0,
            // 32-bit paging has no execute-disable bit.
            execute_disable: efer & Efer::NXE.bits() != 0 && paging != Paging::Bits32,
            smep: cr4 & CR4_SMEP != 0,
            smap: cr4 & CR4_SMAP != 0 && vcpu.rflags() & RFLAGS_AC == 0,
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

    /// Follows the tables from the root to the page.
    fn translate<M: GuestMemory>(
        &self,
        memory: &M,
        gva: Gva,
        access: Access,
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
            let entry = self.entry(memory, table, index)?;
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
        let unused = 64 - (12 + levels * 9);
        let extended = (gva.as_u64() << unused).cast_signed() >> unused;
        if extended.cast_unsigned() == gva.as_u64() {
            Ok(gva.as_u64())
        } else {
            Err(MemoryFault::NotCanonical(gva))
        }
    }

    fn entry<M: GuestMemory>(
        &self,
        memory: &M,
        table: u64,
        index: u64,
    ) -> Result<u64, NotGuestMemory> {
        if self.paging == Paging::Bits32 {
            Ok(u64::from(memory.read_u32(Gpa::new(table + index * 4))?))
        } else {
            memory.read_u64(Gpa::new(table + index * 8))
        }
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
    /// at: such an address is not guest memory.
    fn reserved(&self, level: u32, entry: u64) -> bool {
        let large = self.maps_large_page(level, entry);
        let mask = match (self.paging, level) {
            (Paging::Bits32, 2) if large => 1 << 21,
            (Paging::Bits32 | Paging::None, _) => 0,
            // Execute-disable is reserved in a PAE directory pointer, as are bits 1, 2 and 5 to 8.
            (Paging::Pae, 3) => EXECUTE_DISABLE | 0x1e6,
            (Paging::Long { .. }, 4 | 5) => LARGE | self.no_execute_disable(),
            (_, 3) if large => 0x3fff_e000 | self.no_execute_disable(),
            (_, 2) if large => 0x001f_e000 | self.no_execute_disable(),
            _ => self.no_execute_disable(),
        };
        entry & mask != 0
    }

    /// The execute-disable bit, where it is reserved.
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
/// As [`translate`]; where the guest's tables refuse, nothing has been written.
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

/// The bytes of the instruction at RIP: all 15, or as many as the first page holds where the next
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
    let next = start.wrapping_add(length as u64);
    if read_linear(vcpu, memory, next, access, second).is_ok() {
        length = MAX_LENGTH;
    }
    Ok((bytes, length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{FakeMemory, FakeVcpu};
    use proptest::prelude::*;

    const ALL: u64 = PRESENT | WRITABLE | USER;
    const READ: Access = Access { write: false, fetch: false, user: false };
    const WRITE: Access = Access { write: true, ..READ };
    const FETCH: Access = Access { fetch: true, ..READ };
    const USER_READ: Access = Access { user: true, ..READ };

    /// 4- or 5-level tables at 0x1000, 0x2000 … that map one 4 KiB page, one 2 MiB page and one
    /// 1 GiB page.
    fn long(levels: u32) -> (FakeVcpu, FakeMemory) {
        let mut vcpu = FakeVcpu::new(Mode::Bits64);
        vcpu.cr[3] = 0x1000;
        vcpu.cr[0] |= Cr0::WP.bits();
        vcpu.cr[4] = if levels == 5 { Cr4::LA57.bits() | 0x20 } else { 0x20 };
        vcpu.efer |= Efer::NXE.bits();
        let mut memory = FakeMemory::new(1 << 40);
        let mut table = 0x1000;
        for _ in 1..levels {
            memory.set_u64(table, (table + 0x1000) | ALL);
            table += 0x1000;
        }
        let directory = table - 0x1000;
        memory.set_u64(table + 8, 0x1_2345_6000 | ALL);
        memory.set_u64(directory + 8, 0x4000_0000 | ALL | LARGE);
        memory.set_u64(directory - 0x1000 + 8, 0x2_4000_0000 | ALL | LARGE);
        (vcpu, memory)
    }

    fn leaf(levels: u32) -> u64 {
        u64::from(levels) * 0x1000 + 8
    }

    fn page_fault(address: u64, error_code: u32) -> Result<Gpa, MemoryFault> {
        Err(MemoryFault::Page { address: Gva::new(address), error_code })
    }

    #[test]
    fn four_and_five_levels_reach_all_page_sizes() {
        for levels in [4, 5] {
            let (vcpu, memory) = long(levels);
            let at = |gva| translate(&vcpu, &memory, Gva::new(gva), READ);
            assert_eq!(at(0x1abc), Ok(Gpa::new(0x1_2345_6abc)), "{levels} levels");
            assert_eq!(at(0x2f_edcb), Ok(Gpa::new(0x400f_edcb)), "{levels} levels");
            assert_eq!(at(0x7abc_def0), Ok(Gpa::new(0x2_7abc_def0)), "{levels} levels");
            assert_eq!(at(0x2000), page_fault(0x2000, 0), "{levels} levels");
        }
    }

    #[test]
    fn addresses_that_are_not_canonical_are_refused_by_their_width() {
        let gva = Gva::new(0x0000_8000_0000_0000);
        let (vcpu, memory) = long(4);
        assert_eq!(translate(&vcpu, &memory, gva, READ), Err(MemoryFault::NotCanonical(gva)));
        let (vcpu, memory) = long(5);
        assert_eq!(translate(&vcpu, &memory, gva, READ), page_fault(gva.as_u64(), 0));
    }

    #[test]
    fn rights_follow_every_level_and_the_control_registers() {
        let (mut vcpu, mut memory) = long(4);
        let at = |vcpu: &FakeVcpu, memory: &FakeMemory, access| {
            translate(vcpu, memory, Gva::new(0x1000), access).map_err(|fault| match fault {
                MemoryFault::Page { error_code, .. } => error_code,
                MemoryFault::NotCanonical(_) | MemoryFault::NotMemory(_) => u32::MAX,
            })
        };
        let page = Ok(Gpa::new(0x1_2345_6000));
        memory.set_u64(leaf(4), 0x1_2345_6000 | PRESENT | EXECUTE_DISABLE);
        assert_eq!(at(&vcpu, &memory, READ), page);
        assert_eq!(at(&vcpu, &memory, WRITE), Err(3), "CR0.WP");
        assert_eq!(at(&vcpu, &memory, USER_READ), Err(5));
        assert_eq!(at(&vcpu, &memory, FETCH), Err(0x11));
        vcpu.cr[0] &= !Cr0::WP.bits();
        assert_eq!(at(&vcpu, &memory, WRITE), page);
        vcpu.efer &= !Efer::NXE.bits();
        assert_eq!(at(&vcpu, &memory, READ), Err(9), "execute-disable is reserved");
        memory.set_u64(leaf(4), 0x1_2345_6000 | ALL);
        vcpu.cr[4] |= CR4_SMAP | CR4_SMEP;
        assert_eq!(at(&vcpu, &memory, READ), Err(1), "SMAP");
        assert_eq!(at(&vcpu, &memory, FETCH), Err(0x11), "SMEP");
        assert_eq!(at(&vcpu, &memory, USER_READ), page);
        vcpu.rflags |= RFLAGS_AC;
        assert_eq!(at(&vcpu, &memory, READ), page, "RFLAGS.AC lifts SMAP");
        memory.set_u64(0x2000, 0x3000 | PRESENT | WRITABLE);
        assert_eq!(at(&vcpu, &memory, USER_READ), Err(5), "an upper level forbids");
    }

    #[test]
    fn reserved_bits_of_large_pages_fault() {
        let (vcpu, mut memory) = long(4);
        memory.set_u64(0x3008, 0x4000_2000 | ALL | LARGE);
        assert_eq!(translate(&vcpu, &memory, Gva::new(0x20_0000), READ), page_fault(0x20_0000, 9));
        memory.set_u64(0x1000, 0x2000 | ALL | LARGE);
        assert_eq!(translate(&vcpu, &memory, Gva::new(0x1000), READ), page_fault(0x1000, 9));
    }

    #[test]
    fn thirty_two_bit_tables_map_small_and_large_pages() {
        let mut vcpu = FakeVcpu::new(Mode::Bits32);
        vcpu.cr = [0x8001_0011, 0, 0, 0x1000, CR4_PSE];
        let mut memory = FakeMemory::new(1 << 40);
        memory.set_u32(0x1000, 0x2000 | ALL as u32);
        memory.set_u32(0x2004, 0x0765_4000 | ALL as u32);
        // Bits 20:13 of a 4 MiB page are address bits 39:32.
        memory.set_u32(0x1004, 0x0080_0000 | 0x12 << 13 | (ALL | LARGE) as u32);
        let at = |vcpu: &FakeVcpu, gva| translate(vcpu, &memory, Gva::new(gva), READ);
        assert_eq!(at(&vcpu, 0x1123), Ok(Gpa::new(0x0765_4123)));
        assert_eq!(at(&vcpu, 0x7f_fff0), Ok(Gpa::new(0x12_00bf_fff0)));
        assert_eq!(at(&vcpu, 0x1_0000_1123), Ok(Gpa::new(0x0765_4123)), "cut to 32 bits");
        vcpu.cr[0] = 0x11;
        assert_eq!(at(&vcpu, 0x1123), Ok(Gpa::new(0x1123)), "no paging");
    }

    #[test]
    fn pae_directory_pointers_carry_no_rights() {
        let mut vcpu = FakeVcpu::new(Mode::Bits32);
        vcpu.cr = [0x8001_0011, 0, 0, 0x1020, Cr4::PAE.bits()];
        let mut memory = FakeMemory::new(1 << 40);
        memory.set_u64(0x1020 + 24, 0x2000 | PRESENT);
        memory.set_u64(0x2000, 0x3000 | ALL);
        memory.set_u64(0x3000, 0x9_8765_4000 | ALL);
        memory.set_u64(0x2008, 0x8_0020_0000 | ALL | LARGE);
        let at = |gva, access| translate(&vcpu, &memory, Gva::new(gva), access);
        assert_eq!(at(0xc000_0042, WRITE), Ok(Gpa::new(0x9_8765_4042)));
        assert_eq!(at(0xc020_0042, USER_READ), Ok(Gpa::new(0x8_0020_0042)));
        assert_eq!(at(0x42, READ), page_fault(0x42, 0));
    }

    #[test]
    fn tables_outside_memory_are_named() {
        let (vcpu, mut memory) = long(4);
        memory.size = 0x2000;
        let fault = translate(&vcpu, &memory, Gva::new(0x1000), READ);
        assert_eq!(fault, Err(MemoryFault::NotMemory(Gpa::new(0x2000))));
    }

    #[test]
    fn writes_across_a_page_that_is_missing_leave_nothing_behind() {
        let (vcpu, mut memory) = long(4);
        let before = memory.bytes.clone();
        let gva = Gva::new(0x1ffc);
        let result = write_linear(&vcpu, &mut memory, gva, WRITE, &[7; 8]);
        assert_eq!(result, page_fault(0x2000, 2).map(|_| ()));
        assert_eq!(memory.bytes, before);
    }

    #[test]
    fn an_instruction_before_a_missing_page_is_fetched_as_far_as_it_goes() {
        let (mut vcpu, mut memory) = long(4);
        vcpu.rip = 0x1ffd;
        memory.write(Gpa::new(0x1_2345_6ffd), &[0x0f, 0x01, 0x18]).unwrap();
        let (bytes, length) = fetch_instruction(&vcpu, &memory).unwrap();
        assert_eq!(&bytes[..length], [0x0f, 0x01, 0x18]);
        assert!(crate::decode(&bytes[..length], Mode::Bits64).is_ok());
        vcpu.rip = 0x2000;
        assert_eq!(
            fetch_instruction(&vcpu, &memory),
            page_fault(0x2000, 0x10).map(|_| ([0; 15], 0))
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back_across_pages(
            offset in 0_u64..0x2000, bytes in proptest::collection::vec(any::<u8>(), 0..0x1000),
            frames in proptest::sample::subsequence((0x10_u64..0x20).collect::<Vec<_>>(), 3),
        ) {
            let (vcpu, mut memory) = long(4);
            for (page, frame) in (1..).zip(&frames) {
                memory.set_u64(0x4000 + page * 8, frame << 12 | ALL);
            }
            let gva = Gva::new(0x1000 + offset);
            prop_assert_eq!(write_linear(&vcpu, &mut memory, gva, WRITE, &bytes), Ok(()));
            let mut back = vec![0; bytes.len()];
            prop_assert_eq!(read_linear(&vcpu, &memory, gva, READ, &mut back), Ok(()));
            prop_assert_eq!(&back, &bytes);
            for (at, byte) in (offset..).zip(&bytes) {
                let frame = frames[(at >> 12) as usize];
                prop_assert_eq!(memory.bytes.get(&(frame << 12 | at & 0xfff)), Some(byte));
            }
        }

        #[test]
        fn any_tables_end_in_a_page_or_a_fault(
            entries in proptest::collection::vec(any::<u64>(), 64), gva: u64, pick in 0_usize..4,
        ) {
            let (cr4, efer) = [(0x20, 0x500), (0x1020, 0xd00), (0x20, 0), (0x10, 0)][pick];
            let mut vcpu = FakeVcpu::new(Mode::Bits64);
            vcpu.cr = [0x8001_0011, 0, 0, 0, cr4];
            vcpu.efer = efer;
            let mut memory = FakeMemory::new(0x1_0000);
            for (at, entry) in entries.iter().enumerate() {
                memory.set_u64((at as u64 * 0x3f8) & 0xfff8, entry & 0x8000_0000_0000_f9ff);
            }
            let _ = translate(&vcpu, &memory, Gva::new(gva), READ);
            prop_assert!(memory.reads.get() <= 5, "a walk reads one entry a level");
        }
    }
}
