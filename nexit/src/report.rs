//! What the hypervisor reports of a run: collected from its lines on the serial line, written as
//! JSON (`--report`), shown as a table.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The outcome of a guest that powered its machine off.
pub(crate) const POWEROFF: &str = "poweroff";

/// A whole run.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// What the hypervisor says of itself.
    #[serde(flatten)]
    pub(crate) host: Host,
    /// The guests, in the order in which they ended.
    #[serde(default)]
    pub(crate) guests: Vec<Guest>,
}

/// The hypervisor and its machine.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Host {
    /// `vmx` or `svm`.
    pub(crate) backend: String,
    /// `vt-d`, `amd-vi` or `none`.
    pub(crate) iommu: String,
    /// TSC ticks from the loader's jump to the first guest instruction.
    pub(crate) boot_tsc: u64,
    /// Memory that the hypervisor took for itself, in bytes.
    pub(crate) memory_bytes: u64,
    /// Memory that nobody had at that time, in bytes.
    #[serde(default)]
    pub(crate) free_bytes: u64,
}

/// A guest that has ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Guest {
    /// Its name in the configuration.
    pub(crate) name: String,
    /// How it ended: `poweroff`, `reboot`, `crash` …
    pub(crate) outcome: String,
    /// Pages of its nested table at its start, by size: `1G`, `2M`, `4K`.
    #[serde(default)]
    pub(crate) nested_pages: BTreeMap<String, u64>,
    /// Its virtual CPUs.
    #[serde(default)]
    pub(crate) vcpus: Vec<Vcpu>,
}

/// A virtual CPU.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Vcpu {
    /// The physical CPU that it was pinned to.
    pub(crate) cpu: u32,
    /// Exits by reason.
    pub(crate) exits: BTreeMap<String, u64>,
}

/// One report line.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Guest { guest: Guest },
    Host(Host),
}

