//! Linux: a bzImage by the 64-bit boot protocol, or one without a 64-bit entry by the 32-bit one.
//!
//! The kernel begins with the "zero page" in RSI and flat segments 0x10 and 0x18: at its 64-bit entry with page tables that
//! map the low 4 GiB one to one, at its 32-bit entry without paging. (Linux, `Documentation/arch/x86/boot.rst` and
//! `Documentation/arch/x86/zero-page.rst`, which name the fields.)

use alloc::vec::Vec;

use arch::register::{Cr0, Cr4, Efer};
use arch::segment::{AccessRights, DescriptorTable, Segment};
use arch::vcpu::StartState;
use arch::{Gpa, Gva};

use super::field::{bytes, put, u8_at, u16_at, u32_at, u64_at};
use super::{
    ApicStart, Blob, Copy, FOUR_GIB, LoadError, LoadPlan, LoadRequest, NO_TABLE, PAGE, Placement,
};
use super::{Source, flat_segments};
use crate::memory_map::{BOOT_AREA, BOOT_AREA_END, E820Entry};

const SECTOR: usize = 512;
const MAGIC: [u8; 4] = *b"HdrS";
const MIN_PROTOCOL: u16 = 0x20c;
const XLF_KERNEL_64: u16 = 1 << 0;
/// The 64-bit entry point lies here behind the load address.
const ENTRY_64: u64 = 0x200;
/// No room is spent on a kernel that claims more.
const MAX_INIT_SIZE: u64 = 1 << 30;

/// Offsets of the setup header's fields, in the image and in the zero page alike.
mod offset {
    pub(super) const SETUP_SECTS: usize = 0x1f1;
    pub(super) const SYSSIZE: usize = 0x1f4;
    pub(super) const JUMP_LENGTH: usize = 0x201;
    pub(super) const HEADER: usize = 0x202;
    pub(super) const VERSION: usize = 0x206;
    pub(super) const TYPE_OF_LOADER: usize = 0x210;
    pub(super) const LOADFLAGS: usize = 0x211;
    pub(super) const CODE32_START: usize = 0x214;
    pub(super) const RAMDISK_IMAGE: usize = 0x218;
    pub(super) const RAMDISK_SIZE: usize = 0x21c;
    pub(super) const CMD_LINE_PTR: usize = 0x228;
    pub(super) const INITRD_ADDR_MAX: usize = 0x22c;
    pub(super) const KERNEL_ALIGNMENT: usize = 0x230;
    pub(super) const RELOCATABLE_KERNEL: usize = 0x234;
    pub(super) const XLOADFLAGS: usize = 0x236;
    pub(super) const CMDLINE_SIZE: usize = 0x238;
    pub(super) const PREF_ADDRESS: usize = 0x258;
    pub(super) const INIT_SIZE: usize = 0x260;
    /// Fields of the zero page outside the setup header.
    pub(super) const ACPI_RSDP_ADDR: usize = 0x70;
    pub(super) const E820_ENTRIES: usize = 0x1e8;
    pub(super) const E820_TABLE: usize = 0x2d0;
}

const ZERO_PAGE_SIZE: usize = 4096;
/// The setup header ends here in the zero page at the latest.
const SETUP_HEADER_END: usize = 0x290;
const E820_ENTRY_SIZE: usize = 20;
const MAX_E820_ENTRIES: usize = 128;
const LOADER_UNDEFINED: u8 = 0xff;
const LOADED_HIGH: u8 = 1 << 0;

/// Where the first tables lie in the boot area.
const GDT: Gpa = BOOT_AREA;
const PAGE_TABLES: Gpa = Gpa::new(BOOT_AREA.as_u64() + 0x1000);
const ZERO_PAGE: Gpa = Gpa::new(BOOT_AREA.as_u64() + 0x7000);
const COMMAND_LINE: Gpa = Gpa::new(BOOT_AREA.as_u64() + 0x8000);
const COMMAND_LINE_ROOM: usize = (BOOT_AREA_END.as_u64() - COMMAND_LINE.as_u64()) as usize;

const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const CODE64_DESCRIPTOR: u64 = 0x00af_9b00_0000_ffff;
const CODE32_DESCRIPTOR: u64 = 0x00cf_9b00_0000_ffff;
const DATA_DESCRIPTOR: u64 = 0x00cf_9300_0000_ffff;

/// Whether the image has the setup header's magic.
#[must_use]
pub fn is_bzimage(image: &[u8]) -> bool {
    image.get(offset::HEADER..offset::VERSION) == Some(&MAGIC[..])
}

/// The setup header, checked.
pub(super) struct Header {
    /// Offset of the protected-mode kernel in the image.
    payload: usize,
    /// Its size in bytes.
    payload_size: usize,
    initrd_limit: u64,
    alignment: u64,
    relocatable: bool,
    command_line_limit: usize,
    preferred: u64,
    init_size: u64,
    entry: Entry,
}

/// Where the kernel begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Entry {
    /// In long mode.
    Bits64,
    /// In protected mode without paging, at the load address.
    Bits32,
}

