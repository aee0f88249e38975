//! The results file: figures with their spread and origin.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use nexit::failure::{Failure, OrFailed, Result};
use nexit::tool::Tool;
use serde::{Deserialize, Serialize};

use crate::bochs::PREFIX;
use crate::growth::GROWTH;
use crate::history;
use crate::mode::Mode;
use crate::reading::{Measured, facts, reason};

/// How a figure was obtained.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum How {
    /// By the TCG plugin: every instruction and world switch. Without it: instructions by the emulator's
    /// TSC, exits by the hypervisor.
    Counted,
    /// By the time-stamp counter, in its ticks.
    Tsc,
    /// By the guest's kernel.
    Reported,
    /// By the guest's clock. In an emulator it is the host's time, which says little.
    Timed,
}

impl How {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Counted, Self::Tsc, Self::Reported, Self::Timed];

    /// As the files of results call it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Counted => "counted",
            Self::Tsc => "tsc",
            Self::Reported => "reported",
            Self::Timed => "timed",
        }
    }
}

/// Instructions of all levels for each operation.
pub(crate) const INSTRUCTIONS: &str = "instructions";
/// Of these, the first CPU's: the second one's background is not the work.
pub(crate) const FIRST_CPU: &str = "instructions of the first CPU";
/// Of these, the hypervisor's.
pub(crate) const HYPERVISOR: &str = "hypervisor instructions";
/// TSC ticks for each operation, of all CPUs that worked on it; used if instructions cannot be counted.
pub(crate) const TICKS: &str = "TSC ticks";
/// Of these, the hypervisor's.
pub(crate) const HYPERVISOR_TICKS: &str = "hypervisor TSC ticks";
/// World switches for each operation.
pub(crate) const EXITS: &str = "exits";
/// World switches for each interrupt that the guest's kernel counted.
pub(crate) const EXITS_PER_INTERRUPT: &str = "exits per interrupt";
/// Exits from the guest's first instruction to its kernel's first program, without the watchdog's.
pub(crate) const EXITS_TO_INIT: &str = "exits to init";
/// Interrupts for each operation.
pub(crate) const INTERRUPTS: &str = "interrupts";
/// Hypervisor instructions for each exit.
pub(crate) const PER_EXIT: &str = "hypervisor instructions per exit";
/// Nanoseconds of the guest for each operation.
pub(crate) const TIME: &str = "ns";
/// In front of an exit reason: exits of it in the whole work.
pub(crate) const BY_REASON: &str = "exits by ";

/// One figure of one work in one mode.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) work: String,
    /// Where.
    pub(crate) mode: Mode,
    /// What (`instructions` …), for each operation unless it says otherwise.
    pub(crate) figure: String,
    /// How it was obtained.
    pub(crate) how: How,
    /// Number of repetitions.
    pub(crate) n: usize,
    /// The least.
    pub(crate) min: f64,
    /// The one in the middle.
    pub(crate) median: f64,
    /// The most.
    pub(crate) max: f64,
}

/// A file of results.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Results {
    /// When, UTC.
    pub(crate) date: String,
    /// The commit.
    pub(crate) revision: String,
    /// The tree held more than the commit.
    pub(crate) modified: bool,
    /// The host, versions, settings, in words.
    pub(crate) machine: BTreeMap<String, String>,
    /// What went wrong, such as a mode that hung.
    pub(crate) notes: Vec<String>,
    pub(crate) figures: Vec<Figure>,
}

