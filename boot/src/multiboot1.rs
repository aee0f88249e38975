//! Multiboot information as `qemu -kernel` leaves it
//! (Multiboot Specification 0.6.96, "Boot information format").
//!
//! The structure points to others anywhere below 4 GiB, so each of them is fetched and checked.
#![forbid(unsafe_code)]

use crate::LoaderMemory;
use crate::bytes::{text, u32_at, u64_at};
use crate::error::BootError;
use crate::info::BootInfo;
use crate::memory_map::MemoryKind;
use arch::Hpa;
use arch::address::{HpaRange, PAGE_SIZE};

/// What a multiboot loader leaves in EAX.
pub(crate) const MAGIC: u32 = 0x2bad_b002;

/// Bits of the `flags` field: which other fields are valid.
const COMMAND_LINE: u32 = 1 << 2;
const MODULES: u32 = 1 << 3;
const MEMORY_MAP: u32 = 1 << 6;

/// The fields up to and with `mmap_addr`.
const INFO_SIZE: u64 = 52;
/// Size of an entry of the module list.
const MODULE_SIZE: usize = 16;

pub(crate) fn parse<'m>(
    address: Hpa,
    memory: LoaderMemory<'_, 'm>,
) -> Result<BootInfo<'m>, BootError> {
    let truncated = BootError::Truncated { structure: "multiboot information" };
    let mut info = BootInfo::new();
    let fetch = |info: &mut BootInfo<'m>, start: u32, length: u64, structure| {
        let range = HpaRange { start: Hpa::new(start.into()), length };
        info.add_loader_data(range)?;
        memory(range).ok_or(BootError::Truncated { structure })
    };
    let string = |info: &mut BootInfo<'m>, start: u32, structure| {
        let range = HpaRange { start: Hpa::new(start.into()), length: PAGE_SIZE };
        let bytes = memory(range).ok_or(BootError::Truncated { structure })?;
        let found = text(bytes).ok_or(BootError::NotText { structure })?;
        info.add_loader_data(HpaRange { length: found.len() as u64 + 1, ..range })?;
        Ok(found)
    };

    let start = u32::try_from(address.as_u64()).map_err(|_| truncated)?;
    let bytes = fetch(&mut info, start, INFO_SIZE, "multiboot information")?;
    let field = |offset| u32_at(bytes, offset).ok_or(truncated);
    let flags = field(0)?;
    if flags & COMMAND_LINE != 0 {
        info.command_line = string(&mut info, field(16)?, "command line")?;
    }
    if flags & MODULES != 0 {
        let length = u64::from(field(20)?) * MODULE_SIZE as u64;
        let list = fetch(&mut info, field(24)?, length, "list of modules")?;
        for entry in list.chunks_exact(MODULE_SIZE) {
            let field = |offset| u32_at(entry, offset).ok_or(truncated);
            let name = match field(8)? {
                0 => "",
                address => string(&mut info, address, "module string")?,
            };
            info.add_module((field(0)?, field(4)?), name)?;
        }
    }
    if flags & MEMORY_MAP != 0 {
        let map = fetch(&mut info, field(48)?, field(44)?.into(), "memory map")?;
        add_memory_map(&mut info, map)
            .unwrap_or(Err(BootError::Truncated { structure: "memory map" }))?;
    }
    if !info.memory.has_usable() {
        return Err(BootError::NoUsableMemory);
    }
    Ok(info)
}

/// Reads the entries; each begins with its own size, which does not count the size field.
/// `None` when an entry is cut off.
fn add_memory_map(info: &mut BootInfo<'_>, mut map: &[u8]) -> Option<Result<(), BootError>> {
    while !map.is_empty() {
        let size = usize::try_from(u32_at(map, 0)?).ok()?;
        let (start, length) = (u64_at(map, 4)?, u64_at(map, 12)?);
        let kind = MemoryKind::from_e820(u32_at(map, 20)?);
        if let Err(error) = info.memory.add(start, length, kind) {
            return Some(Err(error));
        }
        map = map.get(size.checked_add(4).filter(|stride| *stride >= 24)?..)?;
    }
    Some(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The information at 0, everything else behind it, and a page of zeroes for string fetches.
    fn sample() -> Vec<u8> {
        let mut bytes = vec![0u8; 0x2000];
        let mut put = |offset: usize, numbers: &[u32]| {
            for (i, number) in numbers.iter().enumerate() {
                bytes[offset + 4 * i..][..4].copy_from_slice(&number.to_le_bytes());
            }
        };
        put(0, &[COMMAND_LINE | MODULES | MEMORY_MAP, 0, 0, 0, 0x300, 2, 0x100]);
        put(44, &[48, 0x200]);
        put(0x100, &[0x10_0000, 0x10_0100, 0x340, 0, 0x20_0000, 0x20_0200, 0x380, 0]);
        put(0x200, &[20, 0, 0, 0x9_fc00, 0, 1, 20, 0x9_fc00, 0, 0x400, 0, 2]);
        bytes[0x300..0x30d].copy_from_slice(b"kernel serial");
        bytes[0x340..0x34a].copy_from_slice(b"nexit.toml");
        bytes[0x380..0x38f].copy_from_slice(b"boot/linux a  b");
        bytes
    }

    fn parse_bytes(bytes: &[u8]) -> Result<BootInfo<'_>, BootError> {
        parse(Hpa::new(0), &|range| {
            let start = usize::try_from(range.start.as_u64()).ok()?;
            bytes.get(start..start.checked_add(usize::try_from(range.length).ok()?)?)
        })
    }

    #[test]
    fn all_fields_are_read() {
        let bytes = sample();
        let info = parse_bytes(&bytes).unwrap();
        assert_eq!(info.command_line, "kernel serial");
        assert_eq!(info.module("nexit.toml").unwrap().range.length, 0x100);
        assert_eq!(info.module("linux").unwrap().command_line, "a  b");
        assert_eq!(info.memory.len(), 2);
        assert_eq!(info.memory[0].kind, MemoryKind::Usable);
        assert_eq!(info.memory[1].range.end(), Hpa::new(0xa_0000));
        let strings = info.loader_data.iter().filter(|r| r.start >= Hpa::new(0x300)).count();
        assert_eq!(strings, 3);
    }

    #[test]
    fn a_map_entry_that_is_too_small_is_refused() {
        let mut bytes = sample();
        bytes[0x200] = 0;
        let error = BootError::Truncated { structure: "memory map" };
        assert_eq!(parse_bytes(&bytes), Err(error));
    }

    #[test]
    fn without_a_memory_map_there_is_no_boot() {
        let mut bytes = sample();
        bytes[0] &= !(MEMORY_MAP as u8);
        assert_eq!(parse_bytes(&bytes), Err(BootError::NoUsableMemory));
    }

    proptest! {
        #[test]
        fn a_lie_anywhere_is_an_error_or_another_answer(
            lies in proptest::collection::vec((0usize..0x400, any::<u8>()), 1..8),
            length in 0usize..0x2001,
        ) {
            let mut bytes = sample();
            for (offset, value) in lies {
                bytes[offset] = value;
            }
            bytes.truncate(length);
            let _ = parse_bytes(&bytes);
        }
    }
}