impl Header {
    pub(super) fn read(image: &[u8]) -> Result<Self, LoadError> {
        let version = u16_at(image, offset::VERSION)?;
        if version < MIN_PROTOCOL {
            return Err(LoadError::OldProtocol(version));
        }
        if u8_at(image, offset::LOADFLAGS)? & LOADED_HIGH == 0 {
            return Err(LoadError::NeedsBios);
        }
        let long = u16_at(image, offset::XLOADFLAGS)? & XLF_KERNEL_64 != 0;
        // 0 stands for 4, for the oldest kernels' sake.
        let sectors = match u8_at(image, offset::SETUP_SECTS)? {
            0 => 4,
            sectors => usize::from(sectors),
        };
        let payload = (sectors + 1) * SECTOR;
        // In paragraphs of 16 bytes, of which the file need not have the last whole.
        let payload_size = u32_at(image, offset::SYSSIZE)? as usize * 16;
        let there = image.len().saturating_sub(payload);
        let payload_size = if payload_size.saturating_sub(there) < 16 {
            payload_size.min(there)
        } else {
            payload_size
        };
        let header = Self {
            payload,
            payload_size,
            initrd_limit: u64::from(u32_at(image, offset::INITRD_ADDR_MAX)?) + 1,
            alignment: u32_at(image, offset::KERNEL_ALIGNMENT)?.into(),
            relocatable: u8_at(image, offset::RELOCATABLE_KERNEL)? != 0,
            command_line_limit: u32_at(image, offset::CMDLINE_SIZE)? as usize,
            preferred: u64_at(image, offset::PREF_ADDRESS)?,
            init_size: u32_at(image, offset::INIT_SIZE)?.into(),
            entry: if long { Entry::Bits64 } else { Entry::Bits32 },
        };
        bytes(image, "kernel", payload, payload_size)?;
        header.check()?;
        Ok(header)
    }

    #[cfg(test)]
    pub(super) const fn payload_size(&self) -> usize {
        self.payload_size
    }

    fn check(&self) -> Result<(), LoadError> {
        let bad = |field, value| Err(LoadError::BadField { field, value });
        if (self.payload_size as u64) <= ENTRY_64 {
            return bad("syssize", self.payload_size as u64 / 16);
        }
        if self.init_size < self.payload_size as u64 || self.init_size > MAX_INIT_SIZE {
            return bad("init_size", self.init_size);
        }
        if !self.alignment.is_power_of_two() || self.alignment < PAGE {
            return bad("kernel_alignment", self.alignment);
        }
        Ok(())
    }

    /// The preferred address, or the lowest other one if the kernel can be moved.
    fn place(&self, placement: &mut Placement<'_>) -> Result<Gpa, LoadError> {
        let at_preferred = placement.take_at("the kernel", self.preferred, self.init_size);
        if at_preferred.is_ok() || !self.relocatable {
            return at_preferred;
        }
        let start = placement
            .lowest(self.init_size, self.alignment)
            .ok_or(LoadError::NoRoom { what: "the kernel", size: self.init_size })?;
        placement.take_at("the kernel", start, self.init_size)
    }
}

/// Plans the start of a bzImage.
///
/// # Errors
/// When the image is damaged or does not fit.
pub fn plan(request: LoadRequest<'_>) -> Result<LoadPlan, LoadError> {
    let header = Header::read(request.kernel)?;
    let limit = header.command_line_limit.min(COMMAND_LINE_ROOM - 1);
    if request.command_line.len() > limit {
        let length = request.command_line.len();
        return Err(LoadError::CommandLine { length, limit });
    }
    let mut placement = Placement::new(request.memory);
    let load = header.place(&mut placement)?;
    let payload = header.payload..header.payload + header.payload_size;
    let mut copies = Vec::from([Copy { source: Source::Kernel, bytes: payload, to: load }]);
    let mut initrd = None;
    if let Some(size) = request.initrd_size.filter(|size| *size > 0) {
        let limit = header.initrd_limit.min(FOUR_GIB);
        let at = placement.take_highest("the initrd", size as u64, limit)?;
        copies.push(Copy { source: Source::Initrd, bytes: 0..size, to: at });
        initrd = Some((at, size));
    }
    let code = match header.entry {
        Entry::Bits64 => CODE64_DESCRIPTOR,
        Entry::Bits32 => CODE32_DESCRIPTOR,
    };
    let gdt: Vec<u8> =
        [0, 0, code, DATA_DESCRIPTOR].into_iter().flat_map(u64::to_le_bytes).collect();
    let last = (gdt.len() - 1) as u16;
    let mut blobs = Vec::from([
        Blob { at: GDT, bytes: gdt },
        Blob { at: ZERO_PAGE, bytes: zero_page(request, load, initrd)? },
        Blob { at: COMMAND_LINE, bytes: [request.command_line.as_bytes(), &[0]].concat() },
    ]);
    if header.entry == Entry::Bits64 {
        blobs.push(Blob { at: PAGE_TABLES, bytes: identity_page_tables() });
    }
    let start = start_state(header.entry, load, last);
    let apics = apic_start(header.entry, request.command_line);
    Ok(LoadPlan { copies, blobs, start, apics })
}

