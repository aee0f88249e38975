//! Where the image wants its bytes: what [`boot::elf`] reads, narrowed to what this loader can start.
//!
//! Invariant: the file of an [`Image`] holds all bytes that its segments claim, and the segments
//! lie below 4 GiB.

use arrayvec::ArrayVec;
use boot::bytes::u32_at;
use boot::elf::{self, Elf};
use core::ops::Range;

/// The file is not an image that this loader can start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotAnImage;

/// A part of the file and where it goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Offset in the file.
    pub offset: u32,
    /// Bytes in the file.
    pub file_size: u32,
    /// Physical address.
    pub address: u32,
    /// Bytes in memory; those that the file does not have are zero.
    pub memory_size: u32,
}

/// A statically linked executable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Image {
    /// Address of the first (32-bit) instruction.
    pub entry: u32,
    /// What is to be loaded.
    pub segments: ArrayVec<Segment, 8>,
}

impl Image {
    /// Reads the headers of a `file`.
    ///
    /// # Errors
    /// When it is not a statically linked x86-64 executable that lies below 4 GiB, or is cut off.
    pub fn parse(file: &[u8]) -> Result<Self, NotAnImage> {
        Self::read(file).ok_or(NotAnImage)
    }

    fn read(file: &[u8]) -> Option<Self> {
        // 64-bit, little-endian, version 1; ET_EXEC, EM_X86_64.
        let known = file.starts_with(b"\x7fELF\x02\x01\x01") && u32_at(file, 16)? == 62 << 16 | 2;
        let elf = Elf::parse(file).ok().filter(|_| known)?;
        let mut segments = ArrayVec::new();
        for segment in elf.segments() {
            segments.try_push(below_4_gib(&segment.ok()?)?).ok()?;
        }
        let entry = u32::try_from(elf.entry).ok()?;
        let inside = |s: &Segment| (s.address..s.address + s.file_size).contains(&entry);
        segments.iter().any(inside).then_some(Self { entry, segments })
    }

    /// The physical memory that the image takes, in whole pages.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        let start = self.segments.iter().map(|s| u64::from(s.address)).min().unwrap_or(0);
        let end = self.segments.iter().map(|s| u64::from(s.address) + u64::from(s.memory_size));
        start & !0xfff..end.max().unwrap_or(0).next_multiple_of(4096)
    }
}

fn below_4_gib(segment: &elf::Segment) -> Option<Segment> {
    let narrow = |number: u64| u32::try_from(number).ok();
    let (offset, file_size) = (segment.bytes.start as u64, segment.bytes.len() as u64);
    let address = narrow(segment.address)?;
    address.checked_add(narrow(segment.size)?)?;
    Some(Segment {
        offset: narrow(offset)?,
        file_size: narrow(file_size)?,
        address,
        memory_size: narrow(segment.size)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Vec<u8> {
        let mut file = vec![0u8; 0x1100];
        file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        let mut put = |offset: usize, bytes: &[u8]| {
            file[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        put(16, &[2, 0, 62, 0]);
        put(24, &0x20_0010u64.to_le_bytes());
        put(32, &64u64.to_le_bytes());
        put(54, &[56, 0, 2, 0]);
        for (header, fields) in [
            (64, [0x1000u64, 0x20_0000, 0x20_0000, 0x100, 0x100]),
            (120, [0x1080, 0x20_1000, 0x20_1000, 0x80, 0x1234]),
        ] {
            put(header, &[1]);
            for (i, field) in fields.iter().enumerate() {
                put(header + 8 + 8 * i, &field.to_le_bytes());
            }
        }
        file
    }

    #[test]
    fn segments_and_entry_are_found() {
        let image = Image::parse(&sample()).unwrap();
        assert_eq!(image.entry, 0x20_0010);
        assert_eq!(image.segments[1].memory_size, 0x1234);
        assert_eq!(image.range(), 0x20_0000..0x20_3000);
    }

    #[test]
    fn a_file_that_is_cut_off_is_refused() {
        let file = sample();
        for length in 0..file.len() {
            assert_eq!(Image::parse(&file[..length]), Err(NotAnImage), "{length}");
        }
    }

    #[test]
    fn an_entry_outside_the_image_is_refused() {
        let mut file = sample();
        file[26] = 0x30;
        assert_eq!(Image::parse(&file), Err(NotAnImage));
    }

    proptest! {
        #[test]
        fn what_is_accepted_lies_in_the_file_and_below_4_gib(
            lies in proptest::collection::vec((0usize..176, any::<u8>()), 1..8),
        ) {
            let mut file = sample();
            for (offset, value) in lies {
                file[offset] = value;
            }
            if let Ok(image) = Image::parse(&file) {
                prop_assert!(image.range().end <= 1 << 32);
                for s in image.segments {
                    prop_assert!((s.offset + s.file_size) as usize <= file.len());
                    prop_assert!(s.file_size <= s.memory_size);
                }
            }
        }
    }
}
