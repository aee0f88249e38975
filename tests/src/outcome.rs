//! What came out of a call of `nexit`.

use std::collections::BTreeMap;
use std::fmt;
use std::process::Output;

use serde_json::Value;

/// Output, exit status, report.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Outcome {
    /// The exit status; `None` where a signal ended it.
    pub status: Option<i32>,
    /// Standard output: the consoles and the summary.
    pub output: String,
    /// Standard error: the tool's own words.
    pub errors: String,
    /// What `--report` wrote; null where it wrote nothing.
    pub report: Value,
}

impl Outcome {
    pub(crate) fn of(output: &Output) -> Self {
        let text = |bytes| String::from_utf8_lossy(bytes).replace('\r', "");
        Self {
            status: output.status.code(),
            output: whole_lines(&text(&output.stdout)),
            errors: text(&output.stderr),
            report: Value::Null,
        }
    }

    /// The guest's line `demo: NAME: ok …`.
    ///
    /// # Panics
    /// There is none, or it says FAILED: the test is over, and the whole output is shown.
    #[must_use]
    pub fn result(&self, name: &str) -> ResultLine {
        let start = format!("demo: {name}: ");
        let line = self.output.lines().find_map(|line| line.trim().strip_prefix(&start));
        let words = line.and_then(|line| line.strip_prefix("ok"));
        assert!(words.is_some(), "{name}: {line:?}\n{self}");
        ResultLine::parse(words.unwrap_or_default())
    }

    /// The same, with nothing but the console of one of several guests as its output.
    #[must_use]
    pub fn of_guest(&self, name: &str) -> Self {
        let lines = self.output.lines();
        let lines = lines.filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        Self { output: lines.collect::<Vec<_>>().join("\n"), ..self.clone() }
    }

    /// The hypervisor's own lines.
    pub fn own_lines(&self) -> impl Iterator<Item = &str> {
        let console =
            self.output.lines().take_while(|line| !line.starts_with("nexit: the run took"));
        console.filter(|line| line.starts_with("nexit: "))
    }

    /// Whether QEMU ended itself by an assertion about its own lock, which no guest may cause: `docs/known-issues.md`,
    /// "QEMU 10.0: AMD-V".
    #[must_use]
    pub fn is_qemus_own_end(&self) -> bool {
        let assertion = |line: &str| line.starts_with("ERROR:") && line.contains("bql_locked())");
        self.output.lines().any(assertion)
    }

    /// What a payload said in a line that begins with these words.
    #[must_use]
    pub fn payload(&self, start: &str) -> Option<&str> {
        let lines = self.output.lines().filter_map(|line| line.strip_prefix("payload: "));
        lines.filter_map(|line| line.strip_prefix(start)).next()
    }

    /// The number that a payload gave for `what`.
    ///
    /// # Panics
    /// It gave none.
    #[must_use]
    pub fn number(&self, what: &str) -> u64 {
        let number = self.payload(&format!("{what}: ")).and_then(|number| number.parse().ok());
        assert!(number.is_some(), "no number for {what}\n{self}");
        number.unwrap_or_default()
    }

    /// The payload came to its end, every check that it made held, and these were among them.
    ///
    /// # Panics
    /// Not so.
    pub fn assert_verdicts(&self, claims: &[&str]) {
        assert_eq!(self.status, Some(0), "{self}");
        assert_eq!(self.payload("done"), Some(""), "{self}");
        assert!(!self.output.contains("FAILED"), "{self}");
        for claim in claims {
            let ok = self.payload(claim).is_some_and(|rest| rest.starts_with(": ok ("));
            assert!(ok, "not shown: {claim}\n{self}");
        }
    }

    /// The hypervisor refused to go on: one sentence, which is returned, and a halt.
    ///
    /// # Panics
    /// It did something else, or panicked.
    #[must_use]
    pub fn refusal(&self) -> &str {
        assert_eq!(self.status, Some(1), "{self}");
        let lines: Vec<&str> = self.own_lines().collect();
        let [.., sentence, "nexit: halted"] = lines.as_slice() else {
            panic!("no halt\n{self}");
        };
        let errors = lines.iter().filter(|line| line.starts_with("nexit: error: ")).count();
        let sentence = sentence.strip_prefix("nexit: error: ");
        assert_eq!((errors, sentence.is_some()), (1, true), "one sentence before the halt\n{self}");
        let sentence = sentence.unwrap_or_default();
        assert!(!sentence.contains("the hypervisor itself"), "{self}");
        let told = format!("nexit: the hypervisor halted: {sentence}");
        assert!(self.errors.contains(&told), "the tool does not say why\n{self}");
        sentence
    }

    /// The outcome of the guest `name` in the report.
    #[must_use]
    pub fn guest_outcome(&self, name: &str) -> Option<&str> {
        let guests = self.report.get("guests")?.as_array()?;
        guests.iter().find(|guest| guest["name"] == name)?.get("outcome")?.as_str()
    }

