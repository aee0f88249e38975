//! What is kept of the faults that an IOMMU records, and which of them are worth a line.
//!
//! Invariant: a guest that has its devices fault for ever uses up its own lines and nobody else's.

use arch::iommu::Fault;
use arrayvec::ArrayVec;

/// Faults of one owner that are logged one by one; the rest is counted.
const MAX_LOGGED: u8 = 16;
/// Functions that are told apart.
const MAX_FUNCTIONS: usize = 16;
/// Owners that are told apart, and one place for all else.
const OWNERS: usize = 17;

/// What is to be said of a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Said {
    /// All.
    Whole,
    /// That more of this owner's follow.
    MoreFollow,
    Nothing,
}

/// All faults so far.
#[derive(Clone, Debug)]
pub struct FaultLog {
    total: u32,
    overflows: u32,
    functions: ArrayVec<(Fault, u32), MAX_FUNCTIONS>,
    logged: [u8; OWNERS],
}

impl FaultLog {
    /// None yet.
    #[must_use]
    pub const fn new() -> Self {
        let functions = ArrayVec::new_const();
        Self { total: 0, overflows: 0, functions, logged: [0; OWNERS] }
    }

    /// Counts a fault of a function that belongs to guest `owner`.
    pub fn note(&mut self, fault: Fault, owner: Option<usize>) -> Said {
        self.total = self.total.saturating_add(1);
        match self.functions.iter_mut().find(|(known, _)| known.source == fault.source) {
            Some((known, count)) => (*known, *count) = (fault, count.saturating_add(1)),
            // What finds no room is in the sum.
            None => drop(self.functions.try_push((fault, 1))),
        }
        let place = owner.unwrap_or(OWNERS).min(OWNERS - 1);
        let Some(logged) = self.logged.get_mut(place) else { return Said::Nothing };
        let before = *logged;
        *logged = before.saturating_add(1);
        match before {
            0..MAX_LOGGED => Said::Whole,
            MAX_LOGGED => Said::MoreFollow,
            _ => Said::Nothing,
        }
    }

    /// The unit had no room for this many. Whether that is to be said: the first time.
    pub fn overflowed(&mut self, times: u32) -> bool {
        let first = self.overflows == 0 && times > 0;
        self.overflows = self.overflows.saturating_add(times);
        first
    }

    /// How many there were.
    #[must_use]
    pub const fn total(&self) -> u32 {
        self.total
    }

    /// How often the unit's records overflowed.
    #[must_use]
    pub const fn overflows(&self) -> u32 {
        self.overflows
    }

    /// The last fault of each function, and how many it had.
    #[must_use]
    pub fn functions(&self) -> &[(Fault, u32)] {
        &self.functions
    }
}

impl Default for FaultLog {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch::Bdf;

    fn fault(device: u8, address: u64) -> Fault {
        let source = Bdf::new(0, device, 0);
        Fault { source, address, write: true, interrupt: false, reason: 5, meaning: "of a test" }
    }

    #[test]
    fn a_guest_that_floods_the_log_takes_no_line_of_another() {
        let mut log = FaultLog::new();
        let mut said = [0; 3];
        for address in 0..1000 {
            said[log.note(fault(3, address), Some(0)) as usize] += 1;
        }
        assert_eq!(said, [16, 1, 983]);
        assert_eq!(log.note(fault(4, 1), Some(1)), Said::Whole, "a neighbour");
        assert_eq!(log.note(fault(5, 1), None), Said::Whole, "nobody's");
        assert_eq!(log.note(fault(6, 1), Some(400)), Said::Whole, "as nobody's");
        assert_eq!(log.total(), 1003);
        assert_eq!(log.functions()[0], (fault(3, 999), 1000));
    }

    #[test]
    fn more_functions_than_there_is_room_for_are_in_the_sum() {
        let mut log = FaultLog::default();
        for device in 0..20 {
            log.note(fault(device, 0), Some(usize::from(device)));
        }
        assert_eq!((log.total(), log.functions().len()), (20, 16));
    }

    #[test]
    fn an_overflow_is_said_once() {
        let mut log = FaultLog::new();
        assert!(!log.overflowed(0));
        assert!(log.overflowed(2));
        assert!(!log.overflowed(1));
        assert_eq!(log.overflows(), 3);
    }
}
