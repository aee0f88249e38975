//! What became of a run, from the lines that the hypervisor prints. A pure state machine: lines in,
//! verdict out.

use crate::console::REPORT_PREFIX;
use crate::failure::{Failure, Result};
use crate::report::{POWEROFF, Report};

/// The last line of every run that comes to its end.
const ALL_ENDED: &str = "nexit: all guests have ended";
/// What the hypervisor says when it will not go on: a refusal, or a panic.
const HALTED: &str = "nexit: halted";
/// What opens the sentence that says why.
const ERROR: &str = "nexit: error: ";

/// What QEMU says when KVM cannot go on with the guest: the machine stands still from then on, and QEMU does not end.
const KVM_STOPPED: [&str; 2] = ["KVM: entry failed", "KVM internal error"];
/// What it shows last of the CPU that stands still.
const KVM_STANDS_AT: &str = "Code=";

/// How far the run is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    /// Guests run, or are about to.
    Running,
    /// All guests have ended; the machine powers itself off.
    Ended,
    /// The hypervisor stopped, or the machine below it; nothing more will come.
    Halted,
}

/// Follows a run.
#[derive(Debug)]
pub(crate) struct Verdict {
    /// What has been reported so far.
    pub(crate) report: Report,
    /// How far the run is.
    pub(crate) phase: Phase,
    /// Why KVM does not go on with the machine.
    kvm: Option<String>,
    errors: Vec<String>,
    expected: Vec<String>,
}

impl Verdict {
    /// A verdict on the guests of these names.
    pub(crate) fn new(guests: impl IntoIterator<Item = String>) -> Self {
        Self {
            report: Report::default(),
            phase: Phase::Running,
            kvm: None,
            errors: Vec::new(),
            expected: guests.into_iter().collect(),
        }
    }

    /// Takes one line of the console.
    pub(crate) fn line(&mut self, line: &str) {
        let line = line.trim_matches(['\r', '\n', ' ']);
        if let Some(json) = line.strip_prefix(REPORT_PREFIX.trim_end()) {
            if let Err(error) = self.report.add(json.trim()) {
                self.errors.push(error);
            }
        } else if let Some(error) = line.strip_prefix(ERROR) {
            self.errors.push(error.to_owned());
        } else if KVM_STOPPED.iter().any(|start| line.starts_with(start)) {
            self.kvm = Some(line.to_owned());
        } else if self.kvm.is_some() && line.starts_with(KVM_STANDS_AT) {
            self.phase = Phase::Halted;
        } else if self.phase == Phase::Running {
            // The first of the two counts: a machine that cannot power itself off halts at the end.
            self.phase = match line {
                HALTED => Phase::Halted,
                ALL_ENDED => Phase::Ended,
                _ => Phase::Running,
            };
        }
    }

    /// The verdict, once the machine has stopped.
    ///
    /// # Errors
    /// `Failed` with the reason: a refusal, a machine that stopped by itself, or the guests that did
    /// not power off.
    pub(crate) fn conclude(&self) -> Result<()> {
        let reason = match self.phase {
            _ if let Some(kvm) = &self.kvm => {
                format!("KVM cannot go on with the machine, which is no fault of a guest: {kvm}")
            }
            Phase::Halted => self.errors.last().map_or_else(
                || "the hypervisor halted without a reason".to_owned(),
                |error| format!("the hypervisor halted: {error}"),
            ),
            Phase::Running => {
                let reports =
                    self.expected.iter().filter_map(|name| self.last_generation(name)).count();
                let of = self.expected.len();
                let so_far =
                    format!("the machine stopped before all guests ended ({reports} of {of})");
                match self.errors.last() {
                    None => so_far,
                    Some(error) => format!("{so_far}; last error: {error}"),
                }
            }
            Phase::Ended => match self.unhappy_guests() {
                failed if failed.is_empty() => return Ok(()),
                failed => failed.join("; "),
            },
        };
        Err(Failure::Failed(reason))
    }

    /// How a guest ended for the last time: one that was restarted has reported each end, and those
    /// before the last were dealt with as the configuration says.
    fn last_generation(&self, name: &str) -> Option<&str> {
        let guest = self.report.guests.iter().rfind(|guest| guest.name == name);
        guest.map(|guest| guest.outcome.as_str())
    }

