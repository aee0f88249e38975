//! The CPUs of guests.

use alloc::format;
use alloc::vec::Vec;

use arch::ApicId;
use config::{Config, GuestConfig};

use crate::{Plan, Refusal};

/// More CPUs than this no guest has.
pub const MAX_CPUS: usize = 64;

/// A CPU that the firmware names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cpu {
    /// Its local APIC's identifier.
    pub id: ApicId,
    /// It answered when it was started.
    pub started: bool,
    /// A number that it has in common with the other threads of its core, where the CPU says that.
    pub core: Option<u32>,
}

pub(crate) fn check_count(guest: &GuestConfig, refusals: &mut Vec<Refusal>) {
    let count = guest.cpus.len();
    if count > MAX_CPUS {
        let sentence =
            format!("cpus has {count} CPUs, and {MAX_CPUS} is the most for a guest: give it fewer");
        refusals.push(Refusal::guest(guest, "cpus", sentence));
    }
}

/// The configuration counts CPUs in the order of the MADT.
pub(crate) fn check(guest: &GuestConfig, cpus: &[Cpu], refusals: &mut Vec<Refusal>) {
    check_count(guest, refusals);
    for (index, number) in guest.cpus.iter().enumerate() {
        let sentence = match cpus.get(*number as usize) {
            Some(cpu) if cpu.started => continue,
            Some(cpu) => format!(
                "cpus names CPU {number} (APIC identifier {}), which does not start: choose another",
                cpu.id.0
            ),
            None => format!(
                "cpus names CPU {number}, but the machine has {}, counted from 0: choose among those",
                cpus.len()
            ),
        };
        refusals.push(Refusal::entry(guest, ("cpus", index), sentence));
    }
}

/// Threads of one core share its caches, its buffers and its execution units: guests that have one each slow each other
/// down, and can read what the other works on where the CPU leaks it. So it is refused, or remarked on where the
/// configuration accepts it.
pub(crate) fn check_divided_cores(config: &Config, cpus: &[Cpu], plan: &mut Plan) {
    let (list, advice) = if config.share_cores {
        (&mut plan.remarks, "")
    } else {
        (&mut plan.refusals, ": give both to one guest, or accept it by share_cores = true")
    };
    let core = |number: u32| cpus.get(number as usize).and_then(|cpu| cpu.core);
    for (place, guest) in config.guests.iter().enumerate() {
        for (index, number) in guest.cpus.iter().enumerate() {
            let same = |other: &&u32| core(**other).is_some() && core(**other) == core(*number);
            // Each pair of guests once.
            let others = config.guests.get(place + 1..).unwrap_or_default();
            let other = others.iter().find_map(|it| Some((it, it.cpus.iter().find(same)?)));
            if let Some((other, theirs)) = other {
                let sentence = format!(
                    "cpus has CPU {number}, and guest {} has CPU {theirs}, two threads of one core: \
                     each slows the other down and can learn of it{advice}",
                    other.name
                );
                list.push(Refusal::entry(guest, ("cpus", index), sentence));
            }
        }
    }
}
