//! The loaded segments of an ELF64 file (System V ABI, "Program Header").

/// A loaded segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Segment {
    /// `p_flags`: 1 = execute, 2 = write, 4 = read.
    pub(crate) flags: u32,
    /// Bytes in memory.
    pub(crate) memory: u64,
}

const LOAD: u32 = 1;
const PROGRAM_HEADER_SIZE: usize = 56;

impl Segment {
    /// What it holds, by its rights.
    pub(crate) const fn name(self) -> &'static str {
        match (self.flags & 1 != 0, self.flags & 2 != 0) {
            (true, false) => "code",
            (false, false) => "read-only data",
            (false, true) => "writable data",
            (true, true) => "writable code",
        }
    }
}

/// The segments in the order of the file; `None` where this is no little-endian ELF64 file.
pub(crate) fn segments(file: &[u8]) -> Option<Vec<Segment>> {
    if file.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let table = usize::try_from(number(file, 0x20, 8)?).ok()?;
    let count = usize::try_from(number(file, 0x38, 2)?).ok()?;
    let mut segments = Vec::new();
    for index in 0..count {
        let header = table.checked_add(index * PROGRAM_HEADER_SIZE)?;
        let flags = number(file, header.checked_add(4)?, 4)? as u32;
        let memory = number(file, header.checked_add(40)?, 8)?;
        if number(file, header, 4)? == u64::from(LOAD) && memory > 0 {
            segments.push(Segment { flags, memory });
        }
    }
    Some(segments)
}

fn number(file: &[u8], offset: usize, size: usize) -> Option<u64> {
    let bytes = file.get(offset..offset.checked_add(size)?)?;
    Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn image() -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01".to_vec();
        file.resize(64 + 2 * PROGRAM_HEADER_SIZE, 0);
        file[0x20] = 64;
        file[0x38] = 2;
        (file[64], file[68], file[64 + 41]) = (1, 5, 0x10);
        file
    }

    #[test]
    fn only_loaded_segments_count() {
        let segments = segments(&image()).unwrap();
        assert_eq!(segments, [Segment { flags: 5, memory: 0x1000 }]);
        assert_eq!(segments[0].name(), "code");
    }

    proptest! {
        #[test]
        fn a_broken_file_is_refused_not_followed(at in 0..176_usize, value: u8, length in 0..177_usize) {
            let mut file = image();
            if let Some(byte) = file.get_mut(at) { *byte = value; }
            file.truncate(length);
            let count = segments(&file).map_or(0, |segments| segments.len());
            prop_assert!(count <= file.len() / PROGRAM_HEADER_SIZE);
        }
    }
}
