//! Where an ELF file wants its bytes: the hypervisor's own image, and guests' multiboot kernels ("Tool Interface
//! Standard Executable and Linking Format"; "ELF-64 Object File Format", which name the fields).
//!
//! Invariant: the file holds all bytes that a [`Segment`] names.

use core::ops::Range;

use crate::bytes::{u16_at, u32_at, u64_at};

/// How each ELF file begins.
pub const MAGIC: &[u8] = b"\x7fELF";

const PT_LOAD: u32 = 1;
const E_ENTRY: usize = 24;

/// The file is damaged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ElfError {
    /// It is shorter than its headers claim.
    Truncated {
        /// The part that is cut off.
        what: &'static str,
        /// Bytes that the file must have for that.
        promised: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// A field says what cannot be.
    BadField {
        /// Its name.
        field: &'static str,
        /// The value in the file.
        value: u64,
    },
}

/// The part of a file that is to be loaded, and where to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Of the file.
    pub bytes: Range<usize>,
    /// The address that its code expects.
    pub virtual_address: u64,
    /// The physical address to load it at.
    pub address: u64,
    /// Bytes in memory, not 0; those that the file does not have are zero.
    pub size: u64,
}

/// An ELF file of 32 or 64 bits.
#[derive(Clone, Copy, Debug)]
pub struct Elf<'a> {
    file: &'a [u8],
    layout: &'static Layout,
    /// Virtual address of the first instruction.
    pub entry: u64,
    /// The program headers: offset, size of one, number.
    headers: (u64, u64, u64),
}

/// Offsets of the fields.
#[derive(Debug)]
struct Layout {
    wide: bool,
    e_phoff: usize,
    e_phentsize: usize,
    p_offset: usize,
    p_vaddr: usize,
    p_paddr: usize,
    p_filesz: usize,
    p_memsz: usize,
}

#[rustfmt::skip]
const ELF32: Layout = Layout {
    wide: false, e_phoff: 28, e_phentsize: 42, p_offset: 4, p_vaddr: 8, p_paddr: 12, p_filesz: 16, p_memsz: 20,
};
#[rustfmt::skip]
const ELF64: Layout = Layout {
    wide: true, e_phoff: 32, e_phentsize: 54, p_offset: 8, p_vaddr: 16, p_paddr: 24, p_filesz: 32, p_memsz: 40,
};

impl<'a> Elf<'a> {
    /// Reads the header of a file that begins with [`MAGIC`].
    ///
    /// # Errors
    /// It is cut off, or of an unknown class.
    pub fn parse(file: &'a [u8]) -> Result<Self, ElfError> {
        let layout = match file.get(4) {
            Some(1) => &ELF32,
            Some(2) => &ELF64,
            class => {
                let value = class.copied().unwrap_or(0).into();
                return Err(ElfError::BadField { field: "EI_CLASS", value });
            }
        };
        let mut elf = Self { file, layout, entry: 0, headers: (0, 0, 0) };
        let (entry_size, count) =
            (elf.half(layout.e_phentsize)?, elf.half(layout.e_phentsize + 2)?);
        elf.entry = elf.word(E_ENTRY)?;
        elf.headers = (elf.word(layout.e_phoff)?, entry_size.into(), count.into());
        Ok(elf)
    }

    /// The segments to load.
    pub fn segments(self) -> impl Iterator<Item = Result<Segment, ElfError>> + 'a {
        let (.., count) = self.headers;
        (0..count).filter_map(move |index| self.segment(index).transpose())
    }

    fn segment(self, index: u64) -> Result<Option<Segment>, ElfError> {
        let Layout { p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, .. } = *self.layout;
        let (table, entry_size, _) = self.headers;
        // Where this overflows, the read at the largest offset there is fails.
        let at = table.saturating_add(index.saturating_mul(entry_size));
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let word = |field: usize| self.word(at.saturating_add(field));
        let size = word(p_memsz)?;
        let kind = u32_at(self.file, at).ok_or_else(|| self.truncated("headers", at, 4))?;
        if kind != PT_LOAD || size == 0 {
            return Ok(None);
        }
        let in_file = word(p_filesz)?;
        if in_file > size {
            return Err(ElfError::BadField { field: "p_filesz", value: in_file });
        }
        let start = usize::try_from(word(p_offset)?).unwrap_or(usize::MAX);
        let length = usize::try_from(in_file).unwrap_or(usize::MAX);
        let end = start.checked_add(length).filter(|end| *end <= self.file.len());
        let end = end.ok_or_else(|| self.truncated("load segment", start, length))?;
        let (virtual_address, address) = (word(p_vaddr)?, word(p_paddr)?);
        Ok(Some(Segment { bytes: start..end, virtual_address, address, size }))
    }

    fn word(self, at: usize) -> Result<u64, ElfError> {
        let (word, length) = if self.layout.wide {
            (u64_at(self.file, at), 8)
        } else {
            (u32_at(self.file, at).map(u64::from), 4)
        };
        word.ok_or_else(|| self.truncated("headers", at, length))
    }

    fn half(self, at: usize) -> Result<u16, ElfError> {
        u16_at(self.file, at).ok_or_else(|| self.truncated("headers", at, 2))
    }

    const fn truncated(self, what: &'static str, at: usize, length: usize) -> ElfError {
        let promised = (at as u64).saturating_add(length as u64);
        ElfError::Truncated { what, promised, found: self.file.len() as u64 }
    }
}