impl Results {
    /// The figure that is compared with the bare machine's: of the one CPU that does the work, if there is one. A network
    /// card's interrupts go to either CPU, and KVM's virtual CPUs move.
    pub(crate) fn principal(&self, work: &str, mode: Mode) -> &'static str {
        let both = mode == Mode::Kvm
            || ["ipi", "idle"].contains(&work)
            || work.contains("e1000e")
            || work.contains("igb");
        match self.find(work, mode, TICKS) {
            Some(_) => TICKS,
            None if both => INSTRUCTIONS,
            None => FIRST_CPU,
        }
    }

    /// Adds a guest's facts about its machine; keeps different facts of earlier boots.
    pub(crate) fn add_facts(&mut self, mode: Mode, console: &str) {
        for (name, fact) in facts(console) {
            let said = self.machine.entry(format!("{name}, {}", mode.name())).or_default();
            if said.is_empty() {
                *said = fact.to_owned();
            } else if !said.split("; ").any(|earlier| earlier == fact) {
                *said += &format!("; {fact}");
            }
        }
    }

    /// Whether some of it is in ticks of the TSC: of a machine where nothing is exact.
    pub(crate) fn in_ticks(&self) -> bool {
        self.figures.iter().any(|figure| figure.how == How::Tsc)
    }

    /// Whether they are of `nexit-bench growth`.
    pub(crate) fn is_growth(&self) -> bool {
        self.machine.get("settings").is_some_and(|settings| settings == GROWTH)
    }

    /// Adds the figures of another run; returns the works that they are of.
    pub(crate) fn merge(&mut self, other: Self) {
        let Self { date, revision, modified, machine, notes, figures } = other;
        if self.date.is_empty() {
            (self.date, self.revision, self.modified) = (date, revision, modified);
        } else if (&self.date, &self.revision) != (&date, &revision) {
            self.date = format!("{}; {date}", self.date);
            self.revision = format!("{}; {revision}", self.revision);
            self.modified |= modified;
        }
        for (key, value) in machine {
            let said = self.machine.entry(key).or_default();
            if said.is_empty() {
                *said = value;
            } else if *said != value {
                *said += &format!("; {value}");
            }
        }
        self.notes.extend(notes);
        self.figures.extend(figures);
    }

    /// A figure's median.
    pub(crate) fn median(&self, work: &str, mode: Mode, figure: &str) -> Option<f64> {
        self.find(work, mode, figure).map(|figure| figure.median)
    }

    /// A figure.
    pub(crate) fn find(&self, work: &str, mode: Mode, figure: &str) -> Option<&Figure> {
        let same = |f: &&Figure| f.work == work && f.mode == mode && f.figure == figure;
        self.figures.iter().find(same)
    }

    /// The works, in the order in which they ran.
    pub(crate) fn works(&self) -> Vec<&str> {
        let mut works = Vec::new();
        for figure in &self.figures {
            if !works.contains(&figure.work.as_str()) {
                works.push(figure.work.as_str());
            }
        }
        works
    }

    /// The modes that ran, in their order.
    pub(crate) fn modes(&self) -> Vec<Mode> {
        let ran = |mode: &Mode| self.figures.iter().any(|figure| figure.mode == *mode);
        Mode::ALL.into_iter().filter(ran).collect()
    }
}

/// The figures of one measurement.
pub(crate) fn figures(mode: Mode, measured: &Measured) -> Vec<(String, How, f64)> {
    let counted = &measured.counted;
    let each = |count: u64| count as f64 / measured.operations as f64;
    // On the bare machine there is no hypervisor.
    let hypervisor = if mode == Mode::Bare { 0 } else { counted.host };
    // From the plugin if it knows the handlers, else from the kernel.
    let (vectors, lines) = (&counted.vectors, &measured.interrupts);
    let (how, interrupts): (How, u64) = if vectors.is_empty() {
        (How::Reported, lines.values().sum())
    } else {
        (How::Counted, vectors.values().sum())
    };
    let mut list = if measured.ticks {
        vec![(TICKS.to_owned(), How::Tsc, each(counted.guest))]
    } else {
        vec![
            (INSTRUCTIONS.to_owned(), How::Counted, each(counted.guest + counted.host)),
            (FIRST_CPU.to_owned(), How::Counted, each(measured.first_cpu)),
        ]
    };
    list.push((EXITS.to_owned(), How::Counted, each(counted.switches)));
    if !measured.ticks && !measured.work.starts_with(PREFIX) {
        list.push((HYPERVISOR.to_owned(), How::Counted, each(hypervisor)));
        list.push(("halts".to_owned(), How::Counted, each(counted.halts)));
    }
    if measured.ns > 0 {
        list.push((TIME.to_owned(), How::Timed, each(measured.ns)));
    }
    if interrupts > 0 {
        list.push((INTERRUPTS.to_owned(), how, each(interrupts)));
        let per = counted.switches as f64 / interrupts as f64;
        list.push((EXITS_PER_INTERRUPT.to_owned(), How::Counted, per));
    }
    if mode != Mode::Bare && counted.switches > 0 && hypervisor > 0 {
        let per = hypervisor as f64 / counted.switches as f64;
        list.push((PER_EXIT.to_owned(), How::Counted, per));
    }
    for (vector, count) in vectors {
        list.push((format!("interrupts of vector {vector}, in all"), How::Counted, *count as f64));
    }
    for (line, count) in lines {
        list.push((format!("interrupts of {line}, in all"), How::Reported, *count as f64));
    }
    for (code, cost) in counted.by_code.iter().filter(|(_, cost)| cost.exits > 0) {
        let name = format!("{BY_REASON}{}, in all", reason(code));
        list.push((name, How::Counted, cost.exits as f64));
    }
    list
}

