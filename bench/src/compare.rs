//! `nexit-bench compare`: which exact counts got worse. Timings never count.

use nexit::failure::{Failure, Result};

use crate::mode::Mode;
use crate::results::{EXITS, Figure, HYPERVISOR, PER_EXIT, Results};

/// What the hypervisor alone decides: nothing else of a guest's run makes these grow.
const WATCHED: [&str; 3] = [HYPERVISOR, EXITS, PER_EXIT];
/// Less than this is noise: the watchdog's calls fall differently in each run.
const TOLERANCE: f64 = 0.05;

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
    let watched = |figure: &&Figure| {
        WATCHED.contains(&figure.figure.as_str())
            && [Mode::Exitless, Mode::Exiting].contains(&figure.mode)
    };
    let grown = |figure: &Figure| {
        let before = old.find(&figure.work, figure.mode, &figure.figure)?;
        // Beyond all that was seen before, and beyond the noise.
        (figure.median > before.max * (1.0 + TOLERANCE) + TOLERANCE).then(|| {
            let Figure { work, figure: name, median, .. } = figure;
            format!("{work}, {}: {name} {median:.2}, was {:.2}", figure.mode.name(), before.median)
        })
    };
    new.figures.iter().filter(watched).filter_map(grown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{How, TIME};

    fn results(figure: &str, value: f64) -> Results {
        let figure = Figure {
            work: "reads".to_owned(),
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
    fn an_exit_more_is_seen_and_a_second_more_is_not() {
        assert_eq!(worse(&results(EXITS, 1.0), &results(EXITS, 2.0)).len(), 1);
        assert!(worse(&results(EXITS, 1.0), &results(EXITS, 1.01)).is_empty());
        assert!(worse(&results(TIME, 1.0), &results(TIME, 9.0)).is_empty());
    }
}
