//! Boot protocols: from a kernel image and an initrd to what lies where at the first instruction.
//!
//! The image is a claim until it has been checked: every offset in it is bounded here, and what
//! does not add up is a [`LoadError`]. The result is a [`LoadPlan`] that copies nothing by itself;
//! memory that no part of the plan names must be zero.

mod field;
pub mod linux;
pub mod multiboot;

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use arch::Gpa;
use arch::segment::{AccessRights, DescriptorTable, Segment};
use arch::vcpu::StartState;
use boot::elf::ElfError;

pub(crate) use field::put;

use field::u32_at;

use crate::memory_map::{BOOT_AREA, BOOT_AREA_END, GpaRange, MemoryMap};

/// A boot module that is copied from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// The kernel image.
    Kernel,
    Initrd,
    /// One of [`LoadRequest::modules`].
    Module(usize),
}

/// Bytes of a module that go into the guest's memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Copy {
    /// From which module.
    pub source: Source,
    /// Which of its bytes; within the module.
    pub bytes: Range<usize>,
    /// Their address; the whole range is RAM.
    pub to: Gpa,
}

/// Bytes made up here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Blob {
    /// Their address, in RAM.
    pub at: Gpa,
    pub bytes: Vec<u8>,
}

/// How a guest begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoadPlan {
    /// Parts of the modules.
    pub copies: Vec<Copy>,
    /// Tables for the guest's first instructions.
    pub blobs: Vec<Blob>,
    /// The boot processor's registers.
    pub start: StartState,
    pub apics: ApicStart,
}

/// How a guest's local APICs begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ApicStart {
    /// The kernel does not know x2APIC mode: they begin in xAPIC mode.
    pub xapic: bool,
    /// The kernel may have no driver for them: the 8259s interrupt the first CPU, as firmware leaves it. One that has a
    /// driver says so itself where it wants them, and its start costs less.
    pub virtual_wire: bool,
}

/// A further module of a multiboot kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ModuleRequest<'a> {
    /// Its size in bytes.
    pub size: usize,
    /// The string that the kernel finds with it.
    pub words: &'a str,
}

/// The input of a plan.
#[derive(Clone, Copy, Debug)]
pub struct LoadRequest<'a> {
    /// The kernel image.
    pub kernel: &'a [u8],
    /// Size of the initrd in bytes, if there is one.
    pub initrd_size: Option<usize>,
    /// Further modules, behind the initrd; a multiboot kernel's only.
    pub modules: &'a [ModuleRequest<'a>],
    pub command_line: &'a str,
    /// Where RAM is.
    pub memory: &'a MemoryMap,
    pub rsdp: Gpa,
}

/// Why a kernel cannot be started; each a sentence about "the kernel" or its modules, to be put
/// behind the file's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LoadError {
    /// Neither a bzImage nor a multiboot kernel.
    UnknownFormat,
    /// The image ends before what its headers promise.
    Truncated {
        /// The part that is cut off.
        what: &'static str,
        /// Bytes that the headers promise.
        promised: u64,
        /// Bytes that there are.
        found: u64,
    },
    /// It is to be started by a BIOS or by UEFI, which a guest does not have.
    NeedsFirmware(&'static str),
    /// Linux: boot protocol older than 2.12.
    OldProtocol(u16),
    /// Linux: the kernel is loaded low and begins in real mode.
    NeedsBios,
    /// A header field that makes no sense.
    BadField {
        /// The field by its name in the protocol's documentation.
        field: &'static str,
        value: u64,
    },
    /// Multiboot: the kernel requires something that is not offered.
    UnsupportedFlags(u32),
    /// Linux: there are modules.
    ModulesForLinux,
    /// Multiboot: there are more modules, the initrd included, than the table has room for.
    Modules {
        /// How many.
        count: usize,
        /// The most that there can be.
        limit: usize,
    },
    /// The command line, with the modules' words, is too long.
    CommandLine {
        /// Its length in bytes.
        length: usize,
        /// The most that the kernel takes.
        limit: usize,
    },
    /// A part needs an address at which the guest has no free RAM.
    NoRoomAt {
        what: &'static str,
        /// Where.
        at: u64,
        /// How many bytes.
        size: u64,
    },
    /// Something does not fit anywhere.
    NoRoom {
        what: &'static str,
        /// How many bytes.
        size: u64,
    },
}