/// Puts the repetitions together.
pub(crate) fn aggregate(runs: &[(Mode, Vec<Measured>)]) -> Vec<Figure> {
    let mut keys: Vec<(String, Mode, String, How)> = Vec::new();
    let mut values: BTreeMap<(String, Mode, String), Vec<f64>> = BTreeMap::new();
    for (mode, works) in runs {
        for measured in works {
            for (figure, how, value) in figures(*mode, measured) {
                let key = (measured.work.clone(), *mode, figure.clone());
                let list = values.entry(key).or_default();
                if list.is_empty() {
                    keys.push((measured.work.clone(), *mode, figure, how));
                }
                list.push(value);
            }
        }
    }
    let of_key = |(work, mode, figure, how): (String, Mode, String, How)| {
        let mut list = values.remove(&(work.clone(), mode, figure.clone())).unwrap_or_default();
        list.sort_by(f64::total_cmp);
        let at = |index: usize| list.get(index).copied().unwrap_or_default();
        let (n, half) = (list.len(), list.len() / 2);
        let median =
            if n % 2 == 1 { at(half) } else { (at(half.saturating_sub(1)) + at(half)) / 2.0 };
        Figure { work, mode, figure, how, n, min: at(0), median, max: at(n.saturating_sub(1)) }
    };
    keys.into_iter().map(of_key).collect()
}

/// What the hypervisor takes for an operation where only the TSC counts: more than on the bare machine.
/// For works that are the same to the instruction otherwise.
pub(crate) fn beyond_bare(results: &Results) -> Vec<Figure> {
    let of = |figure: &Figure| {
        let name = match (figure.figure.as_str(), figure.work.strip_prefix(PREFIX)) {
            (TICKS, None) if figure.work.starts_with("micro-") => HYPERVISOR_TICKS,
            (INSTRUCTIONS, Some(work)) if work.starts_with("micro-") => HYPERVISOR,
            _ => return None,
        };
        let bare = results.median(&figure.work, Mode::Bare, &figure.figure)?;
        let [min, median, max] = [figure.min, figure.median, figure.max].map(|n| n - bare);
        let beyond = Figure { figure: name.to_owned(), min, median, max, ..figure.clone() };
        (figure.mode != Mode::Bare).then_some(beyond)
    };
    results.figures.iter().filter_map(of).collect()
}

/// Date, revision, host and versions.
pub(crate) fn about(kernel: &str) -> Results {
    let say = |program: &str, arguments: &[&str]| {
        let output = Tool::new(program).args(arguments).output().unwrap_or_default();
        output.lines().next().unwrap_or_default().trim().to_owned()
    };
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let machine = BTreeMap::from([
        ("host CPU".to_owned(), model.map_or_else(String::new, |(_, name)| name.to_owned())),
        ("host CPUs".to_owned(), cpus.to_string()),
        ("host load before".to_owned(), load_average()),
        ("emulator".to_owned(), say("qemu-system-x86_64", &["--version"])),
        ("emulator of VT-x".to_owned(), bochs_version()),
        ("guest kernel".to_owned(), kernel.to_owned()),
        ("compiler".to_owned(), say("rustc", &["--version"])),
    ]);
    Results {
        date: say("date", &["--utc", "+%Y-%m-%dT%H:%M:%SZ"]),
        revision: say("git", &["rev-parse", "--short", "HEAD"]),
        modified: !say("git", &["status", "--porcelain"]).is_empty(),
        machine,
        ..Results::default()
    }
}

/// Of the package: asking the program itself starts it.
fn bochs_version() -> String {
    let version = Tool::new("dpkg-query").args(["--show", "bochs"]).output().unwrap_or_default();
    let version = version.trim().replace('\t', " ");
    format!("{version} with an IDE disk; NVMe and micro-costs: Bochs 3 with VT-d")
}

/// The host's, over a minute: what else ran beside.
pub(crate) fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// Reads a file of results.
pub(crate) fn load(path: &Path) -> Result<Results> {
    let text = fs::read_to_string(path).or_failed("read", path)?;
    serde_json::from_str(&text)
        .map_err(|error| Failure::Failed(format!("{}: {error}", path.display())))
}

/// The results in these files and folders, the earliest first. A file may hold a history.
pub(crate) fn history(paths: &[PathBuf]) -> Result<Vec<Results>> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            for entry in fs::read_dir(path).or_failed("list", path)? {
                files.push(entry.or_failed("list", path)?.path());
            }
        } else {
            files.push(path.clone());
        }
    }
    let mut all = Vec::new();
    for path in files {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("json") => all.push(load(&path)?),
            Some("csv") => all.extend(history::read(&path)?),
            _ => {}
        }
    }
    all.sort_by(|a, b| a.date.cmp(&b.date));
    Ok(all)
}

/// Writes a file of results into `folder`, named after date and revision.
pub(crate) fn save(results: &Results, folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder).or_failed("create", folder)?;
    let day: String = results.date.chars().filter(|c| !"-:".contains(*c)).collect();
    let path = folder.join(format!("{day}-{}.json", results.revision));
    write(results, &path)?;
    Ok(path)
}

