//! The FPU's and SSE's registers, as FXSAVE stores them (SDM "FXSAVE Area") and as gdb counts them.

/// What FXSAVE stores in 64-bit mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fxsave(pub [u8; 512]);

impl Default for Fxsave {
    /// As after a reset, but for FCW and MXCSR.
    fn default() -> Self {
        Self([0; 512])
    }
}

const REGISTERS: usize = 8;
/// Where ST0 is; each register has 16 bytes.
const ST0: usize = 32;
const XMM0: usize = 160;
const MXCSR: usize = 24;
/// Which of its bits there are; where that is 0, [`DEFAULT_MASK`] (SDM "Guidelines for Writing to the MXCSR Register").
const MXCSR_MASK: usize = 28;
const DEFAULT_MASK: u32 = 0xffbf;

/// Which registers a tag word does not call empty, as FXSAVE says it.
fn full(tags: u16) -> u8 {
    (0..REGISTERS).fold(0, |all, at| all | u8::from(tags >> (2 * at) & 3 != 3) << at)
}

impl Fxsave {
    /// Empty, and with all bits of MXCSR that a CPU may have.
    #[must_use]
    pub fn of_any_cpu() -> Self {
        let mut empty = Self::default();
        empty.put(MXCSR_MASK, &0xffff_u32.to_le_bytes());
        empty
    }

    fn word(&self, at: usize) -> u16 {
        let byte = |at| self.0.get(at).copied().unwrap_or_default();
        u16::from_le_bytes([byte(at), byte(at + 1)])
    }

    fn dword(&self, at: usize) -> u32 {
        u32::from(self.word(at)) | u32::from(self.word(at + 2)) << 16
    }

    fn bytes(&self, at: usize, length: usize) -> &[u8] {
        self.0.get(at..at + length).unwrap_or_default()
    }

    /// ST0 to ST7, ten bytes each.
    pub(crate) fn stack(&self) -> impl Iterator<Item = u8> {
        (0..REGISTERS).flat_map(|at| self.bytes(ST0 + 16 * at, 10).iter().copied())
    }

    /// XMM0 to XMM15.
    pub(crate) fn vectors(&self) -> &[u8] {
        self.bytes(XMM0, 16 * 16)
    }

    pub(crate) fn mxcsr(&self) -> u32 {
        self.dword(MXCSR)
    }

    /// `fctrl`, `fstat`, `ftag`, `fiseg`, `fioff`, `foseg`, `fooff`, `fop`. In 64-bit mode the pointers have no segments:
    /// gdb has the upper halves there.
    pub(crate) fn control(&self) -> [u32; 8] {
        let words = [self.word(0), self.word(2), self.tags()];
        let [control, status, tags] = words.map(u32::from);
        let code = [self.dword(12), self.dword(8)];
        let data = [self.dword(20), self.dword(16)];
        [control, status, tags, code[0], code[1], data[0], data[1], self.word(6).into()]
    }

