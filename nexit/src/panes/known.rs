//! What the hypervisor's own lines tell of the machine: its guests, who is typed to, and the live table.
//!
//! Only marked lines are read here, so that no guest can have a say in it. The hypervisor says where keys go; this program
//! does not guess it, and another user of the same line may have moved it.

/// Who is typed to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Focus {
    Guest(usize),
    Monitor,
}

/// A guest, as far as the log tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Guest {
    pub(super) name: String,
    /// `running`, or how it ended.
    pub(super) state: String,
}

/// Where a line of the log is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shown {
    InTheLog,
    /// It is part of [`Known::table`].
    InTheTable,
}

/// What is known.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) guests: Vec<Guest>,
    pub(super) focus: Focus,
    /// The live table's rows, the heading first.
    pub(super) table: Vec<String>,
    /// Where the columns of the answer to `guests` are that is coming in.
    columns: Option<(usize, usize)>,
}

/// In the heading of the live table alone, which has this column last.
const TABLE: &str = "most often, each second";

impl Known {
    pub(super) fn new(names: &[String]) -> Self {
        let guests = names.iter().map(|name| running(name)).collect();
        Self { guests, focus: Focus::Guest(0), table: Vec::new(), columns: None }
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.guests.iter().map(|guest| guest.name.clone()).collect()
    }

    /// Reads a line of the log, without `nexit: ` and line end.
    pub(super) fn line(&mut self, line: &str) -> Shown {
        if line.ends_with(TABLE) {
            self.table = vec![line.to_owned()];
            return Shown::InTheTable;
        }
        if self.is_row(line) {
            self.table.push(line.to_owned());
            return Shown::InTheTable;
        }
        self.guests_answer(line);
        if line.starts_with("Nexit ") {
            *self = Self::new(&[]);
        } else if line.starts_with("typing to the monitor") {
            self.focus = Focus::Monitor;
        } else if let Some(number) = line.strip_prefix("typing to guest ") {
            let number = number.split(',').next().and_then(|number| number.parse::<usize>().ok());
            self.focus = Focus::Guest(number.unwrap_or(1).saturating_sub(1));
        } else if let Some((name, what)) =
            line.strip_prefix("guest ").and_then(|it| it.split_once(": "))
        {
            self.guest_line(name, what);
        }
        Shown::InTheLog
    }

    /// The next line that the hypervisor logs is no row of an answer any more.
    pub(super) fn prompt(&mut self) {
        self.columns = None;
    }

    fn guest_line(&mut self, name: &str, what: &str) {
        // Guests are built in the order of the configuration.
        if what.starts_with("nested table: ") || what.starts_with("nested table ") {
            self.add(name);
        }
        let Some(guest) = self.guests.iter_mut().find(|guest| guest.name == name) else { return };
        if what == "entering" {
            "running".clone_into(&mut guest.state);
        } else if let Some((outcome, exits)) = what.split_once(" after ")
            && exits.ends_with(" exits")
        {
            outcome.clone_into(&mut guest.state);
        }
    }

    fn add(&mut self, name: &str) {
        if !self.guests.iter().any(|guest| guest.name == name) {
            self.guests.push(running(name));
        }
    }

    /// The answer to the monitor's `guests`: for who comes when the machine has long started.
    fn guests_answer(&mut self, line: &str) {
        if line.trim_start().starts_with('#') {
            let column = |name: &str| line.find(name);
            self.columns = column("guest").zip(column("state"));
            return;
        }
        let Some((guest, state)) = self.columns else { return };
        let number = line.get(..guest).map_or("", str::trim);
        let (name, rest) = (line.get(guest..state), line.get(state..));
        match (number.parse::<usize>(), name, rest) {
            (Ok(1..), Some(name), Some(rest)) => {
                let name = name.trim_end();
                self.add(name);
                let state = rest.split("  ").next().unwrap_or_default();
                if let Some(guest) = self.guests.iter_mut().find(|guest| guest.name == name) {
                    state.clone_into(&mut guest.state);
                }
            }
            _ => self.columns = None,
        }
    }