impl From<ElfError> for LoadError {
    fn from(error: ElfError) -> Self {
        match error {
            ElfError::Truncated { what, promised, found } => {
                Self::Truncated { what, promised, found }
            }
            ElfError::BadField { field, value } => Self::BadField { field, value },
        }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::UnknownFormat => f.write_str(
                "this is neither a Linux bzImage nor a multiboot kernel: give one of these",
            ),
            Self::NeedsFirmware(what) => write!(
                f,
                "this is {what}, and a guest has neither BIOS nor UEFI: give a Linux bzImage or a multiboot kernel"
            ),
            Self::Truncated { what, promised, found } => write!(
                f,
                "the kernel is cut off: its headers promise {promised} bytes of {what}, and there \
                 are {found}: copy the file again"
            ),
            Self::OldProtocol(version) => write!(
                f,
                "the kernel speaks Linux boot protocol {}.{:02}, and 2.12 is needed: use Linux \
                 3.8 or later",
                version >> 8,
                version & 0xff
            ),
            Self::NeedsBios => f.write_str(
                "the kernel is a zImage, which begins in real mode and calls the BIOS, and a guest \
                 has none: use a bzImage",
            ),
            Self::BadField { field, value } => {
                write!(f, "the kernel's header is damaged: {field} is {value:#x}")
            }
            Self::UnsupportedFlags(flags) => write!(
                f,
                "the multiboot kernel requires features that are not offered (flags {flags:#x}): only \
                 aligned modules, memory information and address fields are"
            ),
            Self::ModulesForLinux => f.write_str(
                "this is a bzImage, and modules are for multiboot kernels: remove modules, or write \
                 the one file as initrd",
            ),
            Self::Modules { count, limit } => write!(
                f,
                "there are {count} modules with the initrd, and a kernel can have {limit}: remove \
                 some"
            ),
            Self::CommandLine { length, limit } => {
                write!(f, "cmdline has {length} bytes, and this kernel takes {limit}: shorten it")
            }
            Self::NoRoomAt { what, at, size } => write!(
                f,
                "{what} needs {size:#x} bytes at {at:#x}, where the guest has no free memory: \
                 give it more memory"
            ),
            Self::NoRoom { what, size } => write!(
                f,
                "{what} needs {size:#x} bytes, and the guest has no room for it: give it more \
                 memory"
            ),
        }
    }
}

impl core::error::Error for LoadError {}

/// Plans the start of `request.kernel` by the protocol that it speaks.
///
/// # Errors
/// When the image is damaged or does not fit.
pub fn plan(request: LoadRequest<'_>) -> Result<LoadPlan, LoadError> {
    if linux::is_bzimage(request.kernel) {
        if !request.modules.is_empty() {
            return Err(LoadError::ModulesForLinux);
        }
        return linux::plan(request);
    }
    match multiboot::find_header(request.kernel) {
        Some(header) => multiboot::plan(request, header),
        None => Err(for_firmware(request.kernel)),
    }
}

