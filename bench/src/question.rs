//! The three questions that the pictures answer, each for AMD-V and for VT-x.

use crate::bochs::PREFIX;
use crate::chart::{Bar, Chart, Group};
use crate::mode::Mode;
use crate::results::{EXITS_PER_INTERRUPT, EXITS_TO_INIT, Figure, How, Results};

/// In the names of the works of `tests/payload`, which have a table of their own.
const MICRO: &str = "micro-";
/// In the names of works whose window is a second of a work that goes on.
const STEADY: &str = "steady-";

/// Technology, in words and in the names of files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Technology {
    /// The host's CPU, QEMU.
    AmdV,
    /// Bochs.
    VtX,
}

impl Technology {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::VtX, Self::AmdV];

    /// For a reader.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::AmdV => "AMD-V (QEMU)",
            Self::VtX => "VT-x (Bochs)",
        }
    }

    pub(crate) const fn file(self) -> &'static str {
        match self {
            Self::AmdV => "amd-v",
            Self::VtX => "vt-x",
        }
    }

    /// Whether that work was measured on it.
    pub(crate) fn has(self, work: &str) -> bool {
        work.starts_with(PREFIX) == (self == Self::VtX)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Question {
    /// How much more is executed for an operation?
    Instructions,
    /// How many exits does an interrupt cost?
    PerInterrupt,
    /// How many exits does a guest take until `init`?
    ToInit,
}

impl Question {
    /// All, in the order of the page.
    pub(crate) const ALL: [Self; 3] = [Self::Instructions, Self::PerInterrupt, Self::ToInit];

    pub(crate) const fn file(self) -> &'static str {
        match self {
            Self::Instructions => "instructions",
            Self::PerInterrupt => "exits-per-interrupt",
            Self::ToInit => "exits-to-init",
        }
    }

    const fn title(self, ticks: bool) -> &'static str {
        match self {
            Self::Instructions if ticks => "TSC ticks for an operation, bare machine = 1",
            Self::Instructions => "Instructions for an operation, bare machine = 1",
            Self::PerInterrupt => "Exits for each interrupt",
            Self::ToInit => "Exits from the kernel's first instruction to init",
        }
    }

    /// Where a bar is cut.
    const fn longest(self) -> f64 {
        match self {
            Self::Instructions => 4.0,
            Self::PerInterrupt => 8.0,
            Self::ToInit => f64::INFINITY,
        }
    }

    /// The bar's length and its words.
    fn value(self, results: &Results, work: &str, mode: Mode) -> Option<(f64, String)> {
        match self {
            Self::Instructions if mode == Mode::Bare => None,
            Self::Instructions => {
                let figure = results.principal(work, mode);
                let bare = results.median(work, Mode::Bare, figure)?;
                let Figure { median, .. } = results.find(work, mode, figure)?;
                let ratio = (bare > 0.0).then(|| median / bare)?;
                Some((ratio, format!("{ratio:.2}")))
            }
            Self::PerInterrupt => {
                let exits = results.median(work, mode, EXITS_PER_INTERRUPT)?;
                (mode != Mode::Bare).then(|| (exits, format!("{exits:.3}")))
            }
            Self::ToInit => {
                let exits = results.median(work, mode, EXITS_TO_INIT)?;
                Some((exits, format!("{exits:.0}")))
            }
        }
    }

    /// The picture; `None` where nothing was measured.
    pub(crate) fn chart(self, results: &Results, technology: Technology) -> Option<Chart> {
        let works = results
            .works()
            .into_iter()
            .filter(|work| technology.has(work) && !work.contains(MICRO) && !work.contains(STEADY));
        let group = |work: &str| {
            let bar = |mode: Mode| {
                let (value, text) = self.value(results, work, mode)?;
                Some(Bar { mode, value, text })
            };
            let bars: Vec<Bar> = results.modes().into_iter().filter_map(bar).collect();
            let name = work.strip_prefix(PREFIX).unwrap_or(work).to_owned();
            (!bars.is_empty()).then_some(Group { name, bars })
        };
        let groups: Vec<Group> = works.filter_map(group).collect();
        let ticks = results.figures.iter().any(|f| technology.has(&f.work) && f.how == How::Tsc);
        let machine = if ticks { "ticks of the TSC" } else { technology.name() };
        let chart = Chart {
            title: self.title(ticks).to_owned(),
            subtitle: format!("{machine}; shorter is better"),
            groups,
            mark: (self == Self::Instructions).then_some(1.0),
            longest: self.longest(),
        };
        (!chart.groups.is_empty()).then_some(chart)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::FIRST_CPU;

    fn figure(work: &str, mode: Mode, figure: &str, median: f64) -> Figure {
        let (work, figure) = (work.to_owned(), figure.to_owned());
        Figure { work, mode, figure, how: How::Counted, n: 1, min: median, median, max: median }
    }

    fn results() -> Results {
        let figures = vec![
            figure("nvme-qd1", Mode::Bare, FIRST_CPU, 2.0),
            figure("nvme-qd1", Mode::Exiting, FIRST_CPU, 3.0),
            figure("nvme-qd1", Mode::Exiting, EXITS_PER_INTERRUPT, 2.0),
            figure("timer", Mode::Exiting, FIRST_CPU, 3.0),
            figure("micro-eoi", Mode::Exiting, EXITS_PER_INTERRUPT, 1.0),
            figure("vt-x-wake", Mode::Posted, EXITS_PER_INTERRUPT, 0.0),
        ];
        Results { figures, ..Results::default() }
    }

    fn works(chart: &Option<Chart>) -> Vec<&str> {
        chart.iter().flat_map(|chart| &chart.groups).map(|group| group.name.as_str()).collect()
    }

    #[test]
    fn only_works_with_a_value_have_bars_and_technologies_do_not_mix() {
        let all = results();
        let instructions = Question::Instructions.chart(&all, Technology::AmdV);
        assert_eq!(works(&instructions), ["nvme-qd1"], "no bare machine for the timer");
        let bars = &instructions.unwrap().groups[0].bars;
        assert_eq!((bars.len(), bars[0].mode, bars[0].text.as_str()), (1, Mode::Exiting, "1.50"));
        let exits = |technology| Question::PerInterrupt.chart(&all, technology);
        assert_eq!(works(&exits(Technology::AmdV)), ["nvme-qd1"]);
        assert_eq!(works(&exits(Technology::VtX)), ["wake"]);
        assert_eq!(Question::ToInit.chart(&all, Technology::AmdV), None);
    }
}