/// Writes a file of results: a line for each figure.
pub(crate) fn write(results: &Results, path: &Path) -> Result<()> {
    let unwritable = |error| Failure::Failed(format!("cannot write {}: {error}", path.display()));
    let without = Results { figures: Vec::new(), ..results.clone() };
    let head = serde_json::to_string_pretty(&without).map_err(unwritable)?;
    let lines: std::result::Result<Vec<String>, _> =
        results.figures.iter().map(serde_json::to_string).collect();
    let lines = lines.map_err(unwritable)?.join(",\n    ");
    let text = head.replace("\"figures\": []", &format!("\"figures\": [\n    {lines}\n  ]"));
    fs::write(path, text + "\n").or_failed("write", path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reading::{Cost, Cpu};

    fn measured(host: u64) -> Measured {
        let by_code = BTreeMap::from([("0x60".to_owned(), Cost { exits: 20, instructions: host })]);
        Measured {
            work: "reads".to_owned(),
            operations: 10,
            interrupts: BTreeMap::from([("nvme0q1".to_owned(), 10)]),
            counted: Cpu { guest: 1000, host, switches: 20, by_code, ..Cpu::default() },
            ..Measured::default()
        }
    }

    #[test]
    fn figures_are_for_each_operation_with_their_spread() {
        let runs: Vec<_> =
            [900, 100, 200].map(|host| (Mode::Exiting, vec![measured(host)])).to_vec();
        let results = Results { figures: aggregate(&runs), ..Results::default() };
        let figure = results.find("reads", Mode::Exiting, INSTRUCTIONS).unwrap();
        assert_eq!((figure.n, figure.min, figure.median, figure.max), (3, 110.0, 120.0, 190.0));
        assert_eq!(results.median("reads", Mode::Exiting, EXITS_PER_INTERRUPT), Some(2.0));
        let by_reason = "exits by external_interrupt, in all";
        assert_eq!(results.median("reads", Mode::Exiting, by_reason), Some(20.0));
    }

    #[test]
    fn ticks_are_never_called_instructions_and_the_hypervisors_are_those_beyond_bare() {
        let ticks = |guest| Measured {
            work: "micro-eoi".to_owned(),
            ticks: true,
            counted: Cpu { guest, switches: 20, ..Cpu::default() },
            ..measured(0)
        };
        let runs = [(Mode::Bare, vec![ticks(100)]), (Mode::Exiting, vec![ticks(250)])];
        let mut results = Results { figures: aggregate(&runs), ..Results::default() };
        results.figures.extend(beyond_bare(&results));
        assert!(results.in_ticks());
        assert!(!results.figures.iter().any(|figure| figure.figure.contains("instructions")));
        let find = |figure| results.find("micro-eoi", Mode::Exiting, figure).unwrap();
        assert_eq!((find(TICKS).how, find(TICKS).median), (How::Tsc, 25.0));
        assert_eq!((find(HYPERVISOR_TICKS).how, find(HYPERVISOR_TICKS).median), (How::Tsc, 15.0));
        assert_eq!((results.principal("micro-eoi", Mode::Bare), find(EXITS).median), (TICKS, 2.0));
    }

    #[test]
    fn a_file_of_results_has_a_line_for_each_figure_and_reads_back() {
        let figures = aggregate(&[(Mode::Exiting, vec![measured(5)])]);
        let results =
            Results { notes: vec!["\"figures\" : none".to_owned()], figures, ..Results::default() };
        let file = tempfile::NamedTempFile::new().unwrap();
        write(&results, file.path()).unwrap();
        assert_eq!(load(file.path()).unwrap(), results);
        let text = fs::read_to_string(file.path()).unwrap();
        let lines = text.lines().filter(|line| line.contains("\"work\"")).count();
        assert_eq!(lines, results.figures.len());
    }

    #[test]
    fn a_boot_that_took_another_frequency_for_the_tscs_is_seen() {
        let mut results = Results::default();
        for frequency in ["2596.1", "532.3", "2596.1"] {
            results.add_facts(Mode::Bare, &format!("bench: boot tsc {frequency} MHz"));
        }
        assert_eq!(results.machine["TSC, bare"], "2596.1 MHz; 532.3 MHz");
    }

    #[test]
    fn a_bare_machine_has_no_hypervisor() {
        let results = Results {
            figures: aggregate(&[(Mode::Bare, vec![measured(5)])]),
            ..Results::default()
        };
        assert_eq!(results.median("reads", Mode::Bare, HYPERVISOR), Some(0.0));
        assert_eq!(results.median("reads", Mode::Bare, INSTRUCTIONS), Some(100.5));
        assert_eq!((results.works(), results.modes()), (vec!["reads"], vec![Mode::Bare]));
    }
}
