//! The one form of LZ4 that Linux takes an initramfs in: the "legacy" frame (lz4's
//! `lz4_Frame_format.md`, "Legacy frame"), a magic number and then blocks, each behind its length.

use std::fs;
use std::path::Path;

use crate::failure::{Failure, OrFailed, Result};
use crate::tool::Tool;

const MAGIC: [u8; 4] = 0x184c_2102_u32.to_le_bytes();

/// Packs `bytes` into the file `output`, which is there as a whole or not at all.
///
/// # Errors
/// lz4 is missing or failed.
pub(super) fn pack(bytes: &[u8], output: &Path) -> Result<()> {
    let folder = output.parent().unwrap_or(Path::new("."));
    let scratch = tempfile::tempdir_in(folder).or_failed("write to", folder)?;
    let (plain, packed) = (scratch.path().join("plain"), scratch.path().join("packed"));
    fs::write(&plain, bytes).or_failed("write", &plain)?;
    Tool::new("lz4").args(["-q", "-f", "-l", "-9"]).arg(&plain).arg(&packed).run()?;
    fs::rename(&packed, output).or_failed("write", output)
}

/// One frame of two: Linux 6.12 refuses a second magic number.
///
/// # Errors
/// The second is no legacy frame.
pub(super) fn join(first: &[u8], second: &[u8]) -> Result<Vec<u8>> {
    let blocks = second.strip_prefix(&MAGIC).filter(|_| first.starts_with(&MAGIC));
    let blocks = blocks.ok_or_else(|| Failure::Failed("lz4 made no legacy frame".to_owned()))?;
    Ok([first, blocks].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lengths of the blocks of a frame, which it consists of to its end.
    fn blocks(frame: &[u8]) -> Vec<usize> {
        let mut rest = frame.strip_prefix(&MAGIC).unwrap();
        let mut lengths = Vec::new();
        while let Some((length, data)) = rest.split_first_chunk() {
            let length = u32::from_le_bytes(*length) as usize;
            lengths.push(length);
            rest = &data[length..];
        }
        assert!(rest.is_empty());
        lengths
    }

    #[test]
    fn joined_frames_are_one_frame_with_all_blocks() {
        let block = |bytes: &[u8]| [&(bytes.len() as u32).to_le_bytes(), bytes].concat();
        let (one, two) =
            ([&MAGIC[..], &block(b"ab")].concat(), [&MAGIC[..], &block(b"c")].concat());
        assert_eq!(blocks(&join(&one, &two).unwrap()), [2, 1]);
        assert!(join(&one, b"what").is_err());
    }
}
