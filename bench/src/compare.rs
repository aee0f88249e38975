//! `nexit-bench compare`: which exact counts got worse. Timings never count.

use std::collections::BTreeMap;

use nexit::failure::{Failure, Result};

use crate::mode::Mode;
use crate::results::{EXITS, EXITS_PER_INTERRUPT, EXITS_TO_INIT, Figure, HYPERVISOR, Results};

/// The works of `tests/payload`, whose counts are the same in each run.
const MICRO: &str = "micro-";

/// By how much a figure may grow: nothing where it is no exact count.
///
/// With a guest's own timing in it (how often it is interrupted, how often a CPU halts) a count is not
/// exact. Of such works only what no timing can explain is looked at: an interrupt that begins to exit.
pub(crate) fn tolerance(figure: &Figure, before: f64) -> Option<f64> {
    let name = figure.figure.as_str();
    let micro = figure.work.contains(MICRO);
    match figure.mode {
        // An interrupt window more or less.
        Mode::Exitless | Mode::Exiting | Mode::Posted
            if micro && [HYPERVISOR, EXITS].contains(&name) =>
        {
            Some(0.02 * before)
        }
        // How often a clock is read follows the host's time a little.
        _ if name == EXITS_TO_INIT => Some(0.02 * before),
        // Programs that start ask CPUID, and how many start between two interrupts is the host's time.
        Mode::Exitless if figure.work.contains("process") => None,
        Mode::Exitless if !micro && name == EXITS_PER_INTERRUPT => Some(0.5),
        Mode::Bare | Mode::Exitless | Mode::Exiting | Mode::Posted | Mode::Kvm => None,
    }
}

/// Prints them. The earliest results stand first. Those in ticks of the TSC are of another machine each.
///
/// # Errors
/// Some did.
pub(crate) fn print(history: &[Results]) -> Result<()> {
    let exact: Vec<_> = history.iter().filter(|results| !results.in_ticks()).collect();
    let worse = worse(&exact);
    for line in &worse {
        println!("worse: {line}");
    }
    if worse.is_empty() {
        println!("no exact count got worse in {} files of results", exact.len());
        return Ok(());
    }
    Err(Failure::Failed(format!("{} exact counts got worse", worse.len())))
}

/// Each figure's last value against the one before, wherever that stands.
fn worse(history: &[&Results]) -> Vec<String> {
    type Key<'a> = (&'a str, Mode, &'a str);
    let mut last: BTreeMap<Key<'_>, (&Results, &Figure, Option<String>)> = BTreeMap::new();
    for &results in history {
        for figure in &results.figures {
            let key = (figure.work.as_str(), figure.mode, figure.figure.as_str());
            let before = last.get(&key);
            let line = before.and_then(|(then, before, _)| {
                let most = before.max + tolerance(figure, before.max)?;
                (figure.median > most).then(|| {
                    let Figure { work, figure: name, median, .. } = figure;
                    let (mode, was) = (figure.mode.name(), before.median);
                    let (new, old) = (&results.revision, &then.revision);
                    format!("{work}, {mode}: {name} {median:.2} ({new}), was {was:.2} ({old})")
                })
            });
            last.insert(key, (results, figure, line));
        }
    }
    last.into_values().filter_map(|(_, _, line)| line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{How, TIME};

    fn results(work: &str, figure: &str, value: f64) -> Results {
        let figure = Figure {
            work: work.to_owned(),
            mode: Mode::Exitless,
            figure: figure.to_owned(),
            how: How::Counted,
            n: 1,
            min: value,
            median: value,
            max: value,
        };
        Results { figures: vec![figure], ..Results::default() }
    }

    #[test]
    fn a_longer_exit_is_seen_and_a_slower_run_is_not() {
        let seen = |work, figure, before, after| {
            let [before, after] = [before, after].map(|value| results(work, figure, value));
            worse(&[&before, &after]).len()
        };
        assert_eq!(seen("micro-cpuid", HYPERVISOR, 94.0, 100.0), 1);
        assert_eq!(seen("micro-eoi", EXITS, 0.0, 1.0), 1);
        assert_eq!(seen("reads", EXITS_PER_INTERRUPT, 0.01, 1.0), 1);
        assert_eq!(seen("reads", EXITS_PER_INTERRUPT, 0.01, 0.06), 0);
        assert_eq!(seen("reads", EXITS, 1.0, 2.0) + seen("micro-cpuid", TIME, 1.0, 9.0), 0);
    }

    #[test]
    fn results_that_lack_a_figure_do_not_hide_what_it_was_before() {
        let [first, other, last] = [("micro-eoi", 0.0), ("micro-cpuid", 90.0), ("micro-eoi", 1.0)]
            .map(|(work, value)| results(work, EXITS, value));
        let better = results("micro-eoi", EXITS, 0.0);
        assert_eq!(worse(&[&first, &other, &last]).len(), 1);
        assert!(worse(&[&first, &other, &last, &better]).is_empty(), "mended");
    }
}