    /// Takes what [`Self::stack`], [`Self::control`], [`Self::vectors`] and [`Self::mxcsr`] give, one behind the other;
    /// `None` where that is too short. What FXRSTOR would refuse is left out.
    pub fn set(&mut self, bytes: &[u8]) -> Option<()> {
        let (stack, rest) = bytes.split_at_checked(REGISTERS * 10)?;
        let (control, rest) = rest.split_at_checked(8 * 4)?;
        let (vectors, rest) = rest.split_at_checked(16 * 16)?;
        let mxcsr = u32::from_le_bytes(*rest.first_chunk()?);
        for (at, register) in stack.chunks(10).enumerate() {
            self.put(ST0 + 16 * at, register);
        }
        let control = control.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word));
        let words = [0, 2, 4, 12, 8, 20, 16, 6].into_iter().zip(control);
        for (at, word) in words {
            match at {
                4 => self.put(at, &[full(word as u16)]),
                0 | 2 | 6 => self.put(at, &(word as u16).to_le_bytes()),
                _ => self.put(at, &word.to_le_bytes()),
            }
        }
        self.put(XMM0, vectors);
        let mask = match self.dword(MXCSR_MASK) {
            0 => DEFAULT_MASK,
            mask => mask,
        };
        self.put(MXCSR, &(mxcsr & mask).to_le_bytes());
        Some(())
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.0.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    /// The tag word, of which FXSAVE stores whether a register is empty (SDM "x87 FPU Tag Word").
    fn tags(&self) -> u16 {
        const EMPTY: u16 = 3;
        let top = usize::from(self.word(2) >> 11 & 7);
        (0..REGISTERS).fold(0, |tags, physical| {
            let full = self.word(4) >> physical & 1 != 0;
            let tag = if full { self.tag((physical + REGISTERS - top) % REGISTERS) } else { EMPTY };
            tags | tag << (2 * physical)
        })
    }

    /// Of a register on the stack: valid, zero, or special.
    fn tag(&self, on_stack: usize) -> u16 {
        const VALID: u16 = 0;
        const ZERO: u16 = 1;
        const SPECIAL: u16 = 2;
        let at = ST0 + 16 * on_stack;
        let exponent = self.word(at + 8) & 0x7fff;
        let fraction = u64::from(self.dword(at + 4)) << 32 | u64::from(self.dword(at));
        match (exponent, fraction) {
            (0, 0) => ZERO,
            (0 | 0x7fff, _) => SPECIAL,
            (_, fraction) if fraction >> 63 == 0 => SPECIAL,
            _ => VALID,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_register_is_empty_zero_special_or_valid() {
        let mut it = Fxsave::default();
        assert_eq!(it.control()[2], 0xffff, "all are empty");
        // TOP is 6: ST0 is register 6, ST1 is 7, ST2 is 0.
        it.0[2..4].copy_from_slice(&(6_u16 << 11).to_le_bytes());
        it.0[4] = 0b1100_0001;
        // ST0 is 1.0, ST1 0.0, ST2 an infinity.
        it.0[ST0..ST0 + 10].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f]);
        it.0[ST0 + 32..ST0 + 42].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x7f]);
        assert_eq!(it.control()[2], 0b01_00_11_11_11_11_11_10);
        assert_eq!(it.control()[1], 6 << 11);
        assert_eq!(it.stack().count(), 80);
        assert_eq!(it.stack().take(10).last(), Some(0x3f));
    }

    #[test]
    fn what_gdb_writes_is_where_fxrstor_takes_it() {
        let mut it = Fxsave(core::array::from_fn(|at| at as u8));
        it.0[MXCSR_MASK..MXCSR_MASK + 4].copy_from_slice(&0xffff_u32.to_le_bytes());
        let bytes = |it: &Fxsave| {
            let control = it.control().into_iter().flat_map(u32::to_le_bytes);
            let vectors = it.vectors().iter().copied().chain(it.mxcsr().to_le_bytes());
            it.stack().chain(control).chain(vectors).collect::<Vec<u8>>()
        };
        let mut other = Fxsave::default();
        other.set(&bytes(&it)).unwrap();
        assert_eq!(
            other.mxcsr(),
            0x1918,
            "reserved bits, and those that this CPU lacks, stay clear"
        );
        it.put(MXCSR, &0x1918_u32.to_le_bytes());
        assert_eq!(bytes(&other), bytes(&it));
        assert_eq!(other.0[4], it.0[4]);
        assert_eq!(other.set(&bytes(&it)[..371]), None, "cut off");
    }

    #[test]
    fn pointers_and_vectors_are_where_fxsave_has_them() {
        let it = Fxsave(core::array::from_fn(|at| at as u8));
        assert_eq!(it.mxcsr(), 0x1b1a_1918);
        assert_eq!(it.control()[3..5], [0x0f0e_0d0c, 0x0b0a_0908]);
        assert_eq!(it.control()[7], 0x0706);
        assert_eq!(it.vectors().first_chunk(), Some(&[160, 161, 162]));
        assert_eq!(it.vectors().len(), 256);
    }
}
