//! The results of a boot: combines the guest's lines (`measure`) and the plugin's windows. Pure.

use std::collections::BTreeMap;

use nexit::failure::{Failure, Result};
use serde::Deserialize;

/// The plugin's window of the work itself, within the command's.
const WORK: u8 = 2;

/// Exits of one reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
pub(crate) struct Cost {
    pub(crate) exits: u64,
    /// Instructions of the hypervisor for them.
    pub(crate) instructions: u64,
}

/// A CPU in a window, as the plugin writes it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
pub(crate) struct Cpu {
    /// Instructions below the hypervisor.
    pub(crate) guest: u64,
    /// Instructions at host level.
    pub(crate) host: u64,
    /// VMRUN instructions.
    pub(crate) switches: u64,
    /// HLT instructions.
    pub(crate) halts: u64,
    /// By exit code.
    pub(crate) by_code: BTreeMap<String, Cost>,
    /// Interrupts by vector, if the handlers' addresses were known.
    #[serde(default)]
    pub(crate) vectors: BTreeMap<String, u64>,
    /// Exit code, address, instructions.
    #[serde(default)]
    pub(crate) profile: Vec<(String, String, u64)>,
}

/// A window; without a number all of the run.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
pub(crate) struct Window {
    /// The program's number for it.
    pub(crate) window: Option<u8>,
    /// By CPU.
    pub(crate) cpus: Vec<Cpu>,
}

impl Cpu {
    fn add(&mut self, other: &Self) {
        self.guest += other.guest;
        self.host += other.host;
        self.switches += other.switches;
        self.halts += other.halts;
        for (code, cost) in &other.by_code {
            let entry = self.by_code.entry(code.clone()).or_default();
            entry.exits += cost.exits;
            entry.instructions += cost.instructions;
        }
        for (vector, count) in &other.vectors {
            *self.vectors.entry(vector.clone()).or_default() += count;
        }
        self.profile.extend(other.profile.iter().cloned());
    }
}

impl Window {
    /// All CPUs together.
    pub(crate) fn sum(&self) -> Cpu {
        let mut sum = Cpu::default();
        self.cpus.iter().for_each(|cpu| sum.add(cpu));
        sum
    }

    fn add(&mut self, other: &Self) {
        self.cpus.resize(self.cpus.len().max(other.cpus.len()), Cpu::default());
        self.cpus.iter_mut().zip(&other.cpus).for_each(|(cpu, other)| cpu.add(other));
    }
}

/// The plugin's lines.
pub(crate) fn windows(text: &str) -> Result<Vec<Window>> {
    let lines = text.lines().map(|line| {
        serde_json::from_str(line)
            .map_err(|error| Failure::Failed(format!("unreadable count ({error}): {line}")))
    });
    lines.collect()
}

/// A piece of work, measured once.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Measured {
    /// Its name.
    pub(crate) work: String,
    pub(crate) operations: u64,
    /// How long it took by the guest's clock.
    pub(crate) ns: u64,
    /// Interrupts by the name of their line in `/proc/interrupts`.
    pub(crate) interrupts: BTreeMap<String, u64>,
    /// The program's output.
    pub(crate) output: Vec<String>,
    /// What went wrong.
    pub(crate) failed: Option<String>,
    /// Instructions and exits of all CPUs.
    pub(crate) counted: Cpu,
    /// Of this, instructions of either level on the first CPU, to which most works are pinned.
    pub(crate) first_cpu: u64,
    /// The numbers of instructions are TSC ticks instead.
    pub(crate) ticks: bool,
}

impl Measured {
    /// The counts of the program itself: `busy=` TSC ticks, `exits=`, exits by reason.
    fn take(&mut self, words: &[&str]) {
        let numbers = words.iter().filter_map(|word| word.split_once('='));
        for (name, number) in numbers.filter_map(|(n, v)| Some((n, v.parse::<u64>().ok()?))) {
            match name {
                "busy" => (self.counted.guest, self.first_cpu) = (number, number),
                "exits" => self.counted.switches = number,
                "reads" | "ms" | "interrupts" | "operations" | "own_cpuid" => {}
                reason => {
                    let cost = Cost { exits: number, instructions: 0 };
                    self.counted.by_code.insert(reason.to_owned(), cost);
                }
            }
        }
    }
}

/// All workloads of a boot, in order. Without the plugin's counts, those of the guest's programs are used.
///
/// # Errors
/// Guest and plugin contradict each other.
pub(crate) fn works(console: &str, counts: Option<&str>) -> Result<Vec<Measured>> {
    let all = counts.map(windows).transpose()?;
    let mut windows = all.map(|all| all.into_iter().filter(|window| window.window.is_some()));
    let mut all: Vec<Measured> = Vec::new();
    for line in console.lines().filter_map(|line| line.split_once("bench: ").map(|(_, rest)| rest))
    {
        let words: Vec<&str> = line.split(' ').collect();
        let [work, fact, rest @ ..] = words.as_slice() else { continue };
        let (work, fact) = (*work, *fact);
        if ["boot", "end", "kvm"].contains(&work) {
            continue;
        }
        if all.last().is_none_or(|last| last.work != work) {
            let window = match &mut windows {
                Some(windows) => next(windows, work)?,
                None => Window::default(),
            };
            all.push(Measured {
                work: work.to_owned(),
                operations: 1,
                counted: window.sum(),
                first_cpu: window.cpus.first().map_or(0, |cpu| cpu.guest + cpu.host),
                ..Default::default()
            });
        }
        let Some(measured) = all.last_mut() else { continue };
        let number = || rest.last().and_then(|word| word.parse().ok()).unwrap_or_default();
        match fact {
            "operations" => measured.operations = u64::max(number(), 1),
            "ns" => measured.ns = number(),
            "interrupt" => {
                let line = rest.first().copied().unwrap_or_default();
                measured.interrupts.insert(line.to_owned(), number());
            }
            "output" => {
                if windows.is_none() {
                    measured.take(rest);
                }
                measured.output.push(rest.join(" "));
            }
            "status" if rest != ["0"] => {
                let text = measured.output.join("; ");
                measured.failed = Some(format!("{work}: {} ({text})", rest.join(" ")));
            }
            _ => {}
        }
    }
    Ok(all)
}

