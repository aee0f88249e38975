//! Multiboot (version 1) kernels: ELF images, or any image with address fields.
//!
//! The kernel begins in 32-bit protected mode without paging, with 0x2BADB002 in EAX and the
//! information structure in EBX. (Multiboot Specification version 0.6.96, "Boot information
//! format", which names the fields.)

use alloc::vec::Vec;
use core::ops::Range;

use arch::Gpa;
use arch::register::Cr0;
use arch::segment::{AccessRights, Segment};
use arch::vcpu::StartState;
use boot::elf::{self, Elf};

use super::field::{bytes, put, u32_at};
use super::flat_segments;
use super::linux::e820_bytes;
use super::{
    ApicStart, Blob, Copy, FOUR_GIB, LoadError, LoadPlan, LoadRequest, ModuleRequest, NO_TABLE,
    Placement, Source,
};
use crate::memory_map::{BOOT_AREA, BOOT_AREA_END};

const HEADER_MAGIC: u32 = 0x1bad_b002;
const LOADER_MAGIC: u64 = 0x2bad_b002;
/// The header lies in the image's first 8 KiB.
const SEARCH: usize = 8192;
/// Required features that are offered: aligned modules, memory information.
const OFFERED: u32 = 0x3;
const REQUIRED: u32 = 0xffff;
const ADDRESS_FIELDS: u32 = 1 << 16;

const INFO_SIZE: usize = 116;
/// Memory sizes, command line, modules, memory map.
const INFO_FLAGS: u32 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6;
const MMAP_ENTRY_SIZE: u32 = 20;
const MODULE_SIZE: usize = 16;
/// Where the parts lie in the boot area.
const INFO: Gpa = BOOT_AREA;
const MODULES: Gpa = Gpa::new(BOOT_AREA.as_u64() + 0x100);
const MEMORY_MAP: Gpa = Gpa::new(BOOT_AREA.as_u64() + 0x200);
/// The kernel's command line; the modules' strings follow it.
const COMMAND_LINE: Gpa = Gpa::new(BOOT_AREA.as_u64() + 0x8000);
const MAX_MODULES: usize = (MEMORY_MAP.as_u64() - MODULES.as_u64()) as usize / MODULE_SIZE;
const COMMAND_LINE_ROOM: usize = (BOOT_AREA_END.as_u64() - COMMAND_LINE.as_u64()) as usize;

/// Where in the image the header lies, and its flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    offset: usize,
    flags: u32,
}

/// Looks for a header whose checksum is right.
#[must_use]
pub fn find_header(image: &[u8]) -> Option<Header> {
    (0..image.len().min(SEARCH)).step_by(4).find_map(|offset| {
        let magic = u32_at(image, offset).ok()?;
        let flags = u32_at(image, offset + 4).ok()?;
        let checksum = u32_at(image, offset + 8).ok()?;
        let sum = magic.wrapping_add(flags).wrapping_add(checksum);
        (magic == HEADER_MAGIC && sum == 0).then_some(Header { offset, flags })
    })
}

/// A part of the image in memory.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Segment32 {
    bytes: Range<usize>,
    at: u64,
    size: u64,
}

/// Plans the start of a multiboot kernel.
///
/// # Errors
/// When the image is damaged or does not fit.
pub fn plan(request: LoadRequest<'_>, header: Header) -> Result<LoadPlan, LoadError> {
    if header.flags & REQUIRED & !OFFERED != 0 {
        return Err(LoadError::UnsupportedFlags(header.flags & REQUIRED));
    }
    let image = request.kernel;
    let (segments, entry) = if header.flags & ADDRESS_FIELDS != 0 {
        address_fields(image, header.offset)?
    } else if image.starts_with(elf::MAGIC) {
        elf(image)?
    } else {
        return Err(LoadError::UnknownFormat);
    };
    if entry >= FOUR_GIB {
        return Err(LoadError::BadField { field: "entry", value: entry });
    }
    let mut placement = Placement::new(request.memory);
    let mut copies = Vec::new();
    for segment in segments {
        let to = placement.take_at("the kernel", segment.at, segment.size)?;
        copies.push(Copy { source: Source::Kernel, bytes: segment.bytes, to });
    }
    let modules = place_modules(request, &mut placement, &mut copies)?;
    let (blobs, start) = (information(request, &modules)?, start_state(entry));
    Ok(LoadPlan { copies, blobs, start, apics: ApicStart { xapic: false, virtual_wire: true } })
}

/// A module in memory.
struct Module<'a> {
    at: Gpa,
    size: usize,
    words: &'a str,
}

/// The initrd, which may be empty and is none then, and the modules behind it.
fn place_modules<'a>(
    request: LoadRequest<'a>,
    placement: &mut Placement<'_>,
    copies: &mut Vec<Copy>,
) -> Result<Vec<Module<'a>>, LoadError> {
    let initrd = request.initrd_size.filter(|size| *size > 0);
    let initrd = initrd.map(|size| (Source::Initrd, ModuleRequest { size, words: "" }));
    let others = request.modules.iter().copied().enumerate();
    let others = others.map(|(index, module)| (Source::Module(index), module));
    let mut modules = Vec::new();
    for (source, ModuleRequest { size, words }) in initrd.into_iter().chain(others) {
        let what = if source == Source::Initrd { "the initrd" } else { "a module" };
        // An empty module has a place, too.
        let at = placement.take_highest(what, size.max(1) as u64, FOUR_GIB)?;
        copies.push(Copy { source, bytes: 0..size, to: at });
        modules.push(Module { at, size, words });
    }
    if modules.len() > MAX_MODULES {
        return Err(LoadError::Modules { count: modules.len(), limit: MAX_MODULES });
    }
    Ok(modules)
}

