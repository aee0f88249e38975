//! `nexit-bench compare`: which exact counts got worse. Timings never count.

use nexit::failure::{Failure, Result};

use crate::mode::Mode;
use crate::results::{EXITS, EXITS_PER_INTERRUPT, Figure, HYPERVISOR, Results};

/// The works of `tests/payload`, whose counts are the same in each run.
const MICRO: &str = "micro-";

/// By how much a figure may grow: nothing where it is no exact count.
///
/// With a guest's own timing in it (how often it is interrupted, how often a CPU halts) a count is not
/// exact. Of such works only what no timing can explain is looked at: an interrupt that begins to exit.
fn tolerance(figure: &Figure, before: f64) -> Option<f64> {
    let name = figure.figure.as_str();
    let micro = figure.work.contains(MICRO);
    match figure.mode {
        // An interrupt window more or less.
        Mode::Exitless | Mode::Exiting | Mode::Posted
            if micro && [HYPERVISOR, EXITS].contains(&name) =>
        {
            Some(0.02 * before)
        }
        Mode::Exitless if !micro && name == EXITS_PER_INTERRUPT => Some(0.5),
        Mode::Bare | Mode::Exitless | Mode::Exiting | Mode::Posted | Mode::Kvm => None,
    }
}

/// Prints them.
///
/// # Errors
/// Some did.
pub(crate) fn print(old: &Results, new: &Results) -> Result<()> {
    let worse = worse(old, new);
    println!("{} ({}) against {} ({})", new.revision, new.date, old.revision, old.date);
    for line in &worse {
        println!("worse: {line}");
    }
    if worse.is_empty() {
        println!("no exact count got worse");
        return Ok(());
    }
    Err(Failure::Failed(format!("{} exact counts got worse", worse.len())))
}

fn worse(old: &Results, new: &Results) -> Vec<String> {
    let grown = |figure: &Figure| {
        let before = old.find(&figure.work, figure.mode, &figure.figure)?;
        let most = before.max + tolerance(figure, before.max)?;
        (figure.median > most).then(|| {
            let Figure { work, figure: name, median, .. } = figure;
            format!("{work}, {}: {name} {median:.2}, was {:.2}", figure.mode.name(), before.median)
        })
    };
    new.figures.iter().filter_map(grown).collect()
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
            worse(&results(work, figure, before), &results(work, figure, after)).len()
        };
        assert_eq!(seen("micro-cpuid", HYPERVISOR, 94.0, 100.0), 1);
        assert_eq!(seen("micro-eoi", EXITS, 0.0, 1.0), 1);
        assert_eq!(seen("reads", EXITS_PER_INTERRUPT, 0.01, 1.0), 1);
        assert_eq!(seen("reads", EXITS_PER_INTERRUPT, 0.01, 0.06), 0);
        assert_eq!(seen("reads", EXITS, 1.0, 2.0) + seen("micro-cpuid", TIME, 1.0, 9.0), 0);
    }
}
