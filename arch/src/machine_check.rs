//! Machine checks: what is to be done about one, from what the CPU recorded of it (SDM "Machine-Check Architecture"; APM
//! "Machine Check Architecture"; the bits that are read here are the same on both).

use core::fmt;

/// IA32_MCG_STATUS: an instruction after this one can be executed; without, the CPU was in the middle of something.
const RESTART_IP_VALID: u64 = 1 << 0;
/// IA32_MCi_STATUS: the bank says something; it was not corrected; what the CPU holds is not what it was.
const VALID: u64 = 1 << 63;
const UNCORRECTED: u64 = 1 << 61;
const CONTEXT_CORRUPT: u64 = 1 << 57;

/// What a machine check comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MachineCheck {
    /// No bank of this CPU has an error: it is another CPU's, and all were told.
    NotHere,
    /// What the CPU was at is lost, and the CPU goes on.
    Contained(Recorded),
    /// The CPU itself cannot be relied on any more.
    Lost(Recorded),
}

/// The record of an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Recorded {
    /// The bank, and its IA32_MCi_STATUS. None where the CPU only says that it cannot go on where it was.
    pub bank: Option<(u8, u64)>,
    /// IA32_MCG_STATUS.
    pub global: u64,
}

impl fmt::Display for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bank {
            Some((bank, status)) => write!(f, "bank {bank} has status {status:#x}")?,
            None => f.write_str("no bank has an error")?,
        }
        write!(f, ", IA32_MCG_STATUS {:#x}", self.global)
    }
}

/// Judges a machine check by IA32_MCG_STATUS and the banks' IA32_MCi_STATUS. The worst bank decides.
#[must_use]
pub fn judge(global: u64, banks: impl Iterator<Item = u64>) -> MachineCheck {
    let mut worst = None;
    for (bank, status) in (0..).zip(banks) {
        let is_error = status & VALID != 0 && status & UNCORRECTED != 0;
        let worse =
            worst.is_none_or(|(_, before)| before & CONTEXT_CORRUPT < status & CONTEXT_CORRUPT);
        if is_error && worse {
            worst = Some((bank, status));
        }
    }
    let recorded = Recorded { bank: worst, global };
    match worst {
        Some((_, status)) if status & CONTEXT_CORRUPT != 0 => MachineCheck::Lost(recorded),
        None if global & RESTART_IP_VALID != 0 => MachineCheck::NotHere,
        _ => MachineCheck::Contained(recorded),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_bank_decides_and_a_corrected_error_is_none() {
        const UNCORRECTED: u64 = 0xb200_0000_0000_0134 & !CONTEXT_CORRUPT;
        const CORRUPT: u64 = 0xb200_0000_0000_0134;
        const CORRECTED: u64 = 0x9c00_0040_0001_009f;
        const STALE: u64 = CORRUPT & !VALID;
        let of = |bank, status, global| Recorded { bank: Some((bank, status)), global };
        for (what, global, banks, verdict) in [
            ("another CPU's", 5, [0; 4], MachineCheck::NotHere),
            ("corrected", 5, [0, CORRECTED, 0, 0], MachineCheck::NotHere),
            ("left from before", 5, [STALE; 4], MachineCheck::NotHere),
            ("memory", 5, [0, 0, UNCORRECTED, 0], MachineCheck::Contained(of(2, UNCORRECTED, 5))),
            (
                "not restartable",
                6,
                [UNCORRECTED; 4],
                MachineCheck::Contained(of(0, UNCORRECTED, 6)),
            ),
            (
                "nobody says why",
                4,
                [0; 4],
                MachineCheck::Contained(Recorded { bank: None, global: 4 }),
            ),
            ("the core", 4, [UNCORRECTED, CORRUPT, 0, 0], MachineCheck::Lost(of(1, CORRUPT, 4))),
            ("twice", 4, [CORRUPT, UNCORRECTED, CORRUPT, 0], MachineCheck::Lost(of(0, CORRUPT, 4))),
        ] {
            assert_eq!(judge(global, banks.into_iter()), verdict, "{what}");
        }
    }

    #[test]
    fn a_record_is_said_in_one_line() {
        let recorded = Recorded { bank: Some((3, 0xb2 << 56)), global: 5 };
        let said = "bank 3 has status 0xb200000000000000, IA32_MCG_STATUS 0x5";
        assert_eq!(std::format!("{recorded}"), said);
    }
}
