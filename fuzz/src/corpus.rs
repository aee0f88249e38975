//! The corpora in the tree: `fuzz/corpus/NAME.txt`, an input a line, in hexadecimal. `#` begins a comment.

use std::fs;
use std::path::{Path, PathBuf};

/// Where a target's inputs are.
#[must_use]
pub fn path(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(format!("{target}.txt"))
}

/// The inputs of a target.
///
/// # Errors
/// When the file is not there or a line is no hexadecimal number of whole bytes.
pub fn read(target: &str) -> Result<Vec<Vec<u8>>, String> {
    let path = path(target);
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with('#'));
    lines
        .map(|(number, line)| {
            capture::bytes::unhex(line.trim())
                .ok_or_else(|| format!("{} line {}: not hexadecimal", path.display(), number + 1))
        })
        .collect()
}

/// An input as a line.
#[must_use]
pub fn line(input: &[u8]) -> String {
    capture::bytes::hex(input)
}