/// The image as its address fields describe it: one run, wherever the header says that the header
/// itself is to lie.
fn address_fields(image: &[u8], header: usize) -> Result<(Vec<Segment32>, u64), LoadError> {
    let field = |index: usize| u32_at(image, header + 12 + 4 * index);
    let (header_addr, load, load_end, bss_end, entry) =
        (field(0)?, field(1)?, field(2)?, field(3)?, field(4)?);
    let bad = LoadError::BadField { field: "load_addr", value: load.into() };
    let before = header_addr.checked_sub(load).ok_or(bad)? as usize;
    let start = header.checked_sub(before).ok_or(bad)?;
    let length = match load_end {
        0 => image.len().saturating_sub(start),
        end => end
            .checked_sub(load)
            .ok_or(LoadError::BadField { field: "load_end_addr", value: end.into() })?
            as usize,
    };
    bytes(image, "load segment", start, length)?;
    let in_file = length as u64;
    // A bss_end_addr of 0 means that there is no BSS.
    let size = u64::from(bss_end.saturating_sub(load)).max(in_file);
    let segment = Segment32 { bytes: start..start + length, at: load.into(), size };
    Ok((Vec::from([segment]), entry.into()))
}

fn elf(image: &[u8]) -> Result<(Vec<Segment32>, u64), LoadError> {
    let elf = Elf::parse(image)?;
    let (mut segments, mut physical_entry) = (Vec::new(), None);
    for segment in elf.segments() {
        let elf::Segment { bytes, virtual_address, address: at, size } = segment?;
        // The entry is a virtual address, and paging is off.
        if let Some(behind) = elf.entry.checked_sub(virtual_address).filter(|it| *it < size) {
            physical_entry = Some(at.saturating_add(behind));
        }
        segments.push(Segment32 { bytes, at, size });
    }
    let nowhere = LoadError::BadField { field: "e_entry", value: elf.entry };
    Ok((segments, physical_entry.ok_or(nowhere)?))
}

fn information(request: LoadRequest<'_>, modules: &[Module<'_>]) -> Result<Vec<Blob>, LoadError> {
    let mut strings = [request.command_line.as_bytes(), &[0]].concat();
    let mut table = Vec::with_capacity(modules.len() * MODULE_SIZE);
    for Module { at, size, words } in modules {
        // All of these lie below 4 GiB.
        let start = at.as_u64() as u32;
        let string = COMMAND_LINE.as_u64() as u32 + strings.len() as u32;
        let fields = [start, start.wrapping_add(*size as u32), string, 0];
        table.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
        strings.extend_from_slice(words.as_bytes());
        strings.push(0);
    }
    if strings.len() > COMMAND_LINE_ROOM {
        let length = strings.len() - 1;
        return Err(LoadError::CommandLine { length, limit: COMMAND_LINE_ROOM - 1 });
    }
    let map = request.memory.e820();
    let entries: Vec<u8> = map
        .iter()
        .flat_map(|entry| [&MMAP_ENTRY_SIZE.to_le_bytes()[..], &e820_bytes(entry)].concat())
        .collect();
    let low_end = request.memory.ram().first().map_or(0, |run| run.end());
    let upper_kib = low_end.saturating_sub(0x10_0000) >> 10;
    let lower_kib = map.first().map_or(0, |entry| entry.range.length >> 10);
    let mut info = Vec::from([0; INFO_SIZE]);
    let mut field = |offset: usize, value: u64| {
        put(&mut info, offset, &(value as u32).to_le_bytes());
    };
    field(0, INFO_FLAGS.into());
    field(4, lower_kib);
    field(8, upper_kib);
    field(16, COMMAND_LINE.as_u64());
    field(20, modules.len() as u64);
    field(24, MODULES.as_u64());
    field(44, entries.len() as u64);
    field(48, MEMORY_MAP.as_u64());
    Ok(Vec::from([
        Blob { at: INFO, bytes: info },
        Blob { at: MODULES, bytes: table },
        Blob { at: MEMORY_MAP, bytes: entries },
        Blob { at: COMMAND_LINE, bytes: strings },
    ]))
}

fn start_state(entry: u64) -> StartState {
    let code = Segment { selector: 8, base: 0, limit: u32::MAX, access: AccessRights::CODE32 };
    let mut gpr = [0; 16];
    let [rax, _, _, rbx, ..] = &mut gpr;
    *rax = LOADER_MAGIC;
    *rbx = INFO.as_u64();
    StartState {
        gpr,
        rip: entry,
        rflags: 2,
        cr0: (Cr0::PE | Cr0::ET | Cr0::NE).bits(),
        cr3: 0,
        cr4: 0,
        efer: 0,
        segments: flat_segments(code, 16),
        gdtr: NO_TABLE,
        idtr: NO_TABLE,
    }
}
