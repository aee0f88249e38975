//! Bytes for a reader.

use core::fmt;

/// A number of bytes, in the largest unit of which it is a multiple, or in MiB with a tenth.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: u64 = 1 << 20;
        let bytes = self.0;
        match bytes {
            0 => f.write_str("0 MiB"),
            _ if bytes.is_multiple_of(MIB) => write!(f, "{} MiB", bytes >> 20),
            _ if bytes < MIB => write!(f, "{} KiB", bytes.div_ceil(1 << 10)),
            _ => write!(f, "{}.{} MiB", bytes >> 20, (bytes % MIB) * 10 / MIB),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_mib_and_small_ones_in_kib() {
        let text = |bytes| Size(bytes).to_string();
        assert_eq!(text(0), "0 MiB");
        assert_eq!(text(64 << 20), "64 MiB");
        assert_eq!(text(3 << 30), "3072 MiB");
        assert_eq!(text((2 << 20) + (1 << 19)), "2.5 MiB");
        assert_eq!(text(4096), "4 KiB");
        assert_eq!(text(1), "1 KiB");
    }
}
