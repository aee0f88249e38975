//! The table on the console. Pure.

use std::fmt::Write as _;

use crate::bochs::PREFIX;
use crate::mode::Mode;
use crate::results::{
    EXITS, EXITS_PER_INTERRUPT, FIRST_CPU, Figure, HYPERVISOR, HYPERVISOR_TICKS, INSTRUCTIONS,
    PER_EXIT, Results, TICKS, TIME,
};

/// Heading, figure, digits behind the point.
type Column = (&'static str, &'static str, usize);
const INSTRUCTION_COLUMNS: [Column; 7] = [
    ("instr/op", INSTRUCTIONS, 0),
    ("first CPU's", FIRST_CPU, 0),
    ("hyp. instr/op", HYPERVISOR, 1),
    ("exits/op", EXITS, 3),
    ("exits/interrupt", EXITS_PER_INTERRUPT, 3),
    ("hyp. instr/exit", PER_EXIT, 0),
    ("ns/op (timed)", TIME, 0),
];
const TICK_COLUMNS: [Column; 5] = [
    ("ticks/op", TICKS, 0),
    ("hyp. ticks/op", HYPERVISOR_TICKS, 0),
    ("exits/op", EXITS, 3),
    ("exits/interrupt", EXITS_PER_INTERRUPT, 3),
    ("ns/op (timed)", TIME, 0),
];

/// All works, one row for each mode: medians, and the spread of the instructions or ticks.
pub(crate) fn text(results: &Results) -> String {
    let mut text = String::new();
    for (prefix, machine) in [("", "emulator"), (PREFIX, "emulator of VT-x")] {
        let works: Vec<&str> = results
            .works()
            .into_iter()
            .filter(|w| w.starts_with(PREFIX) != prefix.is_empty())
            .collect();
        if !works.is_empty() {
            let name = results.machine.get(machine).map_or("", String::as_str);
            let (technology, columns): (_, &[Column]) = match prefix {
                "" if results.in_ticks() => ("ticks of the TSC, not instructions", &TICK_COLUMNS),
                "" => ("AMD-V", &INSTRUCTION_COLUMNS),
                _ => ("VT-x", &INSTRUCTION_COLUMNS),
            };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{technology}, {name}");
            part(&mut text, results, &works, columns);
        }
    }
    for note in &results.notes {
        let _ = writeln!(text, "note: {note}");
    }
    text
}

fn part(text: &mut String, results: &Results, works: &[&str], columns: &[Column]) {
    let _ = write!(text, "{:<32}{:<10}", "work", "mode");
    for (heading, _, _) in columns {
        let _ = write!(text, "{heading:>17}");
    }
    let _ = writeln!(text, "{:>10}{:>10}", "of bare", "spread");
    for work in works {
        for mode in results.modes() {
            row(text, results, work, mode, columns);
        }
    }
}

fn row(text: &mut String, results: &Results, work: &str, mode: Mode, columns: &[Column]) {
    let Some(principal) = results.find(work, mode, results.principal(work, mode)) else { return };
    let _ = write!(text, "{work:<32}{:<10}", mode.name());
    for &(_, figure, digits) in columns {
        let cell = results.median(work, mode, figure);
        let cell = cell.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"));
        let _ = write!(text, "{cell:>17}");
    }
    let of_bare = of_bare(results, principal);
    let of_bare = of_bare.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.3}"));
    let _ = writeln!(text, "{of_bare:>10}{:>9.1}%", 100.0 * spread(principal));
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
