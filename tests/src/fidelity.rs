//! The same payload on the bare machine and under Nexit must say the same: facts of the CPU and its local APIC, a line
//! each (`tests/payload/src/bin/fidelity`). What differs stands in `tests/fidelity/differences.toml`, with the reason.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use serde::Deserialize;

use crate::bare;
use crate::emulator::Emulator;
use crate::folder::{Folder, build_folder, project_folder};
use crate::guest::{Devices, Payload, first_cpus};

/// A payload that prints facts, and the CPUs that it wants.
struct Program {
    name: &'static str,
    /// QEMU's and Bochs's model, if not that of `nexit run`.
    cpu: Option<(&'static str, &'static str)>,
    /// How many.
    cpus: u32,
}

const PROGRAMS: [Program; 4] = [
    Program { name: "fidelity", cpu: None, cpus: 1 },
    Program { name: "modes", cpu: None, cpus: 1 },
    // The CPUs of which CPUID announces most.
    Program { name: "features", cpu: Some(("max", "tigerlake")), cpus: 1 },
    Program { name: "pair", cpu: None, cpus: 2 },
];

impl Program {
    /// What is said behind `nexit run`'s options, and to the emulator, so that it has this CPU. KVM's is the host's.
    fn words(&self, emulator: Emulator) -> Vec<&'static str> {
        match (self.cpu, emulator) {
            (Some((model, _)), Emulator::Qemu) => vec!["--", "-cpu", model],
            (Some((_, model)), Emulator::Bochs | Emulator::BochsVtd) => {
                vec!["--bochs-model", model]
            }
            // Nested it is that of the Linux with KVM.
            (None, _) | (_, Emulator::Nested) => Vec::new(),
        }
    }
}

/// Where the payloads run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Column {
    /// On the machine itself.
    Bare,
    /// Under Nexit, in this mode.
    Nexit(&'static str),
}

impl Column {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Nexit(mode) => mode,
        }
    }
}

/// The modes of Nexit that `emulator` has.
#[must_use]
pub const fn modes(emulator: Emulator) -> &'static [&'static str] {
    match emulator {
        // KVM does not give the guest's hypervisor posted interrupts where it has none itself, as in Bochs' usual CPU.
        Emulator::Qemu | Emulator::Nested => &["exitless", "exiting"],
        Emulator::Bochs | Emulator::BochsVtd => &["exitless", "exiting", "posted"],
    }
}

/// What a payload said: fact, and what was seen.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Facts(pub BTreeMap<String, String>);

impl Facts {
    /// From a console.
    ///
    /// # Errors
    /// A fact is said twice, or there is none.
    pub fn read(console: &str) -> Result<Self, String> {
        let mut facts = BTreeMap::new();
        let lines = console.lines().filter_map(|line| line.strip_prefix("payload: fact: "));
        for line in lines {
            let (fact, seen) = line.split_once(" = ").ok_or_else(|| format!("no fact: {line}"))?;
            // The fact's own words may have an equals sign in them: what was seen has none before it.
            let (fact, seen) = line.rsplit_once(" = ").unwrap_or((fact, seen));
            if facts.insert(fact.to_owned(), seen.trim().to_owned()).is_some() {
                return Err(format!("said twice: {fact}"));
            }
        }
        if facts.is_empty() { Err(format!("no facts\n{console}")) } else { Ok(Self(facts)) }
    }

    /// What [`facts`] saw here last, if it has been here.
    #[must_use]
    pub fn last(emulator: Emulator, column: Column) -> Option<Self> {
        let text = std::fs::read_to_string(Self::place(emulator, column)).ok()?;
        Self::read(&text).ok()
    }

    fn keep(&self, emulator: Emulator, column: Column) -> Result<(), String> {
        let mut text = String::new();
        for (fact, seen) in &self.0 {
            let _ = writeln!(text, "payload: fact: {fact} = {seen}");
        }
        let place = Self::place(emulator, column);
        let folder = place.parent().map_or(Ok(()), std::fs::create_dir_all);
        let kept = folder.and_then(|()| std::fs::write(&place, text));
        kept.map_err(|error| format!("cannot write {}: {error}", place.display()))
    }

    fn place(emulator: Emulator, column: Column) -> PathBuf {
        build_folder().join(format!("fidelity/{emulator}-{}.txt", column.name()))
    }
}

/// Runs all payloads in one column.
///
/// # Errors
/// One did not come to its end.
pub fn facts(emulator: Emulator, column: Column) -> Result<Facts, String> {
    let mut all = Facts::default();
    for program in PROGRAMS {
        let cpu = program.words(emulator);
        let Program { name: program, cpus, .. } = program;
        let folder = Folder::new(&format!("{program}-{emulator}-{}", column.name()));
        let console = match column {
            Column::Bare => {
                bare::run(emulator, &folder, &Payload::new(program).path(), cpus, &cpu)?
            }
            Column::Nexit(mode) => {
                let further = format!("interrupts = \"{mode}\"");
                let cpus = first_cpus(cpus);
                let nested = emulator == Emulator::Nested;
                let (command_line, timeout) = if nested { ("shared", "3600") } else { ("", "300") };
                let payload =
                    Payload { cpus, command_line, further: &further, ..Payload::new(program) };
                let options = [emulator.options(), &["--timeout", timeout], &cpu].concat();
                let outcome = folder.run(&payload.toml(), &options, &Devices::none());
                if outcome.payload("done").is_none() {
                    return Err(format!("{program}, {mode}: not done\n{outcome}"));
                }
                outcome.output
            }
        };
        all.0.extend(Facts::read(&console)?.0);
    }
    all.keep(emulator, column)?;
    Ok(all)
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl OneOrMore {
    fn has(&self, seen: &str) -> bool {
        match self {
            Self::One(known) => known == seen,
            Self::More(known) => known.iter().any(|known| known == seen),
        }
    }
}

/// A difference that is known.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Known {
    /// What the facts begin with.
    facts: String,
    /// `qemu`, `bochs`, `bochs-vtd`, `nested`; all if it is left out.
    #[serde(default)]
    emulators: Vec<String>,
    /// The modes; all if it is left out.
    #[serde(default)]
    modes: Vec<String>,
    /// What is seen under Nexit.
    under_nexit: OneOrMore,
    /// Why.
    reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    difference: Vec<Known>,
}