    /// Exits of this reason over all virtual CPUs of all guests, from the report.
    #[must_use]
    pub fn exits(&self, reason: &str) -> Option<u64> {
        let guests = self.report.get("guests")?.as_array()?;
        let vcpus = guests.iter().filter_map(|guest| guest["vcpus"].as_array()).flatten();
        vcpus.map(|vcpu| vcpu["exits"][reason].as_u64()).sum()
    }

    /// The same of one guest; a CPU that had none does not name the reason.
    #[must_use]
    pub fn guest_exits(&self, name: &str, reason: &str) -> Option<u64> {
        let guests = self.report.get("guests")?.as_array()?;
        let guest = guests.iter().find(|guest| guest["name"] == name)?;
        let vcpus = guest["vcpus"].as_array()?.iter();
        Some(vcpus.filter_map(|vcpu| vcpu["exits"][reason].as_u64()).sum())
    }
}

/// The console with each line in one piece: where another spoke in the middle of a guest's line, its
/// rest (`NAME> `, `docs/console.md`) goes back behind its beginning (`NAME: `).
pub(crate) fn whole_lines(console: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in console.lines() {
        let beginning = line.split_once("> ").and_then(|(name, rest)| {
            let label = format!("{name}: ");
            let of_guest = |line: &&mut String| name != "nexit" && line.starts_with(&label);
            Some((lines.iter_mut().rfind(of_guest)?, rest))
        });
        match beginning {
            Some((beginning, rest)) => beginning.push_str(rest),
            None => lines.push(line.to_owned()),
        }
    }
    lines.iter().flat_map(|line| [line, "\n"]).collect()
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What a guest calls wrong comes first: of a message that is cut, the first line is left.
        let failed = self.output.lines().filter(|line| line.contains("FAILED"));
        let failed = failed.map(|line| format!("{line}; ")).collect::<String>();
        writeln!(f, "--- {failed}status {:?}, output:\n{}", self.status, self.output)?;
        writeln!(f, "--- errors:\n{}", self.errors)
    }
}

/// The numbers of a result line (`reads=10000 interrupts=10004 exits=3 nmi=3 …`).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ResultLine(BTreeMap<String, u64>);

impl ResultLine {
    /// From the words behind `ok`.
    #[must_use]
    pub fn parse(line: &str) -> Self {
        let pairs = line.split_whitespace().filter_map(|word| {
            let (key, value) = word.split_once('=')?;
            Some((key.to_owned(), value.parse().ok()?))
        });
        Self(pairs.collect())
    }

    /// A number that has to be there.
    ///
    /// # Panics
    /// It is not there: the guest did not see the counters, or does not print this one.
    #[must_use]
    pub fn get(&self, key: &str) -> u64 {
        assert!(self.0.contains_key(key), "no {key} in {:?}", self.0);
        self.0.get(key).copied().unwrap_or_default()
    }

    /// Exits of a reason, which is left out of the line where there were none.
    #[must_use]
    pub fn exits(&self, reason: &str) -> u64 {
        self.0.get(reason).copied().unwrap_or_default()
    }

    /// Exits that an interrupt or its EOI caused.
    #[must_use]
    pub fn interrupt_exits(&self) -> u64 {
        self.get("external_interrupt") + self.get("eoi") + self.get("shadow_gate")
    }

    /// Exits of whatever reason but the watchdog's.
    #[must_use]
    pub fn exits_but_the_watchdogs(&self) -> u64 {
        self.get("exits") - self.exits("nmi") - self.exits("preemption_timer")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_others_broke_is_put_together_again() {
        let broken = "nexit: up\na: x\na: payload: on\nb: payload: x: 1\na> e\nnexit: y\na> : 7\na: payload: done\n\
                      nexit> help\nsh> ls\n";
        let output = whole_lines(broken);
        let whole = "nexit: up\na: x\na: payload: one: 7\nb: payload: x: 1\nnexit: y\na: payload: done\n\
                     nexit> help\nsh> ls\n";
        assert_eq!(output, whole);
        let outcome = Outcome { output, ..Outcome::default() };
        assert_eq!(
            (outcome.of_guest("a").number("one"), outcome.of_guest("b").number("x")),
            (7, 1)
        );
        assert_eq!(outcome.of_guest("a").payload("done"), Some(""));
        assert_eq!(outcome.of_guest("b").payload("done"), None);
    }

    #[test]
    fn what_a_guest_calls_wrong_is_in_the_first_line() {
        let output = "nexit: up\na: payload: its memory: FAILED (7)\na: payload: done\n".to_owned();
        let outcome = Outcome { output, status: Some(0), ..Outcome::default() };
        let text = outcome.to_string();
        assert_eq!(
            text.lines().next(),
            Some("--- a: payload: its memory: FAILED (7); status Some(0), output:")
        );
    }

    #[test]
    fn numbers_of_a_result_line_are_read_by_name() {
        let line = " reads=10000 exits=7 external_interrupt=1 eoi=2 shadow_gate=1 nmi=3";
        let line = ResultLine::parse(line);
        assert_eq!((line.get("reads"), line.exits("io")), (10_000, 0));
        assert_eq!((line.interrupt_exits(), line.exits_but_the_watchdogs()), (4, 4));
    }
}