    fn unhappy_guests(&self) -> Vec<String> {
        let of_guest = |name: &String| match self.last_generation(name) {
            Some(POWEROFF) => None,
            Some(other) => Some(format!("guest {name} did not power off: {other}")),
            None => Some(format!("guest {name} ended without a report")),
        };
        self.expected.iter().filter_map(of_guest).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(lines: &[&str]) -> Verdict {
        let mut verdict = Verdict::new(["a".to_owned(), "b".to_owned()]);
        lines.iter().for_each(|line| verdict.line(line));
        verdict
    }

    fn sentence(lines: &[&str]) -> String {
        verdict(lines).conclude().unwrap_err().to_string()
    }

    const A: &str = r#"nexit-report: {"guest":{"name":"a","outcome":"poweroff"}}"#;
    const B: &str = r#"nexit-report: {"guest":{"name":"b","outcome":"poweroff"}}"#;

    #[test]
    fn all_guests_powered_off_is_success() {
        let verdict = verdict(&[A, B, "nexit: all guests have ended\r"]);
        assert_eq!(verdict.conclude(), Ok(()));
        assert_eq!(verdict.phase, Phase::Ended);
    }

    #[test]
    fn a_machine_that_kvm_has_stopped_is_not_waited_for() {
        let lines =
            ["KVM: entry failed, hardware error 0x80000021", "EAX=00000010", "Code=66 5f <00>"];
        assert_eq!(verdict(&lines[..2]).phase, Phase::Running, "its registers are shown");
        assert_eq!(verdict(&lines).phase, Phase::Halted);
        let text = sentence(&lines);
        assert!(text.ends_with("guest: KVM: entry failed, hardware error 0x80000021"), "{text}");
        assert_eq!(verdict(&["Code=66"]).phase, Phase::Running);
    }

    #[test]
    fn halting_after_the_end_is_no_failure() {
        assert_eq!(verdict(&[A, B, ALL_ENDED, HALTED]).conclude(), Ok(()));
    }

    #[test]
    fn every_guest_that_did_not_power_off_is_named() {
        let crash = B.replace("poweroff", "crash");
        let text = sentence(&[&crash, ALL_ENDED]);
        assert_eq!(text, "guest a ended without a report; guest b did not power off: crash");
    }

    #[test]
    fn of_a_guest_that_was_restarted_the_last_end_counts() {
        let crash = B.replace("poweroff", "triple_fault");
        assert_eq!(verdict(&[&crash, A, &crash, B, ALL_ENDED]).conclude(), Ok(()));
        assert_eq!(sentence(&[B, A, &crash, ALL_ENDED]), "guest b did not power off: triple_fault");
    }

    #[test]
    fn reports_of_others_do_not_stand_in_for_a_guest() {
        let other = B.replace("\"b\"", "\"c\"");
        assert_eq!(sentence(&[A, &other, ALL_ENDED]), "guest b ended without a report");
    }

    #[test]
    fn a_refusal_ends_the_run_with_its_sentence() {
        let lines = ["nexit: error: device 00:09.0 is not there: remove it", "nexit: halted"];
        assert_eq!(verdict(&lines).phase, Phase::Halted);
        let expected = "the hypervisor halted: device 00:09.0 is not there: remove it";
        assert_eq!(sentence(&lines), expected);
    }

    #[test]
    fn a_machine_that_stops_by_itself_is_a_failure_even_with_all_reports() {
        let stopped = "the machine stopped before all guests ended";
        assert_eq!(sentence(&[A, B]), format!("{stopped} (2 of 2)"));
        let lines = [A, A, "nexit: error: guest b is stuck"];
        assert_eq!(sentence(&lines), format!("{stopped} (1 of 2); last error: guest b is stuck"));
    }

    #[test]
    fn an_error_that_does_not_halt_does_not_fail_the_run() {
        let lines = ["nexit: error: a DMA fault", A, B, ALL_ENDED];
        assert_eq!(verdict(&lines).conclude(), Ok(()));
    }

    #[test]
    fn a_guest_that_talks_of_halting_in_a_sentence_halts_nothing() {
        assert_eq!(verdict(&["linux: nexit: halted", "x"]).phase, Phase::Running);
    }
}
