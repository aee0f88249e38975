//! Writes multiboot2 information (Multiboot2 Specification 2.0, "Boot information format").
//!
//! Invariant: the block is well-formed after every call that succeeds, but for its end.

use boot::multiboot2::{END, HEADER_SIZE};

/// The block does not fit into its memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// A block in the making.
#[derive(Debug)]
pub struct Information<'a> {
    block: &'a mut [u8],
    length: usize,
}

impl<'a> Information<'a> {
    /// An empty block in `block`, which must start at a multiple of 8.
    ///
    /// # Errors
    /// When there is no room for the header.
    pub fn new(block: &'a mut [u8]) -> Result<Self, Full> {
        block.get_mut(..HEADER_SIZE).ok_or(Full)?.fill(0);
        Ok(Self { block, length: HEADER_SIZE })
    }

    /// Adds a tag of type `kind` whose body are the `parts` one behind the other.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn tag(&mut self, kind: u32, parts: &[&[u8]]) -> Result<(), Full> {
        let size = HEADER_SIZE + parts.iter().map(|part| part.len()).sum::<usize>();
        let space = self.block.get_mut(self.length..).ok_or(Full)?;
        let space = space.get_mut(..size.next_multiple_of(8)).ok_or(Full)?;
        let size_field = u32::try_from(size).map_err(|_| Full)?.to_le_bytes();
        self.length += space.len();
        let header = [kind.to_le_bytes(), size_field];
        let body = parts.iter().flat_map(|part| part.iter());
        let bytes = header.iter().flatten().chain(body).copied().chain(core::iter::repeat(0));
        for (to, from) in space.iter_mut().zip(bytes) {
            *to = from;
        }
        Ok(())
    }

    /// Ends the block.
    ///
    /// # Errors
    /// When there is no room for the end.
    pub fn finish(mut self) -> Result<(), Full> {
        self.tag(END, &[])?;
        let total = u32::try_from(self.length).map_err(|_| Full)?.to_le_bytes();
        self.block.get_mut(..total.len()).ok_or(Full)?.copy_from_slice(&total);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch::Hpa;
    use boot::multiboot2::{EFI_MEMORY_MAP, LOADER_NAME, MAGIC, MODULE, RSDP_2, UEFI_LOADER_NAME};

    fn write(block: &mut [u8]) -> Result<(), Full> {
        let mut information = Information::new(block)?;
        information.tag(LOADER_NAME, &[UEFI_LOADER_NAME.as_bytes(), b"\0"])?;
        let (start, end) = (0x1000u32.to_le_bytes(), 0x1003u32.to_le_bytes());
        information.tag(MODULE, &[&start, &end, b"nexit.toml", b"\0"])?;
        information.tag(RSDP_2, &[b"RSD PTR "])?;
        let descriptor: Vec<u8> =
            [7u64, 0, 0, 0x100, 0xf].iter().flat_map(|n| n.to_le_bytes()).collect();
        let (size, version) = (40u32.to_le_bytes(), 1u32.to_le_bytes());
        information.tag(EFI_MEMORY_MAP, &[&size, &version, &descriptor])?;
        information.finish()
    }

    #[test]
    fn the_images_own_parser_reads_what_is_written() {
        let mut block = [0xaa; 512];
        write(&mut block).unwrap();
        let info = boot::parse(MAGIC, Hpa::new(0), &|range| {
            block.get(range.start.as_u64() as usize..range.end().as_u64() as usize)
        })
        .unwrap();
        assert_eq!(info.module("nexit.toml").unwrap().range.length, 3);
        assert_eq!(info.memory[0].range.length, 0x10_0000);
        let rsdp = info.rsdp.unwrap().as_u64() as usize;
        assert!(block[rsdp..].starts_with(b"RSD PTR "));
    }

    #[test]
    fn a_block_too_small_is_noticed_at_every_size() {
        let mut block = [0; 512];
        write(&mut block).unwrap();
        let needed = u32::from_le_bytes(*block.first_chunk().unwrap()) as usize;
        for size in 0..needed {
            assert_eq!(write(&mut block[..size]), Err(Full), "{size}");
        }
        assert_eq!(write(&mut block[..needed]), Ok(()));
    }
}