impl Report {
    /// Takes the JSON of one report line.
    ///
    /// # Errors
    /// A sentence where it is not what was agreed on.
    pub(crate) fn add(&mut self, json: &str) -> Result<(), String> {
        match serde_json::from_str(json) {
            Ok(Line::Guest { guest }) => self.guests.push(guest),
            Ok(Line::Host(host)) => self.host = host,
            Err(error) => return Err(format!("unreadable report line ({error}): {json}")),
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    /// The summary: one row per virtual CPU, reasons by falling count. A guest's name and outcome
    /// stand in its first row only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Host { backend, iommu, memory_bytes, .. } = &self.host;
        if !backend.is_empty() {
            let kib = memory_bytes / 1024;
            writeln!(f, "back end {backend}, IOMMU {iommu}, {kib} KiB of memory taken")?;
        }
        let rows: Vec<[String; 5]> = self.guests.iter().flat_map(rows).collect();
        if rows.is_empty() {
            return Ok(());
        }
        let header = ["guest", "outcome", "cpu", "exits", "by reason"].map(str::to_owned);
        let table = || std::iter::once(&header).chain(&rows);
        let width = |column: usize| {
            table()
                .map(|row| row.get(column).map_or(0, |cell| cell.chars().count()))
                .max()
                .unwrap_or(0)
        };
        let widths = [width(0), width(1), width(2), width(3)];
        for [guest, outcome, cpu, exits, reasons] in table() {
            writeln!(
                f,
                "{guest:0$}  {outcome:1$}  {cpu:>2$}  {exits:>3$}  {reasons}",
                widths[0], widths[1], widths[2], widths[3]
            )?;
        }
        Ok(())
    }
}

fn rows(guest: &Guest) -> Vec<[String; 5]> {
    let [name, outcome] = [&guest.name, &guest.outcome].map(String::clone);
    if guest.vcpus.is_empty() {
        return vec![[name, outcome, "-".to_owned(), "-".to_owned(), String::new()]];
    }
    let of_vcpu = |(index, vcpu): (usize, &Vcpu)| {
        let (name, outcome) =
            if index == 0 { (name.clone(), outcome.clone()) } else { Default::default() };
        let total = vcpu.exits.values().fold(0u64, |sum, count| sum.saturating_add(*count));
        let mut by_count: Vec<_> = vcpu.exits.iter().collect();
        by_count.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let words: Vec<String> =
            by_count.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        [name, outcome, vcpu.cpu.to_string(), total.to_string(), words.join(", ")]
    };
    guest.vcpus.iter().enumerate().map(of_vcpu).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = r#"{"backend":"svm","iommu":"vt-d","boot_tsc":7,"memory_bytes":4096,
        "free_bytes":8192}"#;
    const GUEST: &str = r#"{"guest":{"name":"linux","outcome":"poweroff","nested_pages":{"1G":1,"2M":2,"4K":3},"vcpus":
        [{"cpu":0,"exits":{"cpuid":5,"msr":20,"eoi":0}}]}}"#;

    fn report() -> Report {
        let mut report = Report::default();
        report.add(HOST).unwrap();
        report.add(GUEST).unwrap();
        report
    }

    #[test]
    fn the_file_has_the_documented_shape() {
        let json: serde_json::Value = serde_json::to_value(report()).unwrap();
        let expected = serde_json::json!({
            "backend": "svm", "iommu": "vt-d", "boot_tsc": 7, "memory_bytes": 4096,
            "free_bytes": 8192,
            "guests": [{ "name": "linux", "outcome": "poweroff",
                "nested_pages": { "1G": 1, "2M": 2, "4K": 3 },
                "vcpus": [{ "cpu": 0, "exits": { "cpuid": 5, "msr": 20, "eoi": 0 } }] }]
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn the_summary_lists_reasons_by_falling_count() {
        let text = report().to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "back end svm, IOMMU vt-d, 4 KiB of memory taken");
        assert_eq!(lines[1], "guest  outcome   cpu  exits  by reason");
        assert_eq!(lines[2], "linux  poweroff    0     25  msr 20, cpuid 5, eoi 0");
    }

    /// A second guest, with two virtual CPUs.
    const SMP: &str = r#"{"guest":{"name":"größer","outcome":"crash","vcpus":
        [{"cpu":2,"exits":{"ipi":123456,"eoi":0}},{"cpu":11,"exits":{"eoi":0}}]}}"#;

    #[test]
    fn all_guests_and_all_their_cpus_stand_in_one_table() {
        let mut report = report();
        report.add(SMP).unwrap();
        report.add(r#"{"guest":{"name":"b","outcome":"reboot"}}"#).unwrap();
        let text = report.to_string();
        let lines: Vec<&str> = text.lines().map(str::trim_end).skip(1).collect();
        let expected = [
            "guest   outcome   cpu   exits  by reason",
            "linux   poweroff    0      25  msr 20, cpuid 5, eoi 0",
            "größer  crash       2  123456  ipi 123456, eoi 0",
            "                   11       0  eoi 0",
            "b       reboot      -       -",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn all_guests_stand_in_one_file_in_the_order_in_which_they_ended() {
        let mut report = report();
        report.add(SMP).unwrap();
        let json = serde_json::to_string(&report).unwrap();
        let read: Report = serde_json::from_str(&json).unwrap();
        assert_eq!(read, report);
        let guests: Vec<_> = read.guests.iter().map(|g| (g.name.as_str(), g.vcpus.len())).collect();
        assert_eq!(guests, [("linux", 1), ("größer", 2)]);
    }

    #[test]
    fn a_run_without_guests_has_no_table() {
        assert_eq!(Report::default().to_string(), "");
    }

    #[test]
    fn a_line_that_was_cut_is_named_and_changes_nothing() {
        let mut report = report();
        let error = report.add(r#"{"guest":{"name":"b"#).unwrap_err();
        assert!(error.contains(r#"{"name":"b"#), "{error}");
        assert!(report.add("{}").is_err());
        assert_eq!(report.guests.len(), 1);
    }
}
