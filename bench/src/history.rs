//! The results that stay in the tree: of each machine the newest, whole, and a line for each figure of each run.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use clap::ValueEnum as _;
use nexit::failure::{Failure, OrFailed, Result};

use crate::compare;
use crate::growth::GROWTH;
use crate::mode::Mode;
use crate::question::Technology;
use crate::results::{self, EXITS_PER_INTERRUPT, EXITS_TO_INIT, Figure, How, Results};

/// The lines' file, in the folder of what stays.
pub(crate) const FILE: &str = "history.csv";
const HEAD: &str = "date,revision,work,mode,figure,how,n,least,median,most";

/// Keeps `new` in `folder`: as the newest of its machine, and as lines of the history.
///
/// # Errors
/// A file cannot be read or written.
pub(crate) fn keep(new: &Results, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).or_failed("create", folder)?;
    for (name, part) in parts(new) {
        let path = folder.join(format!("{name}.json"));
        let old = if path.is_file() { results::load(&path)? } else { Results::default() };
        results::write(&renewed(old, part), &path)?;
    }
    let path = folder.join(FILE);
    let mut all = if path.is_file() { read(&path)? } else { Vec::new() };
    let same = |old: &Results| (&old.date, &old.revision) == (&new.date, &new.revision);
    all.retain(|old| !same(old));
    all.push(Results { figures: lasting(new), ..new.clone() });
    all.sort_by(|a, b| a.date.cmp(&b.date));
    fs::write(&path, text(&all)).or_failed("write", &path)
}

/// The new results, and what they do not have of the old ones: not every run does every work in every mode.
fn renewed(mut old: Results, new: Results) -> Results {
    let again = |figure: &Figure| {
        new.figures.iter().any(|f| (&f.work, f.mode) == (&figure.work, figure.mode))
    };
    old.figures.retain(|figure| !again(figure));
    if old.figures.is_empty() {
        return new;
    }
    old.merge(new);
    old
}

/// By machine: each has its own newest run.
fn parts(results: &Results) -> Vec<(&'static str, Results)> {
    let part = |name, has: &dyn Fn(&str) -> bool| {
        let figures: Vec<Figure> =
            results.figures.iter().filter(|figure| has(&figure.work)).cloned().collect();
        (!figures.is_empty()).then(|| (name, Results { figures, ..results.clone() }))
    };
    if results.is_growth() {
        return part(GROWTH, &|_| true).into_iter().collect();
    }
    let technology = |t: Technology| part(t.file(), &move |work| t.has(work));
    Technology::ALL.into_iter().filter_map(technology).collect()
}

/// What a later run is held against, and what the pictures show.
fn lasting(results: &Results) -> Vec<Figure> {
    let lasts = |figure: &&Figure| {
        let Figure { work, mode, figure: name, .. } = *figure;
        let micro = work.contains("micro-");
        results.is_growth()
            || compare::tolerance(figure, figure.max).is_some()
            || (!micro && name == results.principal(work, *mode))
            || (!micro && [EXITS_PER_INTERRUPT, EXITS_TO_INIT].contains(&name.as_str()))
    };
    results.figures.iter().filter(lasts).cloned().collect()
}

fn text(all: &[Results]) -> String {
    let mut text = format!("{HEAD}\n");
    for Results { date, revision, figures, .. } in all {
        for Figure { work, mode, figure, how, n, min, median, max } in figures {
            let (mode, how) = (mode.name(), how.name());
            // Names have no comma but the one before "in all" and "bytes".
            let figure = figure.replace(',', ";");
            // Writing to a String cannot fail.
            let [min, median, max] = [min, median, max].map(|n| (n * 1e4).round() / 1e4);
            let _ = writeln!(
                text,
                "{date},{revision},{work},{mode},{figure},{how},{n},{min},{median},{max}"
            );
        }
    }
    text
}