    /// A row stands under the heading: its CPU and its rate are numbers.
    fn is_row(&self, line: &str) -> bool {
        let Some(heading) = self.table.first() else { return false };
        let Some((cpu, rate)) = heading.find("CPU").zip(heading.find("exits/s")) else {
            return false;
        };
        let field = |from: usize, name: &str| line.get(from..from + name.len()).map(str::trim);
        let known = self.guests.iter().any(|guest| line.starts_with(&guest.name));
        known
            && field(cpu, "CPU").is_some_and(|text| text.parse::<u32>().is_ok())
            && field(rate, "exits/s").is_some_and(|text| text == "-" || text.parse::<f64>().is_ok())
    }
}

fn running(name: &str) -> Guest {
    Guest { name: name.to_owned(), state: "running".to_owned() }
}

#[cfg(test)]
mod tests {
    use view::exits::{Busy, Count, top};
    use view::{Column, Table};

    use super::*;

    fn read(known: &mut Known, lines: &[&str]) {
        for line in lines {
            assert_eq!(known.line(line), Shown::InTheLog, "{line}");
        }
    }

    fn states(known: &Known) -> Vec<(&str, &str)> {
        known.guests.iter().map(|guest| (guest.name.as_str(), guest.state.as_str())).collect()
    }

    #[test]
    fn the_log_of_a_boot_names_the_guests_and_their_ends() {
        let mut known = Known::new(&["old".to_owned()]);
        read(
            &mut known,
            &[
                "Nexit 0.1.0",
                "guest a: nested table 0 x 1G, 256 x 2M, 0 x 4K",
                "guest b c: nested table 0 x 1G, 1 x 2M, 0 x 4K",
                "guest a: entering",
                "guest b c: poweroff after 12 exits",
            ],
        );
        assert_eq!(states(&known), [("a", "running"), ("b c", "poweroff")]);
        read(&mut known, &["guest b c: entering"]);
        assert_eq!(states(&known)[1].1, "running");
    }

    #[test]
    fn the_focus_is_where_the_hypervisor_says() {
        let mut known = Known::new(&[]);
        assert_eq!(known.focus, Focus::Guest(0));
        read(&mut known, &["typing to the monitor: `help` lists its commands, Ctrl-A n goes back"]);
        assert_eq!(known.focus, Focus::Monitor);
        read(&mut known, &["typing to guest 2, b"]);
        assert_eq!(known.focus, Focus::Guest(1));
    }

    /// The monitor's own table.
    #[test]
    fn who_comes_late_learns_the_guests_from_the_monitor() {
        let mut table = Table::new(&[
            Column::Right("#"),
            Column::Left("guest"),
            Column::Left("state"),
            Column::Right("up, s"),
        ]);
        for (number, name, state) in [("1", "linux", "running"), ("2", "b c", "stopped")] {
            table.row([number, name, state, "17"].map(str::to_owned));
        }
        let mut known = Known::new(&[]);
        for line in table.lines() {
            known.line(&line);
        }
        known.prompt();
        read(&mut known, &["3     x       y           4"]);
        assert_eq!(states(&known), [("linux", "running"), ("b c", "stopped")]);
    }

    #[test]
    fn the_live_table_is_taken_out_of_the_log() {
        let counts = vec![Count { reason: "cpuid", total: 9, new: 4 }];
        let busy = |guest, cpu, ms| Busy { guest, cpu, ms, counts: counts.clone() };
        let rows = top(&[busy("a", 0, 2000), busy("a", 1, 10), busy("long name", 0, 1000)]);
        let mut known = Known::new(&["a".to_owned(), "long name".to_owned()]);
        for _ in 0..2 {
            for row in &rows {
                assert_eq!(known.line(row), Shown::InTheTable, "{row}");
            }
            assert_eq!(known.table, rows);
        }
        read(&mut known, &["guest a: poweroff after 12 exits", "a line of the log"]);
    }
}
