//! What the VT-d unit and the devices behind it counted (`tests/machines`).

use std::collections::BTreeMap;

use crate::folder::Folder;
use crate::guest::{Devices, Kernel};
use crate::outcome::Outcome;

/// The plugin writes them here.
const REPORT: &str = "counters";

/// Counters by name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Counters(BTreeMap<String, u64>);

impl Counters {
    /// What a run in `folder` left.
    ///
    /// # Panics
    /// Nothing.
    #[must_use]
    pub fn of(folder: &Folder) -> Self {
        let text = std::fs::read_to_string(folder.path(REPORT)).unwrap_or_default();
        assert!(!text.is_empty(), "the plugin has not written {}", folder.path(REPORT).display());
        let pairs = text.lines().filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Self(pairs.collect())
    }

    /// A counter.
    ///
    /// # Panics
    /// There is none of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> u64 {
        assert!(self.0.contains_key(name), "no {name} in {:?}", self.0);
        self.0.get(name).copied().unwrap_or_default()
    }

    /// The unit was used, never by what it should have been told to forget, and its driver did nothing that is
    /// not allowed.
    ///
    /// # Panics
    /// Not so.
    pub fn assert_clean(&self, outcome: &Outcome) {
        assert!(self.get("descriptors") > 0, "nothing was ever invalidated: {self:?}");
        let bad =
            ["stale_contexts", "stale_translations", "stale_remaps", "driver_errors", "undrained"];
        for name in bad {
            assert_eq!(self.get(name), 0, "{self:?}\n{outcome}");
        }
    }
}

impl Devices {
    /// Bochs with the plugin: these options of it, and a report in `folder`.
    #[must_use]
    pub fn behind_vtd(folder: &Folder, options: &str) -> Self {
        let report = folder.path(REPORT).display().to_string();
        Self::arguments(&[&format!("vtd: report=\"{report}\", {options}")])
    }

    /// The same, with the demo's disk at 00:04.0.
    #[must_use]
    pub fn disk_behind_vtd(folder: &Folder, options: &str) -> Self {
        let disk = Kernel::Cloud.folder().join("disk.img");
        let comma = if options.is_empty() { "" } else { ", " };
        Self::behind_vtd(folder, &format!("nvme=\"4:{}\"{comma}{options}", disk.display()))
    }
}