/// Why an image is refused that speaks no protocol, by the signature of those that firmware starts.
fn for_firmware(image: &[u8]) -> LoadError {
    const VOLUME: usize = 0x8001;
    const BOOT_SIGNATURE: usize = 510;
    const PORTABLE: usize = 0x3c;
    let has = |at: usize, signature: &[u8]| {
        image.get(at..).is_some_and(|rest| rest.starts_with(signature))
    };
    let portable = u32_at(image, PORTABLE).is_ok_and(|at| has(at as usize, b"PE\0\0"));
    if has(VOLUME, b"CD001") {
        LoadError::NeedsFirmware("the image of a disc")
    } else if has(0, b"MZ") && portable {
        LoadError::NeedsFirmware("a program for UEFI")
    } else if has(BOOT_SIGNATURE, &[0x55, 0xaa]) {
        LoadError::NeedsFirmware("a boot sector, which calls the BIOS")
    } else {
        LoadError::UnknownFormat
    }
}

const PAGE: u64 = 4096;
const FOUR_GIB: u64 = 1 << 32;
/// Images go above the first MiB; below it are the boot area and the legacy area.
const IMAGES_START: u64 = 0x10_0000;

/// Places taken so far, in RAM below 4 GiB.
struct Placement<'a> {
    memory: &'a MemoryMap,
    taken: Vec<GpaRange>,
}

impl<'a> Placement<'a> {
    fn new(memory: &'a MemoryMap) -> Self {
        let boot_area = GpaRange::between(BOOT_AREA.as_u64(), BOOT_AREA_END.as_u64());
        let legacy_area = GpaRange::between(0xa_0000, IMAGES_START);
        Self { memory, taken: Vec::from([boot_area, legacy_area]) }
    }

    fn is_free(&self, range: GpaRange) -> bool {
        range.end() <= FOUR_GIB
            && self.memory.ram().iter().any(|run| run.contains(range))
            && !self.taken.iter().any(|taken| taken.overlaps(range))
    }

    fn take_at(&mut self, what: &'static str, start: u64, size: u64) -> Result<Gpa, LoadError> {
        let range = GpaRange { start: Gpa::new(start), length: size };
        if !self.is_free(range) {
            return Err(LoadError::NoRoomAt { what, at: start, size });
        }
        self.taken.push(range);
        Ok(range.start)
    }

    /// The lowest free place above 1 MiB at a multiple of `alignment` (a power of two).
    fn lowest(&self, size: u64, alignment: u64) -> Option<u64> {
        let starts = self.memory.ram().iter().map(|run| run.start.as_u64());
        let behind = self.taken.iter().map(|taken| taken.end());
        starts
            .chain(behind)
            .filter_map(|at| Gpa::new(at.max(IMAGES_START)).align_up(alignment))
            .filter(|start| self.is_free(GpaRange { start: *start, length: size }))
            .min()
            .map(Gpa::as_u64)
    }

    /// The highest free place of whole pages that ends at or below `limit`.
    fn take_highest(
        &mut self,
        what: &'static str,
        size: u64,
        limit: u64,
    ) -> Result<Gpa, LoadError> {
        let ends = self.memory.ram().iter().map(|run| run.end());
        let before = self.taken.iter().map(|taken| taken.start.as_u64());
        let start = ends
            .chain(before)
            .filter_map(|end| end.min(limit).checked_sub(size))
            .map(|start| Gpa::new(start).page())
            .filter(|start| start.as_u64() >= IMAGES_START)
            .filter(|start| self.is_free(GpaRange { start: *start, length: size }))
            .max()
            .ok_or(LoadError::NoRoom { what, size })?;
        self.take_at(what, start.as_u64(), size)
    }
}

/// Flat segments in the order of `SegmentRegister::ALL`.
const fn flat_segments(code: Segment, data_selector: u16) -> [Segment; 8] {
    let data =
        Segment { selector: data_selector, base: 0, limit: u32::MAX, access: AccessRights::DATA32 };
    let tr = Segment { selector: 0, base: 0, limit: 0x67, access: AccessRights::TSS_BUSY };
    [data, code, data, data, data, data, Segment::NULL, tr]
}

const NO_TABLE: DescriptorTable = DescriptorTable { base: arch::Gva::new(0), limit: 0 };

#[cfg(test)]
mod tests;