/// All workloads of a boot on a machine whose TSC counts time, not instructions.
///
/// # Errors
/// As [`works`].
pub(crate) fn ticks(console: &str) -> Result<Vec<Measured>> {
    let mut works = works(console, None)?;
    works.iter_mut().for_each(|work| work.ticks = true);
    Ok(works)
}

/// The guest's lines about the machine and its task.
pub(crate) fn facts(console: &str) -> BTreeMap<&str, &str> {
    const NAMES: [(&str, &str); 5] = [
        ("output", "guest"),
        ("settings", "settings"),
        ("tsc", "TSC"),
        ("cpu", "CPU"),
        ("machine", "machine"),
    ];
    let said =
        console.lines().filter_map(|line| line.split_once("bench: boot ")?.1.split_once(' '));
    let fact = |(word, value)| {
        let (_, name) = NAMES.iter().find(|(known, _)| *known == word)?;
        Some((*name, str::trim(value)))
    };
    said.filter_map(fact).filter(|(_, value)| !value.is_empty()).collect()
}

/// The next command's window, or those of the work within it.
fn next(windows: &mut impl Iterator<Item = Window>, work: &str) -> Result<Window> {
    let mut inner: Option<Window> = None;
    for window in windows {
        if window.window != Some(WORK) {
            return Ok(inner.unwrap_or(window));
        }
        inner.get_or_insert_default().add(&window);
    }
    Err(Failure::Failed(format!("the plugin has seen no window of {work}")))
}

/// The word of `docs/guest-interface.md` for an exit code of AMD-V (APM volume 2, "SVM Intercept
/// Codes").
pub(crate) fn reason(code: &str) -> &str {
    match code {
        "0x60" => "external_interrupt",
        "0x61" => "nmi",
        "0x64" => "interrupt_window",
        "0x65" => "control_register",
        "0x6a" | "0x6b" => "descriptor_table",
        "0x72" => "cpuid",
        "0x77" => "pause",
        "0x78" => "halt",
        "0x7b" => "io",
        "0x7c" => "msr",
        "0x81" => "hypercall",
        "0x8d" => "xsetbv",
        "0x400" => "nested_page_fault",
        "0x4b" => "shadow_gate",
        code => code,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNTS: &str = r#"{"window":2,"number":0,"cpus":[{"guest":60,"host":0,"switches":0,"halts":9,"by_code":{}}]}
{"window":2,"number":0,"cpus":[{"guest":40,"host":0,"switches":0,"halts":0,"by_code":{}}]}
{"window":1,"number":1,"cpus":[{"guest":900,"host":50,"switches":1,"halts":9,"by_code":{"0x61":{"exits":1,"instructions":50}}}]}
{"window":1,"number":2,"cpus":[{"guest":5,"host":1,"switches":1,"halts":0,"by_code":{}},{"guest":6,"host":2,"switches":3,"halts":0,"by_code":{}}]}
{"window":null,"number":3,"cpus":[]}
"#;

    #[test]
    fn the_inner_windows_count_and_all_cpus_are_summed() {
        let console = "boot\nbench: boot output 6.1 clock tsc\nbench: a ns 7\nbench: a interrupt nvme0q1 10\n\
                       bench: a output reads=10 ms=1\nbench: a status 0\nbench: a operations 10\n\
                       [  1.0] xbench: b ns 1\nbench: end status 0\n";
        let works = works(console, Some(COUNTS)).unwrap();
        assert_eq!((works.len(), works[0].operations, works[0].counted.guest), (2, 10, 100));
        assert_eq!(works[0].interrupts["nvme0q1"], 10);
        assert_eq!((works[1].counted.guest, works[1].counted.switches), (11, 4));
    }

    #[test]
    fn a_work_that_failed_says_so_and_a_window_that_is_missing_is_an_error() {
        let works = works("bench: a output no device\nbench: a status 1\n", Some(COUNTS)).unwrap();
        assert_eq!(works[0].failed.as_deref(), Some("a: 1 (no device)"));
        assert!(super::works("bench: a ns 1\n", Some("")).is_err());
    }

    #[test]
    fn without_the_plugin_a_program_counts_itself() {
        let console = "bench: ide-qd1 ns 7\nbench: ide-qd1 output reads=10 ms=1 interrupts=10 busy=500 \
                       exits=2 eoi=0 nmi=2 own_cpuid=23\nbench: ide-qd1 operations 10\n";
        let works = works(console, None).unwrap();
        assert_eq!((works[0].counted.guest, works[0].counted.switches), (500, 2));
        assert_eq!((works[0].first_cpu, works[0].counted.by_code["nmi"].exits), (500, 2));
        assert!(!works[0].counted.by_code.contains_key("own_cpuid"));
        assert!(!works[0].ticks && ticks(console).unwrap()[0].ticks);
    }

    #[test]
    fn what_the_guest_says_of_its_machine_is_kept() {
        let console = "bench: boot output 6.1 clock tsc\nlinux: bench: boot tsc 2394.374 MHz\n\
                       bench: boot machine \nbench: boot flags fpu vme\n";
        assert_eq!(
            facts(console),
            BTreeMap::from([("guest", "6.1 clock tsc"), ("TSC", "2394.374 MHz")])
        );
    }
}
