//! The instructions of one virtual CPU, by level. Pure.
//!
//! QEMU counts all instructions of a CPU in one counter. At a world switch, the instructions since the last one are
//! added to the level that ends.

use std::collections::BTreeMap;

/// Key of the hypervisor's instructions before the first VMRUN: they belong to no exit code.
pub(crate) const BEFORE_THE_FIRST_ENTRY: u64 = u64::MAX;
/// Key of exits with an unreadable code (a hypervisor whose VMCB is not identity-mapped).
pub(crate) const UNKNOWN: u64 = u64::MAX - 1;
/// Key of the guest's own instructions in the profile.
pub(crate) const GUEST: u64 = u64::MAX - 2;

/// Which level runs. A machine without a hypervisor is at host level all the time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Level {
    /// The hypervisor, or the operating system that owns the machine.
    #[default]
    Host,
    Guest,
}

/// Exits of one code, and the hypervisor's instructions for them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Cost {
    pub(crate) exits: u64,
    /// Instructions from the one after VMRUN to the next VMRUN, which is the last.
    pub(crate) instructions: u64,
}

/// One virtual CPU.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Account {
    /// The level that runs now.
    pub(crate) level: Level,
    /// Instructions of the guest.
    pub(crate) guest: u64,
    /// Instructions of the hypervisor.
    pub(crate) host: u64,
    /// VMRUN instructions.
    pub(crate) switches: u64,
    /// HLT instructions at either level.
    pub(crate) halts: u64,
    /// By exit code (`BEFORE_THE_FIRST_ENTRY`, `UNKNOWN`).
    pub(crate) by_code: BTreeMap<u64, Cost>,
    /// Instructions by exit code (`GUEST`: the guest's) and address, if a profile is wanted.
    pub(crate) profile: BTreeMap<(u64, u64), u64>,
    /// Entries through the gate of each vector: the guest's, or the machine's owner's while there is no guest.
    pub(crate) vectors: BTreeMap<u8, u64>,
    /// The exit that is being handled.
    pub(crate) code: Option<u64>,
    /// The counter at the last booking.
    booked: u64,
}

impl Account {
    /// Adds the instructions since the last call; the counter is at `executed`.
    pub(crate) fn settle(&mut self, executed: u64) {
        let fresh = executed.wrapping_sub(self.booked);
        self.booked = executed;
        match self.level {
            Level::Guest => self.guest += fresh,
            Level::Host => {
                self.host += fresh;
                let code = self.code.unwrap_or(BEFORE_THE_FIRST_ENTRY);
                self.by_code.entry(code).or_default().instructions += fresh;
            }
        }
    }

    /// VMRUN was executed.
    pub(crate) fn enter(&mut self, executed: u64) {
        self.settle(executed);
        self.level = Level::Guest;
        self.switches += 1;
    }

    /// The instruction after VMRUN is about to be executed: an exit of this code.
    pub(crate) fn leave(&mut self, executed: u64, code: u64) {
        self.settle(executed);
        self.level = Level::Host;
        self.code = Some(code);
        self.by_code.entry(code).or_default().exits += 1;
    }

    /// An instruction at this address is about to be executed.
    pub(crate) fn step(&mut self, address: u64) {
        let code = match self.level {
            Level::Guest => GUEST,
            Level::Host => self.code.unwrap_or(BEFORE_THE_FIRST_ENTRY),
        };
        *self.profile.entry((code, address)).or_default() += 1;
    }

    /// The first instruction of this vector's handler is about to be executed. If hypervisor and guest run the same
    /// kernel, the hypervisor's interrupts are not counted.
    pub(crate) fn interrupted(&mut self, vector: u8) {
        if self.level == Level::Guest || self.switches == 0 {
            *self.vectors.entry(vector).or_default() += 1;
        }
    }

    /// The difference from `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let by_code = self.by_code.iter().filter_map(|(code, cost)| {
            let before = earlier.by_code.get(code).copied().unwrap_or_default();
            let exits = cost.exits - before.exits;
            let instructions = cost.instructions - before.instructions;
            (exits + instructions > 0).then_some((*code, Cost { exits, instructions }))
        });
        let profile = self.profile.iter().filter_map(|(key, count)| {
            let fresh = count - earlier.profile.get(key).copied().unwrap_or_default();
            (fresh > 0).then_some((*key, fresh))
        });
        let vectors = self.vectors.iter().filter_map(|(vector, count)| {
            let fresh = count - earlier.vectors.get(vector).copied().unwrap_or_default();
            (fresh > 0).then_some((*vector, fresh))
        });
        Self {
            vectors: vectors.collect(),
            guest: self.guest - earlier.guest,
            host: self.host - earlier.host,
            switches: self.switches - earlier.switches,
            halts: self.halts - earlier.halts,
            by_code: by_code.collect(),
            profile: profile.collect(),
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPUID: u64 = 0x72;

    /// 1,000 instructions of bring-up, then 3 of the guest and a CPUID exit of 100.
    fn one_exit() -> Account {
        let mut account = Account::default();
        account.enter(1000);
        account.leave(1003, CPUID);
        account.enter(1103);
        account
    }

    #[test]
    fn instructions_belong_to_the_level_that_a_world_switch_ends() {
        let account = one_exit();
        assert_eq!((account.host, account.guest, account.switches), (1100, 3, 2));
        assert_eq!(account.by_code[&CPUID], Cost { exits: 1, instructions: 100 });
        let bring_up = Cost { exits: 0, instructions: 1000 };
        assert_eq!(account.by_code[&BEFORE_THE_FIRST_ENTRY], bring_up);
    }

    #[test]
    fn a_window_without_exits_has_nothing_of_the_hypervisors() {
        let before = one_exit();
        let mut after = before.clone();
        after.settle(5103);
        let window = after.since(&before);
        assert_eq!((window.host, window.guest, window.switches), (0, 4000, 0));
        assert!(window.by_code.is_empty());
    }

    #[test]
    fn interrupts_are_the_guests_or_the_bare_machines_but_no_hypervisors() {
        let mut account = Account::default();
        account.interrupted(0x24);
        account.enter(1);
        account.interrupted(0x24);
        account.leave(2, CPUID);
        account.interrupted(0x24);
        assert_eq!(account.vectors[&0x24], 2);
        assert!(account.since(&account.clone()).vectors.is_empty());
    }

    #[test]
    fn steps_are_profiled_under_their_exit_and_apart_from_the_guests_at_the_same_address() {
        let mut account = one_exit();
        account.step(0x20_0000);
        account.leave(1103, CPUID);
        account.step(0x20_0000);
        account.step(0x20_0000);
        assert_eq!(account.profile[&(CPUID, 0x20_0000)], 2);
        assert_eq!(account.profile[&(GUEST, 0x20_0000)], 1);
    }
}
