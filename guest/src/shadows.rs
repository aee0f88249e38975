//! The shadows of the IDTs that a guest's CPUs have loaded: usually one, shared by all of them.
//!
//! Each distinct table has a place; place n uses the machine's shadow pages 2n and 2n + 1. A CPU
//! uses at most one place, so there are never more places in use than CPUs.

use alloc::vec::Vec;

use arch::Gpa;
use eli::ShadowIdt;

/// A shadowed table, and which CPUs have it loaded.
#[derive(Clone, Copy, Debug)]
struct LoadedIdt {
    idt: ShadowIdt,
    /// Bit n for CPU n.
    users: u64,
}

/// All places of a guest.
#[derive(Debug)]
pub(crate) struct Shadows(Vec<Option<LoadedIdt>>);

/// What becomes of the places when a CPU loads another table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Change {
    /// This place is used by nobody any more.
    pub(crate) freed: Option<usize>,
    /// This place is new.
    pub(crate) taken: Option<usize>,
}

impl Shadows {
    /// Room for a guest of `cpus` CPUs.
    pub(crate) fn new(cpus: usize) -> Self {
        Self(alloc::vec![None; cpus])
    }

    /// The table in a place.
    pub(crate) fn table(&self, place: usize) -> Option<ShadowIdt> {
        self.0.get(place).copied().flatten().map(|place| place.idt)
    }

    /// The table that CPU `cpu` has loaded, if it is shadowed.
    pub(crate) fn of_cpu(&self, cpu: usize) -> Option<ShadowIdt> {
        let loaded = |place: &&LoadedIdt| place.users >> (cpu & 63) & 1 != 0;
        self.0.iter().flatten().find(loaded).map(|place| place.idt)
    }

    /// Every table with its place.
    pub(crate) fn tables(&self) -> impl Iterator<Item = (usize, ShadowIdt)> + '_ {
        self.0.iter().enumerate().filter_map(|(at, place)| Some((at, place.as_ref()?.idt)))
    }

    /// Whether a page holds a part of any table.
    pub(crate) fn covers(&self, gpa: Gpa) -> bool {
        self.tables().any(|(_, idt)| idt.page_of(gpa).is_some())
    }

    /// Frees a place whose table has a part in this page, whoever uses it; `true` if there was one.
    pub(crate) fn forget(&mut self, place: usize, gpa: Gpa) -> bool {
        let Some(slot) = self.0.get_mut(place) else { return false };
        slot.take_if(|place| place.idt.page_of(gpa).is_some()).is_some()
    }

    /// CPU `cpu` goes over to `table`, or to none that is shadowed.
    pub(crate) fn load(&mut self, cpu: usize, table: Option<ShadowIdt>) -> Change {
        let bit = 1 << (cpu & 63);
        let mut change = Change::default();
        let mut shared = false;
        for (at, slot) in self.0.iter_mut().enumerate() {
            let Some(place) = slot else { continue };
            if table == Some(place.idt) {
                place.users |= bit;
                shared = true;
                continue;
            }
            place.users &= !bit;
            if place.users == 0 {
                *slot = None;
                change.freed = Some(at);
            }
        }
        if let (false, Some(idt)) = (shared, table)
            && let Some(at) = self.0.iter().position(Option::is_none)
        {
            if let Some(slot) = self.0.get_mut(at) {
                *slot = Some(LoadedIdt { idt, users: bit });
            }
            change.taken = Some(at);
        }
        change
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch::Gva;
    use arch::gate::GateFormat;
    use arch::segment::DescriptorTable;

    fn table(page: u64) -> ShadowIdt {
        let idtr = DescriptorTable { base: Gva::new(page << 12), limit: 0xfff };
        ShadowIdt::new(idtr, GateFormat::Bits64, [Some(Gpa::new(page << 12)), None])
    }

    #[test]
    fn cpus_that_load_the_same_table_share_its_place() {
        let mut shadows = Shadows::new(2);
        let first = shadows.load(0, Some(table(1)));
        assert_eq!(first, Change { freed: None, taken: Some(0) });
        assert_eq!(shadows.load(1, Some(table(1))), Change::default());
        assert_eq!(shadows.of_cpu(1), Some(table(1)));
        assert_eq!(shadows.load(1, None), Change::default(), "the other still uses it");
        assert_eq!((shadows.of_cpu(0), shadows.of_cpu(1)), (Some(table(1)), None));
        assert!(shadows.covers(Gpa::new(0x1008)));
    }

    #[test]
    fn a_table_that_is_given_up_is_no_cpus_any_more() {
        let mut shadows = Shadows::new(2);
        shadows.load(0, Some(table(1)));
        shadows.load(1, Some(table(1)));
        assert!(shadows.forget(0, Gpa::new(0x1008)));
        shadows.load(0, Some(table(2)));
        assert_eq!((shadows.of_cpu(0), shadows.of_cpu(1)), (Some(table(2)), None));
    }

    #[test]
    fn a_place_is_freed_by_its_last_user() {
        let mut shadows = Shadows::new(2);
        shadows.load(0, Some(table(1)));
        shadows.load(1, Some(table(2)));
        let moved = shadows.load(0, Some(table(2)));
        assert_eq!(moved, Change { freed: Some(0), taken: None });
        assert!(!shadows.covers(Gpa::new(0x1000)));
        assert_eq!(shadows.tables().count(), 1);
    }

    #[test]
    fn every_cpu_can_have_a_table_of_its_own() {
        let mut shadows = Shadows::new(3);
        for cpu in 0..3 {
            assert_eq!(shadows.load(cpu, Some(table(cpu as u64 + 1))).taken, Some(cpu));
        }
        let again = shadows.load(1, Some(table(9)));
        assert_eq!(again, Change { freed: Some(1), taken: Some(1) });
    }
}
