//! Numbers from a seed.

/// SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators").
pub(crate) struct Random(u64);

impl Random {
    /// What a trial has of chance depends on nothing but the seed, the CPU and the trial's number.
    pub(crate) fn of(seed: u64, cpu: usize, trial: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ trial << 1 ^ cpu as u64);
        random.0 = random.next();
        random
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ value >> 31
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// Whether something comes that does so once in `times`.
    pub(crate) fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    pub(crate) fn one_of<T: Copy>(&mut self, all: &[T], otherwise: T) -> T {
        all.get(self.below(all.len() as u64) as usize).copied().unwrap_or(otherwise)
    }

    /// A value at which something ends, one of few bits, or any.
    pub(crate) fn value(&mut self) -> u64 {
        match self.below(6) {
            0 => self.below(16),
            1 => 1 << self.below(64) | 1 << self.below(64),
            2 => !(1 << self.below(64)),
            3 => self.below(1 << 32),
            4 => self.one_of(&[0, u64::MAX, 1 << 63, (1 << 47) - 1, 1 << 47, 0xffff_ffff], 0),
            _ => self.next(),
        }
    }
}
