//! Multiboot2 information as GRUB and this project's UEFI loader leave it
//! (Multiboot2 Specification 2.0, "Boot information format").
//!
//! One block: a total size, then tags of type and size, each at a multiple of 8. The numbers are
//! public because the UEFI loader writes what [`crate::parse`] reads.
#![forbid(unsafe_code)]

use crate::LoaderMemory;
use crate::bytes::{text, u32_at, u64_at};
use crate::error::BootError;
use crate::framebuffer::Framebuffer;
use crate::info::BootInfo;
use crate::memory_map::{MemoryKind, MemoryMap};
use arch::Hpa;
use arch::address::HpaRange;

/// What a multiboot2 loader leaves in EAX.
pub const MAGIC: u32 = 0x36d7_6289;

/// The name by which this project's own loader is known.
pub const UEFI_LOADER_NAME: &str = "Nexit UEFI loader";

/// Size of the block's header, and of a tag's.
pub const HEADER_SIZE: usize = 8;

/// Tag type: end of the tags.
pub const END: u32 = 0;
/// Tag type: text.
pub const COMMAND_LINE: u32 = 1;
/// Tag type: text.
pub const LOADER_NAME: u32 = 2;
/// Tag type: first byte, first byte behind (32 bits each), text.
pub const MODULE: u32 = 3;
/// Tag type: entry size, entry version, entries as from BIOS.
pub const MEMORY_MAP: u32 = 6;
/// Tag type: 64-bit address, pitch, width, height, bits of a pixel (a byte), type (a byte).
pub const FRAMEBUFFER: u32 = 8;
/// Tag type: 64-bit address.
pub const EFI64_SYSTEM_TABLE: u32 = 12;
/// Tag type: copy of an ACPI 1.0 RSDP.
pub const RSDP_1: u32 = 14;
/// Tag type: copy of an ACPI 2.0 RSDP.
pub const RSDP_2: u32 = 15;
/// Tag type: descriptor size, descriptor version, descriptors.
pub const EFI_MEMORY_MAP: u32 = 17;

pub(crate) fn parse<'m>(
    address: Hpa,
    memory: LoaderMemory<'_, 'm>,
) -> Result<BootInfo<'m>, BootError> {
    let truncated = BootError::Truncated { structure: "multiboot2 information" };
    let header = HpaRange { start: address, length: HEADER_SIZE as u64 };
    let total = memory(header).and_then(|bytes| u32_at(bytes, 0)).ok_or(truncated)?;
    let whole = HpaRange { start: address, length: total.into() };
    let block = memory(whole).ok_or(truncated)?;

    let mut info = BootInfo::new();
    info.add_loader_data(whole)?;
    let mut efi_map = MemoryMap::new();
    let mut offset = HEADER_SIZE;
    loop {
        let rest = block.get(offset..).ok_or(truncated)?;
        let (kind, size) = u32_at(rest, 0).zip(u32_at(rest, 4)).ok_or(truncated)?;
        if kind == END {
            break;
        }
        let size = usize::try_from(size).map_err(|_| truncated)?;
        let body = rest.get(HEADER_SIZE..size).ok_or(truncated)?;
        let position = address.wrapping_add((offset + HEADER_SIZE) as u64);
        add_tag(&mut info, &mut efi_map, kind, body, position)?;
        offset += size.checked_next_multiple_of(8).ok_or(truncated)?;
    }
    // Under EFI the EFI map says more than the BIOS-like one that GRUB derives from it.
    if !efi_map.is_empty() {
        info.memory = efi_map;
        info.uefi = true;
    }
    info.framebuffer = info.framebuffer.map(|found| found.and_then(|it| it.outside(&info.memory)));
    if !info.memory.has_usable() {
        return Err(BootError::NoUsableMemory);
    }
    Ok(info)
}