/// The runs of a file of lines.
///
/// # Errors
/// It cannot be read, or a line is none of ours.
pub(crate) fn read(path: &Path) -> Result<Vec<Results>> {
    let text = fs::read_to_string(path).or_failed("read", path)?;
    let mut all: Vec<Results> = Vec::new();
    for (number, line) in text.lines().enumerate().skip(1) {
        let unreadable = || {
            let place = format!("{}, line {}", path.display(), number + 1);
            Failure::Failed(format!("{place}: not ten values as the first line names them: {line}"))
        };
        let (date, revision, figure) = parse(line).ok_or_else(unreadable)?;
        match all.last_mut() {
            Some(run) if (run.date.as_str(), run.revision.as_str()) == (date, revision) => {
                run.figures.push(figure);
            }
            _ => all.push(Results {
                date: date.to_owned(),
                revision: revision.to_owned(),
                figures: vec![figure],
                ..Results::default()
            }),
        }
    }
    Ok(all)
}

fn parse(line: &str) -> Option<(&str, &str, Figure)> {
    let values: Vec<&str> = line.split(',').collect();
    let [date, revision, work, mode, figure, how, n, min, median, max] = values[..] else {
        return None;
    };
    let figure = Figure {
        work: work.to_owned(),
        mode: Mode::from_str(mode, false).ok()?,
        figure: figure.replace(';', ","),
        how: How::ALL.into_iter().find(|known| known.name() == how)?,
        n: n.parse().ok()?,
        min: min.parse().ok()?,
        median: median.parse().ok()?,
        max: max.parse().ok()?,
    };
    Some((date, revision, figure))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{EXITS, TIME};

    fn run(date: &str, figures: &[(&str, &str, f64)]) -> Results {
        let figure = |&(work, name, value): &(&str, &str, f64)| Figure {
            work: work.to_owned(),
            mode: Mode::Exitless,
            figure: name.to_owned(),
            how: How::Counted,
            n: 3,
            min: value,
            median: value,
            max: value + 0.5,
        };
        let figures = figures.iter().map(figure).collect();
        let (date, revision) = (date.to_owned(), "abc".to_owned());
        Results { date, revision, figures, ..Results::default() }
    }

    #[test]
    fn a_run_leaves_its_lasting_figures_as_lines_and_each_machine_its_newest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let figures = [("micro-eoi", EXITS, 0.0), ("reads", TIME, 9.0)];
        keep(&run("2026-02", &figures), path).unwrap();
        keep(&run("2026-01", &[("vt-x-micro-eoi", EXITS, 1.0)]), path).unwrap();
        // Once more: nothing twice.
        keep(&run("2026-02", &figures), path).unwrap();

        let history = read(&path.join(FILE)).unwrap();
        let seen: Vec<_> = history.iter().map(|r| (r.date.as_str(), r.figures.len())).collect();
        assert_eq!(seen, [("2026-01", 1), ("2026-02", 1)]);
        let figure = &history[1].figures[0];
        assert_eq!((figure.n, figure.median, figure.max, figure.how), (3, 0.0, 0.5, How::Counted));
        let newest = |name: &str| results::load(&path.join(name)).unwrap().figures.len();
        assert_eq!((newest("amd-v.json"), newest("vt-x.json")), (2, 1));
    }

    #[test]
    fn a_run_of_some_works_leaves_the_others_of_the_newest() {
        let old = run("2026-01", &[("reads", EXITS, 2.0), ("timer", EXITS, 3.0)]);
        let both = renewed(old.clone(), run("2026-02", &[("timer", EXITS, 1.0)]));
        assert_eq!(both.date, "2026-01; 2026-02");
        let of = |work| both.median(work, Mode::Exitless, EXITS);
        assert_eq!((both.figures.len(), of("reads"), of("timer")), (2, Some(2.0), Some(1.0)));
        let all = run("2026-03", &[("reads", EXITS, 2.0), ("timer", EXITS, 1.0)]);
        assert_eq!(renewed(old, all.clone()), all);
    }

    #[test]
    fn a_line_that_is_none_of_ours_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), format!("{HEAD}\n2026,abc,reads,exitless,exits,guessed,1,0,0,0\n"))
            .unwrap();
        let sentence = read(file.path()).unwrap_err().to_string();
        assert!(sentence.contains("line 2"), "{sentence}");
    }
}
