//! The table on the console. Pure.

use std::fmt::Write as _;

use crate::mode::Mode;
use crate::results::{
    EXITS, EXITS_PER_INTERRUPT, FIRST_CPU, Figure, HYPERVISOR, INSTRUCTIONS, PER_EXIT, Results,
    TIME, principal,
};

/// The columns: heading, figure, digits behind the point.
const COLUMNS: [(&str, &str, usize); 7] = [
    ("instr/op", INSTRUCTIONS, 0),
    ("first CPU's", FIRST_CPU, 0),
    ("hyp. instr/op", HYPERVISOR, 1),
    ("exits/op", EXITS, 3),
    ("exits/interrupt", EXITS_PER_INTERRUPT, 3),
    ("hyp. instr/exit", PER_EXIT, 0),
    ("ns/op (timed)", TIME, 0),
];

/// All works, one row for each mode: medians, and the spread of the instructions.
pub(crate) fn text(results: &Results) -> String {
    let mut text = format!("{:<26}{:<10}", "work", "mode");
    for (heading, _, _) in COLUMNS {
        // Writing to a String cannot fail.
        let _ = write!(text, "{heading:>17}");
    }
    let _ = writeln!(text, "{:>10}{:>10}", "of bare", "spread");
    for work in results.works() {
        for mode in results.modes() {
            row(&mut text, results, work, mode);
        }
    }
    for note in &results.notes {
        let _ = writeln!(text, "note: {note}");
    }
    text
}

fn row(text: &mut String, results: &Results, work: &str, mode: Mode) {
    let Some(instructions) = results.find(work, mode, principal(work)) else { return };
    let _ = write!(text, "{work:<26}{:<10}", mode.name());
    for (_, figure, digits) in COLUMNS {
        let cell = results.median(work, mode, figure);
        let cell = cell.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"));
        let _ = write!(text, "{cell:>17}");
    }
    let of_bare = of_bare(results, instructions);
    let of_bare = of_bare.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.3}"));
    let _ = writeln!(text, "{of_bare:>10}{:>9.1}%", 100.0 * spread(instructions));
}

/// A figure in proportion to the bare machine's.
pub(crate) fn of_bare(results: &Results, figure: &Figure) -> Option<f64> {
    let bare = results.median(&figure.work, Mode::Bare, &figure.figure)?;
    (bare > 0.0).then(|| figure.median / bare)
}

/// The range in proportion to the median.
pub(crate) fn spread(figure: &Figure) -> f64 {
    if figure.median > 0.0 { (figure.max - figure.min) / figure.median } else { 0.0 }
}
