//! The keys `devices` and `except`, and what they come to once it is known what the machine has.
//!
//! Invariant: no function comes out for two guests of a [`Config`]: lists are disjoint, and the one
//! guest that has "all" gets nothing that another lists.

use alloc::vec::Vec;

use arch::Bdf;

use crate::{Config, GuestConfig};

/// Which PCI functions a guest owns, as the file says it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Devices {
    /// These.
    Listed(Vec<Bdf>),
    /// `devices = "all"`: every function that no other guest lists, but not these.
    All {
        /// `except`.
        except: Vec<Bdf>,
    },
}

impl Devices {
    /// What the file names, be it listed or excepted: the caller refuses what does not exist, as a
    /// slip in `except` would otherwise give a function away.
    #[must_use]
    pub fn named(&self) -> &[Bdf] {
        match self {
            Self::Listed(functions) | Self::All { except: functions } => functions,
        }
    }

    /// Whether the file gives this function away, should it exist.
    pub(crate) fn has(&self, function: Bdf) -> bool {
        match self {
            Self::Listed(functions) => functions.contains(&function),
            Self::All { except } => !except.contains(&function),
        }
    }

    /// The functions, where `all` is what there is to give: a list as it stands in the file, whether
    /// it exists or not, or what is left of `all`, in its order.
    #[must_use]
    pub fn functions(&self, all: &[Bdf]) -> Vec<Bdf> {
        match self {
            Self::Listed(functions) => functions.clone(),
            Self::All { except } => {
                all.iter().copied().filter(|function| !except.contains(function)).collect()
            }
        }
    }
}

impl Config {
    /// The functions of `guest`, one of [`Config::guests`], on a machine that can give `existing`
    /// away: without bridges and whatever else the hypervisor keeps.
    #[must_use]
    pub fn functions(&self, guest: &GuestConfig, existing: &[Bdf]) -> Vec<Bdf> {
        let others = || self.guests.iter().filter(|other| other.name != guest.name);
        let is_listed = |function: &Bdf| {
            others().any(|other| match &other.devices {
                Devices::Listed(functions) => functions.contains(function),
                Devices::All { .. } => false,
            })
        };
        let free: Vec<Bdf> = existing.iter().copied().filter(|one| !is_listed(one)).collect();
        guest.devices.functions(&free)
    }
}