/// A 32-bit Linux has no driver for x2APIC mode: it would do without a local APIC. One that is told to leave its local APIC
/// alone crashes in that mode, and without ACPI it finds no clock.
fn apic_start(entry: Entry, command_line: &str) -> ApicStart {
    let has =
        |words: &[&str]| command_line.split_ascii_whitespace().any(|word| words.contains(&word));
    let without_driver = entry == Entry::Bits32 || has(&["nolapic", "disableapic"]);
    let xapic = without_driver || has(&["acpi=off", "nox2apic"]);
    ApicStart { xapic, virtual_wire: without_driver }
}

fn zero_page(
    request: LoadRequest<'_>,
    load: Gpa,
    initrd: Option<(Gpa, usize)>,
) -> Result<Vec<u8>, LoadError> {
    let mut page = Vec::from([0; ZERO_PAGE_SIZE]);
    let image = request.kernel;
    let header_end = offset::HEADER + usize::from(u8_at(image, offset::JUMP_LENGTH)?);
    let header_length = header_end.min(SETUP_HEADER_END) - offset::SETUP_SECTS;
    let header = bytes(image, "setup header", offset::SETUP_SECTS, header_length)?;
    put(&mut page, offset::SETUP_SECTS, header);
    // All of these lie below 4 GiB.
    let address = |gpa: Gpa| (gpa.as_u64() as u32).to_le_bytes();
    put(&mut page, offset::TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
    put(&mut page, offset::LOADFLAGS, &[u8_at(image, offset::LOADFLAGS)? | LOADED_HIGH]);
    put(&mut page, offset::CODE32_START, &address(load));
    put(&mut page, offset::CMD_LINE_PTR, &address(COMMAND_LINE));
    let (at, size) = initrd.unwrap_or((Gpa::new(0), 0));
    put(&mut page, offset::RAMDISK_IMAGE, &address(at));
    put(&mut page, offset::RAMDISK_SIZE, &(size as u32).to_le_bytes());
    put(&mut page, offset::ACPI_RSDP_ADDR, &request.rsdp.as_u64().to_le_bytes());
    let mut map = request.memory.e820();
    map.truncate(MAX_E820_ENTRIES);
    put(&mut page, offset::E820_ENTRIES, &[map.len() as u8]);
    for (index, entry) in map.iter().enumerate() {
        put(&mut page, offset::E820_TABLE + index * E820_ENTRY_SIZE, &e820_bytes(entry));
    }
    Ok(page)
}

/// An e820 entry as firmware and loaders write it: start, length, type.
pub(super) fn e820_bytes(entry: &E820Entry) -> Vec<u8> {
    let range = entry.range;
    [
        &range.start.as_u64().to_le_bytes()[..],
        &range.length.to_le_bytes(),
        &(entry.kind as u32).to_le_bytes(),
    ]
    .concat()
}

/// One PML4, one page-directory-pointer table and four page directories of 2 MiB pages: the low
/// 4 GiB, one to one.
fn identity_page_tables() -> Vec<u8> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let table = |number: u64| PAGE_TABLES.as_u64() + number * PAGE;
    let mut bytes = Vec::from([0; 6 * PAGE as usize]);
    let mut entry = |number: u64, index: u64, value: u64| {
        put(&mut bytes, (number * PAGE + index * 8) as usize, &value.to_le_bytes());
    };
    entry(0, 0, table(1) | PRESENT_WRITABLE);
    for gib in 0..4 {
        entry(1, gib, table(2 + gib) | PRESENT_WRITABLE);
        for index in 0..512 {
            entry(2 + gib, index, (gib << 30) | (index << 21) | LARGE | PRESENT_WRITABLE);
        }
    }
    bytes
}

fn start_state(entry: Entry, load: Gpa, gdt_limit: u16) -> StartState {
    let long = entry == Entry::Bits64;
    let access = if long { AccessRights::CODE64 } else { AccessRights::CODE32 };
    let code = Segment { selector: CODE_SELECTOR, base: 0, limit: u32::MAX, access };
    let mut gpr = [0; 16];
    let [_, _, _, _, _, _, rsi, ..] = &mut gpr;
    *rsi = ZERO_PAGE.as_u64();
    let cr0 = Cr0::PE | Cr0::MP | Cr0::ET | Cr0::NE | Cr0::WP | Cr0::AM;
    let in_protected_mode = StartState {
        gpr,
        rip: load.as_u64(),
        rflags: 2,
        cr0: cr0.bits(),
        cr3: 0,
        cr4: 0,
        efer: 0,
        segments: flat_segments(code, DATA_SELECTOR),
        gdtr: DescriptorTable { base: Gva::new(GDT.as_u64()), limit: gdt_limit },
        idtr: NO_TABLE,
    };
    match entry {
        Entry::Bits32 => in_protected_mode,
        Entry::Bits64 => StartState {
            rip: load.as_u64() + ENTRY_64,
            cr0: (cr0 | Cr0::PG).bits(),
            cr3: PAGE_TABLES.as_u64(),
            cr4: Cr4::PAE.bits(),
            efer: (Efer::LME | Efer::LMA).bits(),
            ..in_protected_mode
        },
    }
}