/// Takes over one tag, whose body lies at `position`.
fn add_tag<'m>(
    info: &mut BootInfo<'m>,
    efi_map: &mut MemoryMap,
    kind: u32,
    body: &'m [u8],
    position: Hpa,
) -> Result<(), BootError> {
    let truncated = |structure| BootError::Truncated { structure };
    let string = |bytes, structure| text(bytes).ok_or(BootError::NotText { structure });
    match kind {
        COMMAND_LINE => info.command_line = string(body, "command line")?,
        MODULE => {
            let range = u32_at(body, 0).zip(u32_at(body, 4)).ok_or(truncated("module tag"))?;
            let name = body.get(8..).ok_or(truncated("module tag"))?;
            info.add_module(range, string(name, "module string")?)?;
        }
        MEMORY_MAP => {
            let entries = entries(body, 24).ok_or(truncated("memory map"))?;
            for entry in entries {
                let fields = u64_at(entry, 0).zip(u64_at(entry, 8)).zip(u32_at(entry, 16));
                let ((start, length), kind) = fields.ok_or(truncated("memory map"))?;
                info.memory.add(start, length, MemoryKind::from_e820(kind))?;
            }
        }
        EFI_MEMORY_MAP => {
            let entries = entries(body, 40).ok_or(truncated("EFI memory map"))?;
            for entry in entries {
                let fields = u32_at(entry, 0).zip(u64_at(entry, 8)).zip(u64_at(entry, 24));
                let ((kind, start), pages) = fields.ok_or(truncated("EFI memory map"))?;
                efi_map.add_pages(start, pages, MemoryKind::from_efi(kind))?;
            }
        }
        FRAMEBUFFER => info.framebuffer = Some(Framebuffer::read(body)),
        // The newer one (it has the XSDT) wins whatever the order.
        RSDP_2 => info.rsdp = Some(position),
        RSDP_1 => info.rsdp = info.rsdp.or(Some(position)),
        _ => {}
    }
    Ok(())
}

