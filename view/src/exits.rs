//! Exits by reason: what comes most often first.

use alloc::string::String;
use alloc::vec::Vec;
use alloc::{format, vec};
use core::fmt;

use crate::{Column, Lines, Table};

/// How often a guest's CPU has exited for one reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Count {
    /// The reason's key in reports.
    pub reason: &'static str,
    /// Since the guest's start.
    pub total: u64,
    /// Since it was last asked.
    pub new: u64,
}

/// Exits in a time; less than a second makes no rate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Rate {
    exits: u64,
    ms: u64,
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ms < 1000 {
            return f.write_str("-");
        }
        let tenths = self.exits.saturating_mul(10_000) / self.ms;
        write!(f, "{}.{}", tenths / 10, tenths % 10)
    }
}

/// In the order of their rates; those with none by their number.
fn sorted(counts: &[Count]) -> Vec<Count> {
    // They are few: each goes before the first that is less.
    let mut sorted: Vec<Count> = Vec::new();
    for count in counts.iter().filter(|count| count.total > 0) {
        let less = |other: &Count| (other.new, other.total) < (count.new, count.total);
        let at = sorted.iter().position(less).unwrap_or(sorted.len());
        sorted.insert(at, *count);
    }
    sorted
}

/// One CPU's exits: `who` it is, and how long ago it was last asked.
#[must_use]
pub fn table(who: &str, counts: &[Count], ms: u64) -> Lines {
    let counts = sorted(counts);
    let sum = |of: fn(&Count) -> u64| counts.iter().map(of).fold(0, u64::wrapping_add);
    let (total, new) = (sum(|count| count.total), sum(|count| count.new));
    let (seconds, rate) = (Tenths(ms / 100), Rate { exits: new, ms });
    let mut lines = vec![format!("{who}: {total} exits; {new} in the last {seconds} s")];
    let mut table = Table::new(&[
        Column::Left("  reason"),
        Column::Right("exits"),
        Column::Right("new"),
        Column::Right("new/s"),
    ]);
    let mut row = |reason: &str, total: u64, new: u64, rate: Rate| {
        table.row([format!("  {reason}"), format!("{total}"), format!("{new}"), format!("{rate}")]);
    };
    for Count { reason, total, new } in &counts {
        row(reason, *total, *new, Rate { exits: *new, ms });
    }
    if counts.len() > 1 {
        row("all", total, new, rate);
    }
    if !counts.is_empty() {
        lines.extend(table.lines());
    }
    lines
}

/// One CPU's line of `top`.
#[derive(Clone, Debug)]
pub struct Busy<'a> {
    pub guest: &'a str,
    /// Its CPU, counted from 0.
    pub cpu: usize,
    /// Milliseconds in which the new ones came.
    pub ms: u64,
    /// Its exits.
    pub counts: Vec<Count>,
}

/// A line for each CPU: its exits in a second, and the reasons that come most often.
#[must_use]
pub fn top(all: &[Busy<'_>]) -> Lines {
    /// So many reasons are named.
    const NAMED: usize = 4;
    let mut table = Table::new(&[
        Column::Left("guest"),
        Column::Right("CPU"),
        Column::Right("exits/s"),
        Column::Left("most often, each second"),
    ]);
    for Busy { guest, cpu, ms, counts } in all {
        let ms = *ms;
        let counts = sorted(counts);
        let new = counts.iter().map(|count| count.new).fold(0, u64::wrapping_add);
        let most: Vec<String> = counts
            .iter()
            .take_while(|count| count.new > 0)
            .take(NAMED)
            .map(|count| format!("{} {}", count.reason, Rate { exits: count.new, ms }))
            .collect();
        let rate = Rate { exits: new, ms };
        table.row([(*guest).into(), format!("{cpu}"), format!("{rate}"), most.join(", ")]);
    }
    table.lines()
}

/// A number of tenths, as a decimal.
struct Tenths(u64);

impl fmt::Display for Tenths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 / 10, self.0 % 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(reason: &'static str, total: u64, new: u64) -> Count {
        Count { reason, total, new }
    }

    #[test]
    fn what_comes_most_often_is_on_top_and_what_never_came_is_not_there() {
        let counts = [
            count("cpuid", 5000, 0),
            count("io", 254, 250),
            count("halt", 0, 0),
            count("nmi", 9, 9),
        ];
        assert_eq!(
            table("linux, CPU 0", &counts, 2050),
            [
                "linux, CPU 0: 5263 exits; 259 in the last 2.0 s",
                "  reason  exits  new  new/s",
                "  io        254  250  121.9",
                "  nmi         9    9    4.3",
                "  cpuid    5000    0    0.0",
                "  all      5263  259  126.3",
            ]
        );
    }

    #[test]
    fn less_than_a_second_makes_no_rate_and_no_exit_no_table() {
        let lines = table("a, CPU 1", &[count("io", 3, 3)], 999);
        assert_eq!(lines.last().map(String::as_str), Some("  io          3    3      -"));
        assert_eq!(table("a, CPU 1", &[], 0), ["a, CPU 1: 0 exits; 0 in the last 0.0 s"]);
    }

    #[test]
    fn top_has_a_line_for_each_cpu() {
        let busy =
            |cpu, counts: &[Count]| Busy { guest: "linux", cpu, ms: 2000, counts: counts.to_vec() };
        let all = [
            busy(0, &[count("cpuid", 10, 4), count("io", 900, 800), count("msr", 70, 0)]),
            busy(11, &[count("nmi", 3, 2)]),
        ];
        assert_eq!(
            top(&all),
            [
                "guest  CPU  exits/s  most often, each second",
                "linux    0    402.0  io 400.0, cpuid 2.0",
                "linux   11      1.0  nmi 1.0",
            ]
        );
    }
}
