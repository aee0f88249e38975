//! The demo's disk: a real ext4 file system with files and their checksums, made without root and
//! without a mount.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::failure::{Failure, OrFailed, Result};
use crate::tool::Tool;

/// 64 cylinders of 16 heads and 63 sectors: an IDE controller has to express the size that way.
const DISK_BYTES: u64 = 64 * 16 * 63 * 512;
/// Name and size in bytes of each file.
const FILES: &[(&str, usize)] =
    &[("empty", 0), ("small.txt", 1000), ("block.bin", 4096), ("large.bin", 1_000_003)];
const PAYLOAD_BYTES: usize = 4 << 20;

/// Makes `disk.img` and `payload.bin` in `output`.
pub(crate) fn build(output: &Path) -> Result<()> {
    let payload = output.join("payload.bin");
    fs::write(&payload, noise(PAYLOAD_BYTES, 7)).or_failed("write", &payload)?;
    let folder = output.join("files");
    fs::create_dir_all(&folder).or_failed("create", &folder)?;
    let mut sums = String::new();
    for (seed, (name, size)) in FILES.iter().enumerate() {
        let path = folder.join(name);
        fs::write(&path, noise(*size, seed as u64 + 1)).or_failed("write", &path)?;
        // Writing to a String cannot fail.
        let _ = writeln!(sums, "{}  {name}", checksum(&path)?);
    }
    let list = folder.join("SHA256SUMS");
    fs::write(&list, sums).or_failed("write", &list)?;
    let image = output.join("disk.img");
    let file = fs::File::create(&image).or_failed("create", &image)?;
    file.set_len(DISK_BYTES).or_failed("size", &image)?;
    let options = ["-q", "-F", "-b", "4096", "-L", "nexit-demo", "-E", "root_owner=0:0", "-d"];
    Tool::new("mkfs.ext4").args(options).arg(&folder).arg(&image).run()
}

/// SHA-256 of a file, in hexadecimal.
pub(crate) fn checksum(path: &Path) -> Result<String> {
    let line = Tool::new("sha256sum").arg(path).output()?;
    let sum = line.split_whitespace().next().map(str::to_owned);
    sum.ok_or_else(|| Failure::Failed(format!("sha256sum says nothing of {}", path.display())))
}

/// Bytes that do not repeat and are the same in every build (Marsaglia's xorshift64).
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(length).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_reproducible_and_differs_by_seed() {
        assert_eq!(noise(1000, 3), noise(1000, 3));
        assert_ne!(noise(16, 1), noise(16, 2));
        assert_ne!(noise(16, 1)[..8], noise(16, 1)[8..]);
    }
}