/// The entries of a map tag: entry size, entry version, entries.
fn entries(body: &[u8], min_size: usize) -> Option<impl Iterator<Item = &[u8]>> {
    let size = usize::try_from(u32_at(body, 0)?).ok().filter(|size| *size >= min_size)?;
    Some(body.get(8..)?.chunks_exact(size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ADDRESS: u64 = 0x1_0000;

    fn tag(kind: u32, body: &[&[u8]]) -> Vec<u8> {
        let body = body.concat();
        let mut tag = [kind.to_le_bytes(), (8 + body.len() as u32).to_le_bytes()].concat();
        tag.extend(body);
        tag.resize(tag.len().next_multiple_of(8), 0);
        tag
    }

    fn block(tags: &[Vec<u8>]) -> Vec<u8> {
        let tags = [tags.concat(), tag(END, &[])].concat();
        [(8 + tags.len() as u32).to_le_bytes().to_vec(), vec![0; 4], tags].concat()
    }

    fn bios_map() -> Vec<u8> {
        let words = |n: &[u64]| n.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>();
        tag(MEMORY_MAP, &[&words(&[24, 0, 0xa_0000, 1]), &words(&[0x10_0000, 0x100_0000, 1])])
    }

    fn efi_map() -> Vec<u8> {
        let entry = |kind: u64, start: u64, pages: u64| {
            [kind, start, 0, pages, 0xf, 0].iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>()
        };
        let body = [entry(7, 0, 160), entry(4, 0xa_0000, 16), entry(6, 0x10_0000, 1)];
        tag(EFI_MEMORY_MAP, &[&48u32.to_le_bytes(), &1u32.to_le_bytes(), &body.concat()])
    }

    fn module() -> Vec<u8> {
        let (start, end) = (0x20_0000u32.to_le_bytes(), 0x20_1000u32.to_le_bytes());
        tag(MODULE, &[&start, &end, b"vmlinuz quiet\0"])
    }

    fn sample() -> Vec<u8> {
        block(&[
            tag(COMMAND_LINE, &[b"debug\0"]),
            tag(LOADER_NAME, &[UEFI_LOADER_NAME.as_bytes(), b"\0"]),
            module(),
            bios_map(),
            efi_map(),
            tag(EFI64_SYSTEM_TABLE, &[&0x7654_3210u64.to_le_bytes()]),
            tag(RSDP_2, &[b"RSD PTR with XSDT"]),
            tag(RSDP_1, &[b"RSD PTR "]),
        ])
    }

    fn parse_bytes(bytes: &[u8]) -> Result<BootInfo<'_>, BootError> {
        parse(Hpa::new(ADDRESS), &|range| {
            let start = usize::try_from(range.start.as_u64().checked_sub(ADDRESS)?).ok()?;
            bytes.get(start..start.checked_add(usize::try_from(range.length).ok()?)?)
        })
    }

    #[test]
    fn all_tags_are_read() {
        let bytes = sample();
        let info = parse_bytes(&bytes).unwrap();
        assert_eq!(info.command_line, "debug");
        assert_eq!(info.module("vmlinuz").unwrap().command_line, "quiet");
        let rsdp = usize::try_from(info.rsdp.unwrap().as_u64() - ADDRESS).unwrap();
        assert!(bytes[rsdp..].starts_with(b"RSD PTR with XSDT"));
        assert_eq!(info.loader_data[0].length, bytes.len() as u64);
    }

    #[test]
    fn a_framebuffer_is_taken_where_no_memory_is() {
        let framebuffer = |start: u64| {
            let words = [4096u32, 1024, 768].map(u32::to_le_bytes).concat();
            tag(FRAMEBUFFER, &[&start.to_le_bytes(), &words, &[32, 1, 0, 0]])
        };
        let found = |tags: &[Vec<u8>]| parse_bytes(&block(tags)).unwrap().framebuffer;
        assert_eq!(found(&[bios_map()]), None);
        let good = found(&[bios_map(), framebuffer(0x8000_0000)]).unwrap().unwrap();
        assert_eq!(good.start, Hpa::new(0x8000_0000));
        // The map may follow.
        let bad = found(&[framebuffer(0x10_0000), bios_map()]).unwrap();
        assert!(bad.unwrap_err().contains("memory"));
        let bad = found(&[bios_map(), tag(FRAMEBUFFER, &[&[0; 8]])]).unwrap();
        assert!(bad.unwrap_err().contains("not described in whole"));
    }

    #[test]
    fn the_efi_map_wins_and_boot_services_memory_is_usable() {
        let bytes = sample();
        let info = parse_bytes(&bytes).unwrap();
        assert_eq!(info.memory.len(), 2);
        assert_eq!(info.memory[0].range.end(), Hpa::new(0xb_0000));
        assert_eq!(info.memory[1].kind, MemoryKind::Reserved);
        let bytes = block(&[bios_map()]);
        assert_eq!(parse_bytes(&bytes).unwrap().memory[1].range.start, Hpa::new(0x10_0000));
    }

    #[test]
    fn every_truncation_is_noticed() {
        let whole = sample();
        for length in 0..whole.len() {
            assert!(parse_bytes(&whole[..length]).is_err(), "{length}");
            if length >= 8 {
                let mut shorter = whole[..length].to_vec();
                shorter[..4].copy_from_slice(&(length as u32).to_le_bytes());
                assert!(parse_bytes(&shorter).is_err(), "{length} of {length}");
            }
        }
    }

    #[test]
    fn a_tag_of_no_size_does_not_hang() {
        let mut bytes = sample();
        bytes[12..16].fill(0);
        assert_eq!(
            parse_bytes(&bytes),
            Err(BootError::Truncated { structure: "multiboot2 information" })
        );
    }

    #[test]
    fn text_that_is_no_text_is_refused() {
        let bytes = block(&[bios_map(), tag(COMMAND_LINE, &[b"\xff\0"])]);
        assert_eq!(parse_bytes(&bytes), Err(BootError::NotText { structure: "command line" }));
    }

    proptest! {
        #[test]
        fn a_lie_anywhere_is_an_error_or_another_answer(
            lies in proptest::collection::vec((0usize..400, any::<u8>()), 1..8),
        ) {
            let mut bytes = sample();
            for (offset, value) in lies {
                if let Some(byte) = bytes.get_mut(offset) {
                    *byte = value;
                }
            }
            let _ = parse_bytes(&bytes);
        }
    }
}