/// The differences that are known.
///
/// # Panics
/// The file is not as its own head says.
#[must_use]
pub fn known() -> Vec<Known> {
    let path = project_folder().join("tests/fidelity/differences.toml");
    let text = std::fs::read_to_string(&path).map_err(|error| error.to_string());
    let list: Result<List, String> =
        text.and_then(|text| toml::from_str(&text).map_err(|error| error.to_string()));
    assert!(list.is_ok(), "{}: {:?}", path.display(), list.err());
    list.map(|list| list.difference).unwrap_or_default()
}

impl Known {
    fn is(&self, emulator: Emulator, mode: &str, fact: &str, seen: &str) -> bool {
        let any =
            |names: &[String], name: &str| names.is_empty() || names.iter().any(|n| n == name);
        fact.starts_with(&self.facts)
            && any(&self.emulators, &emulator.to_string())
            && any(&self.modes, mode)
            && self.under_nexit.has(seen)
    }
}

/// One fact that is not the same.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    pub fact: String,
    /// On the bare machine.
    pub bare: String,
    pub under_nexit: String,
    /// Why, if it is known.
    pub reason: Option<String>,
}

/// What differs between two columns.
#[must_use]
pub fn compare(
    emulator: Emulator,
    mode: &str,
    bare: &Facts,
    under_nexit: &Facts,
    known: &[Known],
) -> Vec<Difference> {
    let names: std::collections::BTreeSet<&String> =
        bare.0.keys().chain(under_nexit.0.keys()).collect();
    let say = |facts: &Facts, name: &String| {
        facts.0.get(name).map_or_else(|| "not said".to_owned(), Clone::clone)
    };
    let pairs = names.into_iter().map(|name| (name, say(bare, name), say(under_nexit, name)));
    let different = pairs.filter(|(_, bare, under_nexit)| bare != under_nexit);
    let explained = different.map(|(fact, bare, under_nexit)| {
        let reason = known.iter().find(|known| known.is(emulator, mode, fact, &under_nexit));
        let reason = reason.map(|known| known.reason.clone());
        Difference { fact: fact.clone(), bare, under_nexit, reason }
    });
    explained.collect()
}

/// The differences as text, a line each.
#[must_use]
pub fn text(differences: &[Difference]) -> String {
    differences.iter().fold(
        String::new(),
        |mut text, Difference { fact, bare, under_nexit, .. }| {
            let _ = writeln!(text, "{fact}: bare {bare}; under Nexit {under_nexit}");
            text
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(console: &str) -> Facts {
        Facts::read(console).unwrap()
    }

    #[test]
    fn a_fact_is_what_stands_before_the_last_equals_sign() {
        let facts =
            facts("x\npayload: fact: priority: TPR after CR8 = 15 = 0xf0 \npayload: done\n");
        assert_eq!(facts.0.get("priority: TPR after CR8 = 15").map(String::as_str), Some("0xf0"));
        assert!(Facts::read("payload: fact: a = 1\npayload: fact: a = 1\n").is_err());
        assert!(
            Facts::read("payload: done\n").is_err(),
            "a payload that says nothing is not equal"
        );
    }

    #[test]
    fn what_one_column_does_not_say_differs_and_only_a_known_difference_has_a_reason() {
        let known = [Known {
            facts: "b".to_owned(),
            emulators: vec!["qemu".to_owned()],
            modes: Vec::new(),
            under_nexit: OneOrMore::One("2".to_owned()),
            reason: "so".to_owned(),
        }];
        let bare = facts("payload: fact: a = 1\npayload: fact: b = 1\npayload: fact: c = 1\n");
        let under = facts("payload: fact: a = 1\npayload: fact: b = 2\n");
        let reasons = |emulator, under| -> Vec<(String, Option<String>)> {
            let list = compare(emulator, "exitless", &bare, under, &known);
            list.into_iter().map(|difference| (difference.fact, difference.reason)).collect()
        };
        let b = |reason: Option<&str>| ("b".to_owned(), reason.map(str::to_owned));
        let c = ("c".to_owned(), None);
        assert_eq!(reasons(Emulator::Qemu, &under), [b(Some("so")), c.clone()]);
        assert_eq!(reasons(Emulator::Bochs, &under), [b(None), c.clone()]);
        let other = facts("payload: fact: a = 1\npayload: fact: b = 3\n");
        assert_eq!(reasons(Emulator::Qemu, &other), [b(None), c]);
    }

    #[test]
    fn each_difference_has_a_reason_of_its_own_and_says_what_is_seen() {
        let several: List = toml::from_str(
            "[[difference]]\nfacts = \"a\"\nunder_nexit = [\"1\", \"2\"]\nreason = \"so\"\n",
        )
        .unwrap();
        let is = |seen| several.difference[0].is(Emulator::Qemu, "exiting", "a: b", seen);
        assert_eq!(["1", "2", "3"].map(is), [true, true, false]);
        // The page has them in another order.
        assert!(known().iter().all(|known| !known.reason.contains("as above")));
    }
}
