//! The framebuffer that a loader hands over (Multiboot2 Specification, "Framebuffer info"): a claim,
//! as hypervisor and guests would have to live with pixels written over their memory.
#![forbid(unsafe_code)]

use crate::bytes::{u32_at, u64_at};
use crate::memory_map::{MemoryKind, MemoryMap};
use arch::Hpa;
use arch::address::HpaRange;

/// Memory whose bytes are pixels, line by line from the top.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Framebuffer {
    /// The first pixel.
    pub start: Hpa,
    /// Bytes from a line to the next; not fewer than its pixels take.
    pub pitch: u32,
    /// Pixels of a line.
    pub width: u32,
    /// Lines.
    pub height: u32,
    /// 3 or 4, in colours of a byte each.
    pub bytes_per_pixel: u8,
}

/// What a tag says of how its pixels are coloured: each in a field of its own.
pub const DIRECT_COLOUR: u8 = 1;
/// A picture of more lines or columns is none that a machine has.
const MAX_PIXELS: u32 = 1 << 14;
/// Physical addresses have no more bits.
const ADDRESS_LIMIT: u64 = 1 << 52;

impl Framebuffer {
    /// Reads a tag's body: address, pitch, width, height, bits of a pixel, type.
    ///
    /// # Errors
    /// Why it cannot be used: the end of a sentence that begins "the framebuffer …".
    pub(crate) fn read(body: &[u8]) -> Result<Self, &'static str> {
        let numbers = u32_at(body, 8).zip(u32_at(body, 12)).zip(u32_at(body, 16));
        let fields = u64_at(body, 0).zip(numbers).zip(body.get(20).zip(body.get(21)));
        let ((start, ((pitch, width), height)), (bits, kind)) =
            fields.ok_or("is not described in whole")?;
        let bytes_per_pixel = match (*kind, *bits) {
            (DIRECT_COLOUR, 24) => 3,
            (DIRECT_COLOUR, 32) => 4,
            _ => return Err("has no pixels of 24 or 32 bits"),
        };
        if !(1..=MAX_PIXELS).contains(&width) || !(1..=MAX_PIXELS).contains(&height) {
            return Err("has a size that cannot be");
        }
        if pitch < width * u32::from(bytes_per_pixel) || pitch > MAX_PIXELS * 4 {
            return Err("has lines of a length that cannot be");
        }
        let framebuffer = Self { start: Hpa::new(start), pitch, width, height, bytes_per_pixel };
        let end = start.checked_add(framebuffer.range().length);
        if start < 1 << 20 || end.is_none_or(|end| end > ADDRESS_LIMIT) {
            return Err("lies where no framebuffer can");
        }
        Ok(framebuffer)
    }

    /// The memory that it takes.
    #[must_use]
    pub fn range(&self) -> HpaRange {
        let length = u64::from(self.pitch) * u64::from(self.height);
        HpaRange { start: self.start, length }
    }

    /// Refuses one that lies in memory which the hypervisor would use or give to guests.
    pub(crate) fn outside(self, memory: &MemoryMap) -> Result<Self, &'static str> {
        let used = |kind| {
            matches!(kind, MemoryKind::Usable | MemoryKind::AcpiReclaimable | MemoryKind::AcpiNvs)
        };
        let inside = memory.iter().any(|it| used(it.kind) && it.range.overlaps(self.range()));
        if inside { Err("lies in the machine's memory") } else { Ok(self) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn body(start: u64, pitch: u32, (width, height): (u32, u32), bits: u8, kind: u8) -> Vec<u8> {
        let mut body = start.to_le_bytes().to_vec();
        [pitch, width, height].iter().for_each(|word| body.extend(word.to_le_bytes()));
        body.extend([bits, kind, 0, 0]);
        body
    }

    #[test]
    fn a_plain_one_is_taken_also_above_4_gib() {
        for start in [0x8000_0000, 0x40_0000_0000] {
            let read = Framebuffer::read(&body(start, 4096, (1024, 768), 32, 1)).unwrap();
            assert_eq!(read.range(), HpaRange { start: Hpa::new(start), length: 4096 * 768 });
            assert_eq!(read.bytes_per_pixel, 4);
        }
        assert_eq!(Framebuffer::read(&body(1 << 31, 3072, (1024, 1), 24, 1)).unwrap().pitch, 3072);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let size = (1024, 768);
        for (bad, why) in [
            (body(1 << 31, 4096, size, 32, 2), "pixels"),
            (body(1 << 31, 4096, size, 16, 1), "pixels"),
            (body(1 << 31, 4095, size, 32, 1), "lines of a length"),
            (body(1 << 31, u32::MAX, size, 32, 1), "lines of a length"),
            (body(1 << 31, 4096, (0, 768), 32, 1), "size"),
            (body(1 << 31, 4096, (1024, 0), 32, 1), "size"),
            (body(1 << 31, u32::MAX, (u32::MAX, 1), 32, 1), "size"),
            (body(0, 4096, size, 32, 1), "where no framebuffer can"),
            (body(0xb8000, 4096, size, 32, 1), "where no framebuffer can"),
            (body(u64::MAX - 4096, 4096, size, 32, 1), "where no framebuffer can"),
            (body((1 << 52) - 4096, 4096, size, 32, 1), "where no framebuffer can"),
        ] {
            assert!(Framebuffer::read(&bad).unwrap_err().contains(why), "{why}: {bad:?}");
        }
        let whole = body(1 << 31, 4096, size, 32, 1);
        for length in 0..22 {
            assert!(Framebuffer::read(&whole[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn one_that_lies_in_memory_is_refused() {
        let framebuffer = Framebuffer::read(&body(1 << 24, 4096, (1024, 768), 32, 1)).unwrap();
        let with = |start: u64, length: u64, kind| {
            let mut memory = MemoryMap::new();
            memory.add(start, length, kind).unwrap();
            framebuffer.outside(&memory)
        };
        let end = framebuffer.range().end().as_u64();
        assert!(with(0, (1 << 24) + 4096, MemoryKind::Usable).is_err());
        assert!(with(end - 4096, 1 << 20, MemoryKind::AcpiReclaimable).is_err());
        assert!(with(0, 1 << 24, MemoryKind::Usable).is_ok());
        assert!(with(end, 1 << 20, MemoryKind::Usable).is_ok());
        assert!(with(0, 1 << 30, MemoryKind::Reserved).is_ok());
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_lie_in_the_address_space(
            bytes in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            if let Ok(framebuffer) = Framebuffer::read(&bytes) {
                prop_assert!(framebuffer.range().end().as_u64() <= ADDRESS_LIMIT);
                prop_assert!(framebuffer.range().length > 0);
            }
        }
    }
}
